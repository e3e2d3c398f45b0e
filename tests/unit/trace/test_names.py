"""What numbers are called."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.trace import names
from recuse.wire import cuse
from recuse.wire.ioctl import IO, IOR, IOW, IOWR


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (os.O_RDONLY, "O_RDONLY"),
        (os.O_RDWR | os.O_NONBLOCK, "O_RDWR|O_NONBLOCK"),
        (os.O_SYNC, "O_RDONLY|O_SYNC"),
        (os.O_DSYNC, "O_RDONLY|O_DSYNC"),
        (os.O_ACCMODE, "O_ACCMODE"),
        (os.O_WRONLY | 1 << 31, "O_WRONLY|0x80000000"),
    ],
)
def test_open_flags(value: int, words: str) -> None:
    assert names.open_flags(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0x5401, "TCGETS"),
        (0x8010500C, "SNDCTL_DSP_GETOSPACE"),
        (IOR("E", 0x18, 96), "EVIOCGKEY(96)"),
        (IOR("E", 0x2A, 43), "EVIOCGBIT(0xa, 43)"),
        (IOR("E", 0x40, 24), "_IOR('E', 0x40, 24)"),
        (IOR("T", 0x2A, 44), "TCGETS2"),
        (IOW("E", 0x18, 96), "_IOW('E', 0x18, 96)"),
        (IO("z", 3), "_IO('z', 0x3)"),
        (IOWR(0x8F, 1, 4), "_IOWR(0x8f, 0x1, 4)"),
        (IOR("'", 1, 4), "_IOR(0x27, 0x1, 4)"),
        (IO("z", 3) | 5 << 16, "_IOC(0, 'z', 0x3, 5)"),
    ],
)
def test_ioctl_commands(value: int, words: str) -> None:
    assert names.command(value) == words


@given(st.integers(0, 2**32 - 1))
def test_every_number_has_some_name(value: int) -> None:
    for name in (names.open_flags(value), names.command(value)):
        assert name.isascii()
        assert name.isprintable()


@given(st.binary())
def test_escaped_bytes_can_be_told_apart(data: bytes) -> None:
    escaped = names.escape(data)
    assert escaped.isascii()
    assert escaped.isprintable()
    assert eval(f'b"{escaped}"') == data


@given(st.text())
def test_names_take_one_column(name: str) -> None:
    shown = names.printable(name)
    assert shown.isprintable()
    assert " " not in shown


def test_recuses_own_flags_have_names() -> None:
    flags = cuse.CUSE_UNRESTRICTED_IOCTL | cuse.RECUSE_SEEKABLE | cuse.RECUSE_SYSFS
    assert names.number("cuse_init_out", "flags", flags) == (
        "CUSE_UNRESTRICTED_IOCTL|RECUSE_SEEKABLE|RECUSE_SYSFS"
    )
