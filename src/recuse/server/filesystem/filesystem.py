"""What an author subclasses for a filesystem as a whole."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from recuse.server.filesystem.attributes import Statistics
from recuse.server.filesystem.nodes import Directory, Node
from recuse.server.filesystem.open_file import error
from recuse.wire.fuse import FUSE_NOTIFY_INC_EPOCH, FUSE_NOTIFY_PRUNE, FUSE_NOTIFY_RESEND
from recuse.wire.notify import fuse_notify_prune_out

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from concurrent.futures import Future

    from recuse.wire.declare import Structure


class Session(Protocol):
    """Serves a filesystem: the part of it that the filesystem needs."""

    def notify(self, code: int, body: Structure | None, data: bytes) -> None:
        """Send the kernel half a notification soon."""

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """Ask the kernel half for part of a node's content."""


class Filesystem:
    """A filesystem: its root, and how it is served."""

    name: str = "recuse"
    """The filesystem's type is ``fuse.NAME``, which mount(8) and df(1) show."""
    root: Directory
    cache_s: float = 1.0
    """How long the kernel may believe what it was told about names and attributes, in seconds."""
    negative_cache_s: float = 0.0
    """How long it may believe that a name does not exist, in seconds."""
    read_only: bool = False
    passthrough: bool = False
    """Whether files may have `OpenFile.backing`. Not possible together with ``writeback``."""
    writeback: bool = False
    """Whether the kernel may hold back written data for a while, and write it in larger pieces."""
    xattrs: bool = False
    """Whether nodes may have extended attributes. If not, the kernel is told so once and does not
    ask again, which makes listings much faster."""
    posix_locks: bool = False
    """Whether fcntl(2) locks go to `OpenFile.set_lock`, for example so other machines see them."""
    flock_locks: bool = False
    """The same for flock(2)."""
    max_read: int = 1 << 20
    max_write: int = 1 << 20
    """Most bytes in one request."""

    _last_number: int = 1
    _sessions: tuple[Session, ...] = ()
    """The sessions that serve it now."""

    def __init__(self, root: Directory | None = None) -> None:
        if root is not None:
            self.root = root

    def statistics(self) -> Any:
        """Return `Statistics`, or the result of `os.statvfs`, for statfs(2)."""
        return Statistics()

    def names_changed(self) -> None:
        """Have the kernel look up all names again (Linux 6.17; elsewhere nothing happens)."""
        self.notify(FUSE_NOTIFY_INC_EPOCH, None)

    def prune(self, nodes: Iterable[Node]) -> None:
        """Have the kernel forget nodes that no program uses, to free memory (6.19)."""
        numbers = [node._number for node in nodes if node._number]
        if numbers:
            data = struct.pack(f"={len(numbers)}Q", *numbers)
            self.notify(FUSE_NOTIFY_PRUNE, fuse_notify_prune_out(count=len(numbers)), data)

    def resend(self) -> None:
        """Have the kernel resend all requests that it waits for (6.9).

        For a server that takes over the connection of one that has ended. Requests that are being
        answered here come a second time.
        """
        self.notify(FUSE_NOTIFY_RESEND, None)

    def notify(self, code: int, body: Structure | None, data: bytes = b"") -> None:
        """See `recuse.server.filesystem.nodes.Owner`."""
        for session in self._sessions:
            session.notify(code, body, data)

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """See `recuse.server.filesystem.nodes.Owner`."""
        for session in self._sessions:
            return session.retrieve(number, offset, size)
        raise error(errno.ENODEV)

    def sync(self) -> Awaitable[None] | None:
        """Make sure that all of the filesystem is safe when this returns: syncfs(2)."""

    def close(self) -> None:
        """Called when the filesystem is no longer served."""
