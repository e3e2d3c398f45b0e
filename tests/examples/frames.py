"""What the tests of the camera know of its frames.

They are compared with what the example's painter paints for the numbers that they carry, so it
does not matter which ones a program gets.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from pictures import Bytes, Look, Painter, read_number, to_jpeg  # noqa: E402

__all__ = [
    "FAST", "ROOT", "SMALL", "Bytes", "Look", "Painter",
    "check", "frames_of", "read_number", "to_jpeg",
]  # fmt: skip

FAST = "camera.py,fps=500,width=320,height=240"
SMALL = Look(320, 240)


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
