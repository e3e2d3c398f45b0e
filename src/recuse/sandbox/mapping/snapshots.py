"""Copies of what files have, for private mappings of devices without memory to share.

A copy is a memfd, which lasts as long as its mapping does. It is made when mmap is called, and is
memory that no limit of the program's counts; so there is one for all copies of a sandbox together.
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
"""Most bytes that the copies of one sandbox have together."""


class PrivateSnapshots:
    """Counts the bytes of all copies that there are."""

    def __init__(self, reclaim: Callable[[], None]) -> None:
        """Begin with none.

        Args:
            reclaim: sees that copies are closed which nobody has mapped any more.
        """
        self._reclaim = reclaim
        self._lock = new_lock("PrivateSnapshots")
        self._size = 0
        self._given_back: deque[int] = deque()
        """To be taken off the size, by who has the lock."""

    @property
    def size(self) -> int:
        """How many bytes the copies have that there are now."""
        with self._lock:
            return self._count()

    def take(self, size: int) -> None:
        """Let a copy grow by so many bytes.

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
        """So many bytes are not there any more.

        Takes no lock: a collection of garbage gives back, in whatever thread and in the middle of
        anything, so that the thread may hold any lock, and this one.
        """
        self._given_back.append(size)

    def begin(self, offset: int, wanted: Callable[[], bool]) -> Copy:
        """Make an empty copy of what is at ``offset`` of a file and after it.

        Args:
            offset: in bytes; the copy has its bytes at the same place.
            wanted: whether there still is somebody who waits for it.

        Raises:
            OSError: ENFILE if the supervisor has no descriptors left.
        """
        with keeping():
            memory = _Memory(os.memfd_create("recuse"), self)
        check_room(memory.fileno())  # or it is closed as nobody has it
        return Copy(memory, offset, wanted)


class _Memory(OwnedDescriptor):
    """A memfd whose bytes are counted until it is closed."""

    __slots__ = ("copies", "size")

    def __init__(self, number: int, copies: PrivateSnapshots) -> None:
        super().__init__(number)
        self.copies = copies
        self.size = 0

    def close(self) -> None:
        """Close it; again, do nothing."""
        super().close()
        size, self.size = self.size, 0
        self.copies.give_back(size)

    __del__ = close


class Copy:
    """One copy, while it is made; see `recuse.kernel.char.mmap.Copy`."""

    __slots__ = ("_end", "_memory", "_wanted")

    def __init__(self, memory: _Memory, offset: int, wanted: Callable[[], bool]) -> None:
        self._memory = memory
        self._end = offset
        self._wanted = wanted

    @property
    def memory(self) -> OwnedDescriptor:
        """What is to be mapped: the one that owns it."""
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
