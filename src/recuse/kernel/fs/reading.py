"""Reading open regular files: through the page cache, or past it (fs/fuse/file.c, mm/filemap.c)."""

import errno
import os
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import get_attributes, known_attributes
from recuse.kernel.fs.backing import Backing, BackingFile, IoMode, allowed_flags
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.files import FilesystemFile, bad_descriptor
from recuse.kernel.fs.inodes import STATX_ATIME, STATX_SIZE
from recuse.kernel.fs.readahead import Readahead
from recuse.kernel.fs.size_limits import MOST_POSITION
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import take_stores, write_back
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_NONSEEKABLE,
    FOPEN_PASSTHROUGH,
    FOPEN_STREAM,
    FUSE_AUTO_INVAL_DATA,
    FUSE_PASSTHROUGH,
    FUSE_READ,
    FUSE_READ_LOCKOWNER,
    fuse_open_out,
    fuse_read_in,
)

MAX_RW_COUNT: Final = 0x7FFFF000
NO_PLACES: Final = FOPEN_NONSEEKABLE | FOPEN_STREAM
"""What a server says of a file that has none to go to; FOPEN_STREAM: each call begins at 0."""


class ReadFile(FilesystemFile):
    """An open regular file, as far as it is read."""

    __slots__ = ("_is_cached", "_known", "backing", "readahead")

    def __init__(
        self, superblock: Superblock, dentry: Dentry, flags: int, opened: fuse_open_out | None
    ) -> None:
        super().__init__(superblock, dentry, flags, opened)
        self.readahead = Readahead()
        self.backing: BackingFile | None = None
        """What reads and writes go to (unless it `is_direct`), and mappings."""
        self._known: Backing | None = None
        """What the server has made known, of which ``backing`` is an open."""
        self._is_cached = False

    def start_io(self, opened: fuse_open_out | None) -> None:
        """Decide how it is read and written. Raises OSError(EIO) if others do it in another way.

        ``opened`` is the answer to OPEN, None if the server does not know about open files.
        """
        # fuse_file_io_open
        if opened is None:
            return
        mode = self.inode.io_mode
        if mode is None:
            mode = self.inode.io_mode = IoMode()
        passthrough = self.open_flags & FOPEN_PASSTHROUGH
        try:
            if passthrough:
                self._start_passthrough(mode, opened.backing_id)
            elif mode.backing is not None:
                raise os_error(errno.EINVAL)
            elif not self.is_direct:
                mode.start_cached()
                self._is_cached = True
        except OSError:
            error = os_error(errno.EIO)
        else:
            return
        raise error

    def _start_passthrough(self, mode: IoMode, number: int) -> None:
        superblock = self.superblock
        if not superblock.has(FUSE_PASSTHROUGH) or not allowed_flags(self.open_flags):
            raise os_error(errno.EINVAL)
        known = superblock.backing.find(number)
        if known is None:
            raise os_error(errno.ENOENT)
        try:
            mode.start_backed(known)
            try:
                self.backing = known.file.reopened(self.flags)
            except OSError:
                mode.end_backed()
                raise
        except OSError:
            known.put()
            raise
        self._known = known

    def use_cache(self) -> None:
        """Have a direct file use the page cache too. Raises OSError(ETXTBSY): see `start_io`."""
        # fuse_file_io_mmap
        if not self._is_cached and self.inode.io_mode is not None:
            self.inode.io_mode.start_cached()
            self._is_cached = True

    def _end_io(self) -> None:
        mode = self.inode.io_mode
        if mode is not None and self._is_cached:
            self._is_cached = False
            mode.end_cached()
        known, self._known = self._known, None
        if mode is not None and known is not None and self.backing is not None:
            self.backing.close()
            self.backing = None
            mode.end_backed()
            known.put()

    @property
    def is_direct(self) -> bool:
        """Whether it is read and written as the caller does it, and past its size."""
        return bool(self.open_flags & FOPEN_DIRECT_IO)

    @property
    def is_passed_through(self) -> bool:
        """Whether reads and writes go to its backing file (fuse_file_passthrough)."""
        return self.backing is not None and not self.is_direct

    @property
    def is_uncached(self) -> bool:
        """Whether the page cache is not used: the server or the program (O_DIRECT) wants that."""
        return self.is_direct or bool(self.flags & os.O_DIRECT)

    def read(self, caller: FileCaller, size: int, offset: int | None = None) -> Operation[bytes]:
        """Read at most ``size`` bytes; without ``offset`` at the position, which then moves.

        Raises OSError: EBADF if it is not open for reading, EINVAL, EIO, or what the server answers
        unless something was read before.
        """
        operation = self._read(caller, size, offset)
        return self.running(self.placed(operation) if offset is None else operation)

    def read_known(self, caller: FileCaller, size: int, offset: int | None) -> bytes | None:
        """Do the same if all of it is in the page cache; otherwise do nothing, and return None."""
        if offset is not None:
            return self._read_known(caller, size, offset)
        if not self.placing.take_now():
            return None  # see `placed`
        try:
            data = self._read_known(caller, size, self.position)
            if data is not None:
                self.position += len(data)
            return data
        finally:
            self.superblock.give_back(self.placing)

    def _read_known(self, caller: FileCaller, size: int, start: int) -> bytes | None:
        inode, superblock, pages = self.inode, self.superblock, self.inode.pages
        if (
            not self.readable
            or self._released
            or self.is_uncached
            or self.backing is not None
            or self.open_flags & NO_PLACES
            or inode.bad
            or pages.memory is not None  # programs may have stored something
            or not 0 <= start <= MOST_POSITION - size
        ):
            return None
        end = min(start + size, inode.attr.size)
        if (end < start + size or superblock.has(FUSE_AUTO_INVAL_DATA)) and (
            known_attributes(superblock, caller, inode, STATX_SIZE) is None
        ):
            return None
        first, after = start // PAGE_SIZE, -(-end // PAGE_SIZE)
        if end <= start:
            data = b""
        elif after - first == 1:
            page = pages.get(first)
            if page is None:
                return None
            data = page[start % PAGE_SIZE : start % PAGE_SIZE + end - start]
        else:
            parts = [page for page in map(pages.get, range(first, after)) if page is not None]
            if len(parts) < after - first:
                return None
            data = b"".join(parts)[start % PAGE_SIZE : start % PAGE_SIZE + end - start]
        self.flushed = False
        self.readahead.done(start + len(data), PAGE_SIZE)
        return data

    def _read(self, caller: FileCaller, size: int, offset: int | None) -> Operation[bytes]:
        inode, superblock = self.inode, self.superblock
        if not self.readable:
            raise bad_descriptor()
        start = self._start(size, offset)
        size = min(size, MAX_RW_COUNT)
        inode.check()
        past = start + size > inode.attr.size
        if self.is_passed_through:
            assert self.backing is not None
            data = self.backing.read(size, start)
            inode.outdate(STATX_ATIME)
            if offset is None:
                self.position = start + len(data)
            return data
        if not self.is_direct and (past or superblock.has(FUSE_AUTO_INVAL_DATA)):
            # fuse_cache_read_iter
            yield from get_attributes(superblock, caller, inode, STATX_SIZE, self)
        if self.is_uncached:
            data = yield from self._read_direct(caller, start, size)
        else:
            take_stores(superblock, inode, start, start + size)
            data = yield from self._read_cached(caller, start, size)
        if offset is None:
            self.position = start + len(data)
        return data

    def _read_direct(self, caller: FileCaller, start: int, size: int) -> Operation[bytes]:
        """Ask for exactly that (fuse_direct_io); O_DIRECT ends with the file (fuse_direct_IO)."""
        inode = self.inode
        if not self.is_direct:
            size = min(size, -(-max(inode.attr.size - start, 0) // PAGE_SIZE) * PAGE_SIZE)
        yield from write_back(self.superblock, inode, start, start + size)
        number = inode.errors.take()
        if number:
            raise os_error(number)
        parts: list[bytes] = []
        done = 0
        inode.outdate(STATX_ATIME)
        while done < size:
            asked = min(size - done, self.superblock.max_read)
            try:
                part = yield from self._ask(caller, start + done, asked, FUSE_READ_LOCKOWNER)
            except OSError:
                if not done:
                    raise
                break
            parts.append(part)
            done += len(part)
            if len(part) < asked:
                break
        return b"".join(parts)

    def _read_cached(self, caller: FileCaller, start: int, size: int) -> Operation[bytes]:
        """Take pages from the cache, and ask for those that are not there."""
        # mm/filemap.c, filemap_read; fs/fuse/file.c, fuse_readahead and fuse_short_read.
        inode = self.inode
        if start >= inode.attr.size:
            return b""
        parts: list[bytes] = []
        number = start // PAGE_SIZE
        last = -(-(start + size) // PAGE_SIZE)
        end = min(start + size, inode.attr.size)
        while number * PAGE_SIZE < end:
            page = inode.pages.get(number)
            if page is None:
                try:
                    page = yield from self._fetch(caller, number, last - number)
                except OSError:
                    if number * PAGE_SIZE <= start:
                        raise
                    end = number * PAGE_SIZE
                    break
                end = min(end, inode.attr.size)
            parts.append(page)
            number += len(page) // PAGE_SIZE
        skipped = start % PAGE_SIZE
        data = b"".join(parts)[skipped : skipped + max(end - start, 0)]
        self.readahead.done(start + len(data), PAGE_SIZE)
        return data

    def _fetch(self, caller: FileCaller, number: int, wanted: int) -> Operation[bytes]:
        """Ask for whole pages, as many as are missing in a row; what the server lacks is zeros."""
        inode, superblock = self.inode, self.superblock
        most = superblock.agreed.max_readahead // PAGE_SIZE
        before = inode.pages.known_before(number, most)
        wanted = self.readahead.pages_to_read(number, wanted, most, before)
        left = -(-inode.attr.size // PAGE_SIZE) - number
        return (yield from self.ask_pages(caller, number, min(wanted, left)))

    def fault(self, caller: FileCaller, number: int) -> Operation[bytes]:
        """Return a page that is touched in a mapping; others around it are read too.

        Raises OSError: EFAULT behind the last one (filemap_fault); or the server's.
        """
        # mm/filemap.c, do_sync_mmap_readahead
        inode = self.inode
        page = inode.pages.get(number)
        after = -(-inode.attr.size // PAGE_SIZE)
        if number >= after:
            raise os_error(errno.EFAULT)
        if page is not None:
            return page
        most = max(self.superblock.agreed.max_readahead // PAGE_SIZE, 1)
        around = max(number - most // 2, 0)
        end = min(around + most, after)
        while around < end:
            if inode.pages.get(around) is not None:
                around += 1
                continue
            data = yield from self.ask_pages(caller, around, end - around)
            if around <= number < around + len(data) // PAGE_SIZE:
                start = (number - around) * PAGE_SIZE
                page = data[start : start + PAGE_SIZE]
            around += len(data) // PAGE_SIZE
        assert page is not None
        return page

    def ask_pages(self, caller: FileCaller, number: int, count: int) -> Operation[bytes]:
        """Ask for at most ``count`` pages that are not here, and keep them unless they are stale.

        Raises the server's OSError.
        """
        inode, superblock = self.inode, self.superblock
        most = min(count, max(superblock.max_read // PAGE_SIZE, 1))
        asked = inode.pages.lack(number, most) * PAGE_SIZE
        version, kept = superblock.attr_version, inode.pages.version
        data = yield from self._ask(caller, number * PAGE_SIZE, asked, 0)
        if len(data) < asked:
            self._found_end(number * PAGE_SIZE + len(data), version)
        inode.outdate(STATX_ATIME)
        data = data.ljust(asked, b"\0")
        if inode.pages.keep(number, data, kept):
            superblock.keeps(inode, asked // PAGE_SIZE)
        return data

    def _found_end(self, end: int, version: int) -> None:
        """Note that a file is shorter than was believed, if nothing has changed it since."""
        # fuse_short_read
        if not self.inode.is_kept:  # what is written may not have arrived there
            self.inode.shrink(end, version)

    def _ask(self, caller: FileCaller, offset: int, size: int, flags: int) -> Operation[bytes]:
        body = fuse_read_in(
            fh=self.handle,
            offset=offset,
            size=size,
            read_flags=flags,
            lock_owner=caller.owner if flags else 0,
            flags=self.flags,
        ).pack()
        payload = yield from ask(caller, FUSE_READ, self.inode.nodeid, body, size, least=0)
        return bytes(payload)

    def _start(self, size: int, offset: int | None) -> int:
        """Where a read or write begins.

        Raises OSError: EINVAL if that is no place in a file, ESPIPE if there are no places.
        """
        # stream_open and nonseekable_open (fs/open.c): no FMODE_PREAD, no FMODE_PWRITE.
        if offset is not None and self.open_flags & NO_PLACES:
            raise os_error(errno.ESPIPE)
        if self.open_flags & FOPEN_STREAM:
            return 0
        start = self.position if offset is None else offset
        if start < 0 or start + size > MOST_POSITION:
            raise os_error(errno.EINVAL)
        return start
