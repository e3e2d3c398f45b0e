"""read, write and related calls (fs/read_write.c, fs/splice.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.files.description import NO_APPEND, FileDescription, Offsets
from recuse.sandbox.files.natives import Native, native
from recuse.sandbox.syscalls.handler import (
    PROCEED,
    Handler,
    signed32,
    signed64,
)
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.trap.call import Outcome, TrappedCall
from recuse.sandbox.vfs.filesystem_tree import filesystem_of

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

_O_RDONLY: Final = os.O_RDONLY
_O_WRONLY: Final = os.O_WRONLY

_MAX_RW_COUNT: Final = 0x7FFFF000
_UIO_MAXIOV: Final = 1024
_IOVEC = struct.Struct("=QQ")
COMPAT_IOVEC: Final = struct.Struct("=II")
"""``struct iovec`` of a 32-bit program."""
IOVEC: Final = {8: _IOVEC, 4: COMPAT_IOVEC}
"""By the number of bytes in a pointer."""

# linux/fs.h. HIPRI and NOSIGNAL mean nothing here, and a device ignores APPEND and NOAPPEND.
_RWF_DSYNC: Final = 0x02
_RWF_SYNC: Final = 0x04
_RWF_APPEND: Final = 0x10
_RWF_NOAPPEND: Final = 0x20
_RWF_APPENDING: Final = _RWF_APPEND | _RWF_NOAPPEND
_RWF_NOSIGNAL: Final = 0x100
RWF_KNOWN: Final = 0x01 | _RWF_DSYNC | _RWF_SYNC | _RWF_APPENDING | _RWF_NOSIGNAL
"""Flags of preadv2, pwritev2 and ``struct iocb``."""


def plain_segments(address: int, count: int) -> list[tuple[int, int]]:
    """The only segment of a call that is not vectored. OSError: EFAULT beyond user space."""
    if address + count > arch.ADDRESS_LIMIT:
        raise os_error(errno.EFAULT)
    return [(address, count if count < _MAX_RW_COUNT else _MAX_RW_COUNT)]


def vector_segments(
    tid: int, address: int, count: int, iovec: struct.Struct
) -> list[tuple[int, int]]:
    """The segments of a vectored call without empty ones, checked as import_iovec checks them.

    Raises:
        OSError: EINVAL for more than 1024 segments, or for one over SSIZE_MAX; EFAULT for a bad
            array, or for a segment beyond user space.
    """
    count &= 0xFFFFFFFF  # import_iovec takes 32 bits
    if count > _UIO_MAXIOV:
        raise os_error(errno.EINVAL)
    array = read_memory(tid, address, count * iovec.size)
    if len(array) != count * iovec.size:
        raise os_error(errno.EFAULT)
    segments: list[tuple[int, int]] = []
    room = _MAX_RW_COUNT
    sign_bit = iovec.size * 4 - 1
    for base, length in iovec.iter_unpack(array):
        if length >> sign_bit:
            raise os_error(errno.EINVAL)
        if base + length > arch.ADDRESS_LIMIT:
            raise os_error(errno.EFAULT)
        length = min(length, room)
        room -= length
        if length:
            segments.append((base, length))
    return segments


def _plain(call: TrappedCall, machine: Machine, wanted: int, position: int | None) -> Outcome:
    """Do read or write (``wanted``: O_RDONLY or O_WRONLY) with arguments 0 to 2, as vfs_read."""
    file = machine.files.find(call.tid, call.a0)
    if file is None:
        return PROCEED
    if wanted == _O_RDONLY:
        if not file.readable:
            raise os_error(errno.EBADF)
        return file.read(call, plain_segments(call.a1, call.a2), position)
    if not file.writable:
        raise os_error(errno.EBADF)
    return file.write(call, plain_segments(call.a1, call.a2), position)


def read(call: TrappedCall, machine: Machine) -> Outcome:
    """``read(fd, buf, count)``."""
    return _plain(call, machine, _O_RDONLY, None)


def write(call: TrappedCall, machine: Machine) -> Outcome:
    """``write(fd, buf, count)``."""
    return _plain(call, machine, _O_WRONLY, None)


# The kernel refuses a negative position before it looks at the descriptor.


def pread64(call: TrappedCall, machine: Machine) -> Outcome:
    """``pread64(fd, buf, count, offset)``."""
    return PROCEED if call.a3 >> 63 else _plain(call, machine, _O_RDONLY, call.a3)


def pwrite64(call: TrappedCall, machine: Machine) -> Outcome:
    """``pwrite64(fd, buf, count, offset)``."""
    return PROCEED if call.a3 >> 63 else _plain(call, machine, _O_WRONLY, call.a3)


def vectored(  # noqa: PLR0917 - by position, as every readv calls it
    call: TrappedCall,
    machine: Machine,
    wanted: int,
    position: int | None,
    flags: int = 0,
    iovec: struct.Struct = _IOVEC,
) -> Outcome:
    """Do readv or writev (``wanted``: O_RDONLY or O_WRONLY) with arguments 0 to 2."""
    if position is not None and signed64(position) < 0:
        return PROCEED
    file = machine.files.find(call.tid, call.a0)
    if file is None:
        return PROCEED
    segments = vector_segments(call.tid, call.a1, call.a2, iovec)
    if not (file.readable if wanted == _O_RDONLY else file.writable):
        raise os_error(errno.EBADF)
    if not segments:
        return 0
    check_flags(flags)
    if wanted == _O_RDONLY:
        return file.read(call, segments, position)
    return file.write(call, segments, position, write_flags(flags))


def check_flags(flags: int) -> None:
    """Raise EOPNOTSUPP for flags of one transfer that no file has; EINVAL for contrary ones."""
    if flags & ~RWF_KNOWN:
        raise os_error(errno.EOPNOTSUPP)
    if flags & _RWF_APPENDING == _RWF_APPENDING:
        raise os_error(errno.EINVAL)


def write_flags(flags: int) -> int:
    """The open flags that are added for one write, and `NO_APPEND` (kiocb_set_rw_flags)."""
    added = 0
    if flags & _RWF_SYNC:
        added = os.O_SYNC
    elif flags & _RWF_DSYNC:
        added = os.O_DSYNC
    if flags & _RWF_APPEND:
        added |= os.O_APPEND
    if flags & _RWF_NOAPPEND:
        added |= NO_APPEND
    return added


def readv(call: TrappedCall, machine: Machine) -> Outcome:
    """``readv(fd, iov, count)``."""
    return vectored(call, machine, _O_RDONLY, None)


def writev(call: TrappedCall, machine: Machine) -> Outcome:
    """``writev(fd, iov, count)``."""
    return vectored(call, machine, _O_WRONLY, None)


# On 64-bit machines the low word is the whole position.


def preadv(call: TrappedCall, machine: Machine) -> Outcome:
    """``preadv(fd, iov, count, low, high)``."""
    return vectored(call, machine, _O_RDONLY, call.a3)


def pwritev(call: TrappedCall, machine: Machine) -> Outcome:
    """``pwritev(fd, iov, count, low, high)``."""
    return vectored(call, machine, _O_WRONLY, call.a3)


def at(position: int) -> int | None:
    """The position of preadv2 and pwritev2; -1 means the file's own."""
    return None if signed64(position) == -1 else position


def preadv2(call: TrappedCall, machine: Machine) -> Outcome:
    """``preadv2(fd, iov, count, low, high, flags)``."""
    return vectored(call, machine, _O_RDONLY, at(call.a3), signed32(call.a5))


def pwritev2(call: TrappedCall, machine: Machine) -> Outcome:
    """``pwritev2(fd, iov, count, low, high, flags)``."""
    return vectored(call, machine, _O_WRONLY, at(call.a3), signed32(call.a5))


def sendfile(call: TrappedCall, machine: Machine, width: int = 8) -> int:
    """``sendfile(out, in, offset, count)``; the offset in memory has ``width`` bytes."""
    target = machine.files.find_opened(call.tid, call.a0)
    source = machine.files.find_opened(call.tid, call.a1)
    if source is None and target is None:
        return PROCEED
    return _transferring(source, target).send_file(call, target, source, width)


def _transferring(
    source: FileDescription | None, target: FileDescription | None
) -> FileDescription:
    """The end that knows how bytes are transferred: devices do not."""
    if target is None or (source is not None and filesystem_of(source.location) is not None):
        assert source is not None
        return source
    return target


def splice(call: TrappedCall, machine: Machine) -> int:
    """``splice(in, off_in, out, off_out, count, flags)``, which servers use at /dev/fuse."""
    source = machine.files.find_opened(call.tid, call.a0)
    target = machine.files.find_opened(call.tid, call.a2)
    if source is None and target is None:
        return PROCEED
    end = _transferring(source, target)
    if filesystem_of(end.location) is not None:
        return end.splice(call, target, source)
    if source is not None and target is not None:
        raise os_error(errno.EINVAL)
    # An offset of the file itself is ignored, as fs/fuse/dev.c does: it has no positions.
    if call.a3 if source is not None else call.a1:
        raise os_error(errno.ESPIPE)
    size = min(call.a4, _MAX_RW_COUNT)
    if source is not None:
        if not source.readable:
            raise os_error(errno.EBADF)
        return source.splice_to(call, signed32(call.a2), size)
    if not end.writable:
        raise os_error(errno.EBADF)
    return end.splice_from(call, signed32(call.a0), size)


def copy_file_range(call: TrappedCall, machine: Machine) -> Outcome:
    """``copy_file_range(in, off_in, out, off_out, count, flags)``."""
    source = machine.files.find_opened(call.tid, call.a0)
    target = machine.files.find_opened(call.tid, call.a2)
    if source is None and target is None:
        return PROCEED
    if call.a5 & 0xFFFFFFFF:
        raise os_error(errno.EINVAL)
    # generic_file_rw_checks, generic_copy_file_checks
    reads, writes = _opened(call, source, call.a0), _opened(call, target, call.a2)
    if stat.S_ISDIR(reads.mode) or stat.S_ISDIR(writes.mode):
        raise os_error(errno.EISDIR)
    if not stat.S_ISREG(reads.mode) or not stat.S_ISREG(writes.mode):
        raise os_error(errno.EINVAL)
    if not reads.readable or not writes.writable or writes.flags & os.O_APPEND:
        raise os_error(errno.EBADF)
    if source is None or target is None or source.group is not target.group:
        raise os_error(errno.EXDEV)
    return source.copy_range(call, target, Offsets(call.a1, call.a3), call.a4)


def _opened(call: TrappedCall, file: FileDescription | None, number: int) -> Native:
    """What is open under a number of the caller's, also if it is native."""
    if file is None:
        return native(call.tid, number & 0xFFFFFFFF)
    if filesystem_of(file.location) is None:
        return Native(stat.S_IFCHR, file.flags)
    return Native(stat.S_IFDIR if file.node.is_directory else stat.S_IFREG, file.flags)


def tee(call: TrappedCall, machine: Machine) -> int:
    """``tee(in, out, count, flags)``, for pipes only."""
    source = machine.files.find_opened(call.tid, call.a0)
    target = machine.files.find_opened(call.tid, call.a1)
    if (source and not source.readable) or (target and not target.writable):
        raise os_error(errno.EBADF)
    if source or target:
        raise os_error(errno.EINVAL)
    return PROCEED


def lseek(call: TrappedCall, machine: Machine) -> int:
    """``lseek(fd, offset, whence)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    if file is None:
        return PROCEED
    return file.seek(call, signed64(call.a1), signed32(call.a2))


HANDLERS: Final[dict[str, Handler]] = {
    "read": read,
    "write": write,
    "pread64": pread64,
    "pwrite64": pwrite64,
    "readv": readv,
    "writev": writev,
    "preadv": preadv,
    "pwritev": pwritev,
    "preadv2": preadv2,
    "pwritev2": pwritev2,
    "sendfile": sendfile,
    "splice": splice,
    "tee": tee,
    "copy_file_range": copy_file_range,
    "lseek": lseek,
}
