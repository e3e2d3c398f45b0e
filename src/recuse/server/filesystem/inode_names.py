"""Operations on names and directories, at the level of inodes (fs/fuse/dir.c, readdir.c)."""

from __future__ import annotations

import stat
import struct
from collections.abc import AsyncIterable, Callable
from typing import Any, Final

from recuse.server.errors import Misuse, brief
from recuse.server.filesystem.answers import (
    is_too_long,
    listed_name,
    log_too_long,
    nothing,
    target,
)
from recuse.server.filesystem.attributes import DirectoryEntry
from recuse.server.filesystem.inode_state import InodeState
from recuse.server.filesystem.level import Operation
from recuse.server.filesystem.listing import DOTS
from recuse.server.filesystem.requests import (
    CREATE_NAME,
    HEADER,
    LINK_NAME,
    MKDIR_NAME,
    MKNOD_NAME,
    name_at,
    name_of,
    pick_create,
    pick_fsync,
    pick_link,
    pick_mkdir,
    pick_mknod,
    pick_open,
    pick_readdir,
    pick_release,
    renaming,
    text_at,
)
from recuse.server.pending_reply import PendingReply
from recuse.wire.filesystem import fuse_attr, fuse_dirent, fuse_entry_out
from recuse.wire.fuse import (
    FUSE_CREATE,
    FUSE_FSYNC_FDATASYNC,
    FUSE_FSYNCDIR,
    FUSE_LINK,
    FUSE_LOOKUP,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPENDIR,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_READLINK,
    FUSE_RELEASEDIR,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_RMDIR,
    FUSE_SYMLINK,
    FUSE_TMPFILE,
    FUSE_UNLINK,
)

Row = tuple[tuple[str, ...], Operation]
"""The author's methods, one of which is needed, and what serves the request with it."""

_pack_dirent = fuse_dirent.CODEC.pack
_NO_ENTRY: Final = bytes(fuse_entry_out.SIZE)
_ATTR: Final = fuse_entry_out.SIZE - fuse_attr.SIZE
"""Where the attributes begin in fuse_entry_out."""


class InodeNames:
    """These operations, for one session."""

    def __init__(self, state: InodeState) -> None:
        self._state = state
        self._inodes = state.inodes
        self._run = state.runner.run

    def operations(self) -> dict[int, Operation]:
        """By opcode, as far as the author has them."""
        rows: dict[int, Row] = {
            FUSE_LOOKUP: (("lookup",), self._lookup),
            FUSE_READLINK: (("readlink",), self._readlink),
            FUSE_CREATE: (("create",), self._create),
            FUSE_TMPFILE: (("tmpfile",), self._tmpfile),
            FUSE_MKDIR: (("mkdir",), self._mkdir),
            FUSE_MKNOD: (("mknod",), self._mknod),
            FUSE_SYMLINK: (("symlink",), self._symlink),
            FUSE_LINK: (("link",), self._link),
            FUSE_UNLINK: (("unlink",), self._unlink),
            FUSE_RMDIR: (("rmdir",), self._rmdir),
            FUSE_RENAME: (("rename",), self._rename),
            FUSE_RENAME2: (("rename",), self._rename),
            FUSE_OPENDIR: (("opendir",), self._opendir),
            FUSE_READDIR: (("readdir",), self._readdir),
            FUSE_READDIRPLUS: (("readdirplus",), self._readdirplus),
            FUSE_FSYNCDIR: (("fsyncdir",), self._fsyncdir),
        }
        defined = {code: serve for code, (names, serve) in rows.items() if self._defines(names)}
        return {**defined, FUSE_RELEASEDIR: self._releasedir}

    def _defines(self, names: tuple[str, ...]) -> bool:
        return self._state.defines(*names)

    def _lookup(self, pending: PendingReply, ino: int) -> None:
        name = name_of(pending.message)
        self._run(pending, self._inodes.lookup, self._state.found, None, ino, name)

    def _readlink(self, pending: PendingReply, ino: int) -> None:
        self._run(pending, self._inodes.readlink, target, None, ino)

    def _create(self, pending: PendingReply, ino: int) -> None:
        flags, mode = pick_create(pending.message)
        name, _ = name_at(pending.message, CREATE_NAME)
        arguments = ino, name, stat.S_IMODE(mode), flags
        self._run(pending, self._inodes.create, self._state.created, None, *arguments)

    def _tmpfile(self, pending: PendingReply, ino: int) -> None:
        flags, mode = pick_create(pending.message)
        arguments = ino, stat.S_IMODE(mode), flags
        self._run(pending, self._inodes.tmpfile, self._state.created, None, *arguments)

    def _mkdir(self, pending: PendingReply, ino: int) -> None:
        (mode,) = pick_mkdir(pending.message)
        name, _ = name_at(pending.message, MKDIR_NAME)
        arguments = ino, name, stat.S_IMODE(mode)
        self._run(pending, self._inodes.mkdir, self._state.made, None, *arguments)

    def _mknod(self, pending: PendingReply, ino: int) -> None:
        mode, rdev = pick_mknod(pending.message)
        name, _ = name_at(pending.message, MKNOD_NAME)
        self._run(pending, self._inodes.mknod, self._state.made, None, ino, name, mode, rdev)

    def _symlink(self, pending: PendingReply, ino: int) -> None:
        name, after = name_at(pending.message, HEADER)
        leads_to, _ = text_at(pending.message, after)
        self._run(pending, self._inodes.symlink, self._state.made, None, ino, name, leads_to)

    def _link(self, pending: PendingReply, ino: int) -> None:
        (old,) = pick_link(pending.message)
        name, _ = name_at(pending.message, LINK_NAME)
        self._run(pending, self._inodes.link, self._state.made, None, old, ino, name)

    def _unlink(self, pending: PendingReply, ino: int) -> None:
        self._run(pending, self._inodes.unlink, nothing, None, ino, name_of(pending.message))

    def _rmdir(self, pending: PendingReply, ino: int) -> None:
        self._run(pending, self._inodes.rmdir, nothing, None, ino, name_of(pending.message))

    def _rename(self, pending: PendingReply, ino: int) -> None:
        arguments = ino, *renaming(pending.message, pending.opcode)
        self._run(pending, self._inodes.rename, nothing, None, *arguments)

    def _opendir(self, pending: PendingReply, ino: int) -> None:
        (flags,) = pick_open(pending.message)
        self._run(pending, self._inodes.opendir, self._state.opened_directory, ino, ino, flags)

    def _releasedir(self, pending: PendingReply, ino: int) -> None:
        held = self._state.closed(pick_release(pending.message)[0])
        if held is None:
            pending.reply(b"")
        else:
            self._run(pending, self._inodes.releasedir, nothing, None, ino, held.fh)

    def _fsyncdir(self, pending: PendingReply, ino: int) -> None:
        handle, flags = pick_fsync(pending.message)
        arguments = ino, self._state.fh(handle), bool(flags & FUSE_FSYNC_FDATASYNC)
        self._run(pending, self._inodes.fsyncdir, nothing, None, *arguments)

    def _readdir(self, pending: PendingReply, ino: int) -> None:
        self._list(pending, ino, self._inodes.readdir, plus=False)

    def _readdirplus(self, pending: PendingReply, ino: int) -> None:
        self._list(pending, ino, self._inodes.readdirplus, plus=True)

    def _list(
        self, pending: PendingReply, ino: int, method: Callable[..., Any], *, plus: bool
    ) -> None:
        handle, offset, size = pick_readdir(pending.message)
        page = _Page(self._state, method, size, plus=plus)
        self._run(pending, method, page.answer, None, ino, self._state.fh(handle), offset)


class _Page:
    """The content of one answer to READDIR or READDIRPLUS."""

    def __init__(
        self, state: InodeState, method: Callable[..., Any], room: int, *, plus: bool
    ) -> None:
        self._state = state
        self._method = method
        self._lacks = False
        """Whether names were left out."""
        self._room = room
        self._plus = plus
        self._parts: list[bytes] = []
        self._told: list[tuple[int, int]] = []
        """Lookups that the answer counts."""

    def answer(self, returned: Any, _: None) -> Any:
        """Take entries, as many as there is room for."""
        if isinstance(returned, AsyncIterable):
            return self._answer_later(returned)
        try:
            for entry in returned:
                if not self._add(entry):
                    break
        except BaseException:
            self._state.forget(self._told)
            raise
        return b"".join(self._parts)

    async def _answer_later(self, returned: AsyncIterable[Any]) -> bytes:
        iterator = aiter(returned)
        try:
            async for entry in iterator:
                if not self._add(entry):
                    break
        except BaseException:
            self._state.forget(self._told)
            raise
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
        return b"".join(self._parts)

    def _add(self, one: Any) -> bool:
        if not isinstance(one, DirectoryEntry):
            raise Misuse(f"listed {brief(one)}, not a DirectoryEntry")
        name = listed_name(one.name)
        left_out = is_too_long(name)
        length = fuse_dirent.SIZE + len(name) + 7 & ~7
        ino, kind, head = one.ino, one.kind, b""
        entry = one.entry if self._plus else None
        if self._plus:
            length += fuse_entry_out.SIZE
            head = _NO_ENTRY
        if entry is not None:
            head = self._state.entry(entry)
            attr = fuse_attr.unpack(head, _ATTR)
            ino, kind = attr.ino, stat.S_IFMT(attr.mode)
            lookup = [(entry.ino, 1)]
            if left_out or length > self._room or name in DOTS:
                # It is not sent, or the kernel half does not count it.
                self._state.forget(lookup)
                head = _NO_ENTRY
            else:
                self._told += lookup
        if left_out:
            if not self._lacks:
                log_too_long(self._method, name)
            self._lacks = True
            return True
        if length > self._room:
            return False
        try:
            part = head + _pack_dirent(ino, one.offset, len(name), kind >> 12) + name
        except (struct.error, TypeError) as error:
            raise Misuse(f"listed {brief(one)}, with a number that does not fit: {error}") from None
        self._parts.append(part.ljust(length, b"\0"))
        self._room -= length
        return True
