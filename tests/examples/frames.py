"""What the tests of the camera know of its frames.

They are compared with what the example's painter paints for the numbers that they carry, so it
does not matter which ones a program gets.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.examples.conftest import in_sandbox

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from pictures import Bytes, Look, Painter, read_number, to_jpeg  # noqa: E402

__all__ = [
    "FAST",
    "PRELUDE",
    "ROOT",
    "SMALL",
    "Bytes",
    "Look",
    "Painter",
    "check",
    "frames_of",
    "python",
    "read_number",
    "to_jpeg",
]  # fmt: skip

FAST = "camera.py,fps=500,width=320,height=240"
SMALL = Look(320, 240)

PRELUDE = f"""
import ctypes, errno, fcntl, mmap, os, select, sys
sys.path.insert(0, {str(ROOT / "examples")!r})
import pictures
from linuxpy.video import raw

IOC, B, MMAP = raw.IOC, raw.BufType.VIDEO_CAPTURE, raw.Memory.MMAP

def opened(flags=os.O_RDWR):
    return os.open("/dev/video9", flags)

def call(command, data, fd=None):
    "The structure that an ioctl makes of another one, or the error's name."
    try:
        fcntl.ioctl(camera if fd is None else fd, command & 0xFFFFFFFF, data)
    except OSError as error:
        return errno.errorcode[error.errno]
    return data

def request(count, fd=None, memory=MMAP):
    done = call(IOC.REQBUFS, raw.v4l2_requestbuffers(count, B, memory), fd)
    return done if isinstance(done, str) else done.count

def buffer(command, index=0, fd=None):
    return call(command, raw.v4l2_buffer(index, B, memory=MMAP), fd)

def stream(on, fd=None):
    done = call(IOC.STREAMON if on else IOC.STREAMOFF, ctypes.c_int(B), fd)
    return done if isinstance(done, str) else "done"

camera = opened()
"""
"""Code that the programs of tests begin with."""


def check(frames: Sequence[Bytes], look: Look) -> list[int]:
    """Check that frames are those of their numbers, one later than the other; return those."""
    numbers = [read_number(frame[:, 0::2]) for frame in frames]
    assert numbers == sorted(set(numbers))
    painter = Painter()
    for number, frame in zip(numbers, frames, strict=True):
        expected = np.empty((look.height, look.width * 2), np.uint8)
        painter.paint(expected, number, look)
        assert (frame == expected).all(), number
    return numbers


def frames_of(data: bytes, look: Look) -> Sequence[Bytes]:
    """The frames that lie one after the other, in YUYV."""
    shape = -1, look.height, look.width * 2
    return list(np.frombuffer(data, np.uint8).reshape(shape))


def python(code: str, spec: str = FAST) -> list[str]:
    """Return the lines that a program prints, whose code follows PRELUDE."""
    outcome: Any = in_sandbox(
        str(ROOT / "examples" / spec),
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return str(outcome.stdout).splitlines()
