"""Open files: what the server is asked for each system call, and what the program gets."""

from __future__ import annotations

import errno
import os

import pytest

from recuse.kernel import segments
from recuse.kernel.files import open_file
from recuse.kernel.operation import run
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_READ_LOCKOWNER,
    FUSE_RELEASE,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITE_LOCKOWNER,
    fuse_in_header,
    fuse_ioctl_out,
    fuse_open_in,
    fuse_open_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
    fuse_write_out,
)

from .support import (
    OWNER,
    PAGE,
    Answer,
    FakeMemory,
    Message,
    Opened,
    Server,
    caller,
    device,
    error_of,
    finish,
    start,
)

MAX = 131072
"""max_read and max_write of these devices: 32 pages."""


def gives(message: Message) -> bytes:
    """Answer READ with all that is asked for: each byte says where it is from."""
    first = message.body.offset
    return bytes((first + index) % 251 for index in range(message.body.size))


def takes(message: Message) -> fuse_write_out:
    return fuse_write_out(size=message.body.size)


def failed(opened: Opened, call: str, *segments: tuple[int, int], offset: int | None = None) -> int:
    return error_of(lambda: getattr(opened, call)(*segments, offset=offset))


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


# read


def test_read_asks_and_stores() -> None:
    opened = Opened(lambda message: b"hello", flags=os.O_RDONLY | os.O_NONBLOCK)
    assert opened.read((100, 16)) == 5
    (message,) = opened.asked
    assert message.header == fuse_in_header(
        len=80, opcode=FUSE_READ, unique=6, pid=11, uid=22, gid=33
    )
    assert message.body == fuse_read_in(
        fh=7,
        offset=0,
        size=16,
        read_flags=FUSE_READ_LOCKOWNER,
        lock_owner=OWNER,
        flags=os.O_NONBLOCK,
    )
    assert opened.memory.data[98:118] == b"\0\0hello" + bytes(13)


def test_flags_that_were_set_later_are_passed_on() -> None:
    opened = Opened(lambda message: b"")
    opened.file.flags |= os.O_NONBLOCK
    opened.read((0, 1))
    assert opened.asked[0].body.flags == os.O_RDWR | os.O_NONBLOCK


def test_reading_nothing_asks_nothing() -> None:
    opened = Opened()
    assert opened.read((100, 0)) == 0
    assert opened.read() == 0
    assert opened.read((100, 0), (0, 0)) == 0
    assert opened.asked == []


def test_an_empty_answer_is_the_end() -> None:
    opened = Opened(lambda message: b"")
    assert opened.read((0, MAX * 2)) == 0
    assert len(opened.asked) == 1


def test_a_long_read_is_asked_in_parts() -> None:
    opened = Opened(gives, memory=FakeMemory(128))
    assert opened.read((0, MAX * 2 + 10)) == MAX * 2 + 10
    # Offset 0 is where each call starts; a call goes on from where it is, seekable or not.
    assert [(m.body.offset, m.body.size) for m in opened.asked] == [
        (0, MAX),
        (MAX, MAX),
        (2 * MAX, 10),
    ]
    assert opened.memory.data[: MAX * 2 + 10] == bytes(i % 251 for i in range(MAX * 2 + 10))
    assert opened.file.position == 0


def test_a_request_spans_32_pages() -> None:
    opened = Opened(gives, memory=FakeMemory(128), max_read=1 << 20)
    assert opened.read((1, MAX)) == MAX
    assert [m.body.size for m in opened.asked] == [MAX - 1, 1]


def test_a_call_transfers_at_most_2_gib_less_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert segments.MAX_TRANSFER == (1 << 31) - PAGE
    monkeypatch.setattr(segments, "MAX_TRANSFER", 10_000)
    opened = Opened(memory=FakeMemory(128))
    opened.handler = lambda m: takes(m) if m.opcode == FUSE_WRITE else gives(m)
    assert opened.read((0, 11_000)) == 10_000
    assert opened.write((0, 6000), (0, 6000)) == 10_000


def test_max_read_is_the_devices() -> None:
    opened = Opened(gives, max_read=5000)
    assert opened.read((0, 11_000)) == 11_000
    assert [m.body.size for m in opened.asked] == [5000, 5000, 1000]


def test_a_short_answer_ends_the_call() -> None:
    answers = iter([bytes(MAX), b"short"])
    opened = Opened(lambda message: next(answers), memory=FakeMemory(128))
    assert opened.read((0, 3 * MAX)) == MAX + 5
    assert len(opened.asked) == 2


def test_an_error_after_some_bytes_is_kept_to_itself() -> None:
    answers: list[Answer] = [bytes(MAX), -errno.EIO]
    opened = Opened(lambda message: answers.pop(0), memory=FakeMemory(128))
    assert opened.read((0, 2 * MAX)) == MAX
    assert answers == []


def test_an_error_is_the_calls() -> None:
    opened = Opened(lambda message: -errno.EAGAIN)
    assert failed(opened, "read", (0, 10)) == errno.EAGAIN


def test_an_answer_longer_than_asked_is_eio() -> None:
    opened = Opened()
    outcome = start(opened.connection, opened.file.read(opened.caller, [(0, 4)], None))
    with pytest.raises(OSError, match="Invalid argument"):
        opened.server.reply(opened.asked[0], b"12345")
    assert outcome.errno == errno.EIO
    assert opened.memory.data[:8] == bytes(8)


def test_segments_are_filled_by_one_request() -> None:
    opened = Opened(lambda message: b"abcdefgh")
    assert opened.read((0, 3), (100, 0), (200, 1), (300, 10)) == 8
    assert [m.body.size for m in opened.asked] == [14]
    data = bytes(opened.memory.data)
    assert (data[:4], data[200:202], data[300:305]) == (b"abc\0", b"d\0", b"efgh\0")


def test_segments_split_where_a_request_is_full() -> None:
    opened = Opened(gives, max_read=4096)
    assert opened.read((0, 3000), (8192, 3000), (16384, 3000)) == 9000
    assert [m.body.size for m in opened.asked] == [4096, 4096, 808]
    data = opened.memory.data
    read = data[:3000] + data[8192:11192] + data[16384:19384]
    assert read == bytes(i % 251 for i in range(9000))
    assert data[3000:8192] == bytes(5192)


def test_each_segment_needs_pages_of_its_own() -> None:
    opened = Opened(gives)
    assert opened.read(*[(PAGE * index, 1) for index in range(40)]) == 40
    assert [m.body.size for m in opened.asked] == [32, 8]


# read: memory that is not there


def test_no_request_is_sent_for_memory_that_is_not_there() -> None:
    opened = Opened(gives, memory=FakeMemory(4, holes=(2,), readonly=(3,)))
    for address in (2 * PAGE, 3 * PAGE, 4 * PAGE, 1 << 63, (1 << 64) - 1):
        assert failed(opened, "read", (address, 16)) == errno.EFAULT
    assert opened.asked == []


def test_memory_that_ends_is_filled_up_to_there() -> None:
    opened = Opened(gives, memory=FakeMemory(8, holes=(2,)))
    assert opened.read((PAGE - 10, 3 * PAGE)) == PAGE + 10
    assert [m.body.size for m in opened.asked] == [PAGE + 10]
    # The rest is tried again, and found missing, only after all that was asked for came.
    opened.handler = lambda message: b"short"
    assert opened.read((PAGE - 10, 3 * PAGE)) == 5


@pytest.mark.parametrize("call", ["read", "write"])
def test_a_small_area_that_ends_is_used_up_to_there_once(call: str) -> None:
    opened = Opened(memory=FakeMemory(4, holes=(1,)))
    opened.handler = lambda m: takes(m) if m.opcode == FUSE_WRITE else gives(m)
    assert getattr(opened, call)((PAGE - 10, 20)) == 10
    assert [m.body.size for m in opened.asked] == [10]


@pytest.mark.parametrize("call", ["read", "write"])
def test_nothing_behind_memory_that_ends_is_used(call: str) -> None:
    opened = Opened(memory=FakeMemory(4, holes=(1,)))
    opened.handler = lambda m: takes(m) if m.opcode == FUSE_WRITE else gives(m)
    assert getattr(opened, call)((PAGE - 10, 20), (0, 5)) == 10
    assert [m.body.size for m in opened.asked] == [10]
    assert opened.memory.data[:5] == bytes(5)


def test_a_segment_that_is_not_there_ends_the_call() -> None:
    opened = Opened(gives, memory=FakeMemory(8, holes=(2,)))
    assert opened.read((0, 100), (2 * PAGE, 100), (200, 100)) == 100
    assert [m.body.size for m in opened.asked] == [100]
    assert failed(opened, "read", (2 * PAGE, 100), (200, 100)) == errno.EFAULT


def test_memory_that_goes_while_the_server_answers() -> None:
    opened = Opened()

    def unmap(message: Message) -> bytes:
        opened.memory.holes.add(1)
        return bytes(message.body.size)

    opened.handler = unmap
    assert opened.read((PAGE - 10, 20)) == 10
    opened.memory.holes.clear()
    assert failed(opened, "read", (PAGE, 20)) == errno.EFAULT
    opened.memory.holes.clear()
    assert opened.read((0, 10), (PAGE, 20), (20, 10)) == 10
    opened.memory.holes.clear()
    assert opened.read((PAGE - 10, 20), (20, 10)) == 10
    assert opened.memory.data[20:30] == bytes(10)


def test_what_could_not_be_stored_is_not_asked_for_again() -> None:
    class Fading(FakeMemory):
        def write(self, address: int, data: bytes | bytearray | memoryview) -> int:
            return super().write(address, data[:3])

    opened = Opened(gives, memory=Fading())
    assert opened.read((0, 5000)) == 3
    assert len(opened.asked) == 1


# write


def test_write_sends_what_is_in_memory() -> None:
    opened = Opened(takes, flags=os.O_WRONLY)
    opened.memory.data[100:105] = b"hello"
    assert opened.write((100, 5)) == 5
    (message,) = opened.asked
    assert message.header == fuse_in_header(
        len=85, opcode=FUSE_WRITE, unique=6, pid=11, uid=22, gid=33
    )
    assert message.body == fuse_write_in(
        fh=7,
        offset=0,
        size=5,
        write_flags=FUSE_WRITE_LOCKOWNER,
        lock_owner=OWNER,
        flags=os.O_WRONLY,
    )
    assert message.payload == b"hello"


def test_a_caller_without_the_capability_to_keep_it_takes_the_set_user_id_bit_away() -> None:
    opened = Opened(takes, flags=os.O_WRONLY)
    opened.caller.keeps_suid = False
    opened.write((100, 5))
    (message,) = opened.asked
    assert message.body.write_flags == FUSE_WRITE_LOCKOWNER | FUSE_WRITE_KILL_SUIDGID


def test_a_write_may_be_synchronous_by_itself() -> None:
    opened = Opened(takes, flags=os.O_WRONLY)
    finish(opened.connection, opened.file.write(opened.caller, [(0, 5)], None, os.O_SYNC))
    opened.write((0, 5))
    first, second = opened.asked
    assert (first.body.flags, second.body.flags) == (os.O_WRONLY | os.O_SYNC, os.O_WRONLY)


def test_writing_nothing_asks_nothing() -> None:
    opened = Opened()
    assert opened.write((1 << 62, 0)) == 0
    assert opened.write() == 0
    assert opened.asked == []


def test_a_long_write_is_sent_in_parts() -> None:
    opened = Opened(takes, memory=FakeMemory(128), max_write=5000)
    opened.memory.data[:11_000] = bytes(i % 251 for i in range(11_000))
    assert opened.write((0, 11_000)) == 11_000
    assert [(m.body.offset, m.body.size) for m in opened.asked] == [
        (0, 5000),
        (5000, 5000),
        (10_000, 1000),
    ]
    assert b"".join(m.payload for m in opened.asked) == opened.memory.data[:11_000]


def test_segments_are_sent_by_one_request() -> None:
    opened = Opened(takes)
    opened.memory.data[:10] = b"0123456789"
    assert opened.write((0, 3), (9, 1), (3, 2)) == 6
    assert [m.payload for m in opened.asked] == [b"012934"]


def test_a_partial_write_ends_the_call() -> None:
    opened = Opened(lambda message: fuse_write_out(size=3))
    assert opened.write((0, 10)) == 3
    assert len(opened.asked) == 1


def test_a_write_of_which_nothing_is_taken() -> None:
    opened = Opened(lambda message: fuse_write_out(size=0))
    assert opened.write((0, 10)) == 0


def test_a_server_that_takes_more_than_it_was_given() -> None:
    opened = Opened(lambda message: fuse_write_out(size=11))
    assert failed(opened, "write", (0, 10)) == errno.EIO


def test_an_error_after_some_bytes_were_taken() -> None:
    answers: list[Answer] = [fuse_write_out(size=4096), -errno.ENOSPC]
    opened = Opened(lambda message: answers.pop(0), max_write=4096)
    assert opened.write((0, 8192)) == 4096
    answers = [-errno.ENOSPC]
    assert failed(opened, "write", (0, 8192)) == errno.ENOSPC


def test_memory_that_cannot_be_read_ends_a_write() -> None:
    opened = Opened(takes, memory=FakeMemory(4, holes=(2,), readonly=(1,)))
    assert opened.write((PAGE, 2 * PAGE)) == PAGE
    assert opened.write((0, 4), (2 * PAGE, 4), (0, 4)) == 4
    assert [len(m.payload) for m in opened.asked] == [PAGE, 4]
    assert failed(opened, "write", (2 * PAGE, 4)) == errno.EFAULT
    assert failed(opened, "write", (1 << 63, 4), (0, 4)) == errno.EFAULT
    assert len(opened.asked) == 2


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
