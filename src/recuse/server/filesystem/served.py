"""What `Filesystem` and `Inodes` have in common: how a filesystem is served."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from recuse.wire.fuse import FUSE_NOTIFY_INC_EPOCH, FUSE_NOTIFY_RESEND

if TYPE_CHECKING:
    from concurrent.futures import Future

    from recuse.wire.declare import Structure


class Session(Protocol):
    """Serves a filesystem: the part of it that the filesystem needs."""

    def notify(self, code: int, body: Structure | None, data: bytes) -> None:
        """Send the kernel half a notification soon."""

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """Ask the kernel half for part of a node's content."""


class Served:
    """How a filesystem is served. These are set on the class, or on the object before it is."""

    name: str = "recuse"
    """The filesystem's type is ``fuse.NAME``, which mount(8) and df(1) show."""
    cache_s: float = 1.0
    """How long the kernel may believe what it was told about names and attributes, in seconds."""
    read_only: bool = False
    passthrough: bool = False
    """Whether files may have a backing file: `OpenFile.backing`, `Opened.backing`. Not possible
    together with ``writeback``."""
    direct_mmap: bool = True
    """Whether programs may map what bypasses the page cache with MAP_SHARED, and so get it by pages
    (Linux 6.6). If not, that fails with ENODEV. While such a mapping exists, the file can be opened
    with no backing file: a filesystem that has devices sets this to False."""
    writeback: bool = False
    """Whether the kernel may hold back written data for a while, and write it in larger pieces."""
    posix_acls: bool = False
    """Whether the kernel is to check the access control lists in the extended attributes
    ``system.posix_acl_access`` and ``_default``, see acl(5). Setting one must change the mode, and
    chmod must change the list. What is made takes its permissions from the directory's default
    list, so ``mode`` comes without the program's umask removed: `Request.umask` has it."""
    handle_killpriv: bool = False
    """Whether the filesystem itself takes set-user-ID and set-group-ID away from files that are
    written, truncated or given away, and their file capabilities: `Request.kill_suidgid` says when,
    in changes that may have nothing else. Otherwise the kernel does, and asks more often."""
    explicit_invalidation: bool = False
    """Whether the kernel keeps a file's cached content even if size or time have changed, until it
    is told otherwise."""
    security_contexts: bool = False
    """Whether files are made with the security contexts that SELinux and the like give them:
    `Request.security_contexts`. The filesystem must keep them as extended attributes."""
    idmapped: bool = False
    """Whether the filesystem may be seen through mounts with other user IDs (mount_setattr(2)).
    `Request.uid` and `Request.gid` are then None, except where something is made (Linux 6.12)."""
    request_timeout_s: int = 0
    """The kernel ends the connection if a request has no answer after this time, and at most 15
    seconds more; up to 65535, 0 for never (Linux 6.15)."""
    max_read: int = 1 << 20
    max_write: int = 1 << 20
    """Most bytes in one request. The kernel has a limit too, by default 1 MiB (since Linux 6.13:
    /proc/sys/fs/fuse/max_pages_limit, in pages)."""

    def names_changed(self) -> None:
        """Have the kernel look up all names again (Linux 6.17; elsewhere nothing happens)."""
        self.notify(FUSE_NOTIFY_INC_EPOCH, None)

    def resend(self) -> None:
        """Have the kernel resend all requests that it waits for (6.9).

        For a server that takes over the connection of one that has ended. Requests that are being
        answered here come a second time.
        """
        self.notify(FUSE_NOTIFY_RESEND, None)

    def notify(self, code: int, body: Structure | None, data: bytes = b"") -> None:
        """See `recuse.server.filesystem.nodes.Owner`."""
        for session in sessions_of(self):
            session.notify(code, body, data)

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """See `recuse.server.filesystem.nodes.Owner`."""
        for session in sessions_of(self):
            return session.retrieve(number, offset, size)
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


# What a session does with a filesystem. These are not methods, so authors can use any names.


def sessions_of(served: Served) -> list[Session]:
    """The sessions that serve it now."""
    return list(vars(served).get("_sessions", ()))


def add_session(served: Served, session: Session) -> None:
    """Note that a session serves it."""
    # In one step each: several sessions may begin and end at once.
    vars(served).setdefault("_sessions", {})[session] = None


def remove_session(served: Served, session: Session) -> None:
    """Note that a session has ended."""
    vars(served).get("_sessions", {}).pop(session, None)
