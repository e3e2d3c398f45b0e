"""Files that are read and written by another file: passthrough (fs/fuse/passthrough.c, backing.c).

All opens of one file have to agree on how it is read and written (fs/fuse/iomode.c, Linux 6.18).
While one has a backing file, no other may use the page cache, nor another backing file.
"""

import errno
import itertools
from typing import Final, Protocol

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.wire.declare import Buffer
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_NOFLUSH,
    FOPEN_PARALLEL_DIRECT_WRITES,
    FOPEN_PASSTHROUGH,
)

_WITH_PASSTHROUGH: Final = (
    FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES | FOPEN_NOFLUSH
)
"""FOPEN_PASSTHROUGH_MASK."""


class BackingFile(Protocol):
    """An open file of the machine's. Its methods raise OSError."""

    def fileno(self) -> int:
        """Its descriptor: a host can give programs copies of it instead of asking this half."""

    def reopened(self, flags: int) -> "BackingFile":
        """Return it opened once more, as a program has opened the file that it is behind.

        The server may have opened it for less; its rights decide (backing_file_open).
        """

    def read(self, size: int, offset: int) -> bytes:
        """Return what is there, less at its end."""

    def write(self, data: Buffer, offset: int | None, flags: int) -> tuple[int, int]:
        """Write, at its end if ``offset`` is None; ``flags`` may have O_SYNC or O_DSYNC.

        Returns how many bytes were written, and where the last one ends.
        """

    def close(self) -> None:
        """Nobody uses it any more."""


class Backing:
    """A backing file that the server has made known, for as long as somebody uses it."""

    def __init__(self, file: BackingFile) -> None:
        self.file = file
        self._users = 1

    def get(self) -> None:
        """Note another user."""
        with _guard:
            self._users += 1

    def put(self) -> None:
        """Note that one has gone; the last one closes it."""
        with _guard:
            self._users -= 1
            left = self._users
        if not left:
            self.file.close()


class BackingFiles:
    """The backing files of a filesystem, by the numbers that the server names them by."""

    def __init__(self) -> None:
        self._files: dict[int, Backing] = {}
        self._numbers = itertools.count(1)

    def open(self, file: BackingFile) -> int:
        """Make a file known; return its number (FUSE_DEV_IOC_BACKING_OPEN)."""
        number = next(self._numbers)
        self._files[number] = Backing(file)
        return number

    def close(self, number: int) -> None:
        """Make it unknown; those who have it open keep it. Raises OSError(ENOENT)."""
        backing = self._files.pop(number, None)
        if backing is None:
            raise os_error(errno.ENOENT)
        backing.put()

    def find(self, number: int) -> Backing | None:
        """Return a known one, with another user."""
        backing = self._files.get(number)
        if backing is not None:
            backing.get()
        return backing

    def end(self) -> None:
        """The connection has ended: no further file is opened with them."""
        for number in list(self._files):
            self.close(number)


class IoMode:
    """How one node is read and written by those who have it open. Thread-safe."""

    __slots__ = ("_backed", "backing", "cached")

    def __init__(self) -> None:
        self.cached = 0
        """How many opens use the page cache."""
        self._backed = 0
        self.backing: Backing | None = None

    def start_cached(self) -> None:
        """Use the page cache. Raises OSError(ETXTBSY) while the node has a backing file."""
        with _guard:
            if self.backing is not None:
                raise os_error(errno.ETXTBSY)
            self.cached += 1

    def start_backed(self, backing: Backing) -> None:
        """Use a backing file. Raises OSError: ETXTBSY if the page cache is used, EBUSY."""
        with _guard:
            if self.cached:
                raise os_error(errno.ETXTBSY)
            if self.backing not in (None, backing):
                raise os_error(errno.EBUSY)
            self.backing = backing
            self._backed += 1

    def end_cached(self) -> None:
        """The page cache is not used by one of them any more."""
        with _guard:
            self.cached -= 1

    def end_backed(self) -> None:
        """One of those with the backing file is closed."""
        with _guard:
            self._backed -= 1
            if not self._backed:
                self.backing = None


def allowed_flags(open_flags: int) -> bool:
    """Whether these FOPEN_ flags can be with a backing file."""
    return not open_flags & ~_WITH_PASSTHROUGH


_guard = new_lock("Backing")
