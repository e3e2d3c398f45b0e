"""Operations on names: lookups, listings, making, moving and removing (fs/fuse/dir.c)."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Awaitable
from typing import Any, Final

from recuse.server.errors import Misuse, brief
from recuse.server.filesystem import encoding
from recuse.server.filesystem.answers import as_it_is, nothing
from recuse.server.filesystem.level import Operation
from recuse.server.filesystem.listing import Listing
from recuse.server.filesystem.nodes import Directory, Node, RegularFile
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
    pick_readdir,
    pick_release,
    renaming,
    text_at,
)
from recuse.server.filesystem.state import State, made, of_kind
from recuse.server.pending_reply import PendingReply
from recuse.server.request import OpenRequest
from recuse.wire.filesystem import (
    fuse_attr,
    fuse_dirent,
    fuse_entry_out,
)
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
    FUSE_RELEASEDIR,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_RMDIR,
    FUSE_SYMLINK,
    FUSE_TMPFILE,
    FUSE_UNLINK,
    fuse_open_out,
)

_pick_ino = struct.Struct(f"={fuse_entry_out.SIZE - fuse_attr.SIZE}xQ").unpack_from
_pack_dirent = fuse_dirent.CODEC.pack
_NO_ENTRY: Final = bytes(fuse_entry_out.SIZE)
_NO_ATTRIBUTES: Final = bytes(fuse_attr.SIZE)
_UNKNOWN_INO: Final = 0xFFFFFFFF
"""Listed as the number of a node that has none: programs would skip a name with 0."""


class Names:
    """These operations, for one session."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._run = state.runner.run

    def operations(self) -> dict[int, Operation]:
        """By opcode."""
        return {
            FUSE_LOOKUP: self._lookup,
            FUSE_CREATE: self._create,
            FUSE_TMPFILE: self._tmpfile,
            FUSE_MKDIR: self._mkdir,
            FUSE_MKNOD: self._mknod,
            FUSE_SYMLINK: self._symlink,
            FUSE_LINK: self._link,
            FUSE_UNLINK: self._unlink,
            FUSE_RMDIR: self._rmdir,
            FUSE_RENAME: self._rename,
            FUSE_RENAME2: self._rename,
            FUSE_OPENDIR: self._opendir,
            FUSE_READDIR: self._readdir,
            FUSE_READDIRPLUS: self._readdir,
            FUSE_RELEASEDIR: self._releasedir,
            FUSE_FSYNCDIR: self._fsyncdir,
        }

    def _directory(self, number: int) -> Directory:
        node: Directory = of_kind(self._state.known.get(number), Directory)
        return node

    def _changing(self, number: int) -> Directory:
        """Return the directory, for a change. Raises OSError: EROFS."""
        if self._state.filesystem.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._directory(number)

    def _lookup(self, pending: PendingReply, number: int) -> None:
        directory = self._directory(number)
        name = name_of(pending.message)
        self._run(pending, directory.lookup, self._found, None, name)

    def _found(self, node: Any, _: None) -> Any:
        if node is None:
            negative = self._state.negative
            if negative == (0, 0):
                return errno.ENOENT
            return encoding.entry(0, negative, (0, 0)) + _NO_ATTRIBUTES
        return self._state.entry(node)

    def _entry(self, node: Any, _: None) -> Any:
        return self._state.entry(node)

    def _create(self, pending: PendingReply, number: int) -> None:
        flags, mode = pick_create(pending.message)
        name, _ = name_at(pending.message, CREATE_NAME)
        directory = self._changing(number)
        context = flags, OpenRequest(pending)
        self._run(pending, directory.create, self._created, context, name, stat.S_IMODE(mode))

    def _tmpfile(self, pending: PendingReply, number: int) -> None:
        flags, mode = pick_create(pending.message)
        directory = self._changing(number)
        context = flags, OpenRequest(pending)
        self._run(pending, directory.tmpfile, self._created, context, stat.S_IMODE(mode))

    def _created(self, returned: Any, context: tuple[int, OpenRequest]) -> Any:
        flags, request = context
        node, file = made(returned)
        if not isinstance(node, RegularFile):
            raise Misuse(f"returned {brief(node)}, not a RegularFile")
        if file is None:
            file = node.open(request)
            if hasattr(file, "__await__"):
                return self._opened_later(node, file, flags)
        return self._state.entry_opened(node, file, flags)

    async def _opened_later(self, node: RegularFile, file: Any, flags: int) -> bytes:
        payload = self._state.entry_opened(node, await file, flags)
        return payload if isinstance(payload, bytes) else await payload

    def _mkdir(self, pending: PendingReply, number: int) -> None:
        (mode,) = pick_mkdir(pending.message)
        name, _ = name_at(pending.message, MKDIR_NAME)
        directory = self._changing(number)
        self._run(pending, directory.mkdir, self._entry, None, name, stat.S_IMODE(mode))

    def _mknod(self, pending: PendingReply, number: int) -> None:
        mode, rdev = pick_mknod(pending.message)
        name, _ = name_at(pending.message, MKNOD_NAME)
        directory = self._changing(number)
        if stat.S_ISREG(mode):
            self._run(pending, directory.create, self._made_file, None, name, stat.S_IMODE(mode))
        else:
            self._run(pending, directory.mknod, self._entry, None, name, mode, rdev)

    def _made_file(self, returned: Any, _: None) -> Any:
        node, file = made(returned)
        if file is not None:
            self._state.runner.quietly_later(file.release)
        return self._state.entry(node)

    def _symlink(self, pending: PendingReply, number: int) -> None:
        message = pending.message
        name, target = name_at(message, HEADER)
        directory = self._changing(number)
        leads_to, _ = text_at(message, target)
        self._run(pending, directory.symlink, self._entry, None, name, leads_to)

    def _link(self, pending: PendingReply, number: int) -> None:
        (old,) = pick_link(pending.message)
        name, _ = name_at(pending.message, LINK_NAME)
        directory = self._changing(number)
        node = self._state.known.get(old)
        self._run(pending, directory.link, self._linked, node, name, node)

    def _linked(self, _: Any, node: Node) -> Any:
        return self._state.entry(node)

    def _unlink(self, pending: PendingReply, number: int) -> None:
        name = name_of(pending.message)
        self._run(pending, self._changing(number).unlink, nothing, None, name)

    def _rmdir(self, pending: PendingReply, number: int) -> None:
        name = name_of(pending.message)
        self._run(pending, self._changing(number).rmdir, nothing, None, name)

    def _rename(self, pending: PendingReply, number: int) -> None:
        name, target, new_name, flags = renaming(pending.message, pending.opcode)
        directory, other = self._changing(number), self._directory(target)
        self._run(pending, directory.rename, nothing, None, name, other, new_name, flags)

    def _opendir(self, pending: PendingReply, number: int) -> None:
        listing = Listing(self._directory(number))
        handle = self._state.handle()
        self._state.listings[handle] = listing
        if not pending.reply(fuse_open_out(fh=handle).pack()):
            self._state.drop(handle)

    def _releasedir(self, pending: PendingReply, number: int) -> None:
        del number
        handle = pick_release(pending.message)[0]
        self._state.listings.pop(handle, None)
        pending.reply(b"")

    def _fsyncdir(self, pending: PendingReply, number: int) -> None:
        _, flags = pick_fsync(pending.message)
        data_only = bool(flags & FUSE_FSYNC_FDATASYNC)
        self._run(pending, self._directory(number).sync, nothing, None, data_only)

    def _readdir(self, pending: PendingReply, number: int) -> None:
        del number
        handle, offset, size = pick_readdir(pending.message)
        listing = self._state.listings.get(handle)
        if listing is None:
            pending.fail(errno.EBADF)
            return
        plus = pending.opcode == FUSE_READDIRPLUS
        page = _Page(self._state, size, plus)
        self._run(pending, _Entries(listing, page, offset), as_it_is, None)


class _Entries:
    """Makes one answer of what `Directory.entries` lists, and is called so in the log."""

    def __init__(self, listing: Listing, page: _Page, offset: int) -> None:
        self._listing = listing
        self._page = page
        self._offset = offset
        self.__self__ = listing.directory
        self.__name__ = "entries"

    def __call__(self) -> Any:
        listing = self._listing
        if self._offset:
            listing.resume()
            return self._fill()
        entries: Any = listing.directory.entries()
        if hasattr(entries, "__await__"):
            return self._begin_later(entries)
        listing.begin(entries)
        return self._fill()

    async def _begin_later(self, entries: Awaitable[Any]) -> Any:
        self._listing.begin(await entries)
        filled = self._fill()
        return await filled if hasattr(filled, "__await__") else filled

    def _fill(self) -> Any:
        listing = self._listing
        if listing.is_asynchronous:
            return self._page.fill_later(listing, self._offset)
        return self._page.fill(listing, self._offset)


class _Page:
    """The content of one answer to READDIR or READDIRPLUS (fs/fuse/readdir.c)."""

    def __init__(self, state: State, room: int, plus: bool) -> None:
        self._state = state
        self._room = room
        self._plus = plus
        self._parts: list[bytes] = []

    def fill(self, listing: Listing, offset: int) -> bytes:
        """Take entries starting at ``offset``, as many as there is room for."""
        offset = self._dots(listing, offset)
        while offset >= 2:
            while offset - 2 >= len(listing.items):
                if not listing.advance():
                    return b"".join(self._parts)
            if not self._add(listing, offset - 2, offset + 1):
                break
            offset += 1
        return b"".join(self._parts)

    async def fill_later(self, listing: Listing, offset: int) -> bytes:
        """Like `fill`, for an asynchronous iterator."""
        offset = self._dots(listing, offset)
        while offset >= 2:
            while offset - 2 >= len(listing.items):
                if not await listing.advance_later():
                    return b"".join(self._parts)
            if not self._add(listing, offset - 2, offset + 1):
                break
            offset += 1
        return b"".join(self._parts)

    def _dots(self, listing: Listing, offset: int) -> int:
        while offset < 2:
            name = b"." if offset == 0 else b".."
            ino = self._state.ino(listing.directory)
            if not self._put(name, ino, stat.S_IFDIR, offset + 1, None):
                return -1
            offset += 1
        return offset

    def _add(self, listing: Listing, index: int, following: int) -> bool:
        item = listing.items[index]
        node = item.node
        ino = item.ino or _UNKNOWN_INO
        if node is not None:
            if self._plus and listing.is_current(index):
                ino = self._state.known.number(node)
            else:
                ino = self._state.ino(node)
                node = None  # the kernel half has to look the name up
        return self._put(item.name, ino, item.kind, following, node)

    def _put(self, name: bytes, ino: int, kind: int, following: int, node: Node | None) -> bool:
        length = fuse_dirent.SIZE + len(name) + 7 & ~7
        if self._plus:
            length += fuse_entry_out.SIZE
        if length > self._room:
            return False
        entry = b""
        if self._plus:
            entry = _NO_ENTRY
            if node is not None:
                payload = self._state.entry_now(node)
                if payload is not None:
                    entry = payload
                    (ino,) = _pick_ino(entry)
        part = entry + _pack_dirent(ino, following, len(name), kind >> 12) + name
        self._parts.append(part.ljust(length, b"\0"))
        self._room -= length
        return True
