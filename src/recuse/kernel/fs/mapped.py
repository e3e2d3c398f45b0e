"""Regular files that are mapped into memory (fs/fuse/file.c, fuse_file_mmap; mm/filemap.c).

A shared mapping reads and writes the pages that read(2) and write(2) use too. What is written is
dirty until it is written back: by msync(2), by the end of the mapping, and by what else does that.
"""

import errno
from typing import TypeVar

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.backing import BackingFile
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.writeback import drop_pages, modified, write_inode_now
from recuse.wire.fuse import FUSE_DIRECT_IO_ALLOW_MMAP

T = TypeVar("T")


def map_pages(file: RegularFile, *, shared: bool, writable: bool) -> Operation["MappedPages"]:
    """Map a file; `MappedPages.close` ends that.

    Raises OSError: EACCES if it is not open for this; ENODEV if it is not read through the page
    cache, or others have it open with a backing file.
    """
    return file.running(_map(file, shared, writable))


def _map(file: RegularFile, shared: bool, writable: bool) -> Operation["MappedPages"]:
    # mm/mmap.c, do_mmap
    inode, superblock = file.inode, file.superblock
    if not file.readable or (shared and writable and not file.writable):
        raise os_error(errno.EACCES)
    inode.check()
    if file.backing is None:
        if inode.io_mode is not None and inode.io_mode.backing is not None:
            raise os_error(errno.ENODEV)
        if file.is_direct:
            if shared and not superblock.has(FUSE_DIRECT_IO_ALLOW_MMAP):
                raise os_error(errno.ENODEV)
            yield from drop_pages(superblock, inode)
            if shared:
                file.use_cache()
        if shared and file.writable:
            file.can_write_back()
    file.hold()
    return MappedPages(file, shared, writable)


class MappedPages:
    """A mapping of a whole file; offsets are in bytes from the file's beginning.

    A host whose programs have memory of their own copies pages from and to that. If the file has a
    ``backing`` file, the host should map that one instead.
    """

    def __init__(self, file: RegularFile, shared: bool, writable: bool) -> None:
        self.file = file
        self.shared = shared
        self.writable = writable
        self._copies: dict[int, bytes] = {}
        """A private mapping's own pages."""

    @property
    def backing(self) -> BackingFile | None:
        """What is mapped instead of the page cache."""
        return self.file.backing

    def read(self, caller: FileCaller, offset: int, size: int) -> Operation[bytes]:
        """Return what a program sees there.

        Raises OSError: EFAULT behind the page with the file's end, where a program gets SIGBUS;
        EIO, or what the server answers.
        """
        return self._held(self._read(caller, offset, size))

    def _read(self, caller: FileCaller, offset: int, size: int) -> Operation[bytes]:
        parts = []
        first = offset // PAGE_SIZE
        for number in range(first, -(-(offset + size) // PAGE_SIZE)):
            parts.append((yield from self._page(caller, number)))
        skipped = offset - first * PAGE_SIZE
        return b"".join(parts)[skipped : skipped + size]

    def _page(self, caller: FileCaller, number: int) -> Operation[bytes]:
        copy = self._copies.get(number)
        if copy is not None:
            return copy
        backing = self.backing
        if backing is not None:
            page = backing.read(PAGE_SIZE, number * PAGE_SIZE)
            if not page:
                raise os_error(errno.EFAULT)
            return page.ljust(PAGE_SIZE, b"\0")
        return (yield from self.file.fault(caller, number))

    def write(self, caller: FileCaller, offset: int, data: bytes) -> Operation[None]:
        """Change what a program sees there. Raises OSError: as `read`; EACCES."""
        return self._held(self._write(caller, offset, data))

    def _write(self, caller: FileCaller, offset: int, data: bytes) -> Operation[None]:
        if not self.writable:
            raise os_error(errno.EACCES)
        done = 0
        while done < len(data):
            number, inside = divmod(offset + done, PAGE_SIZE)
            part = data[done : done + PAGE_SIZE - inside]
            page = yield from self._page(caller, number)
            if not self.shared:
                self._copies[number] = page[:inside] + part + page[inside + len(part) :]
            elif self.backing is not None:
                self.backing.write(part, offset + done, 0)
            else:
                self._dirty(offset + done, part)
            done += len(part)

    def _dirty(self, offset: int, part: bytes) -> None:
        # fuse_page_mkwrite
        inode, superblock = self.file.inode, self.file.superblock
        modified(superblock, inode)
        inode.pages.dirtied(offset, part)
        superblock.dirty.add(inode)

    def sync(self, caller: FileCaller) -> Operation[None]:
        """Do msync(2) with MS_SYNC. Raises OSError: as `FilesystemFile.sync`."""
        return self._held(self.file.sync_held(caller, data_only=True))

    def close(self) -> Operation[None]:
        """End it: write back what is dirty (fuse_vma_close). Call it once."""
        return self.file.running(self._close(), mapped=True)

    def _held(self, operation: Operation[T]) -> Operation[T]:
        """Run an operation; the file may be closed by now, but it is not released yet."""
        self.file.hold()
        return self.file.running(operation, mapped=True)

    def _close(self) -> Operation[None]:
        inode, superblock = self.file.inode, self.file.superblock
        if self.backing is not None:
            return
        try:
            yield from write_inode_now(superblock, inode)
        except OSError as error:
            inode.errors.add(error.errno or errno.EIO)
