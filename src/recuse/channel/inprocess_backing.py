"""Backing files of a filesystem whose kernel half is in the same process."""

from __future__ import annotations

import errno
import os

from recuse.kernel.fs.superblock import Superblock
from recuse.wire.declare import Buffer
from recuse.wire.fuse import FUSE_PASSTHROUGH


class DescriptorFile:
    """A file by its descriptor; see `recuse.kernel.fs.backing.BackingFile`."""

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor."""
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Its descriptor."""
        return self._descriptor

    def reopened(self, flags: int) -> DescriptorFile:
        """Open it once more."""
        flags &= os.O_ACCMODE | os.O_SYNC | os.O_DSYNC
        return DescriptorFile(os.open(f"/proc/self/fd/{self._descriptor}", flags | os.O_CLOEXEC))

    def read(self, size: int, offset: int) -> bytes:
        """Return what is there."""
        return os.pread(self._descriptor, size, offset)

    def write(self, data: Buffer, offset: int | None, flags: int) -> tuple[int, int]:
        """Write, and return how many bytes, and where they end."""
        how = os.RWF_DSYNC if flags & os.O_DSYNC else 0
        how |= os.RWF_SYNC if flags & os.O_SYNC & ~os.O_DSYNC else 0
        if offset is None:
            how |= os.RWF_APPEND
        written = os.pwritev(self._descriptor, [data], offset or 0, how)
        if offset is None:
            return written, os.fstat(self._descriptor).st_size
        return written, offset + written

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class InProcessBacking:
    """See `recuse.server.filesystem.passthrough.BackingFiles`."""

    def __init__(self, superblock: Superblock) -> None:
        self._superblock = superblock

    def open_backing(self, descriptor: int) -> int:
        """Make an open file known; return its number. Raises OSError: EPERM, EBADF."""
        if not self._superblock.has(FUSE_PASSTHROUGH):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self._superblock.backing.open(DescriptorFile(os.dup(descriptor)))

    def close_backing(self, number: int) -> None:
        """Make it unknown again."""
        self._superblock.backing.close(number)
