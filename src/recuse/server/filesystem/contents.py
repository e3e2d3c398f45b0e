"""Operations on open files, attributes and extended attributes (fs/fuse/file.c, dir.c, xattr.c)."""

from __future__ import annotations

import errno
import os
import time
from typing import Any, Final

from recuse.server.dispatch import (
    WRITE_DATA,
    pick_read,
    pick_release,
    pick_write,
    picker,
    read_answer,
    release_answer,
    write_answer,
)
from recuse.server.errors import Misuse, brief
from recuse.server.filesystem import encoding
from recuse.server.filesystem.attributes import Changes
from recuse.server.filesystem.names import as_it_is, nothing
from recuse.server.filesystem.nodes import Node, RegularFile, Symlink
from recuse.server.filesystem.open_file import OpenFile
from recuse.server.filesystem.state import HEADER, Operation, State, of_kind
from recuse.server.pending_reply import PendingReply
from recuse.server.request import OpenRequest
from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    fuse_getxattr_in,
    fuse_getxattr_out,
    fuse_setattr_in,
    fuse_setxattr_in,
)
from recuse.wire.fuse import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_CTIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
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
    FUSE_REMOVEXATTR,
    FUSE_SETATTR,
    FUSE_SETXATTR,
    FUSE_STATFS,
    FUSE_WRITE,
    fuse_flush_in,
    fuse_fsync_in,
    fuse_open_in,
)

_pick_open = picker(fuse_open_in, "flags").unpack_from
_pick_flush = picker(fuse_flush_in, "fh").unpack_from
_pick_fsync = picker(fuse_fsync_in, "fh", "fsync_flags").unpack_from
_pick_getxattr = picker(fuse_getxattr_in, "size").unpack_from
_pick_setxattr = picker(fuse_setxattr_in, "size", "flags").unpack_from
_NS: Final = 10**9
_XATTR_MAX: Final = 65536
_pack_xattr_size = fuse_getxattr_out.CODEC.pack


class Contents:
    """These operations, for one session."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._run = state.runner.run

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
        changes = self._changes(fuse_setattr_in.unpack(pending.message, HEADER))
        self._run(pending, node.change, self._changed, node, changes)

    def _changes(self, request: fuse_setattr_in) -> Changes:
        valid = request.valid
        changes = Changes()
        if valid & FATTR_MODE:
            changes.mode = request.mode & 0o7777
        if valid & FATTR_UID:
            changes.uid = request.uid
        if valid & FATTR_GID:
            changes.gid = request.gid
        if valid & FATTR_SIZE:
            changes.size = request.size
        if valid & FATTR_ATIME:
            now = valid & FATTR_ATIME_NOW
            changes.atime_ns = time.time_ns() if now else _time_ns(request.atime, request.atimensec)
        if valid & FATTR_MTIME:
            now = valid & FATTR_MTIME_NOW
            changes.mtime_ns = time.time_ns() if now else _time_ns(request.mtime, request.mtimensec)
        elif valid & FATTR_SIZE and valid & FATTR_FH:
            # ftruncate(2) changes it even if the size stays. Linux leaves that to the server
            # (fs/fuse/dir.c, update_mtime).
            changes.mtime_ns = time.time_ns()
        if valid & FATTR_CTIME:
            changes.ctime_ns = _time_ns(request.ctime, request.ctimensec)
        if valid & FATTR_FH:
            changes.file = self._state.files.get(request.fh)
        return changes

    def _changed(self, _: Any, node: Node) -> Any:
        return self._state.attr(node)

    def _readlink(self, pending: PendingReply, number: int) -> None:
        link: Symlink = of_kind(self._state.known.get(number), Symlink)
        self._run(pending, link.readlink, _target, None)

    def _statfs(self, pending: PendingReply, number: int) -> None:
        del number
        self._run(pending, self._state.filesystem.statistics, encoding.statistics, None)

    def _open(self, pending: PendingReply, number: int) -> None:
        (flags,) = _pick_open(pending.message)
        node: RegularFile = of_kind(self._state.known.get(number), RegularFile)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._check_changes()
        if flags & os.O_TRUNC:
            # With FUSE_ATOMIC_O_TRUNC nobody else truncates it.
            self._run(pending, self._truncate_and_open, self._opened, (node, flags), node, pending)
            return
        self._run(pending, node.open, self._opened, (node, flags), OpenRequest(pending))

    def _truncate_and_open(self, node: RegularFile, pending: PendingReply) -> Any:
        now = time.time_ns()
        changed = node.change(Changes(size=0, mtime_ns=now))
        if changed is not None:
            return self._open_later(changed, node, pending)
        return node.open(OpenRequest(pending))

    async def _open_later(self, changed: Any, node: RegularFile, pending: PendingReply) -> Any:
        await changed
        file = node.open(OpenRequest(pending))
        return await file if hasattr(file, "__await__") else file

    def _opened(self, file: Any, context: tuple[RegularFile, int]) -> bytes:
        node, flags = context
        return self._state.opened(node, file, flags)

    def _read(self, pending: PendingReply, number: int) -> None:
        del number
        handle, offset, size, flags = pick_read(pending.message)
        file = self._state.file(handle)
        if file.flags != flags:
            file.flags = flags
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
        self._run(pending, file.write, write_answer, size, data, offset)

    def _flush(self, pending: PendingReply, number: int) -> None:
        del number
        (handle,) = _pick_flush(pending.message)
        file = self._state.file(handle)
        if isinstance(file, OpenFile):
            self._run(pending, file.flush, nothing, None)
        else:
            pending.reply(b"")

    def _fsync(self, pending: PendingReply, number: int) -> None:
        del number
        handle, flags = _pick_fsync(pending.message)
        data_only = bool(flags & FUSE_FSYNC_FDATASYNC)
        file = self._state.file(handle)
        if isinstance(file, OpenFile):
            self._run(pending, file.sync, nothing, None, data_only)
        else:
            pending.reply(b"")

    def _release(self, pending: PendingReply, number: int) -> None:
        del number
        (handle,) = pick_release(pending.message)
        file = self._state.closed(handle)
        if file is None:
            pending.fail(errno.EBADF)
            return
        self._run(pending, file.release, release_answer, None)

    def _getxattr(self, pending: PendingReply, number: int) -> None:
        node = self._state.known.get(number)
        if type(node).get_xattr is Node.get_xattr and self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        (size,) = _pick_getxattr(pending.message)
        name, _ = _xattr_name(pending.message, HEADER + fuse_getxattr_in.SIZE)
        self._run(pending, node.get_xattr, _sized, size, name)

    @property
    def _no_xattrs(self) -> bool:
        """Whether no node of the filesystem has any: then the kernel does not ask again."""
        return not self._state.filesystem.xattrs

    def _listxattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        (size,) = _pick_getxattr(pending.message)
        self._run(pending, self._state.known.get(number).list_xattr, _listed, size)

    def _setxattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        self._check_changes()
        message = pending.message
        size, flags = _pick_setxattr(message)
        start = HEADER + self._state.setxattr_size
        name, after = _xattr_name(message, start)
        value = message[after : after + size]
        node = self._state.known.get(number)
        self._run(pending, node.set_xattr, nothing, None, name, value, flags)

    def _removexattr(self, pending: PendingReply, number: int) -> None:
        if self._no_xattrs:
            pending.fail(errno.ENOSYS)
            return
        self._check_changes()
        name, _ = _xattr_name(pending.message, HEADER)
        self._run(pending, self._state.known.get(number).remove_xattr, nothing, None, name)


def _time_ns(seconds: int, nanoseconds: int) -> int:
    return encoding.signed(seconds) * _NS + nanoseconds


def _xattr_name(message: bytes, start: int) -> tuple[str, int]:
    """Return the name that begins at ``start``, and where what follows it begins."""
    end = message.find(0, start)
    if end < 0:
        raise WireError("a name without an end")
    return os.fsdecode(message[start:end]), end + 1


def _target(returned: Any, _: None) -> bytes:
    if not isinstance(returned, str | bytes):
        raise Misuse(f"returned {brief(returned)}, not a str")
    return os.fsencode(returned)


def _sized(returned: Any, room: int) -> bytes:
    """An attribute's value, or its size if the program only asks for that."""
    try:
        value = bytes(memoryview(returned))
    except TypeError:
        raise Misuse(f"returned {brief(returned)}, not bytes") from None
    if not room:
        return _pack_xattr_size(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _listed(returned: Any, room: int) -> bytes:
    return _sized(b"".join(os.fsencode(name) + b"\0" for name in returned), room)
