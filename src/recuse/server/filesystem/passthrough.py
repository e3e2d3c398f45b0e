"""How open files are read and written: through the page cache, past it, or by a backing file.

All opens of one inode have to agree (fs/fuse/iomode.c, passthrough.c, Linux 6.9). While one uses
the page cache, no other has a backing file. While one has a backing file, all others that are
opened have the same one. The kernel answers EIO to an open that breaks this rule, so the rule is
applied here.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Protocol

from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.wire.fuse import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH

log = Log("recuse.server")


class BackingFiles(Protocol):
    """The channel to a kernel that itself reads and writes backing files."""

    def open_backing(self, descriptor: int) -> int:
        """Make an open file known to the kernel; return its number, 1 or more.

        Raises OSError: EPERM without CAP_SYS_ADMIN, ELOOP for a file that is backed itself.
        """

    def close_backing(self, number: int) -> None:
        """Make it unknown again. Files that are open with it are not affected."""


class _Inode:
    """How a node is open."""

    __slots__ = ("backed", "backing", "cached")

    def __init__(self) -> None:
        self.cached = 0
        """How many opens use the page cache."""
        self.backed = 0
        """How many have the backing file."""
        self.backing = 0


class Modes:
    """The modes of a session's open files. Thread-safe."""

    def __init__(self) -> None:
        self.channel: BackingFiles | None = None
        """Set if the kernel half has backing files."""
        self._lock = new_lock("Modes")
        self._told = False
        self._inodes: dict[int, _Inode] = {}
        self._opens: dict[int, tuple[int, bool]] = {}
        """By handle: the node's number, and whether the file has a backing file. Direct files
        are not in here."""

    def open(
        self, handle: int, number: int, descriptor: int | None, direct: bool, keep_cache: bool
    ) -> tuple[int, int]:
        """Decide how an open file of a node is read and written.

        Args:
            handle: the open file's.
            number: the node's.
            descriptor: of its backing file, if it has one.
            direct: whether it bypasses the page cache.
            keep_cache: whether what the page cache has is still valid.

        Returns:
            FOPEN_ flags, and the backing file's number.
        """
        if self.channel is None and not self._opens:
            # There are no backing files: which opens of an inode agree does not matter.
            return FOPEN_DIRECT_IO if direct else FOPEN_KEEP_CACHE if keep_cache else 0, 0
        with self._lock:
            inode = self._inodes.get(number) or _Inode()
            has_backing = inode.backed or (descriptor is not None and not inode.cached)
            if has_backing and self._back(inode, descriptor):
                inode.backed += 1
                self._inodes[number] = inode
                self._opens[handle] = number, True
                # One without a backing file of its own is mapped as the others, and asks for all
                # else.
                asks = direct or descriptor is None
                return FOPEN_PASSTHROUGH | (FOPEN_DIRECT_IO if asks else 0), inode.backing
            if direct:
                return FOPEN_DIRECT_IO, 0
            inode.cached += 1
            self._inodes[number] = inode
            self._opens[handle] = number, False
        return FOPEN_KEEP_CACHE if keep_cache else 0, 0

    def map(self, handle: int, number: int, descriptor: int) -> int:
        """Have programs that map an open file map a backing file, and ask for all else.

        Args:
            handle: the open file's; all files of its node are opened in this way, or directly.
            number: the node's.
            descriptor: of the backing file: the same one for all that are open at a time.

        Returns:
            The backing file's number, for an answer with FOPEN_PASSTHROUGH and FOPEN_DIRECT_IO.

        Raises:
            OSError: the kernel does not take it.
        """
        with self._lock:
            inode = self._inodes.get(number) or _Inode()
            if not inode.backed:
                inode.backing = self._open_backing(descriptor)
            inode.backed += 1
            self._inodes[number] = inode
            self._opens[handle] = number, True
            return inode.backing

    def _open_backing(self, descriptor: int) -> int:
        if self.channel is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        try:
            return self.channel.open_backing(descriptor)
        except OSError as error:
            if error.errno == errno.EPERM:
                self.channel = None  # and use no other backing file
            raise

    def _back(self, inode: _Inode, descriptor: int | None) -> bool:
        """Make a descriptor the inode's backing file, if it has none. Called with the lock held."""
        if inode.backed:
            return True
        if self.channel is None or descriptor is None:
            return False
        try:
            inode.backing = self._open_backing(descriptor)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning(
                    "the kernel does not take a backing file (%s): this process reads and writes "
                    "it instead; passthrough is for root, and for files that are on no other file",
                    os.strerror(error.errno or 0),
                )
            return False
        return True

    def close(self, handle: int) -> None:
        """Record that an open file is released."""
        if handle not in self._opens:
            return
        with self._lock:
            number, backed = self._opens.pop(handle, (0, False))
            inode = self._inodes.get(number)
            if inode is None:
                return
            if backed:
                inode.backed -= 1
            else:
                inode.cached -= 1
            if inode.backed or inode.cached:
                return
            del self._inodes[number]
            if inode.backing and self.channel is not None:
                with contextlib.suppress(OSError):  # the connection may have ended
                    self.channel.close_backing(inode.backing)
