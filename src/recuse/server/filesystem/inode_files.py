"""Operations on attributes and open files, at the level of inodes (fs/fuse/file.c, xattr.c)."""

from __future__ import annotations

import fcntl
from functools import partial
from typing import Any

from recuse.server.arguments import checked_result
from recuse.server.dispatch import (
    IOCTL_DATA,
    WRITE_DATA,
    pick_ioctl,
    pick_poll,
    pick_read,
    pick_write,
    poll_answer,
    read_answer,
    write_answer,
)
from recuse.server.errors import Misuse, brief
from recuse.server.filesystem import encoding
from recuse.server.filesystem.answers import copied, lock, nothing, xattr_names, xattr_value
from recuse.server.filesystem.answers import offset as offset_answer
from recuse.server.filesystem.in_turn import InTurn
from recuse.server.filesystem.inode_names import Row
from recuse.server.filesystem.inode_state import InodeState
from recuse.server.filesystem.level import Operation
from recuse.server.filesystem.requests import (
    GETXATTR_NAME,
    HEADER,
    MOST_COPIED,
    changing,
    locking,
    pick_access,
    pick_bmap,
    pick_copy,
    pick_fallocate,
    pick_flush,
    pick_fsync,
    pick_getattr,
    pick_getxattr,
    pick_open,
    pick_release,
    pick_statx,
    seeking,
    setting_xattr,
    text_at,
)
from recuse.server.pending_reply import PendingReply
from recuse.server.pollers import Pollers
from recuse.server.runner import Answer
from recuse.wire.errors import WireError
from recuse.wire.filesystem import fuse_bmap_out
from recuse.wire.fuse import (
    FUSE_ACCESS,
    FUSE_BMAP,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_FALLOCATE,
    FUSE_FLUSH,
    FUSE_FSYNC,
    FUSE_FSYNC_FDATASYNC,
    FUSE_GETATTR,
    FUSE_GETATTR_FH,
    FUSE_GETLK,
    FUSE_GETXATTR,
    FUSE_IOCTL,
    FUSE_LISTXATTR,
    FUSE_LSEEK,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_RELEASE_FLOCK_UNLOCK,
    FUSE_REMOVEXATTR,
    FUSE_SETATTR,
    FUSE_SETLK,
    FUSE_SETLKW,
    FUSE_SETXATTR,
    FUSE_STATFS,
    FUSE_STATX,
    FUSE_SYNCFS,
    FUSE_WRITE,
    fuse_ioctl_out,
)

_FLOCKS = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}
_pack_ioctl = fuse_ioctl_out.CODEC.pack
_pack_bmap = fuse_bmap_out.CODEC.pack


class InodeFiles:
    """These operations, for one session."""

    def __init__(self, state: InodeState) -> None:
        self._state = state
        self._inodes = state.inodes
        self._run = state.runner.run

    def operations(self) -> dict[int, Operation]:
        """By opcode, as far as the author has them."""
        rows: dict[int, Row] = {
            FUSE_GETATTR: (("getattr",), self._getattr),
            FUSE_SETATTR: (("setattr",), self._setattr),
            FUSE_STATX: (("statx",), self._statx),
            FUSE_ACCESS: (("access",), self._access),
            FUSE_GETXATTR: (("getxattr",), self._getxattr),
            FUSE_SETXATTR: (("setxattr",), self._setxattr),
            FUSE_LISTXATTR: (("listxattr",), self._listxattr),
            FUSE_REMOVEXATTR: (("removexattr",), self._removexattr),
            FUSE_OPEN: (("open",), self._open),
            FUSE_READ: (("read",), self._read),
            FUSE_WRITE: (("write",), self._write),
            FUSE_FLUSH: (("flush",), self._flush),
            FUSE_FSYNC: (("fsync",), self._fsync),
            FUSE_GETLK: (("getlk",), self._getlk),
            FUSE_SETLK: (("setlk", "flock"), self._setlk),
            FUSE_SETLKW: (("setlk", "flock"), self._setlk),
            FUSE_IOCTL: (("ioctl",), self._ioctl),
            FUSE_POLL: (("poll",), self._poll),
            FUSE_FALLOCATE: (("fallocate",), self._fallocate),
            FUSE_LSEEK: (("lseek",), self._lseek),
            FUSE_COPY_FILE_RANGE: (("copy_file_range",), self._copy),
            FUSE_COPY_FILE_RANGE_64: (("copy_file_range",), self._copy),
            FUSE_SYNCFS: (("syncfs",), self._syncfs),
            FUSE_BMAP: (("bmap",), self._bmap),
        }
        defines = self._state.defines
        defined = {code: serve for code, (names, serve) in rows.items() if defines(*names)}
        return {**defined, FUSE_STATFS: self._statfs, FUSE_RELEASE: self._release}

    # ---- attributes

    def _getattr(self, pending: PendingReply, ino: int) -> None:
        flags, handle = pick_getattr(pending.message)
        fh = self._state.fh(handle) if flags & FUSE_GETATTR_FH else None
        self._run(pending, self._inodes.getattr, self._state.attr, ino, ino, fh)

    def _setattr(self, pending: PendingReply, ino: int) -> None:
        changes, handle = changing(pending.message)
        fh = None if handle is None else self._state.fh(handle)
        self._run(pending, self._inodes.setattr, self._state.attr, ino, ino, changes, fh)

    def _statx(self, pending: PendingReply, ino: int) -> None:
        how, handle, flags, mask = pick_statx(pending.message)
        fh = self._state.fh(handle) if how & FUSE_GETATTR_FH else None
        self._run(pending, self._inodes.statx, self._state.statx, ino, ino, fh, flags, mask)

    def _access(self, pending: PendingReply, ino: int) -> None:
        (mask,) = pick_access(pending.message)
        self._run(pending, self._inodes.access, nothing, None, ino, mask)

    def _getxattr(self, pending: PendingReply, ino: int) -> None:
        (size,) = pick_getxattr(pending.message)
        name, _ = text_at(pending.message, GETXATTR_NAME)
        self._run(pending, self._inodes.getxattr, xattr_value, size, ino, name)

    def _setxattr(self, pending: PendingReply, ino: int) -> None:
        arguments = ino, *setting_xattr(pending.message, self._state.setxattr_size)
        self._run(pending, self._inodes.setxattr, nothing, None, *arguments)

    def _listxattr(self, pending: PendingReply, ino: int) -> None:
        (size,) = pick_getxattr(pending.message)
        self._run(pending, self._inodes.listxattr, xattr_names, size, ino)

    def _removexattr(self, pending: PendingReply, ino: int) -> None:
        name, _ = text_at(pending.message, HEADER)
        self._run(pending, self._inodes.removexattr, nothing, None, ino, name)

    def _statfs(self, pending: PendingReply, ino: int) -> None:
        self._run(pending, self._inodes.statfs, encoding.statistics, None, ino)

    def _syncfs(self, pending: PendingReply, ino: int) -> None:
        self._run(pending, self._inodes.syncfs, nothing, None, ino)

    # ---- open files

    def _open(self, pending: PendingReply, ino: int) -> None:
        (flags,) = pick_open(pending.message)
        self._run(pending, self._inodes.open, self._state.opened, ino, ino, flags)

    def _read(self, pending: PendingReply, ino: int) -> None:
        handle, offset, size, _ = pick_read(pending.message)
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.read, read_answer, size, ino, fh, size, offset)

    def _write(self, pending: PendingReply, ino: int) -> None:
        message = pending.message
        handle, offset, size, _ = pick_write(message)
        data = message[WRITE_DATA : WRITE_DATA + size]
        if len(data) != size:
            raise WireError(f"{len(data)} bytes of data, not {size}")
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.write, write_answer, size, ino, fh, data, offset)

    def _flush(self, pending: PendingReply, ino: int) -> None:
        handle, owner = pick_flush(pending.message)
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.flush, nothing, None, ino, fh, owner)

    def _fsync(self, pending: PendingReply, ino: int) -> None:
        handle, flags = pick_fsync(pending.message)
        arguments = ino, self._state.fh(handle), bool(flags & FUSE_FSYNC_FDATASYNC)
        self._run(pending, self._inodes.fsync, nothing, None, *arguments)

    def _release(self, pending: PendingReply, ino: int) -> None:
        handle, flags, owner = pick_release(pending.message)
        held = self._state.closed(handle)
        if held is None:
            pending.reply(b"")
            return
        method: Any = self._inodes.release
        if flags & FUSE_RELEASE_FLOCK_UNLOCK and self._state.defines("flock"):
            unlock = partial(self._inodes.flock, ino, held.fh, fcntl.LOCK_UN, owner)
            method = InTurn(unlock, method, anyway=True)
        self._run(pending, method, nothing, None, ino, held.fh)

    def _getlk(self, pending: PendingReply, ino: int) -> None:
        handle, asked, owner = locking(pending.message)
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.getlk, lock, None, ino, fh, asked, owner)

    def _setlk(self, pending: PendingReply, ino: int) -> None:
        handle, asked, owner = locking(pending.message)
        fh, wait = self._state.fh(handle), pending.opcode == FUSE_SETLKW
        if not asked.flock:
            self._run(pending, self._inodes.setlk, nothing, None, ino, fh, asked, owner, wait)
            return
        if asked.type not in _FLOCKS:
            raise WireError(f"a lock of type {asked.type}")
        operation = _FLOCKS[asked.type] | (0 if wait else fcntl.LOCK_NB)
        self._run(pending, self._inodes.flock, nothing, None, ino, fh, operation, owner)

    def _ioctl(self, pending: PendingReply, ino: int) -> None:
        message = pending.message
        _, handle, _, command, argument, in_size, room = pick_ioctl(message)
        data = message[IOCTL_DATA : IOCTL_DATA + in_size]
        if len(data) != in_size:
            raise WireError(f"{len(data)} bytes of data, not {in_size}")
        arguments = ino, self._state.fh(handle), command, argument, data, room
        self._run(pending, self._inodes.ioctl, _ioctl_answer, room, *arguments)

    def _poll(self, pending: PendingReply, ino: int) -> None:
        handle, kh, flags, events = pick_poll(pending.message)
        wake = None
        if flags & FUSE_POLL_SCHEDULE_NOTIFY:
            pollers = Pollers()
            pollers.add(kh, pending.send)
            wake = pollers.wake
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.poll, poll_answer, None, ino, fh, events, wake)

    def _fallocate(self, pending: PendingReply, ino: int) -> None:
        handle, offset, length, mode = pick_fallocate(pending.message)
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.fallocate, nothing, None, ino, fh, mode, offset, length)

    def _lseek(self, pending: PendingReply, ino: int) -> None:
        handle, offset, whence = seeking(pending.message)
        fh = self._state.fh(handle)
        self._run(pending, self._inodes.lseek, offset_answer, None, ino, fh, offset, whence)

    def _copy(self, pending: PendingReply, ino: int) -> None:
        handle, offset, other, other_handle, other_offset, length, flags = pick_copy(
            pending.message
        )
        answer: Answer = copied
        if pending.opcode == FUSE_COPY_FILE_RANGE:
            # The answer has only 32 bits for it.
            length, answer = min(length, MOST_COPIED), write_answer
        fh, other_fh = self._state.fh(handle), self._state.fh(other_handle)
        arguments = ino, fh, offset, other, other_fh, other_offset, length, flags
        self._run(pending, self._inodes.copy_file_range, answer, length, *arguments)

    def _bmap(self, pending: PendingReply, ino: int) -> None:
        block, block_size = pick_bmap(pending.message)
        self._run(pending, self._inodes.bmap, _bmap_answer, None, ino, block, block_size)


def _ioctl_answer(returned: Any, room: int) -> bytes:
    result, data = returned if isinstance(returned, tuple) else (0, returned)
    if data is None or isinstance(data, int):
        result, data = data, b""
    try:
        stored = bytes(memoryview(data))
    except TypeError:
        raise Misuse(f"returned {brief(returned)}, not a result, bytes, or both") from None
    if len(stored) > room:
        raise Misuse(f"returned {len(stored)} bytes, but the program takes {room}")
    return _pack_ioctl(checked_result(result), 0, 0, 0) + stored


def _bmap_answer(returned: Any, _: None) -> bytes:
    if not isinstance(returned, int) or not 0 <= returned < 1 << 64:
        raise Misuse(f"returned {brief(returned)}, not a block's number")
    return _pack_bmap(returned)
