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
    """One open of a regular file: what a device's `File` has, and what only filesystems have."""

    direct: bool = False
    """Whether reads and writes come here as they are made, past the kernel's page cache."""

    keep_cache: bool = False
    """Whether what the page cache has of earlier opens is still true."""

    backing: int | None = None
    """A descriptor that the kernel is to read, write and map instead of asking (passthrough).

    It has to stay open until `release`. Where the kernel cannot (before Linux 6.9, or if who
    serves has no CAP_SYS_ADMIN), `read` and `write` are asked for; by default they use it.
    """

    def read(self, size: int, offset: int) -> Buffer | Awaitable[Buffer]:
        """Return what the program reads: at most ``size`` bytes, fewer only at the end.

        Without this method, what is in `backing`; EINVAL if there is none.
        """
        if self.backing is None:
            return super().read(size, offset)
        return os.pread(self.backing, size, offset)

    def write(self, data: bytes, offset: int) -> int | Awaitable[int | None] | None:
        """Take what the program writes; return how many bytes of it, None for all.

        Without this method it goes to `backing`; EINVAL if there is none.
        """
        if self.backing is None:
            return super().write(data, offset)
        return os.pwrite(self.backing, data, offset)

    def flush(self) -> Awaitable[None] | None:
        """Be told that a program closes one of the file's descriptors; what is raised, it gets."""

    def sync(self, data_only: bool) -> Awaitable[None] | None:
        """Have what was written safe when this returns: fsync(2), or fdatasync(2)."""

    def allocate(self, mode: int, offset: int, length: int) -> Awaitable[None] | None:
        """Do fallocate(2): reserve, zero or punch ``length`` bytes from ``offset`` on."""
        raise error(errno.EOPNOTSUPP)

    def seek(self, offset: int, whence: int) -> int | Awaitable[int]:
        """Find the next data (`os.SEEK_DATA`) or hole (`os.SEEK_HOLE`) from ``offset`` on.

        Raises OSError: ENXIO if ``offset`` is beyond the end. Without this method, all of a file
        is data.
        """
        raise error(errno.EINVAL)

    def copy_to(
        self, offset: int, other: OpenFile, other_offset: int, length: int
    ) -> int | Awaitable[int | None] | None:
        """Copy bytes to another open file; return how many, None for all (copy_file_range(2)).

        Without this method the kernel reads and writes.
        """
        raise error(errno.EOPNOTSUPP)

    def get_lock(self, lock: Lock, owner: int) -> Lock | Awaitable[Lock]:
        """Return a lock that is in the way of ``lock``, or one of type F_UNLCK if none is."""
        raise error(errno.EINVAL)

    def set_lock(self, lock: Lock, owner: int, wait: bool) -> Awaitable[None] | None:
        """Lock or unlock for an owner, 64 bits; with ``wait``, when nothing is in the way.

        Raises OSError: EAGAIN if something is, EINTR if it was interrupted. Asked for only if
        `Filesystem.posix_locks` or `Filesystem.flock_locks`; otherwise the kernel locks by itself.
        """
        raise error(errno.EINVAL)


def error(number: int) -> OSError:
    """Return the error of a number."""
    return OSError(number, os.strerror(number))
