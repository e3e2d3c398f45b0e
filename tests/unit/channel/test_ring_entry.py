"""Requests and answers in the memory of a ring's entry."""

import ctypes
import errno
import os
import queue
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.channel.ring_entry import Entry
from recuse.wire.errors import WireError
from recuse.wire.fuse import fuse_in_header, fuse_out_header
from recuse.wire.uring import fuse_uring_ent_in_out

SIZE = 16384


class Kernel:
    """An entry, and what the kernel sees of it: by the addresses that it is given."""

    def __init__(self) -> None:
        self.ready: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self.entry = Entry(3, SIZE, self.ready.put)
        text = ctypes.string_at(self.entry.iovecs, 32)
        self.headers, length, self.payload, size = struct.unpack("@4N", text)
        assert (length, size) == (288, SIZE)

    def put(self, header: fuse_in_header, body: bytes, payload: bytes, claimed: int) -> None:
        """Put a request there, as `fuse_uring_copy_to_ring` does."""
        told = fuse_uring_ent_in_out(commit_id=header.unique, payload_sz=claimed).pack()
        ctypes.memmove(self.headers, header.pack(), header.SIZE)
        ctypes.memmove(self.headers + 128, body, len(body))
        ctypes.memmove(self.headers + 256, told, len(told))
        ctypes.memmove(self.payload, payload, len(payload))
        self.entry.begin()

    def answer(self) -> tuple[fuse_out_header, bytes]:
        """Take the answer, as `fuse_uring_commit` does."""
        assert self.ready.get_nowait() is self.entry
        header = fuse_out_header.unpack(ctypes.string_at(self.headers, 16))
        told = fuse_uring_ent_in_out.unpack(ctypes.string_at(self.headers + 256, 32))
        return header, ctypes.string_at(self.payload, told.payload_sz)


KERNEL = Kernel()

payloads = st.binary(max_size=100) | st.integers(0, SIZE).map(bytes)


@given(st.integers(1, 100), st.integers(2, 2**62), st.binary(max_size=128), payloads)
def test_a_request_is_as_from_a_read(opcode: int, unique: int, body: bytes, payload: bytes) -> None:
    length = fuse_in_header.SIZE + len(body) + len(payload)
    header = fuse_in_header(len=length, opcode=opcode, unique=unique, nodeid=7)
    KERNEL.put(header, body, payload, len(payload))
    entry = KERNEL.entry
    assert entry.holds(unique)
    assert not entry.holds(unique + 2)
    assert entry.take() == header.pack() + body + payload
    assert (entry.opcode, entry.unique, entry.answered) == (opcode, unique, False)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_parts_that_do_not_fit_together(length: int, claimed: int) -> None:
    KERNEL.put(fuse_in_header(len=length, opcode=1, unique=2), b"", b"", claimed)
    if 0 <= length - fuse_in_header.SIZE - claimed <= 128 and claimed <= SIZE:
        assert len(KERNEL.entry.take()) == length
    else:
        with pytest.raises(WireError):
            KERNEL.entry.take()


@given(st.integers(2, 2**62), payloads)
def test_an_answer_is_as_for_a_write(unique: int, payload: bytes) -> None:
    KERNEL.put(fuse_in_header(len=40, opcode=1, unique=unique, nodeid=1), b"", b"", 0)
    entry = KERNEL.entry
    entry.take()
    header = fuse_out_header(len=16 + len(payload), unique=unique)
    entry.answer(header.pack() + payload)
    assert entry.answered
    assert not entry.holds(unique)
    assert KERNEL.answer() == (header, payload)


def test_an_answer_that_does_not_fit() -> None:
    KERNEL.put(fuse_in_header(len=40, opcode=1, unique=2), b"", b"", 0)
    entry = KERNEL.entry
    entry.take()
    header = fuse_out_header(len=16 + SIZE + 1, unique=2)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        entry.answer(header.pack() + bytes(SIZE + 1))
    assert entry.answered
    assert KERNEL.answer() == (fuse_out_header(len=16, error=-errno.EIO, unique=2), b"")


def test_an_answer_that_comes_too_late() -> None:
    entry = KERNEL.entry
    for unique in (2, 4):
        KERNEL.put(fuse_in_header(len=40, opcode=1, unique=unique), b"", b"", 0)
        entry.take()
        # That of the request before does not become this one's.
        with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
            entry.answer(fuse_out_header(len=16, unique=unique - 2).pack())
        answer = fuse_out_header(len=16, unique=unique)
        entry.answer(answer.pack())
        with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
            entry.answer(answer.pack())
        entry.fail(errno.EIO)
        assert KERNEL.answer() == (answer, b"")
        assert KERNEL.ready.empty()


def test_an_error_after_success() -> None:
    KERNEL.put(fuse_in_header(len=40, opcode=1, unique=2), b"", b"", 0)
    KERNEL.entry.take()
    KERNEL.entry.fail(errno.ENOENT)
    assert KERNEL.answer() == (fuse_out_header(len=16, error=-errno.ENOENT, unique=2), b"")


def test_an_answer_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    KERNEL.put(fuse_in_header(len=40, opcode=1, unique=2), b"", b"", 0)
    entry = KERNEL.entry
    entry.take()
    lacks = [MemoryError, MemoryError]
    put = Entry._put

    def lacking(self: Entry, message: bytes, size: int) -> None:
        if lacks:
            raise lacks.pop()
        put(self, message, size)

    monkeypatch.setattr(Entry, "_put", lacking)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        entry.answer(fuse_out_header(len=20, unique=2).pack() + b"text")
    assert KERNEL.answer() == (fuse_out_header(len=16, error=-errno.ENOMEM, unique=2), b"")
    # It may be another request's by now.
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        entry.answer(fuse_out_header(len=16, unique=2).pack())


def test_an_answer_that_cannot_be_passed_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    KERNEL.put(fuse_in_header(len=40, opcode=1, unique=2), b"", b"", 0)
    entry = KERNEL.entry
    entry.take()
    lacks = [MemoryError, MemoryError]

    def lacking(answered: Entry) -> None:
        if lacks:
            raise lacks.pop()
        KERNEL.ready.put(answered)

    monkeypatch.setattr(entry, "_ready", lacking)
    entry.fail(errno.ENOENT)
    assert KERNEL.answer() == (fuse_out_header(len=16, error=-errno.ENOENT, unique=2), b"")
    assert KERNEL.ready.empty()
