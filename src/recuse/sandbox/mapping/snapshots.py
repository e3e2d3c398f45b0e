"""Copies of the contents of files, for private mappings of devices without memory to share.

A copy is a memfd that lasts as long as its mapping. It is made when mmap is called. None of the
program's limits counts its memory, so all copies of a sandbox together have a limit.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.room import check_room, keeping
from recuse.wire.declare import Buffer
from recuse.wire.descriptor import OwnedDescriptor

COPIES_MAX: Final = 256 << 20
"""The most bytes that all copies of one sandbox may have together."""


class PrivateSnapshots:
    """Counts the bytes of all copies that exist."""

    def __init__(self, reclaim: Callable[[], None]) -> None:
        """Start with none.

        Args:
            reclaim: has copies closed that are no longer mapped by anybody.
        """
        self._reclaim = reclaim
        self._lock = new_lock("PrivateSnapshots")
        self._size = 0
        self._given_back: deque[int] = deque()
        """To be subtracted from the size by the next thread that has the lock."""

    @property
    def size(self) -> int:
        """How many bytes all existing copies have."""
        with self._lock:
            return self._count()

    def take(self, size: int) -> None:
        """Let a copy grow by that many bytes.

        Raises:
            OSError: ENOMEM if it must not.
        """
        if not self._grow(size):
            self._reclaim()
            if not self._grow(size):
                raise os_error(errno.ENOMEM)

    def _grow(self, size: int) -> bool:
        with self._lock:
            if self._count() + size > COPIES_MAX:
                return False
            self._size += size
            return True

    def _count(self) -> int:
        while self._given_back:
            self._size -= self._given_back.popleft()
        return self._size

    def give_back(self, size: int) -> None:
        """That many bytes are gone.

        This takes no lock. Garbage collection may call it in any thread and in the middle of
        anything, so the thread may already hold any lock, even this one.
        """
        self._given_back.append(size)

    def begin(self, offset: int, wanted: Callable[[], bool]) -> Copy:
        """Make an empty copy of a file's content from ``offset`` on.

        Args:
            offset: in bytes; the copy has its bytes at the same position.
            wanted: whether anybody still waits for it.

        Raises:
            OSError: ENFILE if the supervisor has no descriptors left.
        """
        with keeping():
            memory = _Memory(os.memfd_create("recuse"), self)
        check_room(memory.fileno())  # if this raises, the memfd is closed, as nothing refers to it
        return Copy(memory, offset, wanted)


class _Memory(OwnedDescriptor):
    """A memfd whose bytes are counted until it is closed."""

    __slots__ = ("copies", "size")

    def __init__(self, number: int, copies: PrivateSnapshots) -> None:
        super().__init__(number)
        self.copies = copies
        self.size = 0

    def close(self) -> None:
        """Close it. Doing this again has no effect."""
        super().close()
        size, self.size = self.size, 0
        self.copies.give_back(size)

    __del__ = close


class Copy:
    """A copy while it is being made; see `recuse.kernel.char.mmap.Copy`."""

    __slots__ = ("_end", "_memory", "_wanted")

    def __init__(self, memory: _Memory, offset: int, wanted: Callable[[], bool]) -> None:
        self._memory = memory
        self._end = offset
        self._wanted = wanted

    @property
    def memory(self) -> OwnedDescriptor:
        """The memory to be mapped: the object that owns it."""
        return self._memory

    def append(self, data: Buffer) -> None:
        """Add some bytes.

        Raises:
            OSError: ENOMEM if there is no room for them, EINTR if nobody waits for them any more.
        """
        if not self._wanted():
            raise os_error(errno.EINTR)
        left = memoryview(data)
        memory = self._memory
        memory.copies.take(left.nbytes)
        memory.size += left.nbytes
        while left:
            try:
                written = os.pwrite(memory.fileno(), left, self._end)
            except OSError:
                raise os_error(errno.ENOMEM) from None
            self._end += written
            left = left[written:]
