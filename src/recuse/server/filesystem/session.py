"""One connection of a filesystem: requests come in as bytes, answers go out as bytes."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final

from recuse.runtime.locks import new_lock
from recuse.server.dispatch import pick_interrupt
from recuse.server.errors import brief
from recuse.server.filesystem.encoding import Owner
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.init import PAGE, negotiate
from recuse.server.filesystem.level import Level
from recuse.server.filesystem.node_level import NodeLevel
from recuse.server.filesystem.nodes import Directory
from recuse.server.filesystem.notify import Notifications
from recuse.server.filesystem.passthrough import BackingFiles
from recuse.server.filesystem.requests import forgetting, pick_head
from recuse.server.filesystem.served import Served, add_session, remove_session
from recuse.server.filesystem.undelivered import promises
from recuse.server.pending_reply import NO_REPLY, Gather, PendingReply, Send, answer_fault
from recuse.server.runner import Runner, Step
from recuse.wire.cuse import RECUSE_DESCRIBE, RECUSE_DESCRIBE_READ_ONLY, recuse_describe_out
from recuse.wire.declare import Structure
from recuse.wire.errors import WireError
from recuse.wire.filesystem import fuse_setxattr_in
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_COMPAT_SETXATTR_IN_SIZE,
    FUSE_DESTROY,
    FUSE_FORGET,
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_NOTIFY_REPLY,
    FUSE_OVER_IO_URING,
    FUSE_PASSTHROUGH,
    FUSE_READ,
    FUSE_SETXATTR_EXT,
    FUSE_WRITE,
)

_NO_OTHER_OWNER: Final = Owner()
_REMEMBERED: Final = frozenset(range(1 << 8)) - {FUSE_READ, FUSE_WRITE, FUSE_IOCTL}
_LEAST_PAGES: Final = 32
"""So that all fits into a channel's memory that may come: names, listings, ioctls, extended
attributes of 64 KiB."""


class FilesystemSession:
    """Serves one filesystem to the kernel half at the other end of one channel.

    A channel reads requests, in any number of threads, and gives each to `handle`.
    """

    def __init__(
        self,
        filesystem: Served,
        backing: BackingFiles | None = None,
        owner: Owner = _NO_OTHER_OWNER,
        *,
        shared: bool = False,
    ) -> None:
        """Make a session; it starts with the kernel half's first request.

        Args:
            filesystem: what it serves: a `Filesystem` or `Inodes`.
            backing: makes backing files known to the kernel half, if it supports them.
            owner: the owner that all files are given.
            shared: whether other sessions serve it too, and a server that outlives them, whose own
                session (`hold`) tells the filesystem of the beginning and the end.
        """
        self._backing = backing
        self.filesystem = filesystem
        self.minor = FUSE_KERNEL_MINOR_VERSION
        """Minor version of the protocol: the lower of the two halves' versions."""
        has_nodes = isinstance(filesystem, Filesystem)
        self._runner = Runner(
            self._undelivered,
            lambda _: None,
            # The kernel half would remember it for ever, for all nodes.
            refuses_enosys=_REMEMBERED if has_nodes else (),
        )
        self._level: Level = _level(filesystem, self._runner, owner)
        self._shared = shared
        self._lock = new_lock("FilesystemSession")
        self._closed = False
        self._notifications: Notifications | None = None
        self.offers_rings = False
        """Whether the channel can have requests by io_uring; it says so before the first one."""
        self._serve = self._level.operations()

    @property
    def request_size(self) -> int:
        """Most bytes in a request: the size of buffer that a channel must read with."""
        return max(self.filesystem.max_write, _LEAST_PAGES * PAGE) + PAGE

    @property
    def has_backing(self) -> bool:
        """Whether the kernel half takes backing files, as far as known."""
        return self._level.modes.channel is not None

    @property
    def payload_size(self) -> int:
        """Most bytes that follow the headers of a request or an answer which come by io_uring."""
        most = max(self.filesystem.max_read, self.filesystem.max_write)
        return max(-(-most // PAGE), _LEAST_PAGES) * PAGE

    def handle(self, message: bytes, reply: Send, gather: Gather | None = None) -> None:
        """Answer one request through ``reply``, exactly once, if it needs an answer.

        A large answer goes through ``gather`` instead, if there is one. For the rest see
        `recuse.server.session.Session.handle`.
        """
        try:
            length, opcode, unique, number = pick_head(message)
        except struct.error:
            length = -1
        if length != len(message):
            raise WireError(f"{len(message)} bytes that are not a request")
        serve = self._serve.get(opcode)
        pending = PendingReply(message, opcode, unique, reply, gather)
        try:
            if serve is None:
                self._other(pending, number)
            elif self._closed:
                pending.fail(errno.ENODEV)
            else:
                serve(pending, number)
        except BaseException as error:
            waits = opcode not in NO_REPLY and not pending.answered
            if waits and isinstance(error, OSError):
                pending.fail(error.errno or errno.EIO)
            else:
                answer_fault(pending, error)

    def hold(self) -> None:
        """Begin without a kernel half: other sessions do the rest. Raises OSError as INIT."""
        self._level.begin()

    def notify(self, code: int, body: Structure | None, data: bytes) -> None:
        """See `recuse.server.filesystem.served.Session`; nothing happens before INIT."""
        if self._notifications is not None:
            self._notifications.put(code, body, data)

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """See `recuse.server.filesystem.served.Session`."""
        if self._notifications is None or self._closed:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self._notifications.retrieve(number, offset, size)

    def left(self) -> list[str]:
        """What the kernel half has open or knows now, besides the root: some words for each.

        Empty for `Inodes`, who count for themselves.
        """
        return self._level.left() if isinstance(self._level, NodeLevel) else []

    def close(self) -> None:
        """End the session: the connection is gone, or is about to go.

        See `recuse.server.session.Session.close`.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        remove_session(self.filesystem, self)
        if self._notifications is not None:
            self._notifications.close()
        self._runner.end(self._ending)

    def _ending(self) -> Iterator[Step]:
        yield from self._level.release_all()
        if not self._shared:
            yield from self._level.end()

    def _other(self, pending: PendingReply, number: int) -> None:
        """Handle requests that are not about a node, and unknown ones."""
        opcode = pending.opcode
        if opcode in (FUSE_FORGET, FUSE_BATCH_FORGET):
            self._level.forget(forgetting(pending.message, opcode, number))
        elif opcode == FUSE_INIT:
            self._init(pending)
        elif opcode == FUSE_INTERRUPT:
            self._interrupt(pending)
        elif opcode == FUSE_NOTIFY_REPLY:
            if self._notifications is not None:
                self._notifications.retrieved(pending.unique, pending.message)
        elif opcode == FUSE_DESTROY:
            pending.reply(b"")
        elif opcode == RECUSE_DESCRIBE:
            pending.reply(_description(self.filesystem))
        elif opcode not in NO_REPLY:
            pending.fail(errno.ENOSYS)

    def _interrupt(self, pending: PendingReply) -> None:
        (unique,) = pick_interrupt(pending.message)
        if not self._runner.interrupt(unique):
            # It is still on its way here, or answered: then the kernel half drops the INTERRUPT.
            pending.fail(errno.EAGAIN)

    def _init(self, pending: PendingReply) -> None:
        has_backing = self._backing is not None
        wanted = self._level.flags() | (FUSE_OVER_IO_URING if self.offers_rings else 0)
        out = negotiate(self.filesystem, wanted, pending.message, has_backing)
        self.minor = out.minor
        taken = out.flags | out.flags2 << 32
        if taken & FUSE_OVER_IO_URING:
            out.max_pages = self.payload_size // PAGE
        if taken & FUSE_PASSTHROUGH:
            self._level.modes.channel = self._backing
        extended = taken & FUSE_SETXATTR_EXT
        size = fuse_setxattr_in.SIZE if extended else FUSE_COMPAT_SETXATTR_IN_SIZE
        self._level.state.setxattr_size = size
        if not self._shared:
            self._level.begin()
        self._notifications = Notifications(pending.send)
        add_session(self.filesystem, self)
        if self._closed:
            remove_session(self.filesystem, self)
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        pending.reply(out.pack())

    def _undelivered(self, pending: PendingReply, payload: bytes) -> None:
        promised = promises(pending.opcode, payload)
        if promised is not None:
            self._level.undelivered(promised)


def _description(filesystem: Served) -> bytes:
    flags = RECUSE_DESCRIBE_READ_ONLY if filesystem.read_only else 0
    described = recuse_describe_out(flags=flags, max_read=filesystem.max_read)
    return described.pack() + os.fsencode(filesystem.name)


def _level(filesystem: Served, runner: Runner, owner: Owner) -> Level:
    if isinstance(filesystem, Filesystem):
        root = getattr(filesystem, "root", None)
        if not isinstance(root, Directory):
            kind = type(filesystem).__name__
            raise TypeError(f"the root of {kind} is {brief(root)}, not a Directory")
        return NodeLevel(filesystem, runner, owner)
    # Few filesystems need it.
    from recuse.server.filesystem.inode_level import InodeLevel  # noqa: PLC0415
    from recuse.server.filesystem.inodes import Inodes  # noqa: PLC0415

    if isinstance(filesystem, Inodes):
        return InodeLevel(filesystem, runner, owner)
    raise TypeError(f"{type(filesystem).__name__} is neither a Filesystem nor Inodes")
