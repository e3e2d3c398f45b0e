"""The files of poll and select, as the calls' arguments name them (fs/select.c; Linux 6.1)."""

from __future__ import annotations

import errno
import select as host
import struct
from typing import Final, Protocol

from recuse.kernel.errors import os_error
from recuse.sandbox.files.native_end import POLLERR, POLLHUP, POLLNVAL, READABLE, WRITABLE
from recuse.sandbox.tasks.memory import read_memory, write_memory
from recuse.sandbox.tasks.status import ThreadStatus

_ALWAYS: Final = POLLERR | POLLHUP
"""Events that are reported even if nobody asks for them."""

LEAST_TABLE: Final = 64
"""NR_OPEN_DEFAULT: every process's table has room for at least this many."""
_ANY_TABLE: Final = 1024
"""For larger sets, the process's table size is looked up first."""
_POLLFD = struct.Struct("=ihH")
_REVENTS = struct.Struct("=6xH")

# fs/select.c: for which events a file is in a set.
_POLLRDBAND: Final = host.POLLRDBAND
_POLLEX_SET: Final = host.POLLPRI | POLLNVAL
_POLLIN_SET: Final = READABLE | _POLLRDBAND | POLLHUP | POLLERR | POLLNVAL
_POLLOUT_SET: Final = WRITABLE | POLLERR | POLLNVAL
_SETS: Final = (_POLLIN_SET, _POLLOUT_SET, _POLLEX_SET)


class Files(Protocol):
    """The files of a call, as its arguments name them."""

    entries: list[tuple[int, int]]
    """The descriptor of each file, and the events that matter."""
    strict: bool
    """Whether the call fails with EBADF if a descriptor is not open."""

    def answer(self, tid: int, bits: list[int]) -> int:
        """Write the result for files that are ready for ``bits``; return the call's result.

        Raises:
            OSError: EFAULT.
        """


class PollFiles:
    """``struct pollfd[]``."""

    strict = False

    def __init__(self, tid: int, address: int, count: int) -> None:
        """Read it. OSError: EFAULT."""
        array = read_memory(tid, address, count * _POLLFD.size)
        if len(array) < count * _POLLFD.size:
            raise os_error(errno.EFAULT)
        self._address = address
        self._array = array
        self.entries = [
            (number, events & 0xFFFF | _ALWAYS) for number, events, _ in _POLLFD.iter_unpack(array)
        ]

    def answer(self, tid: int, bits: list[int]) -> int:
        """See :meth:`Files.answer`."""
        array = bytearray(self._array)
        ready = 0
        for index in range(len(self.entries)):
            struct.pack_into("=H", array, index * _POLLFD.size + 6, bits[index])
            ready += bool(bits[index])
        if write_memory(tid, self._address, bytes(array)) < len(array):
            raise os_error(errno.EFAULT)
        return ready


class SelectFiles:
    """Three ``fd_set``, any of which may be missing."""

    strict = True

    def __init__(self, tid: int, addresses: tuple[int, ...], count: int, word: int) -> None:
        """Read the sets, which consist of words of ``word`` bytes. OSError: EFAULT; ESRCH."""
        self._addresses = addresses
        self._word = word
        # fs/select.c, core_sys_select: numbers beyond the process's table are not looked at, read
        # or written. Finding its size takes as long as all the rest, so it is done only if needed.
        if count > _ANY_TABLE:
            count = min(count, _table_size(tid))
        self._read(tid, count)
        if self.entries and self.entries[-1][0] >= LEAST_TABLE:
            size = _table_size(tid)
            if size < count:
                self._read(tid, size)

    def _read(self, tid: int, count: int) -> None:
        self._size = size = -(-count // (8 * self._word)) * self._word
        self._sets = []
        for address in self._addresses:
            content = read_memory(tid, address, size) if address and size else b""
            if address and len(content) < size:
                raise os_error(errno.EFAULT)
            self._sets.append(_words(content, size))
        self.entries = []
        for at, (reads, writes, exceptions) in enumerate(zip(*self._sets, strict=True)):
            word = reads | writes | exceptions
            while word:
                bit = word & -word
                word ^= bit
                number = (at << 6) + bit.bit_length() - 1
                if number >= count:
                    return
                events = _POLLEX_SET
                if reads & bit:
                    events |= _POLLIN_SET
                if writes & bit:
                    events |= _POLLOUT_SET
                self.entries.append((number, events))

    def answer(self, tid: int, bits: list[int]) -> int:
        """See :meth:`Files.answer`."""
        ready = 0
        for address, words, events in zip(self._addresses, self._sets, _SETS, strict=True):
            if not address or not words:
                continue
            result = [0] * len(words)
            for (number, _), found in zip(self.entries, bits, strict=True):
                if found & events and words[number >> 6] >> (number & 63) & 1:
                    result[number >> 6] |= 1 << (number & 63)
                    ready += 1
            if write_memory(tid, address, self._content(result)) < self._size:
                raise os_error(errno.EFAULT)
        return ready

    def _content(self, words: list[int]) -> bytes:
        if len(words) == 1:
            return words[0].to_bytes(self._size, "little")
        return struct.pack(f"<{len(words)}Q", *words)[: self._size]


def _words(content: bytes, size: int) -> tuple[int, ...]:
    """A set of ``size`` bytes as 64-bit numbers; missing bytes are zeros."""
    if 0 < size <= 8:
        return (int.from_bytes(content, "little"),)
    count = -(-size // 8)
    return struct.unpack(f"<{count}Q", content.ljust(count * 8, b"\0"))


def _table_size(tid: int) -> int:
    """How many descriptors a thread's table has room for, a multiple of 64. OSError: ESRCH."""
    return ThreadStatus(tid).number(b"FDSize")
