"""Reading and writing open files: how a call becomes requests, and what it gives."""

from __future__ import annotations

import errno
import os

import pytest

from recuse.kernel import iovec as segments
from recuse.wire.fuse import (
    FUSE_READ,
    FUSE_READ_LOCKOWNER,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITE_LOCKOWNER,
    fuse_in_header,
    fuse_read_in,
    fuse_write_in,
    fuse_write_out,
)

from ..support import (
    MAX,
    OWNER,
    PAGE,
    Answer,
    FakeMemory,
    Message,
    Opened,
    failed,
    finish,
    gives,
    start,
    takes,
)


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


def test_a_request_is_bounded_whatever_the_server_says() -> None:
    opened = Opened(gives, memory=FakeMemory(600), max_read=0xFFFFFFFF)
    assert opened.read((0, 600 * PAGE)) == 600 * PAGE
    assert [m.body.size for m in opened.asked] == [256 * PAGE, 256 * PAGE, 88 * PAGE]


def test_a_write_is_bounded_whatever_the_server_says() -> None:
    opened = Opened(takes, memory=FakeMemory(600))
    opened.device.max_write = 0xFFFFFFFF
    operation = opened.file.write(opened.caller, [(0, 600 * PAGE)], None)
    first = next(operation)
    operation.close()
    assert len(first.body) == fuse_write_in.SIZE + 256 * PAGE


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
