"""One connection of a filesystem: requests come in as bytes, answers go out as bytes."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final

from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.dispatch import pick_head, pick_interrupt
from recuse.server.filesystem.contents import Contents
from recuse.server.filesystem.encoding import Owner
from recuse.server.filesystem.file_calls import FileCalls
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.names import Names
from recuse.server.filesystem.notify import Notifications
from recuse.server.filesystem.passthrough import BackingFiles
from recuse.server.filesystem.state import HEADER, State
from recuse.server.pending_reply import NO_REPLY, PendingReply, Send, answer_fault
from recuse.server.runner import Runner, Step
from recuse.wire.declare import Structure
from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    fuse_batch_forget_in,
    fuse_forget_in,
    fuse_forget_one,
    fuse_setxattr_in,
)
from recuse.wire.fuse import (
    FUSE_ABORT_ERROR,
    FUSE_ASYNC_DIO,
    FUSE_ASYNC_READ,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_AUTO_INVAL_DATA,
    FUSE_BATCH_FORGET,
    FUSE_BIG_WRITES,
    FUSE_CACHE_SYMLINKS,
    FUSE_CREATE,
    FUSE_DESTROY,
    FUSE_DO_READDIRPLUS,
    FUSE_FLOCK_LOCKS,
    FUSE_FORGET,
    FUSE_HAS_EXPIRE_ONLY,
    FUSE_INIT,
    FUSE_INIT_EXT,
    FUSE_INTERRUPT,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_LINK,
    FUSE_LOOKUP,
    FUSE_MAX_PAGES,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_NOTIFY_REPLY,
    FUSE_OPEN,
    FUSE_PARALLEL_DIROPS,
    FUSE_PASSTHROUGH,
    FUSE_POSIX_LOCKS,
    FUSE_READDIRPLUS_AUTO,
    FUSE_SETXATTR_EXT,
    FUSE_SYMLINK,
    FUSE_TMPFILE,
    FUSE_WRITEBACK_CACHE,
    fuse_init_in,
    fuse_init_out,
    fuse_open_out,
)

log = Log("recuse.server")

LEAST_MINOR: Final = 31
"""Linux 5.2."""

_ENTRIES: Final = frozenset({FUSE_LOOKUP, FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK, FUSE_LINK})
"""Requests whose answer tells the kernel half about a node."""
_MAKING: Final = frozenset({FUSE_CREATE, FUSE_TMPFILE})
"""Those that also open it."""
_HANDLE: Final = struct.Struct("=Q")
_ENTRY_SIZE: Final = 128
_PAGE: Final = 4096
_STACK_DEPTH: Final = 2
"""FILESYSTEM_MAX_STACK_DEPTH, linux/fs.h."""

_ALWAYS: Final = (
    FUSE_ASYNC_READ
    | FUSE_ATOMIC_O_TRUNC
    | FUSE_BIG_WRITES
    | FUSE_AUTO_INVAL_DATA
    | FUSE_DO_READDIRPLUS
    | FUSE_READDIRPLUS_AUTO
    | FUSE_ASYNC_DIO
    | FUSE_PARALLEL_DIROPS
    | FUSE_ABORT_ERROR
    | FUSE_MAX_PAGES
    | FUSE_CACHE_SYMLINKS
    | FUSE_SETXATTR_EXT
    | FUSE_INIT_EXT
    | FUSE_HAS_EXPIRE_ONLY
)
"""Capabilities that are used if the kernel half offers them."""

_NO_OTHER_OWNER: Final = Owner()

_pick_number = struct.Struct("=16xQ").unpack_from


class FilesystemSession:
    """Serves one `Filesystem` to the kernel half at the other end of one channel.

    A channel reads requests, in any number of threads, and gives each to `handle`.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        backing: BackingFiles | None = None,
        owner: Owner = _NO_OTHER_OWNER,
    ) -> None:
        """Make a session; it starts with the kernel half's first request.

        Args:
            filesystem: what it serves.
            backing: makes backing files known to the kernel half, if it supports them.
            owner: the owner that all files are given.
        """
        self._backing = backing
        self.filesystem = filesystem
        self.minor = FUSE_KERNEL_MINOR_VERSION
        """Minor version of the protocol: the lower of the two halves' versions."""
        self._runner = Runner(self._undelivered, lambda _: None, refuses_enosys=True)
        self._state = State(filesystem, self._runner, owner)
        self._lock = new_lock("FilesystemSession")
        self._closed = False
        self._notifications: Notifications | None = None
        self._serve = {
            **Names(self._state).operations(),
            **Contents(self._state).operations(),
            **FileCalls(self._state).operations(),
        }

    @property
    def request_size(self) -> int:
        """Most bytes in a request: the size of buffer that a channel must read with."""
        return self.filesystem.max_write + _PAGE

    def handle(self, message: bytes, reply: Send) -> None:
        """Answer one request through ``reply``, exactly once, if it needs an answer.

        See `recuse.server.session.Session.handle`.
        """
        try:
            length, opcode, unique = pick_head(message)
        except struct.error:
            length = -1
        if length != len(message):
            raise WireError(f"{len(message)} bytes that are not a request")
        serve = self._serve.get(opcode)
        pending = PendingReply(message, opcode, unique, reply)
        try:
            if serve is None:
                self._other(pending)
            elif self._closed:
                pending.fail(errno.ENODEV)
            else:
                serve(pending, _pick_number(message)[0])
        except OSError as error:
            pending.fail(error.errno or errno.EIO)
        except BaseException as error:
            answer_fault(pending, error)

    def notify(self, code: int, body: Structure | None, data: bytes) -> None:
        """See `recuse.server.filesystem.filesystem.Session`; nothing happens before INIT."""
        if self._notifications is not None:
            self._notifications.put(code, body, data)

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """See `recuse.server.filesystem.filesystem.Session`."""
        if self._notifications is None or self._closed:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self._notifications.retrieve(number, offset, size)

    def close(self) -> None:
        """End the session: the connection is gone, or is about to go.

        See `recuse.server.session.Session.close`.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        others = (one for one in self.filesystem._sessions if one is not self)
        self.filesystem._sessions = tuple(others)
        if self._notifications is not None:
            self._notifications.close()
        self._runner.end(self._ending)

    def _ending(self) -> Iterator[Step]:
        for file in self._state.release_all():
            awaitable = self._runner.quietly(file.release)
            if awaitable is not None:
                yield file.release, awaitable
        for node in self._state.known.forget_all():
            self._runner.quietly(node.forgotten)
        self._runner.quietly(self.filesystem.close)

    def _other(self, pending: PendingReply) -> None:
        """Handle requests that are not about a node, and unknown ones."""
        opcode = pending.opcode
        if opcode == FUSE_INIT:
            self._init(pending)
        elif opcode == FUSE_FORGET:
            request = fuse_forget_in.unpack(pending.message, HEADER)
            self._state.forget(_pick_number(pending.message)[0], request.nlookup)
        elif opcode == FUSE_BATCH_FORGET:
            self._batch_forget(pending.message)
        elif opcode == FUSE_INTERRUPT:
            self._interrupt(pending)
        elif opcode == FUSE_NOTIFY_REPLY:
            if self._notifications is not None:
                self._notifications.retrieved(pending.unique, pending.message)
        elif opcode == FUSE_DESTROY:
            pending.reply(b"")
        elif opcode not in NO_REPLY:
            pending.fail(errno.ENOSYS)

    def _batch_forget(self, message: bytes) -> None:
        count = fuse_batch_forget_in.unpack(message, HEADER).count
        start = HEADER + fuse_batch_forget_in.SIZE
        for index in range(count):
            one = fuse_forget_one.unpack(message, start + index * fuse_forget_one.SIZE)
            self._state.forget(one.nodeid, one.nlookup)

    def _interrupt(self, pending: PendingReply) -> None:
        (unique,) = pick_interrupt(pending.message)
        if not self._runner.interrupt(unique):
            # It is still on its way here, or answered: then the kernel half drops the INTERRUPT.
            pending.fail(errno.EAGAIN)

    def _init(self, pending: PendingReply) -> None:
        # Kernels before 7.36 send a shorter structure.
        body = pending.message[HEADER:].ljust(fuse_init_in.SIZE, b"\0")
        offer = fuse_init_in.unpack(body)
        if offer.major != FUSE_KERNEL_VERSION or offer.minor < LEAST_MINOR:
            log.error(
                "the kernel half speaks %d.%d, this is for 7.%d and later",
                offer.major,
                offer.minor,
                LEAST_MINOR,
            )
            pending.fail(errno.EPROTO)
            return
        self.minor = min(FUSE_KERNEL_MINOR_VERSION, offer.minor)
        offered = offer.flags | offer.flags2 << 32
        filesystem = self.filesystem
        wanted = _ALWAYS
        if filesystem.writeback:
            wanted |= FUSE_WRITEBACK_CACHE
        elif filesystem.passthrough and self._backing is not None:
            wanted |= FUSE_PASSTHROUGH
        if filesystem.posix_locks:
            wanted |= FUSE_POSIX_LOCKS
        if filesystem.flock_locks:
            wanted |= FUSE_FLOCK_LOCKS
        taken = wanted & offered
        if taken & FUSE_SETXATTR_EXT:
            self._state.setxattr_size = fuse_setxattr_in.SIZE
        if taken & FUSE_PASSTHROUGH:
            self._state.modes.channel = self._backing
        most = max(filesystem.max_read, filesystem.max_write)
        out = fuse_init_out(
            major=FUSE_KERNEL_VERSION,
            minor=self.minor,
            max_readahead=offer.max_readahead,
            flags=taken & 0xFFFFFFFF,
            flags2=taken >> 32,
            max_background=64,
            congestion_threshold=48,
            max_write=filesystem.max_write,
            time_gran=1,
            max_pages=-(-most // _PAGE),
            # A backing file may be on a filesystem that lies on another one, such as overlayfs.
            max_stack_depth=_STACK_DEPTH if taken & FUSE_PASSTHROUGH else 0,
        )
        self._notifications = Notifications(pending.send)
        self.filesystem._sessions += (self,)
        pending.reply(out.pack())

    def _undelivered(self, pending: PendingReply, payload: bytes) -> None:
        """Undo what the kernel half did not receive: it sends no FORGET or RELEASE for it."""
        opcode = pending.opcode
        if opcode in _ENTRIES or opcode in _MAKING:
            (number,) = _HANDLE.unpack_from(payload)
            if number:
                self._state.forget(number, 1)
        if opcode in _MAKING:
            self._state.drop(fuse_open_out.unpack(payload, _ENTRY_SIZE).fh)
        elif opcode == FUSE_OPEN:
            self._state.drop(fuse_open_out.unpack(payload).fh)
