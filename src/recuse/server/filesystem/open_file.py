"""What an author subclasses for the open files of a filesystem."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from recuse.server.device import File

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from typing_extensions import Buffer

    from recuse.server.filesystem.attributes import Lock


class OpenFile(File):
    """One open of a regular file: a device's `File`, plus what only filesystems have."""

    direct: bool = False
    """Whether reads and writes come here as they are made, bypassing the kernel's page cache."""

    keep_cache: bool = False
    """Whether what the page cache has from earlier opens is still valid."""

    backing: int | None = None
    """A descriptor that the kernel reads, writes and maps instead of asking (passthrough).

    With ``direct`` it is only mapped. It must stay open until `release`. If the kernel cannot do
    this (before Linux 6.9, or if the server has no CAP_SYS_ADMIN), it calls `read` and `write`,
    which by default use the descriptor.
    """

    def read(self, size: int, offset: int) -> Buffer | Awaitable[Buffer]:
        """Return what the program reads: at most ``size`` bytes, fewer only at the end.

        By default this reads `backing`; EINVAL if there is none.
        """
        if self.backing is None:
            return super().read(size, offset)
        return os.pread(self.backing, size, offset)

    def write(self, data: bytes, offset: int) -> int | Awaitable[int | None] | None:
        """Take what the program writes; return how many bytes were taken, None for all.

        By default this writes to `backing`; EINVAL if there is none.
        """
        if self.backing is None:
            return super().write(data, offset)
        return os.pwrite(self.backing, data, offset)

    def flush(self) -> Awaitable[None] | None:
        """Called when a program closes one of the file's descriptors; it gets what this raises."""

    def sync(self, data_only: bool) -> Awaitable[None] | None:
        """Make sure that what was written is safe when this returns: fsync(2) or fdatasync(2)."""

    def allocate(self, mode: int, offset: int, length: int) -> Awaitable[None] | None:
        """Do fallocate(2): reserve, zero or punch ``length`` bytes starting at ``offset``."""
        raise error(errno.EOPNOTSUPP)

    def seek(self, offset: int, whence: int) -> int | Awaitable[int]:
        """Find the next data (`os.SEEK_DATA`) or hole (`os.SEEK_HOLE`), starting at ``offset``.

        Raises OSError: ENXIO if ``offset`` is beyond the end. Without this method, all of a file is
        data.
        """
        raise error(errno.EINVAL)

    def copy_to(
        self, offset: int, other: OpenFile, other_offset: int, length: int
    ) -> int | Awaitable[int | None] | None:
        """Copy bytes to another open file; return how many, None for all (copy_file_range(2)).

        Without this method the kernel itself reads and writes.
        """
        raise error(errno.EOPNOTSUPP)

    def get_lock(self, lock: Lock, owner: int) -> Lock | Awaitable[Lock]:
        """Return a lock that conflicts with ``lock``, or one of type F_UNLCK if none does."""
        raise error(errno.EINVAL)

    def set_lock(self, lock: Lock, owner: int, wait: bool) -> Awaitable[None] | None:
        """Lock or unlock for an owner, 64 bits. With ``wait``, wait until nothing conflicts.

        Raises OSError: EAGAIN if something conflicts, EINTR if interrupted. Only called with
        `Filesystem.posix_locks` or `Filesystem.flock_locks`; otherwise the kernel does the locking.
        """
        raise error(errno.EINVAL)


def error(number: int) -> OSError:
    """Return the OSError for a number."""
    return OSError(number, os.strerror(number))
