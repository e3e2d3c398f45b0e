"""Open files: what the server is asked for each system call, and what the program gets."""

from __future__ import annotations

import errno
import os

import pytest

from recuse.kernel.char.files import open_file
from recuse.kernel.connection.operation import run
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_ioctl_out,
    fuse_open_in,
    fuse_open_out,
    fuse_release_in,
    fuse_write_out,
)

from ..support import (
    PAGE,
    Answer,
    FakeMemory,
    Message,
    Opened,
    Server,
    caller,
    device,
    failed,
    finish,
    gives,
    start,
    takes,
)

# open


def test_open_asks_with_the_callers_ids() -> None:
    opened = Opened(flags=os.O_RDWR | os.O_NONBLOCK)
    (message,) = opened.server.messages
    assert message.header == fuse_in_header(
        len=48, opcode=FUSE_OPEN, unique=4, nodeid=0, pid=11, uid=22, gid=33
    )
    assert message.body == fuse_open_in(flags=os.O_RDWR | os.O_NONBLOCK)
    assert opened.file.device is opened.device
    assert opened.file.flags == os.O_RDWR | os.O_NONBLOCK


def test_flags_for_the_opening_only_are_not_passed_on() -> None:
    opened = Opened(
        flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_APPEND
    )
    assert opened.server.messages[0].body.flags == os.O_WRONLY | os.O_APPEND
    assert opened.file.flags == os.O_WRONLY | os.O_APPEND


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR, errno.EACCES])
def test_open_fails_with_what_the_server_says(number: int) -> None:
    made = device()
    Server(made.connection, lambda message: -number)
    outcome = start(made.connection, open_file(made, os.O_RDWR, caller()))
    assert outcome.errno == number


def test_a_malformed_answer_to_open_is_eio() -> None:
    made = device()
    outcome = start(made.connection, open_file(made, os.O_RDWR, caller()))
    server = Server(made.connection)
    server.serve()
    with pytest.raises(OSError, match="Invalid argument"):
        server.reply(server.messages[0], b"short")
    assert outcome.errno == errno.EIO


def test_a_server_without_open_is_asked_once_and_never_to_release() -> None:
    made = device()

    def handler(message: Message) -> Answer:
        return -errno.ENOSYS if message.opcode in (FUSE_OPEN, FUSE_IOCTL) else b"12345678"

    server = Server(made.connection, handler)
    program = caller()
    for _ in range(2):
        file = finish(made.connection, open_file(made, os.O_RDWR, program))
        finish(made.connection, file.read(program, [(0, 8)], None))
        start(made.connection, file.write(program, [(0, 8)], None))
        start(made.connection, file.ioctl(program, 1, 2))
        finish(made.connection, file.release())
    assert server.opcodes == [FUSE_OPEN] + 2 * [FUSE_READ, FUSE_WRITE, FUSE_IOCTL]
    assert {message.body.fh for message in server.messages[1:]} == {0}


# Access mode, offsets and positions


@pytest.mark.parametrize(
    ("flags", "readable", "writable"),
    [
        (os.O_RDONLY, True, False),
        (os.O_WRONLY, False, True),
        (os.O_RDWR, True, True),
        (os.O_ACCMODE, False, False),
    ],
)
def test_access_modes(flags: int, readable: bool, writable: bool) -> None:
    opened = Opened(flags=flags)
    opened.handler = lambda m: takes(m) if m.opcode == FUSE_WRITE else gives(m)
    for call, allowed in (("read", readable), ("write", writable)):
        if allowed:
            assert getattr(opened, call)((0, 4)) == 4
        else:
            assert failed(opened, call, (0, 4)) == errno.EBADF
            assert failed(opened, call, (0, 0)) == errno.EBADF
    # F_SETFL does not change it.
    opened.file.flags = os.O_RDWR
    if not readable:
        assert failed(opened, "read", (0, 4)) == errno.EBADF


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("seekable", [True, False])
def test_a_negative_offset(call: str, seekable: bool) -> None:
    opened = Opened(seekable=seekable)
    assert failed(opened, call, (0, 4), offset=-1) == errno.EINVAL
    assert opened.asked == []


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("seekable", [True, False])
def test_an_offset_beyond_the_largest_position(call: str, seekable: bool) -> None:
    opened = Opened(lambda message: -errno.EIO, seekable=seekable)
    most = (1 << 63) - 1
    assert failed(opened, call, (0, 4), offset=most - 3) == errno.EINVAL
    assert opened.asked == []
    assert failed(opened, call, (0, 4), offset=most - 4) == errno.EIO
    assert opened.asked[0].body.offset == (most - 4 if seekable else 0)


def test_a_position_does_not_pass_the_largest_one() -> None:
    opened = Opened(seekable=True)
    opened.file.seek((1 << 63) - 1, os.SEEK_SET)
    assert failed(opened, "read", (0, 1)) == errno.EINVAL
    assert opened.read((0, 0)) == 0


def test_an_offset_is_ignored_unless_seekable() -> None:
    opened = Opened(gives)
    opened.read((0, 4), offset=1000)
    opened.read((0, 4))
    assert [m.body.offset for m in opened.asked] == [0, 0]


def test_a_seekable_devices_position_moves() -> None:
    opened = Opened(seekable=True)
    opened.handler = lambda m: takes(m) if m.opcode == FUSE_WRITE else gives(m)
    assert opened.read((0, 10)) == 10
    assert opened.write((0, 5)) == 5
    assert opened.read((0, 4), offset=1000) == 4
    assert opened.write((0, 4), offset=2000) == 4
    assert opened.read((0, 1)) == 1
    assert opened.read((0, 4), offset=0) == 4
    assert [m.body.offset for m in opened.asked] == [0, 10, 1000, 2000, 15, 0]
    assert opened.file.position == 16


def test_a_position_moves_by_what_was_transferred() -> None:
    opened = Opened(lambda message: b"abc", seekable=True)
    opened.read((0, 10))
    assert opened.file.position == 3
    opened.handler = lambda message: -errno.EIO
    assert failed(opened, "read", (0, 10)) == errno.EIO
    assert opened.file.position == 3


def test_seek() -> None:
    file = Opened(seekable=True).file
    assert file.seek(100, os.SEEK_SET) == 100
    assert file.seek(-30, os.SEEK_CUR) == 70
    assert file.seek((1 << 63) - 1, os.SEEK_SET) == (1 << 63) - 1
    file.seek(10, os.SEEK_SET)
    for offset, whence in [
        (-1, os.SEEK_SET),
        (-11, os.SEEK_CUR),
        ((1 << 63) - 1, os.SEEK_CUR),
        (0, os.SEEK_DATA),
        (0, 5),
        (0, -1),
    ]:
        with pytest.raises(OSError, match="Invalid argument"):
            file.seek(offset, whence)
    with pytest.raises(OSError, match="Illegal seek"):
        file.seek(0, os.SEEK_END)
    assert file.position == 10
    assert file.seek(-10, os.SEEK_CUR) == 0


def test_seek_has_no_effect_unless_seekable() -> None:
    file = Opened().file
    assert [file.seek(100, whence) for whence in range(5)] == [0] * 5
    assert file.position == 0
    for whence in (-1, 5):
        with pytest.raises(OSError, match="Invalid argument"):
            file.seek(0, whence)


# release


def released(opened: Opened) -> list[Message]:
    return [m for m in opened.server.messages if m.opcode == FUSE_RELEASE]


def test_release_is_sent_once_without_a_caller() -> None:
    opened = Opened(flags=os.O_WRONLY)
    opened.file.flags |= os.O_APPEND
    opened.release()
    (message,) = released(opened)
    assert message.header == fuse_in_header(len=64, opcode=FUSE_RELEASE, unique=6)
    assert message.body == fuse_release_in(fh=7, flags=os.O_WRONLY | os.O_APPEND)
    opened.release()
    assert len(released(opened)) == 1


def test_release_waits_for_the_server_and_forgets_its_error() -> None:
    opened = Opened()
    server = Server(opened.connection)
    outcome = start(opened.connection, opened.file.release())
    assert outcome.pending
    server.reply(server.messages[0], -errno.EIO)
    assert outcome.result is None


def test_a_released_file_does_nothing_any_more() -> None:
    opened = Opened()
    opened.release()
    assert failed(opened, "read", (0, 4)) == errno.EBADF
    assert failed(opened, "write", (0, 4)) == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened.ioctl(1)
    assert opened.asked == []
    assert len(released(opened)) == 1


@pytest.mark.parametrize("answer", [b"data", -errno.EIO])
def test_the_last_operation_sends_release(answer: Answer) -> None:
    opened = Opened()
    first = start(opened.connection, opened.file.read(opened.caller, [(0, 16)], None))
    second = start(opened.connection, opened.file.ioctl(opened.caller, 1, 2))
    release = start(opened.connection, opened.file.release())
    assert release.result is None
    assert released(opened) == []
    assert answer is not None
    opened.server.reply(opened.asked[0], answer)
    assert not first.pending
    assert released(opened) == []
    opened.server.reply(opened.asked[1], -errno.EIO)
    assert len(released(opened)) == 1
    assert second.errno == errno.EIO


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("read", b"data"),
        ("write", fuse_write_out(size=4)),
        ("ioctl", fuse_ioctl_out(result=4)),
    ],
)
def test_the_last_operation_ends_when_release_is_answered(call: str, answer: Answer) -> None:
    opened = Opened()
    file = opened.file
    operation = (
        file.ioctl(opened.caller, 1, 2)
        if call == "ioctl"
        else getattr(file, call)(opened.caller, [(0, 16)], None)
    )
    last = start(opened.connection, operation)
    (message,) = opened.asked
    opened.server.handler = lambda message: None
    assert start(opened.connection, file.release()).result is None
    assert released(opened) == []
    assert answer is not None
    opened.server.reply(message, answer)
    assert last.pending
    opened.server.reply(released(opened)[0])
    assert last.result == 4


def test_interrupting_the_last_operation_does_not_lose_release() -> None:
    opened = Opened()
    read = opened.file.read(opened.caller, [(0, 16)], None)
    outcome: list[object] = []
    running = run(opened.connection, read, lambda result, error: outcome.append(result))
    assert running is not None
    start(opened.connection, opened.file.release())
    opened.connection.on_pending = None
    opened.server.reply(opened.asked[0], b"data")
    running.interrupt()
    assert outcome == []
    opened.server.serve()
    assert len(released(opened)) == 1
    assert outcome == [4]


def test_an_operation_that_is_thrown_away_does_not_send_release() -> None:
    opened = Opened()
    read = opened.file.read(opened.caller, [(0, 16)], None)
    next(read)
    start(opened.connection, opened.file.release())
    read.close()
    assert released(opened) == []


def test_release_of_a_dead_device_ends() -> None:
    opened = Opened()
    opened.connection.abort()
    opened.release()


def test_files_have_their_own_handles() -> None:
    handles = iter([5, 6])
    made = device()

    def handler(message: Message) -> Answer:
        return fuse_open_out(fh=next(handles)) if message.opcode == FUSE_OPEN else b""

    server = Server(made.connection, handler)
    files = [finish(made.connection, open_file(made, os.O_RDWR, caller())) for _ in range(2)]
    for file in files:
        finish(made.connection, file.read(caller(), [(0, 4)], None))
        finish(made.connection, file.release())
    assert [m.body.fh for m in server.messages[2:]] == [5, 5, 6, 6]


def test_a_device_that_asks_for_more_than_linux_sends_gets_it() -> None:
    largest = 256 * PAGE
    opened = Opened(gives, max_read=largest, memory=FakeMemory(600))
    assert opened.read((0, 2 * largest)) == 2 * largest
    assert [m.body.size for m in opened.asked] == [largest, largest]
    # One page more than that is touched by a buffer that does not begin at a page.
    opened.asked.clear()
    assert opened.read((100, largest)) == largest
    assert [m.body.size for m in opened.asked] == [largest - 100, 100]
