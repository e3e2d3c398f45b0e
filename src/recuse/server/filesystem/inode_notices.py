"""What a filesystem of inodes can tell the kernel, or ask of it."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from recuse.server.filesystem.served import Served
from recuse.wire.fuse import (
    FUSE_EXPIRE_ONLY,
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_PRUNE,
    FUSE_NOTIFY_STORE,
)
from recuse.wire.notify import (
    fuse_notify_delete_out,
    fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out,
    fuse_notify_prune_out,
    fuse_notify_store_out,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


class InodeNotices(Served):
    """These can be called from any thread and method. They return before the kernel knows.

    Nothing happens if the kernel does not know the inode, or while nothing is mounted.
    """

    def invalidate_inode(self, ino: int, offset: int = 0, length: int = 0) -> None:
        """Report that attributes and content have changed: ``length`` bytes, 0 for all to the end.

        With a negative ``offset``, only the attributes.
        """
        body = fuse_notify_inval_inode_out(ino=ino, off=offset, len=length)
        self.notify(FUSE_NOTIFY_INVAL_INODE, body)

    def invalidate_entry(self, parent: int, name: str) -> None:
        """Report that a name stands for something else, or for nothing."""
        self._forget_name(parent, name, 0)

    def expire_entry(self, parent: int, name: str) -> None:
        """Have a name looked up again when it is next used, but kept until then."""
        self._forget_name(parent, name, FUSE_EXPIRE_ONLY)

    def delete_entry(self, parent: int, ino: int, name: str) -> None:
        """Report that a name is gone that stood for an inode: watchers of the directory are told.

        Nothing happens if it stands for another by now.
        """
        encoded = os.fsencode(name)
        body = fuse_notify_delete_out(parent=parent, child=ino, namelen=len(encoded))
        self.notify(FUSE_NOTIFY_DELETE, body, encoded + b"\0")

    def store(self, ino: int, offset: int, data: bytes) -> None:
        """Give the kernel part of a file's content before a program reads it.

        If the file is too short for that, it grows.
        """
        body = fuse_notify_store_out(nodeid=ino, offset=offset, size=len(data))
        self.notify(FUSE_NOTIFY_STORE, body, data)

    def prune(self, inodes: Iterable[int]) -> None:
        """Have the kernel forget inodes that no program uses, to free memory (6.19)."""
        numbers = tuple(inodes)
        if numbers:
            data = struct.pack(f"={len(numbers)}Q", *numbers)
            self.notify(FUSE_NOTIFY_PRUNE, fuse_notify_prune_out(count=len(numbers)), data)

    def _forget_name(self, parent: int, name: str, flags: int) -> None:
        encoded = os.fsencode(name)
        body = fuse_notify_inval_entry_out(parent=parent, namelen=len(encoded), flags=flags)
        self.notify(FUSE_NOTIFY_INVAL_ENTRY, body, encoded + b"\0")
