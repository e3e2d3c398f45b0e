"""System calls of 32-bit programs on x86-64 (the kernel's compat_sys_*; Linux 6.1).

Most have the arguments of the 64-bit call of the same name, because the kernel reports 32-bit
registers extended with zeros. The others are here: they have 64-bit numbers in two registers,
smaller structures, or 16-bit IDs.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import i386
from recuse.sandbox.syscalls import (
    aio,
    attributes,
    control,
    filesystems,
    mmap,
    names,
    opening,
    passing,
    poll,
    processes,
    regular,
    rw,
    sigreturn,
    status,
)
from recuse.sandbox.syscalls.families import FAMILIES
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import (
    AT_SYMLINK_NOFOLLOW,
    by_path_or_descriptor,
    held,
    inspected,
    named,
)
from recuse.sandbox.tasks.memory import read_memory, write_memory
from recuse.sandbox.trap.call import Outcome, TrappedCall
from recuse.sandbox.vfs.resolve import AT_FDCWD

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

_NATIVE: Final[dict[str, Handler]] = {
    name: handler for family in FAMILIES.values() for name, handler in family.HANDLERS.items()
}

_LOFF = struct.Struct("=q")
_TIMES32 = struct.Struct("=iiii")
_MMAP_ARGUMENTS = struct.Struct("=6I")
_SECONDS32 = struct.Struct("=ii")
_OLD_SELECT = struct.Struct("=5I")
_ARGUMENTS = struct.Struct("=3I")

# linux/net.h: the calls of socketcall(2) that make a socket.
_SYS_SOCKET: Final = 1
_SYS_SOCKETPAIR: Final = 8
_OF_SOCKETS: Final = {2: names.bind, 16: passing.send_message, 20: passing.send_messages}
"""The calls that need more than to see whether they are made on a device."""


def _as(name: str) -> Handler:
    """The handler of the 64-bit call with that name, which takes the same arguments."""
    return _NATIVE[name]


def _wide(low: int, high: int) -> int:
    """A 64-bit argument from two registers."""
    return high << 32 | low


def pread64(call: TrappedCall, machine: Machine) -> Outcome:
    """``pread64(fd, buf, count, low, high)``."""
    call.a3 = _wide(call.a3, call.a4)
    return rw.pread64(call, machine)


def pwrite64(call: TrappedCall, machine: Machine) -> Outcome:
    """``pwrite64(fd, buf, count, low, high)``."""
    call.a3 = _wide(call.a3, call.a4)
    return rw.pwrite64(call, machine)


def readv(call: TrappedCall, machine: Machine) -> Outcome:
    """``readv(fd, iov, count)``."""
    return rw.vectored(call, machine, os.O_RDONLY, None, 0, rw.COMPAT_IOVEC)


def writev(call: TrappedCall, machine: Machine) -> Outcome:
    """``writev(fd, iov, count)``."""
    return rw.vectored(call, machine, os.O_WRONLY, None, 0, rw.COMPAT_IOVEC)


def preadv(call: TrappedCall, machine: Machine) -> Outcome:
    """``preadv(fd, iov, count, low, high)``."""
    position = _wide(call.a3, call.a4)
    return rw.vectored(call, machine, os.O_RDONLY, position, 0, rw.COMPAT_IOVEC)


def pwritev(call: TrappedCall, machine: Machine) -> Outcome:
    """``pwritev(fd, iov, count, low, high)``."""
    position = _wide(call.a3, call.a4)
    return rw.vectored(call, machine, os.O_WRONLY, position, 0, rw.COMPAT_IOVEC)


def preadv2(call: TrappedCall, machine: Machine) -> Outcome:
    """``preadv2(fd, iov, count, low, high, flags)``."""
    position, flags = rw.at(_wide(call.a3, call.a4)), signed32(call.a5)
    return rw.vectored(call, machine, os.O_RDONLY, position, flags, rw.COMPAT_IOVEC)


def pwritev2(call: TrappedCall, machine: Machine) -> Outcome:
    """``pwritev2(fd, iov, count, low, high, flags)``."""
    position, flags = rw.at(_wide(call.a3, call.a4)), signed32(call.a5)
    return rw.vectored(call, machine, os.O_WRONLY, position, flags, rw.COMPAT_IOVEC)


def lseek(call: TrappedCall, machine: Machine) -> int:
    """``lseek(fd, offset, whence)``; EOVERFLOW for a position that does not fit into 32 bits."""
    call.a1 = signed32(call.a1) & 0xFFFFFFFFFFFFFFFF  # as in a 64-bit register
    position = rw.lseek(call, machine)
    if position > 0x7FFFFFFF:
        raise os_error(errno.EOVERFLOW)
    return position


def llseek(call: TrappedCall, machine: Machine) -> int:
    """``_llseek(fd, high, low, result, whence)``."""
    call.a1, call.a2 = _wide(call.a2, call.a1), call.a4
    position = rw.lseek(call, machine)
    if position == PROCEED:
        return PROCEED
    if write_memory(call.tid, call.a3, _LOFF.pack(position)) < _LOFF.size:
        raise os_error(errno.EFAULT)
    return 0


def sync_file_range(call: TrappedCall, machine: Machine) -> Outcome:
    """``sync_file_range(fd, offset_low, offset_high, count_low, count_high, flags)``."""
    call.a1, call.a2, call.a3 = _wide(call.a1, call.a2), _wide(call.a3, call.a4), call.a5
    return regular.sync_file_range(call, machine)


def sendfile(call: TrappedCall, machine: Machine) -> Outcome:
    """``sendfile(out, in, offset, count)``, whose offset has 32 bits."""
    return rw.sendfile(call, machine, 4)


def truncate(call: TrappedCall, machine: Machine) -> Outcome:
    """``truncate(path, length)``."""
    call.a1 = signed32(call.a1) & 0xFFFFFFFFFFFFFFFF
    return opening.truncate(call, machine)


def truncate64(call: TrappedCall, machine: Machine) -> Outcome:
    """``truncate64(path, low, high)``."""
    call.a1 = _wide(call.a1, call.a2)
    return opening.truncate(call, machine)


def ftruncate(call: TrappedCall, machine: Machine) -> Outcome:
    """``ftruncate(fd, length)``."""
    call.a1 = signed32(call.a1) & 0xFFFFFFFFFFFFFFFF
    return regular.ftruncate(call, machine)


def ftruncate64(call: TrappedCall, machine: Machine) -> Outcome:
    """``ftruncate64(fd, low, high)``."""
    call.a1 = _wide(call.a1, call.a2)
    return regular.ftruncate(call, machine)


def fallocate(call: TrappedCall, machine: Machine) -> Outcome:
    """``fallocate(fd, mode, low, high, length_low, length_high)``."""
    call.a2, call.a3 = _wide(call.a2, call.a3), _wide(call.a4, call.a5)
    return regular.fallocate(call, machine)


def stat(call: TrappedCall, machine: Machine) -> int:
    """``stat(path, buf)``."""
    found = inspected(call, machine, AT_FDCWD, call.a0, 0)
    return status.fill_stat(call, found, call.a1, i386.pack_stat)


def lstat(call: TrappedCall, machine: Machine) -> int:
    """``lstat(path, buf)``."""
    found = inspected(call, machine, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return status.fill_stat(call, found, call.a1, i386.pack_stat)


def fstat(call: TrappedCall, machine: Machine) -> int:
    """``fstat(fd, buf)``."""
    found = held(call, machine, signed32(call.a0))
    return status.fill_stat(call, found, call.a1, i386.pack_stat)


def stat64(call: TrappedCall, machine: Machine) -> int:
    """``stat64(path, buf)``."""
    found = inspected(call, machine, AT_FDCWD, call.a0, 0)
    return status.fill_stat(call, found, call.a1, i386.pack_stat64)


def lstat64(call: TrappedCall, machine: Machine) -> int:
    """``lstat64(path, buf)``."""
    found = inspected(call, machine, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return status.fill_stat(call, found, call.a1, i386.pack_stat64)


def fstat64(call: TrappedCall, machine: Machine) -> int:
    """``fstat64(fd, buf)``."""
    found = held(call, machine, signed32(call.a0))
    return status.fill_stat(call, found, call.a1, i386.pack_stat64)


def fstatat64(call: TrappedCall, machine: Machine) -> int:
    """``fstatat64(dirfd, path, buf, flags)``."""
    return status.newfstatat(call, machine, i386.pack_stat64)


def _id(number: int) -> int:
    """A 16-bit ID as a 32-bit one; -1 stays -1 (low2highuid)."""
    number &= 0xFFFF
    return 0xFFFFFFFF if number == 0xFFFF else number


def chown(call: TrappedCall, machine: Machine) -> Outcome:
    """``chown(path, uid, gid)`` with 16-bit IDs."""
    call.a1, call.a2 = _id(call.a1), _id(call.a2)
    return attributes.chown(call, machine)


def lchown(call: TrappedCall, machine: Machine) -> Outcome:
    """``lchown(path, uid, gid)`` with 16-bit IDs."""
    call.a1, call.a2 = _id(call.a1), _id(call.a2)
    return attributes.lchown(call, machine)


def fchown(call: TrappedCall, machine: Machine) -> Outcome:
    """``fchown(fd, uid, gid)`` with 16-bit IDs."""
    call.a1, call.a2 = _id(call.a1), _id(call.a2)
    return attributes.fchown(call, machine)


def utime(call: TrappedCall, machine: Machine) -> Outcome:
    """``utime(path, times)``."""
    found = named(call, machine, AT_FDCWD, call.a0, 0)
    return attributes.set_times(call, found, call.a1, _SECONDS32, attributes.from_seconds)


def utimes(call: TrappedCall, machine: Machine) -> Outcome:
    """``utimes(path, times)``."""
    found = named(call, machine, AT_FDCWD, call.a0, 0)
    return attributes.set_times(call, found, call.a1, _TIMES32, attributes.from_timevals)


def futimesat(call: TrappedCall, machine: Machine) -> Outcome:
    """``futimesat(dirfd, path, times)``."""
    found = by_path_or_descriptor(call, machine, 0)
    return attributes.set_times(call, found, call.a2, _TIMES32, attributes.from_timevals)


def utimensat(call: TrappedCall, machine: Machine) -> Outcome:
    """``utimensat(dirfd, path, times, flags)`` with 32-bit times."""
    return attributes.utimensat(call, machine, _TIMES32)


def socketcall(call: TrappedCall, machine: Machine) -> Outcome:
    """``socketcall(call, args)``, which older C libraries use for all calls of sockets."""
    which = signed32(call.a0)
    if which in (_SYS_SOCKET, _SYS_SOCKETPAIR):
        return PROCEED
    words = read_memory(call.tid, call.a1, 12)
    call.a0, call.a1, call.a2 = _ARGUMENTS.unpack(words.ljust(12, b"\0"))
    if which in _OF_SOCKETS and len(words) == _ARGUMENTS.size:
        return _OF_SOCKETS[which](call, machine)
    return processes.socket_call(call, machine)


def ppoll(call: TrappedCall, machine: Machine) -> Outcome:
    """``ppoll(fds, nfds, timeout, mask, size)`` with 32-bit times."""
    return poll.ppoll(call, machine, _SECONDS32)


def newselect(call: TrappedCall, machine: Machine) -> Outcome:
    """``_newselect(nfds, in, out, exceptions, timeout)``."""
    return poll.select(call, machine, _SECONDS32, word=4)


def select(call: TrappedCall, machine: Machine) -> Outcome:
    """``select(args)``: the arguments are a structure."""
    if not machine.files.polled:
        return PROCEED
    array = read_memory(call.tid, call.a0, _OLD_SELECT.size)
    if len(array) < _OLD_SELECT.size:
        return PROCEED
    registers = call.a0, call.a1
    call.a0, call.a1, call.a2, call.a3, call.a4 = _OLD_SELECT.unpack(array)
    return poll.select(call, machine, _SECONDS32, word=4, registers=registers)


def pselect6(call: TrappedCall, machine: Machine) -> Outcome:
    """``pselect6(nfds, in, out, exceptions, timeout, mask)`` with 32-bit times."""
    return poll.pselect6(call, machine, _SECONDS32, word=4)


def pselect6_time64(call: TrappedCall, machine: Machine) -> Outcome:
    """``pselect6(nfds, in, out, exceptions, timeout, mask)``."""
    return poll.pselect6(call, machine, word=4)


def io_submit(call: TrappedCall, machine: Machine) -> int:
    """``io_submit(context, count, blocks)`` with 32-bit pointers to the same structures."""
    call.a1 = signed32(call.a1) & 0xFFFFFFFFFFFFFFFF
    return aio.io_submit(call, machine, aio.COMPAT_POINTER)


def mmap2(call: TrappedCall, machine: Machine) -> int:
    """``mmap2(addr, length, prot, flags, fd, pages)``."""
    call.a5 *= i386.MMAP_UNIT
    return mmap.mmap(call, machine)


def old_mmap(call: TrappedCall, machine: Machine) -> int:
    """``mmap(args)``: what C libraries used before mmap2; all six arguments are in memory."""
    arguments = read_memory(call.tid, call.a0, _MMAP_ARGUMENTS.size)
    if len(arguments) < _MMAP_ARGUMENTS.size:
        return PROCEED
    call.a0, call.a1, call.a2, call.a3, call.a4, call.a5 = _MMAP_ARGUMENTS.unpack(arguments)
    return mmap.mmap(call, machine)


OWN: Final[dict[str, Handler]] = {
    **sigreturn.COMPAT_HANDLERS,
    "pread64": pread64,
    "pwrite64": pwrite64,
    "readv": readv,
    "writev": writev,
    "preadv": preadv,
    "pwritev": pwritev,
    "preadv2": preadv2,
    "pwritev2": pwritev2,
    "lseek": lseek,
    "sendfile": sendfile,
    "sync_file_range": sync_file_range,
    "truncate": truncate,
    "truncate64": truncate64,
    "ftruncate": ftruncate,
    "ftruncate64": ftruncate64,
    "fallocate": fallocate,
    "_llseek": llseek,
    "stat": stat,
    "lstat": lstat,
    "fstat": fstat,
    "stat64": stat64,
    "lstat64": lstat64,
    "fstat64": fstat64,
    "fstatat64": fstatat64,
    "chown": chown,
    "lchown": lchown,
    "fchown": fchown,
    "utime": utime,
    "utimes": utimes,
    "futimesat": futimesat,
    "utimensat": utimensat,
    "ppoll": ppoll,
    "_newselect": newselect,
    "select": select,
    "pselect6": pselect6,
    "pselect6_time64": pselect6_time64,
    "socketcall": socketcall,
    "io_submit": io_submit,
    "statfs": filesystems.compat_statfs,
    "fstatfs": filesystems.compat_fstatfs,
    "statfs64": filesystems.statfs64,
    "fstatfs64": filesystems.fstatfs64,
    "mmap": old_mmap,
    "mmap2": mmap2,
    "clone": processes.clone,
    "fcntl": control.fcntl,
    "fcntl64": control.fcntl,
}


def handlers() -> dict[int, Handler]:
    """The handlers by number."""
    return {
        call.number: OWN.get(call.name) or _as(call.alias) for call in i386.CALLS if call.trapped
    }
