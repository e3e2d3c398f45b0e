"""What the camera paints, by numbers that are known from elsewhere."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from pictures import CELL, Bytes, Look, Painter, read_number, to_jpeg

# ITU-R BT.601, 100 % bars.
BARS = {
    "white": (235, 128, 128),
    "yellow": (210, 16, 146),
    "cyan": (170, 166, 16),
    "green": (145, 54, 34),
    "magenta": (106, 202, 222),
    "red": (81, 90, 240),
    "blue": (41, 240, 110),
    "black": (16, 128, 128),
}


def painted(number: int = 0, **look: Any) -> Bytes:
    frame = np.empty((240, 640), np.uint8)
    Painter().paint(frame, number, Look(320, 240, **look))
    return frame


def pixel(frame: Bytes, x: int, y: int = 200) -> tuple[int, ...]:
    """Y, U and V."""
    pair = frame[y, x // 2 * 4 : x // 2 * 4 + 4]
    return int(pair[x % 2 * 2]), int(pair[1]), int(pair[3])


def test_colours() -> None:
    frame = painted()
    for index, colour in enumerate(BARS.values()):
        for x in (40 * index, 40 * index + 39):
            assert pixel(frame, x) == pytest.approx(colour, abs=1)


def test_controls() -> None:
    assert pixel(painted(contrast=64, brightness=160), 50) == pytest.approx((201, 16, 146), abs=1)
    assert pixel(painted(contrast=255), 50)[0] == 255
    assert pixel(painted(contrast=255), 220)[0] == pytest.approx(34, abs=1)
    assert pixel(painted(saturation=0), 50) == pytest.approx((210, 128, 128), abs=1)
    assert pixel(painted(saturation=64), 50) == pytest.approx((210, 72, 137), abs=1)
    assert pixel(painted(hflip=True), 0) == BARS["black"]
    assert (pixel(painted(pattern=2), 0, 239), pixel(painted(pattern=2), 40, 239)) == (
        BARS["black"],
        BARS["white"],
    )
    assert pixel(painted(pattern=2, vflip=True), 0, 239) == BARS["white"]


def test_the_ramp_goes_from_black_to_white() -> None:
    luma = painted(pattern=1)[200, 0::2].astype(int)
    assert (luma[0], luma[-1]) == (16, 235)
    assert (np.diff(luma) >= 0).all()


def test_it_moves_to_the_left() -> None:
    assert pixel(painted(10), 0) == BARS["yellow"]  # by 40 pixels, one bar
    assert (painted(80)[100:] == painted(0)[100:]).all()


@pytest.mark.parametrize("number", [0, 1, 39, 1_234_567, 0xFFFFFFFF])
@pytest.mark.parametrize("jpeg", [False, True])
def test_the_number(number: int, jpeg: bool) -> None:
    frame = painted(number, jpeg=jpeg, brightness=0, contrast=0)
    assert read_number(frame[:, 0::2]) == number
    black, white = (0, 255) if jpeg else (16, 235)
    top = frame[CELL // 2, :512:16]
    assert "".join("1" if value == white else "0" for value in top) == f"{number:032b}"
    assert set(top.tolist()) <= {black, white}


def test_jpeg() -> None:
    """It is of all the colours that it should be, when somebody else decodes it."""
    picture = simplejpeg.decode_jpeg(to_jpeg(painted(jpeg=True), 95), "RGB")
    assert picture.shape == (240, 320, 3)
    found = [tuple(int(value > 127) for value in picture[200, 40 * i + 20]) for i in range(8)]
    assert found == [
        *[(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0)]
    ]
    clean = np.array(found) * 255
    assert np.abs(picture[200, 20::40].astype(int) - clean).max() <= 6
