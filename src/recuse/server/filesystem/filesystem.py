"""What an author subclasses for a filesystem as a whole."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from recuse.server.filesystem.attributes import Statistics
from recuse.server.filesystem.nodes import Directory, Node
from recuse.server.filesystem.served import Served
from recuse.wire.fuse import FUSE_NOTIFY_PRUNE
from recuse.wire.notify import fuse_notify_prune_out

if TYPE_CHECKING:
    from collections.abc import Awaitable


class Filesystem(Served):
    """A filesystem: its root, and how it is served."""

    root: Directory
    negative_cache_s: float = 0.0
    """How long it may believe that a name does not exist, in seconds."""
    xattrs: bool = False
    """Whether nodes may have extended attributes. If not, the kernel is told so once and does not
    ask again, which makes listings much faster."""
    posix_locks: bool = False
    """Whether fcntl(2) locks go to `OpenFile.set_lock`, for example so other machines see them."""
    flock_locks: bool = False
    """The same for flock(2)."""

    def __init__(self, root: Directory | None = None) -> None:
        if root is not None:
            self.root = root

    def statistics(self) -> Any:
        """Return `Statistics`, or the result of `os.statvfs`, for statfs(2)."""
        return Statistics()

    def prune(self, nodes: Iterable[Node]) -> None:
        """Have the kernel forget nodes that no program uses, to free memory (6.19)."""
        numbers = [node._number for node in nodes if node._number]
        if numbers:
            data = struct.pack(f"={len(numbers)}Q", *numbers)
            self.notify(FUSE_NOTIFY_PRUNE, fuse_notify_prune_out(count=len(numbers)), data)

    def sync(self) -> Awaitable[None] | None:
        """Make sure that all of the filesystem is safe when this returns: syncfs(2)."""

    def close(self) -> Awaitable[None] | None:
        """Called when the filesystem is no longer served."""
