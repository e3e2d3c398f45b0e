"""Open regular files: truncating, seeking, allocating and copying (fs/fuse/file.c)."""

import errno
import os
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import get_attributes, written
from recuse.kernel.fs.changes import Changes, change_attributes
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.files import bad_descriptor
from recuse.kernel.fs.inodes import STATX_SIZE
from recuse.kernel.fs.reading import MAX_RW_COUNT, NO_PLACES
from recuse.kernel.fs.size_limits import MOST_POSITION, check_growth, check_write
from recuse.kernel.fs.writeback import flush_time_update, modified
from recuse.kernel.fs.writing import WriteFile
from recuse.wire.filesystem import (
    fuse_copy_file_range_in,
    fuse_copy_file_range_out,
    fuse_fallocate_in,
    fuse_lseek_in,
    fuse_lseek_out,
)
from recuse.wire.fuse import (
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_FALLOCATE,
    FUSE_LSEEK,
    fuse_write_out,
)

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 16
"""linux/falloc.h"""


class RegularFile(WriteFile):
    """An open regular file."""

    __slots__ = ()

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

        Raises OSError: EINVAL, ESPIPE, ENXIO if there is no data or hole, or what the server
        answers.
        """
        return self.running(self.placed(self._seek(caller, offset, whence)))

    def _seek(self, caller: FileCaller, offset: int, whence: int) -> Operation[int]:
        if self.open_flags & NO_PLACES:
            raise os_error(errno.ESPIPE)
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
        if not 0 <= offset <= MOST_POSITION:
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
        if offset + length > MOST_POSITION:
            raise os_error(errno.EFBIG)
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE) or FUSE_FALLOCATE in superblock.lacks:
            raise os_error(errno.EOPNOTSUPP)
        if mode & _PUNCH_HOLE and (not mode & _KEEP_SIZE or mode & _ZERO_RANGE):
            raise os_error(errno.EOPNOTSUPP)
        body = fuse_fallocate_in(fh=self.handle, offset=offset, length=length, mode=mode).pack()
        yield from superblock.lock(inode)
        try:
            if mode & (_PUNCH_HOLE | _ZERO_RANGE):
                yield from self._write_back(offset)
            if not mode & _KEEP_SIZE and offset + length > inode.attr.size:
                check_growth(caller, offset + length)
            yield from self._modify(caller)
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
            if mode & (_PUNCH_HOLE | _ZERO_RANGE):
                inode.pages.zero(offset, length)
            grown = not mode & _KEEP_SIZE and offset + length > inode.attr.size
            written(inode, 0 if mode & _KEEP_SIZE else offset + length)
            if grown:
                modified(superblock, inode)
            yield from flush_time_update(superblock, inode)
        finally:
            superblock.unlock(inode)

    def copy_to(
        self, caller: FileCaller, offset: int, other: "RegularFile", other_offset: int, size: int
    ) -> Operation[int]:
        """Do copy_file_range(2); return how many bytes were copied.

        Without the server's help it is done by reading and writing.

        Raises OSError: EBADF, EINVAL for parts of one file that overlap, EOVERFLOW, or what the
        server answers.
        """
        return self.running(other.running(self._copy(caller, offset, other, other_offset, size)))

    def _copy(
        self, caller: FileCaller, offset: int, other: "RegularFile", other_offset: int, size: int
    ) -> Operation[int]:
        # fs/read_write.c, generic_copy_file_checks; fs/fuse/file.c, __fuse_copy_file_range.
        superblock = self.superblock
        if not self.readable or not other.writable or other.flags & os.O_APPEND:
            raise bad_descriptor()
        if any(-size <= start < 0 for start in (offset, other_offset)):
            raise os_error(errno.EOVERFLOW)
        if min(offset, other_offset, size) < 0:
            raise os_error(errno.EINVAL)
        attr = yield from get_attributes(superblock, caller, self.inode, STATX_SIZE, self)
        size = min(size, max(attr.size - offset, 0), MAX_RW_COUNT)
        if self.inode is other.inode and abs(offset - other_offset) < size:
            raise os_error(errno.EINVAL)
        size = check_write(caller, other_offset, size)
        if not size:
            return 0
        yield from superblock.lock(self.inode)
        try:
            yield from self._write_back(offset)
        finally:
            superblock.unlock(self.inode)
        yield from superblock.lock(other.inode)
        try:
            yield from other._modify(caller)
            yield from other._write_back(other_offset)
            copied = yield from self._ask_to_copy(caller, offset, other, other_offset, size)
            yield from flush_time_update(superblock, other.inode)
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
            modified(superblock, other.inode)
            written(other.inode, other_offset + copied)
            return copied
        return None
