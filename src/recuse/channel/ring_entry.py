"""The memory in which a FUSE ring has one request at a time, and its answer."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from recuse.wire.errors import WireError
from recuse.wire.fuse import fuse_in_header, fuse_out_header
from recuse.wire.uring import (
    FUSE_URING_IN_OUT_HEADER_SZ,
    FUSE_URING_OP_IN_OUT_SZ,
    fuse_uring_ent_in_out,
)

_IN: Final = fuse_in_header.SIZE
_OUT: Final = fuse_out_header.SIZE
_BODY: Final = FUSE_URING_IN_OUT_HEADER_SZ
_ENTRY: Final = _BODY + FUSE_URING_OP_IN_OUT_SZ
_HEADERS: Final = _ENTRY + fuse_uring_ent_in_out.SIZE
_PAYLOAD_SIZE: Final = _ENTRY + 16
_IOVEC: Final = 512
"""Where the two pieces of memory are described, which each command refers to."""
_PAGE: Final = mmap.PAGESIZE
_unpack_head = struct.Struct("=IiQ").unpack_from
"""Of a request: length, opcode, unique. Of an answer: length, error, unique."""
_unpack_u64 = struct.Struct("=Q").unpack_from
_UNIQUE: Final = 8
_unpack_u32 = struct.Struct("=I").unpack_from
_pack_u32 = struct.Struct("=I").pack_into
_SMALL: Final = 4096
_PAUSE_S: Final = 0.01
_pack_out_header = fuse_out_header.CODEC.pack


class Entry:
    """One entry of a queue, which belongs to the kernel while no request is in it.

    Its memory is only addresses until it is used: a page for the headers, and the payload.
    """

    def __init__(self, queue: int, size: int, ready: Callable[[Entry], object]) -> None:
        """Make one.

        Args:
            queue: the CPU whose requests it is for.
            size: most bytes of a payload.
            ready: called with it when its request was answered, in any thread.

        Raises OSError: ENOMEM.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._memory = mmap.mmap(-1, _PAGE + size, flags)
        # A child needs none of it, and the kernel shall not write to a page that both have.
        self._memory.madvise(mmap.MADV_DONTFORK)
        self._payload = memoryview(self._memory)[_PAGE:]
        self._ready = ready
        self.queue = queue
        self.index = 0
        """Among the entries of its ring."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        struct.pack_into("@4N", self._memory, _IOVEC, address, _HEADERS, address + _PAGE, size)
        self.iovecs = address + _IOVEC
        """The address of two iovecs."""
        self.opcode = self.unique = 0
        """Of its request, or of the last one."""
        self._due: deque[None] = deque()
        """Has one item while an answer is due: who takes it out gives the answer."""
        self.waits = False
        """Whether a request has been received that nobody has begun to handle (`SharedRing`)."""
        self.known = False
        """Whether the kernel has ever put a request there."""

    @property
    def answered(self) -> bool:
        """Whether there is no request, or it was answered."""
        return not self._due

    def begin(self) -> None:
        """Have one answer be due: the kernel has put a request there."""
        if not self._due:
            self._due.append(None)  # which takes no memory

    def take(self) -> bytes:
        """Return the request that the kernel has put there, as a read of /dev/fuse gives it.

        Raises:
            WireError: the parts do not fit together.
            MemoryError
        """
        memory = self._memory
        length, self.opcode, self.unique = _unpack_head(memory)
        (payload,) = _unpack_u32(memory, _PAYLOAD_SIZE)
        end = _BODY + length - _IN - payload
        if not _BODY <= end <= _ENTRY or payload > len(self._payload):
            raise WireError(f"a request of {length} bytes with a payload of {payload}")
        if not payload:
            return memory[:_IN] + memory[_BODY:end]
        return b"".join((memory[:_IN], memory[_BODY:end], self._payload[:payload]))

    def answer(self, message: bytes) -> None:
        """Answer the request with a message as /dev/fuse takes it.

        Raises OSError: EINVAL if it does not fit, and the program gets EIO; ENOMEM, as the program
        does; ENOENT if it was answered before, or this answer is for another request.
        """
        if _unpack_u64(message, _UNIQUE)[0] != self.unique or not self._claim():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        number = 0
        size = len(message) - _OUT
        if size > len(self._payload):
            number = errno.EINVAL
            self._put_error(errno.EIO)
        else:
            try:
                self._put(message, size)
            except MemoryError:
                number = errno.ENOMEM
                self._put_error(number)
        self._give_back()
        if number:
            raise OSError(number, os.strerror(number))

    def fail(self, number: int) -> None:
        """Answer with an errno; 0 is success. Nothing happens if it was answered.

        It succeeds, though it may have to wait for memory. Only the kernel's headers are needed,
        whatever `take` has come to.
        """
        if self._claim():
            self._put_error(number)
            self._give_back()

    def _claim(self) -> bool:
        """Whether the calling thread gives the answer that is due."""
        try:
            self._due.pop()
        except IndexError:
            return False
        return True

    def _put_error(self, number: int) -> None:
        while True:
            try:
                (self.unique,) = _unpack_u64(self._memory, _UNIQUE)
                self._put(_pack_out_header(_OUT, -number, self.unique), 0)
                return
            except MemoryError:
                time.sleep(_PAUSE_S)

    def _put(self, message: bytes, size: int) -> None:
        memory = self._memory
        if size > _SMALL:
            self._payload[:size] = memoryview(message)[_OUT:]
        elif size:
            memory[_PAGE : _PAGE + size] = message[_OUT:]
        memory[:_OUT] = message[:_OUT]
        # All else in fuse_uring_ent_in_out is as it was in the request.
        _pack_u32(memory, _PAYLOAD_SIZE, size)

    def _give_back(self) -> None:
        # It may have the next request as soon as others know that it is ready.
        while True:
            try:
                self._ready(self)
                return
            except MemoryError:
                time.sleep(_PAUSE_S)

    def holds(self, unique: int) -> bool:
        """Whether this request is there and not answered, even if nobody has taken it yet."""
        opcode: int
        _, opcode, own = _unpack_head(self._memory)
        return opcode > 0 and bool(own == unique)
