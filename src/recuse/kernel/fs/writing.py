"""Writing open regular files: at once, or to the page cache only (fs/fuse/file.c, fs/iomap)."""

import errno
import os

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import get_attributes, written
from recuse.kernel.fs.changes import Changes, set_attributes
from recuse.kernel.fs.credentials import CAP_FOWNER, CAP_FSETID, FileCaller
from recuse.kernel.fs.files import bad_descriptor
from recuse.kernel.fs.inodes import MODIFIED, STATX_MODE, STATX_SIZE
from recuse.kernel.fs.privileges import lose_privileges, without_privileges
from recuse.kernel.fs.reading import MAX_RW_COUNT, ReadFile
from recuse.kernel.fs.size_limits import check_write
from recuse.kernel.fs.writeback import balance, modified, take_stores, write_back
from recuse.wire.fuse import (
    FUSE_BIG_WRITES,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITE_LOCKOWNER,
    FUSE_WRITEBACK_CACHE,
    fuse_write_in,
    fuse_write_out,
)


class WriteFile(ReadFile):
    """An open regular file, as far as it is written."""

    __slots__ = ()

    def write(
        self,
        caller: FileCaller,
        data: bytes,
        offset: int | None = None,
        appends: bool | None = None,
    ) -> Operation[int]:
        """Write at the position, which then moves, or at ``offset``; return how many bytes.

        ``appends``: whether it is written at the end instead (RWF_APPEND, RWF_NOAPPEND); None: as
        the file's flags say.

        Raises OSError: EBADF if it is not open for writing, EINVAL, EFBIG, EIO for an answer that
        cannot be true, or what the server answers unless something was written before.
        """
        operation = self._write(caller, data, offset, appends)
        return self.running(self.placed(operation) if offset is None else operation)

    def _write(
        self, caller: FileCaller, data: bytes, offset: int | None, appends: bool | None = None
    ) -> Operation[int]:
        inode, superblock = self.inode, self.superblock
        if not self.writable:
            raise bad_descriptor()
        data = data[:MAX_RW_COUNT]
        start = self._start(len(data), offset)
        inode.check()
        if not data:
            return 0
        if appends is None:
            appends = bool(self.flags & os.O_APPEND)
        if self.is_passed_through:
            # What opens the backing file has its flags (backing_file_write_iter).
            where = None if appends or self.flags & os.O_APPEND else start
            return (yield from self._write_to_backing(caller, data, where, offset is None))
        later = yield from self._is_written_later(caller)
        yield from superblock.lock(inode)
        try:
            if appends:
                start = inode.attr.size
            data = data[: check_write(caller, start, len(data))]
            take_stores(superblock, inode, inode.attr.size, inode.attr.size)
            if not self.is_direct:
                yield from self._modify(caller)
            if later:
                done = yield from self._write_pages(caller, data, start)
            else:
                done = yield from self._write_parts(caller, data, start)
        finally:
            superblock.unlock(inode)
        if not self.is_direct and self.flags & os.O_DSYNC:
            yield from self.sync_held(caller, not self.flags & os.O_SYNC & ~os.O_DSYNC)
        if offset is None:
            self.position = start + done
        return done

    def _write_to_backing(
        self, caller: FileCaller, data: bytes, where: int | None, moves: bool
    ) -> Operation[int]:
        # fuse_passthrough_write_iter; fs/backing-file.c, backing_file_write_iter
        assert self.backing is not None
        file, inode, superblock = self.backing, self.inode, self.superblock
        yield from superblock.lock(inode)
        try:
            end = inode.attr.size if where is None else where
            data = data[: check_write(caller, end, len(data))]
            yield from self._modify(caller)
            done, end = file.write(data, where, self.flags)
            if done:
                written(inode, end)
        finally:
            superblock.unlock(inode)
        if moves:
            self.position = end
        return done

    def _is_written_later(self, caller: FileCaller) -> Operation[bool]:
        """Whether only pages are changed now (fuse_cache_write_iter)."""
        inode, superblock = self.inode, self.superblock
        if self.is_direct or not superblock.has(FUSE_WRITEBACK_CACHE):
            return False
        yield from get_attributes(superblock, caller, inode, STATX_SIZE | STATX_MODE, self)
        mode = inode.attr.mode
        loses = not caller.may(CAP_FSETID) and without_privileges(mode) != mode
        # The server takes these bits away when it is asked to write.
        return not self.is_uncached and not (loses and superblock.has(FUSE_HANDLE_KILLPRIV_V2))

    def _modify(self, caller: FileCaller) -> Operation[None]:
        """Take away what a file loses when it is written, and set its times (file_modified)."""
        inode, superblock = self.inode, self.superblock
        mode = yield from lose_privileges(superblock, caller, inode)
        if mode is not None:
            as_owner = FileCaller(
                caller.pid, caller.uid, caller.gid, capabilities=CAP_FOWNER | CAP_FSETID
            )
            changes = Changes(mode=mode, privileges=True)
            yield from set_attributes(superblock, as_owner, inode, changes)
        modified(superblock, inode)

    def _write_back(self, start: int, end: int | None = None) -> Operation[None]:
        """Have the server know what is written. Raises OSError: EIO, ENOSPC."""
        yield from write_back(self.superblock, self.inode, start, end)
        number = self.inode.errors.take()
        if number:
            raise os_error(number)

    def _write_pages(self, caller: FileCaller, data: bytes, start: int) -> Operation[int]:
        """Change pages, and leave it to others to send them (iomap_file_buffered_write)."""
        superblock, inode = self.superblock, self.inode
        done = 0
        while done < len(data):
            position = start + done
            part = data[done : done + PAGE_SIZE - position % PAGE_SIZE]
            try:
                yield from self._have_page(caller, position, len(part))
            except OSError:
                if not done:
                    raise
                break
            if not inode.pages.dirtied(position, part):
                continue  # another thread has just given the page up
            done += len(part)
            inode.grow(position + len(part))
        superblock.dirty.add(inode)
        yield from balance(superblock)
        return done

    def _have_page(self, caller: FileCaller, position: int, size: int) -> Operation[None]:
        """See to it that a page which is changed in part is here (__iomap_write_begin)."""
        inode = self.inode
        number = position // PAGE_SIZE
        if size == PAGE_SIZE or inode.pages.get(number) is not None:
            return
        if number * PAGE_SIZE >= inode.attr.size:
            inode.pages.keep(number, bytes(PAGE_SIZE))
            return
        version = inode.pages.version
        data = yield from self._ask(caller, number * PAGE_SIZE, PAGE_SIZE, 0)
        if inode.pages.get(number) is None:
            # If it is stale, it is asked for once more.
            inode.pages.keep(number, data.ljust(PAGE_SIZE, b"\0"), version)

    def _write_parts(self, caller: FileCaller, data: bytes, start: int) -> Operation[int]:
        # fuse_perform_write, fuse_direct_io
        superblock, inode = self.superblock, self.inode
        uncached = self.is_uncached
        if uncached:
            yield from self._write_back(start, start + len(data))
            inode.pages.drop(start, len(data))
        flags = FUSE_WRITE_LOCKOWNER if uncached else 0
        if superblock.has(FUSE_HANDLE_KILLPRIV_V2) and not caller.may(CAP_FSETID):
            flags |= FUSE_WRITE_KILL_SUIDGID
        # Pages that are written back meanwhile would overwrite it (fuse_send_write_pages).
        waits = not uncached and inode.pages.may_be_dirty
        if waits:
            yield from superblock.take(inode.writing)
        try:
            done, error = yield from self._send_parts(caller, data, start, flags)
            if done:
                if uncached:
                    inode.pages.drop(start, done)
                else:
                    inode.pages.write(start, data[:done])
                written(inode, start + done)
        finally:
            if waits:
                superblock.give_back(inode.writing)
        if not done and error:
            inode.outdate(MODIFIED)
            raise os_error(error)
        return done

    def _send_parts(
        self, caller: FileCaller, data: bytes, start: int, flags: int
    ) -> Operation[tuple[int, int]]:
        """Send it in several requests; return how many bytes were taken, and the error after it."""
        done = error = 0
        while done < len(data) and not error:
            part = data[done : done + self._most_written(start + done)]
            try:
                count = yield from self._ask_to_write(caller, start + done, part, flags)
            except OSError as refused:
                error = refused.errno or errno.EIO
                break
            done += count
            if count < len(part):
                error = errno.EIO
        return done, error

    def _ask_to_write(
        self, caller: FileCaller, offset: int, part: bytes, flags: int
    ) -> Operation[int]:
        body = fuse_write_in(
            fh=self.handle,
            offset=offset,
            size=len(part),
            write_flags=flags,
            lock_owner=caller.owner if flags & FUSE_WRITE_LOCKOWNER else 0,
            flags=self.flags,
        ).pack()
        payload = yield from ask(
            caller, FUSE_WRITE, self.inode.nodeid, body + part, fuse_write_out.SIZE
        )
        count = fuse_write_out.unpack(payload).size
        if count > len(part):
            raise os_error(errno.EIO)
        return count

    def _most_written(self, position: int) -> int:
        """Most bytes of a WRITE there: what begins in a page ends with it (Linux 6.18)."""
        most = self.superblock.max_write
        if self.is_uncached:
            return most
        inside = position % PAGE_SIZE
        if inside or not self.superblock.has(FUSE_BIG_WRITES):
            return min(most, PAGE_SIZE - inside)
        return most
