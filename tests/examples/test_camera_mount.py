"""The camera as a file on a FUSE mount of the real kernel, from which programs map frames."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recuse import Mount, MountError
from recuse.cli.spec import load, parse
from recuse.server.filesystem.device_tree import DeviceTree
from tests.conftest import Needs
from tests.examples.frames import FAST, ROOT, SMALL, Look, check, frames_of

PATIENCE_S = 30

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def camera() -> Any:
    return load(parse(str(ROOT / "examples" / FAST)))


@pytest.fixture
def file(needs: Needs, tmp_path: Path, camera: Any) -> Iterator[str]:
    """The camera's path."""
    needs("/dev/fuse")
    if os.geteuid():
        pytest.skip("only root may mount")
    served = Mount(DeviceTree([camera]), tmp_path)
    try:
        served.start()
        if not served.has_backing:
            pytest.skip("this kernel has no FUSE passthrough")
        yield f"{tmp_path}/video9"
    except MountError as error:
        pytest.skip(str(error))
    finally:
        served.close()
    for thread in threading.enumerate():
        if thread.name.startswith("recuse-filesystem"):
            thread.join(PATIENCE_S)


@pytest.fixture
def python(file: str) -> Callable[[str], list[str]]:
    """`python(code)`: the lines that a program prints which has the camera's path in `path`."""

    def python(code: str) -> list[str]:
        prelude = f"import sys\nsys.path.insert(0, {str(ROOT / 'examples')!r})\npath = {file!r}\n"
        argv = [sys.executable, "-c", prelude + code]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return python


def ffmpeg(file: str, size: str = "320x240") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [
            *["ffmpeg", "-v", "error", "-f", "v4l2", "-video_size", size, "-i", file],
            *["-frames:v", "5", "-vsync", "passthrough", "-f", "rawvideo", "-"],
        ],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_ffmpeg_maps_frames(file: str, needs: Needs, camera: Any) -> None:
    """The second time larger ones: the area grows."""
    needs("ffmpeg", "ffmpeg")
    for look in (SMALL, Look(640, 480)):
        done = ffmpeg(file, f"{look.width}x{look.height}")
        assert done.returncode == 0
        assert len(check(frames_of(done.stdout, look), look)) == 5


def test_reading(file: str) -> None:
    command = ["head", "-c", str(320 * 240 * 2), file]
    done = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S)
    assert len(check(frames_of(done.stdout, SMALL), SMALL)) == 1


def test_opencv(python: Callable[[str], list[str]]) -> None:
    pytest.importorskip("cv2")
    code = """
import cv2
capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
print([capture.read()[0] for _ in range(3)], capture.set(cv2.CAP_PROP_BRIGHTNESS, 200))
print(capture.get(cv2.CAP_PROP_BRIGHTNESS))
"""
    assert python(code) == ["[True, True, True] True", "200.0"]


def test_one_program_streams_at_a_time(
    python: Callable[[str], list[str]], file: str, needs: Needs, camera: Any
) -> None:
    """All opens have the same memory, and yet the buffers are of one of them."""
    needs("ffmpeg", "ffmpeg")
    code = """
import subprocess
from linuxpy.video.device import Device, VideoCapture
from pictures import Painter, Look, read_number
import numpy as np
with Device(path) as device:
    capture = VideoCapture(device, size=2)
    with capture:
        frames = iter(capture)
        argv = ["ffmpeg", "-v", "error", "-f", "v4l2", "-i", path, "-f", "null", "-"]
        other = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print(other.stderr.splitlines()[-1].partition(": ")[2])
        frame = next(frames)
        data = np.frombuffer(bytes(frame), np.uint8).reshape(240, 640)
        expected = np.empty_like(data)
        Painter().paint(expected, read_number(data[:, ::2]), Look(320, 240))
        print((data == expected).all())
"""
    assert python(code) == ["Device or resource busy", "True"]
    # close(2) does not wait for the release.
    end = time.monotonic() + PATIENCE_S
    while camera.queue.common is not None:
        assert time.monotonic() < end
    assert ffmpeg(file).returncode == 0


def test_extended_controls_cannot_be_had(python: Callable[[str], list[str]]) -> None:
    """They are in an array that a pointer points to; the plain ones can."""
    code = """
import ctypes, errno, fcntl, os
from linuxpy.video import raw
file = os.open(path, os.O_RDWR)
control = raw.v4l2_control(raw.ControlID.BRIGHTNESS, 77)
fcntl.ioctl(file, raw.IOC.S_CTRL & 0xFFFFFFFF, control)
one = raw.v4l2_control(raw.ControlID.BRIGHTNESS)
fcntl.ioctl(file, raw.IOC.G_CTRL & 0xFFFFFFFF, one)
print(one.value)
item = raw.v4l2_ext_control(raw.ControlID.BRIGHTNESS)
asked = raw.v4l2_ext_controls(count=1, controls=ctypes.pointer(item))
try:
    fcntl.ioctl(file, raw.IOC.G_EXT_CTRLS & 0xFFFFFFFF, asked)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    assert python(code) == ["77", "EIO"]
