"""Files that ioctls make: who gets them, and that each is released once."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.char.files import OpenFile
from recuse.kernel.errors import os_error
from recuse.wire import ioctl
from recuse.wire.cuse import RECUSE_IOCTL_FILE, recuse_ioctl_file
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_IOCTL_RETRY,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
    fuse_release_in,
)

from ..support import PAGE, Answer, FakeMemory, Opened, error_of, finish

COMMAND = ioctl.IOWR("x", 1, 12)
DATA = b"abcdefgh\xff\xff\xff\xff"
NUMBER = 1000


def made(
    fh: int = 9, flags: int = os.O_RDWR, offset: int = 8, data: bytes = DATA, result: int = 0
) -> bytes:
    out = fuse_ioctl_out(result=result, flags=RECUSE_IOCTL_FILE)
    return out.pack() + recuse_ioctl_file(fh, flags, offset).pack() + data


class Maker(Opened):
    """A device whose ioctls make files, and a caller with a table of descriptors."""

    def __init__(
        self,
        *answers: Answer,
        error: int = 0,
        memory: FakeMemory | None = None,
        unrestricted: bool = False,
        new_files: bool = True,
    ) -> None:
        left = list(answers)
        super().__init__(
            lambda message: left.pop(0) if message.opcode == FUSE_IOCTL else b"read",
            memory=memory,
            unrestricted=unrestricted,
            new_files=new_files,
        )
        self.error = error
        self.installed: list[tuple[OpenFile, bool]] = []

    def install(self, file: OpenFile, cloexec: bool) -> int:
        if self.error:
            raise os_error(self.error)
        self.installed.append((file, cloexec))
        return NUMBER

    def make(self, argument: int = 64, **options: Any) -> int:
        operation = self.file.ioctl(self.caller, COMMAND, argument, install=self.install)
        return finish(self.connection, operation)

    @property
    def released(self) -> list[fuse_release_in]:
        return [message.body for message in self.server.messages if message.opcode == FUSE_RELEASE]


def test_the_caller_gets_the_file_and_its_number() -> None:
    maker = Maker(made(flags=os.O_RDWR | os.O_CLOEXEC, result=3))
    assert maker.make() == 3
    ((file, cloexec),) = maker.installed
    assert cloexec
    assert (file.device, file.flags) == (maker.device, os.O_RDWR)
    assert maker.memory.data[64:76] == b"abcdefgh" + NUMBER.to_bytes(4, "little")
    assert maker.memory.data[76:80] == bytes(4)
    maker.memory.data[:4] = bytes(4)
    finish(maker.connection, file.read(maker.caller, [(0, 4)], None))
    assert maker.memory.data[:4] == b"read"
    assert maker.asked[-1].opcode == FUSE_READ
    assert (maker.asked[-1].body.fh, maker.asked[-1].body.flags) == (9, os.O_RDWR)
    assert not maker.released
    finish(maker.connection, file.release())
    maker.release()
    assert [(body.fh, body.flags) for body in maker.released] == [(9, os.O_RDWR), (7, os.O_RDWR)]
    assert maker.server.opcodes.count(FUSE_OPEN) == 1


def test_a_file_without_write_access_is_not_written() -> None:
    maker = Maker(made(flags=os.O_RDONLY))
    maker.make()
    ((file, cloexec),) = maker.installed
    assert not cloexec
    with pytest.raises(OSError, match="Bad file descriptor"):
        finish(maker.connection, file.write(maker.caller, [(0, 4)], None))


def test_a_file_outlives_the_one_whose_ioctl_made_it() -> None:
    maker = Maker(made())
    maker.make()
    maker.release()
    assert [body.fh for body in maker.released] == [7]
    finish(maker.connection, maker.installed[0][0].read(maker.caller, [(0, 4)], None))
    finish(maker.connection, maker.installed[0][0].release())
    assert [body.fh for body in maker.released] == [7, 9]


def test_after_rounds_the_number_goes_to_its_place_in_the_output() -> None:
    areas = [(256, 4), (64, 12), (512, 4)]
    retry = fuse_ioctl_out(flags=FUSE_IOCTL_RETRY, in_iovs=1, out_iovs=3).pack()
    retry += b"".join(fuse_ioctl_iovec(*area).pack() for area in [areas[1], *areas])
    maker = Maker(retry, made(offset=12, data=b"1111" + DATA + b"2222"), unrestricted=True)
    assert maker.make() == 0
    data = maker.memory.data
    assert data[256:260] == b"1111"
    assert data[512:516] == b"2222"
    assert data[64:76] == b"abcdefgh" + NUMBER.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("answer", "number", "fhs"),
    [
        (made(offset=9), errno.EIO, [9]),
        (made(offset=(1 << 32) - 1), errno.EIO, [9]),
        (made(offset=0, data=b"abc"), errno.EIO, [9]),
        (made(offset=0, data=b""), errno.EIO, [9]),
        (made(data=DATA + b"x"), errno.EIO, [9]),
        (made(data=bytes(PAGE)), errno.EIO, [9]),
        (made(result=-errno.EBUSY), errno.EBUSY, [9]),
        (made()[:31], errno.EIO, []),
        (made()[:16], errno.EIO, []),
    ],
)
def test_answers_that_break_the_rules_give_nobody_a_file(
    answer: bytes, number: int, fhs: list[int]
) -> None:
    maker = Maker(answer)
    assert error_of(maker.make) == number
    assert not maker.installed
    assert [body.fh for body in maker.released] == fhs
    assert maker.memory.data[64:80] == bytes(16)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ESRCH])
def test_a_file_that_the_caller_cannot_take_is_released(error: int) -> None:
    maker = Maker(made(), error=error)
    assert error_of(maker.make) == error
    assert [body.fh for body in maker.released] == [9]
    assert maker.memory.data[64:80] == bytes(16)


@pytest.mark.parametrize("argument", [PAGE + 64, 2 * PAGE - 6, 2 * PAGE - 12 + 1])
def test_memory_that_cannot_be_written_leaves_no_descriptor(argument: int) -> None:
    pages = (1,) if argument < 2 * PAGE - 12 else (2,)
    maker = Maker(made(), memory=FakeMemory(readonly=pages))
    before = bytes(maker.memory.data)
    assert error_of(maker.make, argument) == errno.EFAULT
    assert not maker.installed
    assert [body.fh for body in maker.released] == [9]
    assert maker.memory.data == before


def test_nobody_takes_files_that_were_not_agreed_on() -> None:
    # As Linux, which passes over flags that it does not know.
    maker = Maker(made(data=b"")[:16] + DATA, new_files=False)
    assert maker.make() == 0
    assert not maker.installed
    assert maker.memory.data[64:76] == DATA
    assert not maker.released


def test_an_answer_may_be_as_long_as_its_room_and_the_file() -> None:
    command = ioctl.IOR("x", 1, PAGE)
    maker = Maker(made(data=bytes(PAGE)))
    finish(maker.connection, maker.file.ioctl(maker.caller, command, 0, install=maker.install))
    assert len(maker.installed) == 1


def test_a_caller_that_cannot_have_descriptors_is_refused() -> None:
    maker = Maker(made())
    assert error_of(maker.ioctl, COMMAND, 64) == errno.EOPNOTSUPP
    assert [body.fh for body in maker.released] == [9]


def corrupted(answer: bytes, at: int, byte: int, size: int) -> bytes:
    changed = bytearray(answer)
    changed[at % len(changed)] = byte
    return bytes(changed[:size])


@given(
    at=st.integers(0, 43),
    byte=st.integers(0, 255),
    size=st.integers(16, 44),
    unrestricted=st.booleans(),
)
def test_whatever_a_server_answers_each_file_is_held_or_released(
    at: int, byte: int, size: int, unrestricted: bool
) -> None:
    answer = corrupted(made(), at, byte, size)
    # Without output: the rounds are over, and the server is at odds with itself.
    maker = Maker(*[answer] * 600, unrestricted=unrestricted)
    before = bytes(maker.memory.data)
    error_of(maker.make)
    files = len(maker.installed) + len(maker.released)
    assert files <= 1
    if not maker.installed and answer[4:8] == bytes([0, 0, 1, 0]):
        assert maker.memory.data == before
    for file, _ in maker.installed:
        finish(maker.connection, file.release())
    assert len(maker.released) == files
    # And nothing of that is any other request's harm.
    finish(maker.connection, maker.file.read(maker.caller, [(0, 4)], None))
    assert maker.memory.data[:4] == b"read"
