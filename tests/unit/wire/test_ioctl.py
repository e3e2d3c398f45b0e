"""ioctl command numbers."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.wire import filesystem, ioctl


class Range(ctypes.Structure):
    """An argument of 12 bytes."""

    _fields_ = (("start", ctypes.c_uint64), ("length", ctypes.c_uint32))
    _pack_ = 4
    _layout_ = "ms"  # which Python 3.14 wants to be told


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (ioctl.IO(0x54, 0x01), 0x5401),  # TCGETS is older than the encoding: no size
        (ioctl.IOR("V", 0, 104), 0x80685600),  # VIDIOC_QUERYCAP
        (ioctl.IOW("V", 18, ctypes.c_int), 0x40045612),  # VIDIOC_STREAMON
        (ioctl.IOWR("V", 8, 20), 0xC0145608),  # VIDIOC_REQBUFS
        (ioctl.IOR("E", 1, ctypes.c_int), 0x80044501),  # EVIOCGVERSION
        (ioctl.IOWR(7, 255, Range), 0xC00C07FF),
        (ioctl.IOW(255, 0, 0x3FFF), 0x7FFFFF00),
        (filesystem.FUSE_DEV_IOC_CLONE, 0x8004E500),
        (filesystem.FUSE_DEV_IOC_BACKING_OPEN, 0x4010E501),
        (filesystem.FUSE_DEV_IOC_BACKING_CLOSE, 0x4004E502),
        (filesystem.FUSE_DEV_IOC_SYNC_INIT, 0x0000E503),
    ],
)
def test_known_commands(command: int, number: int) -> None:
    assert command == number


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 0x3FFF))
def test_what_is_encoded_is_found_again(magic: int, number: int, size: int) -> None:
    for direction, command in (
        (ioctl.IOC_READ, ioctl.IOR(magic, number, size)),
        (ioctl.IOC_WRITE, ioctl.IOW(magic, number, size)),
        (ioctl.IOC_READ | ioctl.IOC_WRITE, ioctl.IOWR(magic, number, size)),
    ):
        assert ioctl.direction(command) == direction
        assert ioctl.type(command) == magic
        assert ioctl.number(command) == number
        assert ioctl.size(command) == size
    assert ioctl.direction(ioctl.IO(magic, number)) == ioctl.IOC_NONE
    assert ioctl.size(ioctl.IO(magic, number)) == 0


@pytest.mark.parametrize(
    ("magic", "number", "size"),
    [
        (256, 0, 0),
        (-1, 0, 0),
        ("\u0100", 0, 0),
        (0, 256, 0),
        (0, -1, 0),
        (0, 0, 0x4000),
        (0, 0, -1),
    ],
)
def test_what_does_not_fit_is_refused(magic: int | str, number: int, size: int) -> None:
    with pytest.raises(ValueError, match="ioctl"):
        ioctl.IOWR(magic, number, size)


def test_an_array_may_be_too_large() -> None:
    with pytest.raises(ValueError, match="at most 16383"):
        ioctl.IOW("E", 0, ctypes.c_uint8 * 16384)
