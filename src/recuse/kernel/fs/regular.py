"""Open regular files: read, write and what else only they have (fs/fuse/file.c)."""

import errno
import os
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import get_attributes, written
from recuse.kernel.fs.changes import Changes, change_attributes, set_attributes
from recuse.kernel.fs.credentials import CAP_FOWNER, CAP_FSETID, FileCaller
from recuse.kernel.fs.files import FilesystemFile, bad_descriptor
from recuse.kernel.fs.inodes import MODIFIED, STATX_ATIME, STATX_SIZE
from recuse.kernel.fs.privileges import lose_privileges
from recuse.wire.filesystem import (
    fuse_copy_file_range_in,
    fuse_copy_file_range_out,
    fuse_fallocate_in,
    fuse_lseek_in,
    fuse_lseek_out,
)
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FUSE_AUTO_INVAL_DATA,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_FALLOCATE,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_LSEEK,
    FUSE_READ,
    FUSE_READ_LOCKOWNER,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITE_LOCKOWNER,
    fuse_read_in,
    fuse_write_in,
    fuse_write_out,
)

_MOST_POSITION: Final = (1 << 63) - 1
_MAX_RW_COUNT: Final = 0x7FFFF000
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 16
"""linux/falloc.h"""


class RegularFile(FilesystemFile):
    """An open regular file."""

    __slots__ = ()

    @property
    def is_direct(self) -> bool:
        """Whether it is read and written as the caller does it, and past its size."""
        return bool(self.open_flags & FOPEN_DIRECT_IO)

    def read(self, caller: FileCaller, size: int, offset: int | None = None) -> Operation[bytes]:
        """Read at most ``size`` bytes; without ``offset`` at the position, which then moves.

        Raises OSError: EBADF if it is not open for reading, EINVAL, EIO, or what the server answers
        unless something was read before.
        """
        return self.running(self._read(caller, size, offset))

    def _read(self, caller: FileCaller, size: int, offset: int | None) -> Operation[bytes]:
        inode, superblock = self.inode, self.superblock
        if not self.readable:
            raise bad_descriptor()
        start = self._start(size, offset)
        size = min(size, _MAX_RW_COUNT)
        inode.check()
        if self.is_direct:
            data = yield from self._read_direct(caller, start, size)
        else:
            # fuse_cache_read_iter
            if superblock.has(FUSE_AUTO_INVAL_DATA) or start + size > inode.attr.size:
                yield from get_attributes(superblock, caller, inode, STATX_SIZE, self)
            data = yield from self._read_cached(caller, start, size)
        inode.outdate(STATX_ATIME)
        if offset is None:
            self.position = start + len(data)
        return data

    def _read_direct(self, caller: FileCaller, start: int, size: int) -> Operation[bytes]:
        """Ask for exactly that (fuse_direct_io)."""
        parts: list[bytes] = []
        done = 0
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
        parts: list[bytes] = []
        number = start // PAGE_SIZE
        end = min(start + size, inode.attr.size)
        while number * PAGE_SIZE < end:
            page = inode.pages.get(number)
            if page is None:
                try:
                    page = yield from self._fetch(caller, number, end)
                except OSError:
                    if number * PAGE_SIZE <= start:
                        raise
                    end = number * PAGE_SIZE
                    break
                end = min(end, inode.attr.size)
            parts.append(page)
            number += len(page) // PAGE_SIZE
        skipped = start % PAGE_SIZE
        return b"".join(parts)[skipped : skipped + max(end - start, 0)]

    def _fetch(self, caller: FileCaller, number: int, end: int) -> Operation[bytes]:
        """Ask for whole pages, as many as are missing in a row; what the server lacks is zeros."""
        inode, superblock = self.inode, self.superblock
        most = min(-(-end // PAGE_SIZE) - number, max(superblock.max_read // PAGE_SIZE, 1))
        asked = inode.pages.lack(number, most) * PAGE_SIZE
        version, kept = superblock.attr_version, inode.pages.version
        data = yield from self._ask(caller, number * PAGE_SIZE, asked, 0)
        if len(data) < asked:
            self._found_end(number * PAGE_SIZE + len(data), version)
        data = data.ljust(asked, b"\0")
        if inode.pages.version == kept:
            inode.pages.keep(number, data)
        return data

    def _found_end(self, end: int, version: int) -> None:
        """Note that a file is shorter than was believed, if nothing has changed it since."""
        # fuse_read_update_size
        inode = self.inode
        if inode.attr_version <= version and end < inode.attr.size:
            inode.attr_version = self.superblock.new_version()
            inode.attr.size = end

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

    def write(self, caller: FileCaller, data: bytes, offset: int | None = None) -> Operation[int]:
        """Write at the position, which then moves, or at ``offset``; return how many bytes.

        Raises OSError: EBADF if it is not open for writing, EINVAL, EFBIG, EIO for an answer that
        cannot be true, or what the server answers unless something was written before.
        """
        return self.running(self._write(caller, data, offset))

    def _write(self, caller: FileCaller, data: bytes, offset: int | None) -> Operation[int]:
        inode, superblock = self.inode, self.superblock
        if not self.writable:
            raise bad_descriptor()
        data = data[:_MAX_RW_COUNT]
        start = self._start(len(data), offset)
        inode.check()
        if not data:
            return 0
        yield from superblock.lock(inode)
        try:
            if self.flags & os.O_APPEND:
                start = inode.attr.size
            if start >= _MOST_POSITION:
                raise os_error(errno.EFBIG)
            yield from self._lose_privileges(caller)
            done = yield from self._write_parts(caller, data, start)
        finally:
            superblock.unlock(inode)
        if offset is None:
            self.position = start + done
        return done

    def _lose_privileges(self, caller: FileCaller) -> Operation[None]:
        """Take away what a file loses when it is written (file_remove_privs)."""
        inode, superblock = self.inode, self.superblock
        mode = yield from lose_privileges(superblock, caller, inode)
        if mode is not None:
            as_owner = FileCaller(
                caller.pid, caller.uid, caller.gid, capabilities=CAP_FOWNER | CAP_FSETID
            )
            yield from set_attributes(superblock, as_owner, inode, Changes(mode=mode))

    def _write_parts(self, caller: FileCaller, data: bytes, start: int) -> Operation[int]:
        # fuse_perform_write, fuse_direct_io
        superblock, inode = self.superblock, self.inode
        flags = FUSE_WRITE_LOCKOWNER if self.is_direct else 0
        if superblock.has(FUSE_HANDLE_KILLPRIV_V2) and not caller.may(CAP_FSETID):
            flags |= FUSE_WRITE_KILL_SUIDGID
        done = error = 0
        while done < len(data) and not error:
            part = data[done : done + self._most_written(start + done)]
            body = fuse_write_in(
                fh=self.handle,
                offset=start + done,
                size=len(part),
                write_flags=flags,
                lock_owner=caller.owner if flags & FUSE_WRITE_LOCKOWNER else 0,
                flags=self.flags,
            ).pack()
            try:
                payload = yield from ask(
                    caller, FUSE_WRITE, inode.nodeid, body + part, fuse_write_out.SIZE
                )
            except OSError as refused:
                error = refused.errno or errno.EIO
                break
            count = fuse_write_out.unpack(payload).size
            if count > len(part):
                error = errno.EIO
                break
            done += count
            if count < len(part):
                error = errno.EIO
        if done:
            self._keep_written(start, data[:done])
            written(superblock, inode, start + done)
        elif error:
            inode.outdate(MODIFIED)
            raise os_error(error)
        return done

    def _most_written(self, position: int) -> int:
        """Most bytes of a WRITE there: what begins in a page ends with it (Linux 6.18)."""
        most = self.superblock.max_write
        inside = position % PAGE_SIZE
        return min(most, PAGE_SIZE - inside) if inside and not self.is_direct else most

    def _keep_written(self, start: int, data: bytes) -> None:
        if self.is_direct:
            self.inode.pages.drop(start, len(data))
        else:
            self.inode.pages.write(start, data)

    def truncate(self, caller: FileCaller, size: int) -> Operation[None]:
        """Do ftruncate(2).

        Raises OSError: EINVAL if it is not open for writing, or what the server answers.
        """
        # fs/open.c, do_sys_ftruncate
        if size < 0 or not self.writable:
            raise os_error(errno.EINVAL)
        changes = Changes(size=size, file=self)
        return self.running(change_attributes(self.superblock, caller, self.inode, changes))

    def seek(self, caller: FileCaller, offset: int, whence: int) -> Operation[int]:
        """Do lseek(2) and return the position (fuse_file_llseek).

        Raises OSError: EINVAL, ENXIO if there is no data or hole, or what the server answers.
        """
        return self.running(self._seek(caller, offset, whence))

    def _seek(self, caller: FileCaller, offset: int, whence: int) -> Operation[int]:
        inode, superblock = self.inode, self.superblock
        if whence == os.SEEK_CUR:
            offset += self.position
        elif whence == os.SEEK_END:
            attr = yield from get_attributes(superblock, caller, inode, STATX_SIZE, self)
            offset += attr.size
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            offset = yield from self._seek_hole(caller, offset, whence)
        elif whence != os.SEEK_SET:
            raise os_error(errno.EINVAL)
        if not 0 <= offset <= _MOST_POSITION:
            raise os_error(errno.EINVAL)
        self.position = offset
        return offset

    def _seek_hole(self, caller: FileCaller, offset: int, whence: int) -> Operation[int]:
        # fuse_lseek
        inode, superblock = self.inode, self.superblock
        if FUSE_LSEEK not in superblock.lacks:
            body = fuse_lseek_in(
                fh=self.handle, offset=offset & ((1 << 64) - 1), whence=whence
            ).pack()
            try:
                payload = yield from ask(
                    caller, FUSE_LSEEK, inode.nodeid, body, fuse_lseek_out.SIZE
                )
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                superblock.lacks.add(FUSE_LSEEK)
            else:
                return fuse_lseek_out.unpack(payload).offset
        attr = yield from get_attributes(superblock, caller, inode, STATX_SIZE, self)
        if not 0 <= offset < attr.size:
            raise os_error(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else attr.size

    def allocate(self, caller: FileCaller, mode: int, offset: int, length: int) -> Operation[None]:
        """Do fallocate(2).

        Raises OSError: EBADF, EINVAL, EFBIG, EOPNOTSUPP, or what the server answers.
        """
        return self.running(self._allocate(caller, mode, offset, length))

    def _allocate(self, caller: FileCaller, mode: int, offset: int, length: int) -> Operation[None]:
        # fs/open.c, vfs_fallocate; fuse_file_fallocate
        inode, superblock = self.inode, self.superblock
        if offset < 0 or length <= 0:
            raise os_error(errno.EINVAL)
        if not self.writable:
            raise bad_descriptor()
        if offset + length > _MOST_POSITION:
            raise os_error(errno.EFBIG)
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE) or FUSE_FALLOCATE in superblock.lacks:
            raise os_error(errno.EOPNOTSUPP)
        if mode & _PUNCH_HOLE and (not mode & _KEEP_SIZE or mode & _ZERO_RANGE):
            raise os_error(errno.EOPNOTSUPP)
        body = fuse_fallocate_in(fh=self.handle, offset=offset, length=length, mode=mode).pack()
        yield from superblock.lock(inode)
        try:
            yield from self._lose_privileges(caller)
            try:
                yield from ask(caller, FUSE_FALLOCATE, inode.nodeid, body)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                superblock.lacks.add(FUSE_FALLOCATE)
                refused = True
            else:
                refused = False
            if refused:
                raise os_error(errno.EOPNOTSUPP)
            inode.pages.drop(offset, length)
            written(superblock, inode, 0 if mode & _KEEP_SIZE else offset + length)
        finally:
            superblock.unlock(inode)

    def copy_to(
        self, caller: FileCaller, offset: int, other: "RegularFile", other_offset: int, size: int
    ) -> Operation[int]:
        """Do copy_file_range(2); return how many bytes were copied.

        Without the server's help it is done by reading and writing.

        Raises OSError: EBADF, EINVAL for parts of one file that overlap, or what the server
        answers.
        """
        return self.running(other.running(self._copy(caller, offset, other, other_offset, size)))

    def _copy(
        self, caller: FileCaller, offset: int, other: "RegularFile", other_offset: int, size: int
    ) -> Operation[int]:
        # fs/read_write.c, generic_copy_file_checks; fs/fuse/file.c, __fuse_copy_file_range.
        superblock = self.superblock
        if not self.readable or not other.writable or other.flags & os.O_APPEND:
            raise bad_descriptor()
        if min(offset, other_offset, size) < 0:
            raise os_error(errno.EINVAL)
        attr = yield from get_attributes(superblock, caller, self.inode, STATX_SIZE, self)
        size = min(size, max(attr.size - offset, 0), _MAX_RW_COUNT)
        if self.inode is other.inode and abs(offset - other_offset) < size:
            raise os_error(errno.EINVAL)
        if not size:
            return 0
        yield from superblock.lock(other.inode)
        try:
            copied = yield from self._ask_to_copy(caller, offset, other, other_offset, size)
        finally:
            superblock.unlock(other.inode)
        if copied is None:
            data = yield from self._read(caller, min(size, superblock.max_write), offset)
            copied = yield from other._write(caller, data, other_offset)
        return copied

    def _ask_to_copy(
        self, caller: FileCaller, offset: int, other: "RegularFile", other_offset: int, size: int
    ) -> Operation[int | None]:
        """Have the server copy; None if it does not."""
        superblock = self.superblock
        body = fuse_copy_file_range_in(
            fh_in=self.handle,
            off_in=offset,
            nodeid_out=other.inode.nodeid,
            fh_out=other.handle,
            off_out=other_offset,
            len=size,
        ).pack()
        for opcode in (FUSE_COPY_FILE_RANGE_64, FUSE_COPY_FILE_RANGE):
            if opcode in superblock.lacks:
                continue
            room = fuse_write_out.SIZE
            try:
                payload = yield from ask(caller, opcode, self.inode.nodeid, body, room)
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    superblock.lacks.add(opcode)
                    continue
                if error.errno == errno.EOPNOTSUPP:
                    return None
                raise
            if opcode == FUSE_COPY_FILE_RANGE:
                copied = fuse_write_out.unpack(payload).size
            else:
                copied = fuse_copy_file_range_out.unpack(payload).bytes_copied
            if copied > size:
                raise os_error(errno.EIO)
            other.inode.pages.drop(other_offset, copied)
            written(superblock, other.inode, other_offset + copied)
            return copied
        return None

    def _start(self, size: int, offset: int | None) -> int:
        """Where a read or write begins. Raises OSError(EINVAL) if that is no place in a file."""
        start = self.position if offset is None else offset
        if start < 0 or start + size > _MOST_POSITION:
            raise os_error(errno.EINVAL)
        return start
