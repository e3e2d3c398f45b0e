"""Open directories: reading their entries (fs/fuse/readdir.c)."""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask, inode_of, is_invalid_entry
from recuse.kernel.fs.attributes import allowed
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.fs.inodes import STATX_ATIME
from recuse.kernel.fs.lookup import set_validity
from recuse.kernel.fs.options import LONG_NAME_MAX
from recuse.wire.filesystem import fuse_dirent, fuse_direntplus, fuse_entry_out
from recuse.wire.fuse import (
    FUSE_DO_READDIRPLUS,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_READDIRPLUS_AUTO,
    fuse_read_in,
)

GETDENTS_SIZE: Final = 32768
"""How much the C library asks for at once."""


class DirectoryEntry(NamedTuple):
    """One entry of a directory, as getdents(2) returns it."""

    name: bytes
    ino: int
    offset: int
    """Where the next one is."""
    kind: int
    """Type bits of a mode, 0 if not known."""


class Directory(FilesystemFile):
    """An open directory; its position is where the next entries are asked for."""

    __slots__ = ()

    def read_entries(
        self, caller: FileCaller, size: int = GETDENTS_SIZE
    ) -> Operation[list[DirectoryEntry]]:
        """Return more entries, as many as the server gives at once; none at the end.

        ``size`` is that of the caller's buffer, in bytes.

        Raises OSError: ENOENT if the directory was removed, EIO for an answer that cannot be true,
        or what the server answers.
        """
        return self.running(self._read_entries(caller, size))

    def _read_entries(self, caller: FileCaller, size: int) -> Operation[list[DirectoryEntry]]:
        # fs/readdir.c, iterate_dir; fs/fuse/readdir.c, fuse_readdir_uncached.
        inode, superblock = self.inode, self.superblock
        yield from superblock.lock(inode, shared=True)
        try:
            if inode.removed:
                raise os_error(errno.ENOENT)
            inode.check()
            allowed(superblock, caller)
            plus = self._uses_plus()
            size = min(max(size, PAGE_SIZE), superblock.agreed.max_pages * PAGE_SIZE)
            body = fuse_read_in(
                fh=self.handle, offset=self.position, size=size, flags=self.flags
            ).pack()
            version = superblock.attr_version
            opcode = FUSE_READDIRPLUS if plus else FUSE_READDIR
            payload = bytes((yield from ask(caller, opcode, inode.nodeid, body, size, 0)))
            inode.outdate(STATX_ATIME)
            entries = []
            for entry, linked in parse(payload, plus):
                entries.append(entry)
                self.position = entry.offset
                if linked is not None and not self._link(entry.name, linked, version):
                    superblock.forget(linked.nodeid, 1)
            return entries
        finally:
            superblock.unlock(inode, shared=True)

    def _uses_plus(self) -> bool:
        """Whether to ask for attributes too (fuse_use_readdirplus)."""
        inode, superblock = self.inode, self.superblock
        if not superblock.has(FUSE_DO_READDIRPLUS):
            return False
        if not superblock.has(FUSE_READDIRPLUS_AUTO):
            return True
        if inode.advise_plus:
            inode.advise_plus = False
            return True
        return self.position == 0

    def _link(self, name: bytes, entry: fuse_entry_out, version: int) -> bool:
        """Take in what was said about a name; False if that cannot be (fuse_direntplus_link)."""
        superblock, directory = self.superblock, self.dentry
        if not entry.nodeid or name in (b".", b".."):
            return True
        if is_invalid_entry(entry):
            return False
        known = directory.children.get(name)
        inode = None if known is None else known.inode
        if inode is not None and inode.nodeid != entry.nodeid:
            inode = None
        if inode is not None and inode.is_stale(entry.generation, entry.attr):
            inode.bad = True
            inode = None
        if known is None or inode is None:
            try:
                inode = inode_of(superblock, entry, version)
                known = directory.put(name, inode)
            except OSError:
                return False
            known.epoch = superblock.epoch
        else:
            if inode.bad:
                return False
            superblock.inodes.count(inode)
            valid = superblock.until(entry.attr_valid, entry.attr_valid_nsec)
            inode.update(entry.attr, valid, version)
        inode.from_plus = superblock.has(FUSE_READDIRPLUS_AUTO)
        set_validity(superblock, known, entry)
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to where an entry's `DirectoryEntry.offset` points; 0 is the beginning.

        Raises OSError: EINVAL; ENXIO for holes and data behind the size that the server says.
        """
        # fs/read_write.c, generic_file_llseek
        size = self.inode.attr.size
        if whence == os.SEEK_CUR:
            offset += self.position
        elif whence == os.SEEK_END:
            offset += size
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            if not 0 <= offset < size:
                raise os_error(errno.ENXIO)
            offset = offset if whence == os.SEEK_DATA else size
        elif whence != os.SEEK_SET:
            raise os_error(errno.EINVAL)
        if offset < 0:
            raise os_error(errno.EINVAL)
        self.position = offset
        return offset


def parse(payload: bytes, plus: bool) -> Iterator[tuple[DirectoryEntry, fuse_entry_out | None]]:
    """Take an answer to READDIR or READDIRPLUS apart, as far as it is complete.

    Raises OSError: EIO for a name that is empty, too long, or has "/" in it.
    """
    # parse_dirfile, parse_dirplusfile
    start = 0
    head = fuse_direntplus.SIZE if plus else fuse_dirent.SIZE
    while len(payload) - start >= head:
        linked = None
        if plus:
            linked = fuse_entry_out.unpack(payload, start)
        entry = fuse_dirent.unpack(payload, start + head - fuse_dirent.SIZE)
        if not 0 < entry.namelen <= LONG_NAME_MAX:
            raise os_error(errno.EIO)
        length = head + entry.namelen + 7 & ~7
        if start + length > len(payload):
            return
        name = payload[start + head : start + head + entry.namelen]
        if b"/" in name:
            raise os_error(errno.EIO)
        kind = stat.S_IFMT(entry.type << 12)
        yield DirectoryEntry(name, entry.ino, entry.off, kind), linked
        start += length
