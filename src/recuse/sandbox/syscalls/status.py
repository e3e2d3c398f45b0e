"""What programs ask about a node: stat, access, readlink (fs/stat.c, fs/open.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.arch.status import Status
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, held, inspected
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.native_files import check_access
from recuse.sandbox.vfs.permissions import check
from recuse.sandbox.vfs.resolve import AT_FDCWD, Found

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

_AT_EACCESS: Final = 0x200
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_SYNC_TYPE: Final = 0x6000
_STATX_RESERVED: Final = 0x80000000

# The kernel refuses other flags than these before it looks at the path, so calls with other flags
# are left to the kernel.
_STAT_FLAGS: Final = AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | AT_EMPTY_PATH | _AT_STATX_SYNC_TYPE
_ACCESS_FLAGS: Final = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | _AT_EACCESS

_MAY_ALL: Final = 7
_SECOND: Final = 1_000_000_000

_STATX = struct.Struct("=IIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIIIQ104x")
_STATX_BASIC: Final = 0x7FF
_STATX_BTIME: Final = 0x800
_MASK: Final = _STATX_BASIC | _STATX_BTIME


def _status(call: TrappedCall, found: Found, mask: int = _STATX_BASIC, sync: int = 0) -> Status:
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        return filesystem.status(call, found.location.dentry, mask, sync)
    return found.node.status()


def _write(call: TrappedCall, address: int, data: bytes) -> None:
    if call.alive() and write_memory(call.tid, address, data) < len(data):
        raise os_error(errno.EFAULT)


def fill_stat(
    call: TrappedCall,
    found: Found | None,
    address: int,
    pack: Callable[[Status], bytes] = arch.pack_stat,
) -> int:
    """Fill in a ``struct stat``, as ``pack`` encodes it (see `arch.pack_stat`)."""
    if found is None or found.link:
        return PROCEED
    _write(call, address, pack(_status(call, found)))
    return 0


def stat_(call: TrappedCall, machine: Machine) -> int:
    """``stat(path, buf)``."""
    return fill_stat(call, inspected(call, machine, AT_FDCWD, call.a0, 0), call.a1)


def lstat(call: TrappedCall, machine: Machine) -> int:
    """``lstat(path, buf)``."""
    found = inspected(call, machine, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return fill_stat(call, found, call.a1)


def fstat(call: TrappedCall, machine: Machine) -> int:
    """``fstat(fd, buf)``."""
    return fill_stat(call, held(call, machine, signed32(call.a0)), call.a1)


def newfstatat(
    call: TrappedCall, machine: Machine, pack: Callable[[Status], bytes] = arch.pack_stat
) -> int:
    """``newfstatat(dirfd, path, buf, flags)``."""
    if call.a3 & ~_STAT_FLAGS:
        return PROCEED
    found = inspected(call, machine, signed32(call.a0), call.a1, call.a3)
    return fill_stat(call, found, call.a2, pack)


def statx(call: TrappedCall, machine: Machine) -> int:
    """``statx(dirfd, path, flags, mask, buf)``."""
    if (
        call.a2 & ~_STAT_FLAGS
        or call.a2 & _AT_STATX_SYNC_TYPE == _AT_STATX_SYNC_TYPE
        or call.a3 & _STATX_RESERVED
    ):
        return PROCEED
    found = inspected(call, machine, signed32(call.a0), call.a1, call.a2)
    if found is None or found.link:
        return PROCEED
    it = _status(call, found, call.a3 & _MASK, call.a2 & _AT_STATX_SYNC_TYPE)
    stamps = it.stamps
    data = _STATX.pack(
        _STATX_BASIC | (0 if it.birth_ns is None else _STATX_BTIME),
        it.block_size,
        0,
        it.links,
        it.uid,
        it.gid,
        it.mode,
        it.inode,
        it.size,
        it.blocks,
        0,
        *stamps[:2],
        *divmod(it.birth_ns or 0, _SECOND),
        *stamps[4:],
        *stamps[2:4],
        os.major(it.rdev),
        os.minor(it.rdev),
        os.major(it.device),
        os.minor(it.device),
        0,
    )
    _write(call, call.a4, data)
    return 0


def _access(
    call: TrappedCall, machine: Machine, found: Found | None, wanted: int, flags: int = 0
) -> int:
    if found is None or found.link or wanted & ~_MAY_ALL:
        return PROCEED
    task = call.task
    effective = flags & _AT_EACCESS
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        filesystem.check_access(call, found.location.dentry, wanted, real=not effective)
    elif found.native is None:
        check(found.node, task.credentials if effective else task.real_credentials, wanted)
    else:
        acting = task.acting if effective else machine.tasks.acting_as(task.real_rights)
        check_access(acting, found.native.descriptor, wanted)
    return 0


def access(call: TrappedCall, machine: Machine) -> int:
    """``access(path, mode)``."""
    found = inspected(call, machine, AT_FDCWD, call.a0, 0, real=True)
    return _access(call, machine, found, signed32(call.a1))


def faccessat(call: TrappedCall, machine: Machine) -> int:
    """``faccessat(dirfd, path, mode)``: this call has no flags."""
    found = inspected(call, machine, signed32(call.a0), call.a1, 0, real=True)
    return _access(call, machine, found, signed32(call.a2))


def faccessat2(call: TrappedCall, machine: Machine) -> int:
    """``faccessat2(dirfd, path, mode, flags)``."""
    if call.a3 & ~_ACCESS_FLAGS:
        return PROCEED
    real = not call.a3 & _AT_EACCESS
    found = inspected(call, machine, signed32(call.a0), call.a1, call.a3, real)
    return _access(call, machine, found, signed32(call.a2), call.a3)


def _readlink(
    call: TrappedCall, machine: Machine, found: Found | None, buffer: int, size: int
) -> int:
    if found is None:
        return PROCEED
    if size <= 0:
        raise os_error(errno.EINVAL)
    if found.link:
        target = machine.tree.shown_path(call.tid, found.location)[:size]
    else:
        target = found.location.read_link(call)[:size]
    _write(call, buffer, target)
    return len(target)


def readlink(call: TrappedCall, machine: Machine) -> int:
    """``readlink(path, buf, size)``: a device is no link, but ``/proc/self/fd/N`` links to it."""
    found = inspected(call, machine, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return _readlink(call, machine, found, call.a1, signed32(call.a2))


def readlinkat(call: TrappedCall, machine: Machine) -> int:
    """``readlinkat(dirfd, path, buf, size)``."""
    flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
    found = inspected(call, machine, signed32(call.a0), call.a1, flags)
    return _readlink(call, machine, found, call.a2, signed32(call.a3))


HANDLERS: Final[dict[str, Handler]] = {
    "stat": stat_,
    "lstat": lstat,
    "fstat": fstat,
    "newfstatat": newfstatat,
    "statx": statx,
    "access": access,
    "faccessat": faccessat,
    "faccessat2": faccessat2,
    "readlink": readlink,
    "readlinkat": readlinkat,
}
