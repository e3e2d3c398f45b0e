"""Operations on open files, attributes and extended attributes (fs/fuse/file.c, dir.c, xattr.c)."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from recuse.server.dispatch import (
    WRITE_DATA,
    pick_read,
    pick_write,
    read_answer,
    release_answer,
    write_answer,
)
from recuse.server.filesystem import encoding
from recuse.server.filesystem.answers import (
    as_it_is,
    nothing,
    target,
    xattr_names,
    xattr_value,
)
from recuse.server.filesystem.attributes import Changes, Lock
from recuse.server.filesystem.device_node import DeviceNode
from recuse.server.filesystem.device_opens import DeviceOpens
from recuse.server.filesystem.in_turn import InTurn
from recuse.server.filesystem.level import Operation
from recuse.server.filesystem.nodes import Node, RegularFile, Symlink
from recuse.server.filesystem.open_file import OpenFile
from recuse.server.filesystem.requests import (
    GETXATTR_NAME,
    HEADER,
    changing,
    pick_flush,
    pick_fsync,
    pick_getxattr,
    pick_open,
    pick_release,
    setting_xattr,
    text_at,
)
from recuse.server.filesystem.state import State, of_kind
from recuse.server.pending_reply import PendingReply
from recuse.server.request import OpenRequest
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_FLUSH,
    FUSE_FSYNC,
    FUSE_FSYNC_FDATASYNC,
    FUSE_GETATTR,
    FUSE_GETXATTR,
    FUSE_LISTXATTR,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_READLINK,
    FUSE_RELEASE,
    FUSE_RELEASE_FLOCK_UNLOCK,
    FUSE_REMOVEXATTR,
    FUSE_SETATTR,
    FUSE_SETXATTR,
    FUSE_STATFS,
    FUSE_WRITE,
)


class Contents:
    """These operations, for one session."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._run = state.runner.run
        self._devices = DeviceOpens(state)

    def operations(self) -> dict[int, Operation]:
        """By opcode."""
        return {
            FUSE_GETATTR: self._getattr,
            FUSE_SETATTR: self._setattr,
            FUSE_READLINK: self._readlink,
            FUSE_STATFS: self._statfs,
            FUSE_OPEN: self._open,
            FUSE_READ: self._read,
            FUSE_WRITE: self._write,
            FUSE_FLUSH: self._flush,
            FUSE_FSYNC: self._fsync,
            FUSE_RELEASE: self._release,
            FUSE_GETXATTR: self._getxattr,
            FUSE_SETXATTR: self._setxattr,
            FUSE_LISTXATTR: self._listxattr,
            FUSE_REMOVEXATTR: self._removexattr,
        }

    def _check_changes(self) -> None:
        if self._state.filesystem.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def _getattr(self, pending: PendingReply, number: int) -> None:
        node = self._state.known.get(number)
        self._run(pending, self._state.attr, as_it_is, None, node)

    def _setattr(self, pending: PendingReply, number: int) -> None:
        node = self._state.known.get(number)
        self._check_changes()
        changes, handle = changing(pending.message)
        if handle is not None:
            changes.file = self._state.files.get(handle)
        self._run(pending, node.change, self._changed, node, changes)

    def _changed(self, _: Any, node: Node) -> Any:
        return self._state.attr(node)

    def _readlink(self, pending: PendingReply, number: int) -> None:
        link: Symlink = of_kind(self._state.known.get(number), Symlink)
        self._run(pending, link.readlink, target, None)

    def _statfs(self, pending: PendingReply, number: int) -> None:
        del number
        self._run(pending, self._state.filesystem.statistics, encoding.statistics, None)

    def _open(self, pending: PendingReply, number: int) -> None:
        (flags,) = pick_open(pending.message)
        found = self._state.known.get(number)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._check_changes()
        if isinstance(found, DeviceNode):
            self._devices.open(pending, found, flags)
            return
        node: RegularFile = of_kind(found, RegularFile)
        if flags & os.O_TRUNC:
            # With FUSE_ATOMIC_O_TRUNC nobody else truncates it.
            truncate = partial(node.change, Changes(size=0, mtime_ns=time.time_ns()))
            method: Callable[..., Any] = InTurn(truncate, node.open)
        else:
            method = node.open
        self._run(pending, method, self._opened, (node, flags), OpenRequest(pending))

    def _opened(self, file: Any, context: tuple[RegularFile, int]) -> bytes:
        node, flags = context
        return self._state.opened(node, file, flags, self._state.handle())

    def _read(self, pending: PendingReply, number: int) -> None:
        del number
        handle, offset, size, flags = pick_read(pending.message)
        file = self._state.file(handle)
        if file.flags != flags:
            file.flags = flags
        if offset and self._state.unpositioned:
            offset = self._state.place(handle, offset, flags)
        self._run(pending, file.read, read_answer, size, size, offset)

    def _write(self, pending: PendingReply, number: int) -> None:
        del number
        message = pending.message
        handle, offset, size, flags = pick_write(message)
        data = message[WRITE_DATA : WRITE_DATA + size]
        if len(data) != size:
            raise WireError(f"{len(data)} bytes of data, not {size}")
        file = self._state.file(handle)
        if file.flags != flags:
            file.flags = flags
        if offset and self._state.unpositioned:
            offset = self._state.place(handle, offset, flags)
        self._run(pending, file.write, write_answer, size, data, offset)

    def _flush(self, pending: PendingReply, number: int) -> None:
        del number
        handle, owner = pick_flush(pending.message)
        file = self._state.file(handle)
        if not isinstance(file, OpenFile):
            pending.reply(b"")
        elif self._state.filesystem.posix_locks:
            # Linux leaves it to the server to unlock what was locked with fcntl(2) by the program
            # that closes a descriptor (fs/fuse/file.c, fuse_setlk).
            unlock, arguments = file.set_lock, (Lock(fcntl.F_UNLCK), owner, False)
            method = InTurn(file.flush, unlock, anyway=True)
            self._run(pending, method, nothing, None, *arguments)
        else:
            self._run(pending, file.flush, nothing, None)

    def _fsync(self, pending: PendingReply, number: int) -> None:
        del number
        handle, flags = pick_fsync(pending.message)
        data_only = bool(flags & FUSE_FSYNC_FDATASYNC)
        file = self._state.file(handle)
        if isinstance(file, OpenFile):
            self._run(pending, file.sync, nothing, None, data_only)
        else:
            pending.reply(b"")

    def _release(self, pending: PendingReply, number: int) -> None:
        del number
        handle, flags, owner = pick_release(pending.message)
        closed = self._state.closed(handle)
        if closed is None:
            pending.fail(errno.EBADF)
            return
        file, method = closed
        if flags & FUSE_RELEASE_FLOCK_UNLOCK and isinstance(file, OpenFile):
            unlock = partial(file.set_lock, Lock(fcntl.F_UNLCK, flock=True), owner, False)
            method = InTurn(unlock, method, anyway=True)
        self._run(pending, method, release_answer, None)

    def _getxattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        node = self._state.known.get(number)
        (size,) = pick_getxattr(pending.message)
        name, _ = text_at(pending.message, GETXATTR_NAME)
        self._run(pending, node.get_xattr, xattr_value, size, name)

    @property
    def _no_xattrs(self) -> bool:
        """Whether no node of the filesystem has any: then the kernel does not ask again."""
        filesystem = self._state.filesystem
        # Access control lists and security contexts are such attributes.
        wanted = filesystem.xattrs or filesystem.posix_acls or filesystem.security_contexts
        return not wanted

    def _listxattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        (size,) = pick_getxattr(pending.message)
        self._run(pending, self._state.known.get(number).list_xattr, xattr_names, size)

    def _setxattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        self._check_changes()
        name, value, flags = setting_xattr(pending.message, self._state.setxattr_size)
        node = self._state.known.get(number)
        self._run(pending, node.set_xattr, nothing, None, name, value, flags)

    def _removexattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        self._check_changes()
        name, _ = text_at(pending.message, HEADER)
        self._run(pending, self._state.known.get(number).remove_xattr, nothing, None, name)
