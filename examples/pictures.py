"""Moving test pictures for a camera, in YUYV and JPEG.

A frame is an array of bytes: ``height`` rows of 2 * ``width`` bytes, Y U Y V for each two pixels.
Its upper left corner shows its own number, for programs (`read_number`) and for people.  The number
is drawn over the picture, so the camera's controls do not change it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

Draw = Callable[[int, int, int], Bytes]
"""Given a frame's number, its width and height, returns (height, width, 3) of R, G and B."""

CELL = 8
"""Width and height in pixels of one bit of the number."""
CELLS = 32
STEP = 4
"""How many pixels a test picture moves to the left with each frame."""

# ITU-R BT.601: the weights of R, G and B in Y, U and V, in 1/65536; 16 to 235 for video, and 0 to
# 255 for JPEG (ITU-T T.871).
_VIDEO = ((16829, 33039, 6416), (-9714, -19070, 28784), (28784, -24103, -4681))
_JPEG = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))

_FONT = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711",
    "5": "74717", "6": "74757", "7": "71111", "8": "75757", "9": "75717",
}  # fmt: skip
"""Five rows of three pixels for each digit."""


@dataclass(frozen=True)
class Look:
    """How a picture looks: the values of the camera's controls."""

    width: int
    height: int
    jpeg: bool = False
    brightness: int = 128
    contrast: int = 128
    saturation: int = 128
    hflip: bool = False
    vflip: bool = False
    pattern: int = 0
    quality: int = 90


def bars(width: int, height: int) -> Bytes:
    """White, yellow, cyan, green, magenta, red, blue and black."""
    number = np.arange(width) * 8 // width
    row = np.stack([~number & 2, ~number & 4, ~number & 1], axis=1) != 0
    return np.broadcast_to(row.astype(np.uint8) * np.uint8(255), (height, width, 3))


def ramp(width: int, height: int) -> Bytes:
    """From black at the left to white at the right."""
    row = (np.arange(width) * 255 // (width - 1)).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3))


def chessboard(width: int, height: int) -> Bytes:
    """Fields of 40 by 40 pixels; 40 divides all of the camera's sizes."""
    y, x = np.ogrid[:height, :width]
    fields = ((x // 40 + y // 40) % 2 == 0).astype(np.uint8) * np.uint8(255)
    return np.broadcast_to(fields[:, :, None], (height, width, 3))


PATTERNS: dict[str, Callable[[int, int], Bytes]] = {
    "Colour bars": bars,
    "Grey ramp": ramp,
    "Chessboard": chessboard,
}


def to_yuyv(rgb: Bytes, look: Look) -> Bytes:
    """Convert a picture, and apply a look to it."""
    weights = _JPEG if look.jpeg else _VIDEO
    rgb = rgb[:: -1 if look.vflip else 1, :: -1 if look.hflip else 1]
    red, green, blue = (rgb[:, :, index].astype(np.int32) for index in range(3))

    def weighted(of: tuple[int, int, int]) -> Any:
        return (of[0] * red + of[1] * green + of[2] * blue + 32768) >> 16

    luma = weighted(weights[0]) + (0 if look.jpeg else 16)
    luma = (luma - 128) * look.contrast // 128 + look.brightness
    frame = np.empty((look.height, look.width * 2), np.uint8)
    frame[:, 0::2] = luma.clip(0, 255)
    for index in (1, 2):
        chroma = weighted(weights[index])
        chroma = (chroma[:, 0::2] + chroma[:, 1::2]) * look.saturation // 256 + 128
        frame[:, 2 * index - 1 :: 4] = chroma.clip(0, 255)
    return frame


def write_number(frame: Bytes, number: int, *, jpeg: bool = False) -> None:
    """Draw a frame's number: its lowest 32 bits in black and white, and digits below."""
    black, white = (0, 255) if jpeg else (16, 235)
    bits = [number >> bit & 1 for bit in reversed(range(CELLS))]
    _draw_cells(frame, 0, np.array([bits], np.uint8), black, white)
    digits = [_FONT[digit] for digit in str(number % 10**7)]
    # With a black border.
    dots = ["0" * (4 * len(digits) + 1)] * 7
    for row in range(5):
        dots[row + 1] = "0" + "".join(f"{int(digit[row]):03b}0" for digit in digits)
    text = np.array([[int(dot) for dot in line] for line in dots], np.uint8)
    _draw_cells(frame, CELL, text, black, white)


def _draw_cells(frame: Bytes, top: int, cells: Bytes, black: int, white: int) -> None:
    """Draw squares at the left, below row ``top``."""
    dots = np.kron(cells, np.ones((CELL, CELL), np.uint8))
    part = frame[top : top + dots.shape[0], : 2 * dots.shape[1]]
    part[:, 0::2] = dots * np.uint8(white - black) + np.uint8(black)
    part[:, 1::2] = 128


def read_number(luma: Bytes) -> int:
    """Return the number that a frame shows.  ``luma`` is its brightness, rows of pixels."""
    middle = luma[CELL // 2, CELL // 2 : CELLS * CELL : CELL]
    return int("".join("1" if value > 127 else "0" for value in middle), 2)


def to_jpeg(frame: Bytes, quality: int) -> bytes:
    """Return a YUYV frame that was painted for JPEG as JPEG; the quality is 1 to 100."""
    planes = (frame[:, 0::2], frame[:, 1::4], frame[:, 3::4])
    data = simplejpeg.encode_jpeg_yuv_planes(*map(np.ascontiguousarray, planes), quality)
    return bytes(data)


def _check(drawn: object, shape: tuple[int, ...]) -> None:
    """Raise TypeError unless it is a picture: authors of `draw` make mistakes."""
    if not isinstance(drawn, np.ndarray):
        found = type(drawn).__name__
    elif drawn.shape != shape or drawn.dtype != np.uint8:
        found = f"{drawn.dtype} of {drawn.shape}"
    else:
        return
    raise TypeError(f"a picture must be uint8 of {shape} (height, width, colours), not {found}")


class Painter:
    """Paints one frame after the other."""

    def __init__(self, draw: Draw | None = None) -> None:
        """Paint the pictures that ``draw`` returns; without it, test pictures."""
        self._draw = draw
        self._background: tuple[Look, Bytes] | None = None

    def paint(self, frame: Bytes, number: int, look: Look) -> None:
        """Fill a frame; raises what `draw` raises, and TypeError if that is not a picture."""
        if self._draw is not None:
            drawn = self._draw(number, look.width, look.height)
            _check(drawn, (look.height, look.width, 3))
            frame[:] = to_yuyv(drawn, look)
            return
        if self._background is None or self._background[0] != look:
            rgb = list(PATTERNS.values())[look.pattern](look.width, look.height)
            self._background = look, to_yuyv(rgb, look)
        background = self._background[1]
        moved = number * STEP % look.width * 2
        frame[:, : frame.shape[1] - moved] = background[:, moved:]
        frame[:, frame.shape[1] - moved :] = background[:, :moved]
        write_number(frame, number, jpeg=look.jpeg)
