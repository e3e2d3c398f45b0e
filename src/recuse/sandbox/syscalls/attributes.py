"""What programs ask about a device's node, and change of it (fs/stat.c, fs/open.c, fs/attr.c)."""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.memory import read_memory, write_memory
from recuse.sandbox.permissions import MAY_WRITE, check, check_owner
from recuse.sandbox.syscalls.call import PROCEED, Handler, signed32
from recuse.sandbox.tree import AT_FDCWD, Found, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EACCESS: Final = 0x200
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_SYNC_TYPE: Final = 0x6000
_STATX_RESERVED: Final = 0x80000000

# Calls with other flags than these are refused by the kernel before it looks at the path, so they
# are left to it.
_STAT_FLAGS: Final = AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_EMPTY_PATH | _AT_STATX_SYNC_TYPE
_CHANGE_FLAGS: Final = AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH
_ACCESS_FLAGS: Final = _CHANGE_FLAGS | _AT_EACCESS

_MAY_ALL: Final = 7
_UTIME_NOW: Final = 0x3FFFFFFF
_UTIME_OMIT: Final = 0x3FFFFFFE
_NO_ID: Final = 0xFFFFFFFF
_SECOND: Final = 1_000_000_000

_TIMES = struct.Struct("=qqqq")
_SECONDS = struct.Struct("=qq")
_STATX = struct.Struct("=IIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIIIQ104x")
_STATX_BASIC: Final = 0x7FF

_Times = tuple[int | None, int | None]
"""Access and modification time in nanoseconds since the epoch; None leaves one as it is."""


def named(
    supervisor: Supervisor, call: Notification, base: int, address: int, flags: int
) -> Found | None:
    """What a directory descriptor, a path and AT_ flags name; None if nothing of ours."""
    path = supervisor.strings.read(call.pid, address) if address else b""
    if path:
        follow = not flags & AT_SYMLINK_NOFOLLOW
        return supervisor.tree.find(call.pid, base, path, follow=follow)
    if flags & _AT_EMPTY_PATH and base != AT_FDCWD:
        return held(supervisor, call, base)
    return None


def looked_at(
    supervisor: Supervisor, call: Notification, base: int, address: int, flags: int
) -> Found | None:
    """The same, for calls that change nothing."""
    try:
        return named(supervisor, call, base, address, flags)
    except OutsideError as outside:
        return Found(outside.node())


def held(supervisor: Supervisor, call: Notification, number: int) -> Found | None:
    """What a descriptor refers to; None if nothing of ours."""
    descriptor = supervisor.descriptors.find(call.pid, number)
    if descriptor is None:
        node = supervisor.tree.directory(call.pid, number)
        return Found(node) if node is not None else None
    return Found(descriptor.node)


def opened(supervisor: Supervisor, call: Notification) -> Found | None:
    """What descriptor argument 0 refers to, for calls that O_PATH does not do for (EBADF)."""
    number = signed32(call.a0)
    descriptor = supervisor.descriptors.find(call.pid, number)
    if descriptor is not None and descriptor.file is None:
        raise os_error(errno.EBADF)
    return held(supervisor, call, number)


def _write(supervisor: Supervisor, call: Notification, address: int, data: bytes) -> None:
    if supervisor.listener.alive(call.id) and write_memory(call.pid, address, data) < len(data):
        raise os_error(errno.EFAULT)


def fill_stat(
    supervisor: Supervisor,
    call: Notification,
    found: Found | None,
    address: int,
    pack: Callable[..., bytes] = arch.pack_stat,
) -> int:
    """Fill in a ``struct stat``, as ``pack`` encodes it (see `arch.pack_stat`)."""
    if found is None or found.link:
        return PROCEED
    node = found.node
    data = pack(
        device=node.filesystem,
        inode=node.inode,
        mode=node.mode,
        links=node.links,
        uid=node.uid,
        gid=node.gid,
        rdev=node.rdev,
        size=node.size,
        block_size=node.block_size,
        times_ns=(node.accessed_ns, node.modified_ns, node.changed_ns),
    )
    _write(supervisor, call, address, data)
    return 0


def stat_(supervisor: Supervisor, call: Notification) -> int:
    """``stat(path, buf)``."""
    return fill_stat(supervisor, call, looked_at(supervisor, call, AT_FDCWD, call.a0, 0), call.a1)


def lstat(supervisor: Supervisor, call: Notification) -> int:
    """``lstat(path, buf)``."""
    found = looked_at(supervisor, call, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return fill_stat(supervisor, call, found, call.a1)


def fstat(supervisor: Supervisor, call: Notification) -> int:
    """``fstat(fd, buf)``."""
    return fill_stat(supervisor, call, held(supervisor, call, signed32(call.a0)), call.a1)


def newfstatat(
    supervisor: Supervisor, call: Notification, pack: Callable[..., bytes] = arch.pack_stat
) -> int:
    """``newfstatat(dirfd, path, buf, flags)``."""
    if call.a3 & ~_STAT_FLAGS:
        return PROCEED
    found = looked_at(supervisor, call, signed32(call.a0), call.a1, call.a3)
    return fill_stat(supervisor, call, found, call.a2, pack)


def statx(supervisor: Supervisor, call: Notification) -> int:
    """``statx(dirfd, path, flags, mask, buf)``."""
    if (
        call.a2 & ~_STAT_FLAGS
        or call.a2 & _AT_STATX_SYNC_TYPE == _AT_STATX_SYNC_TYPE
        or call.a3 & _STATX_RESERVED
    ):
        return PROCEED
    found = looked_at(supervisor, call, signed32(call.a0), call.a1, call.a2)
    if found is None or found.link:
        return PROCEED
    node = found.node
    times = (node.accessed_ns, 0, node.changed_ns, node.modified_ns)
    filesystem, rdev = node.filesystem, node.rdev
    data = _STATX.pack(
        _STATX_BASIC,
        node.block_size,
        0,
        node.links,
        node.uid,
        node.gid,
        node.mode,
        node.inode,
        node.size,
        0,
        0,
        *(part for ns in times for part in divmod(ns, _SECOND)),
        os.major(rdev),
        os.minor(rdev),
        os.major(filesystem),
        os.minor(filesystem),
        0,
    )
    _write(supervisor, call, call.a4, data)
    return 0


def _access(
    supervisor: Supervisor, call: Notification, found: Found | None, wanted: int, flags: int = 0
) -> int:
    if found is None or found.link or wanted & ~_MAY_ALL:
        return PROCEED
    task = supervisor.tasks.get(call.pid)
    check(found.node, task.credentials if flags & _AT_EACCESS else task.real_credentials, wanted)
    return 0


def access(supervisor: Supervisor, call: Notification) -> int:
    """``access(path, mode)``."""
    found = looked_at(supervisor, call, AT_FDCWD, call.a0, 0)
    return _access(supervisor, call, found, signed32(call.a1))


def faccessat(supervisor: Supervisor, call: Notification) -> int:
    """``faccessat(dirfd, path, mode)``: this call has no flags."""
    found = looked_at(supervisor, call, signed32(call.a0), call.a1, 0)
    return _access(supervisor, call, found, signed32(call.a2))


def faccessat2(supervisor: Supervisor, call: Notification) -> int:
    """``faccessat2(dirfd, path, mode, flags)``."""
    if call.a3 & ~_ACCESS_FLAGS:
        return PROCEED
    found = looked_at(supervisor, call, signed32(call.a0), call.a1, call.a3)
    return _access(supervisor, call, found, signed32(call.a2), call.a3)


def _readlink(
    supervisor: Supervisor, call: Notification, found: Found | None, buffer: int, size: int
) -> int:
    if found is None:
        return PROCEED
    target = found.node.path if found.link else found.node.target
    if size <= 0 or not target:
        raise os_error(errno.EINVAL)
    target = target[:size]
    _write(supervisor, call, buffer, target)
    return len(target)


def readlink(supervisor: Supervisor, call: Notification) -> int:
    """``readlink(path, buf, size)``: a device is no link, ``/proc/self/fd/N`` is one to it."""
    found = looked_at(supervisor, call, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return _readlink(supervisor, call, found, call.a1, signed32(call.a2))


def readlinkat(supervisor: Supervisor, call: Notification) -> int:
    """``readlinkat(dirfd, path, buf, size)``."""
    flags = AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH
    found = looked_at(supervisor, call, signed32(call.a0), call.a1, flags)
    return _readlink(supervisor, call, found, call.a2, signed32(call.a3))


def _change_mode(supervisor: Supervisor, call: Notification, found: Found | None, mode: int) -> int:
    if found is None or found.link:
        return PROCEED
    node = found.node
    check_owner(node, supervisor.tasks.get(call.pid).credentials)
    node.mode = stat.S_IFMT(node.mode) | mode & 0o7777
    if node.is_directory and mode & 0o111 != 0o111:
        supervisor.tree.private_directories = True
    node.changed_ns = time.time_ns()
    return 0


def chmod(supervisor: Supervisor, call: Notification) -> int:
    """``chmod(path, mode)``."""
    return _change_mode(supervisor, call, named(supervisor, call, AT_FDCWD, call.a0, 0), call.a1)


def fchmod(supervisor: Supervisor, call: Notification) -> int:
    """``fchmod(fd, mode)``."""
    return _change_mode(supervisor, call, opened(supervisor, call), call.a1)


def fchmodat(supervisor: Supervisor, call: Notification) -> int:
    """``fchmodat(dirfd, path, mode)``: this call has no flags."""
    found = named(supervisor, call, signed32(call.a0), call.a1, 0)
    return _change_mode(supervisor, call, found, call.a2)


def fchmodat2(supervisor: Supervisor, call: Notification) -> int:
    """``fchmodat2(dirfd, path, mode, flags)``."""
    if call.a3 & ~_CHANGE_FLAGS:
        return PROCEED
    found = named(supervisor, call, signed32(call.a0), call.a1, call.a3)
    return _change_mode(supervisor, call, found, call.a2)


def change_owner(
    supervisor: Supervisor, call: Notification, found: Found | None, uid: int, gid: int
) -> int:
    if found is None or found.link:
        return PROCEED
    node, who = found.node, supervisor.tasks.get(call.pid).credentials
    uid, gid = uid & _NO_ID, gid & _NO_ID
    if uid not in (_NO_ID, node.uid) and not who.changes_owners:
        raise os_error(errno.EPERM)
    if gid not in (_NO_ID, node.gid) and not who.changes_owners:
        check_owner(node, who)
        if gid != who.gid and gid not in who.groups:
            raise os_error(errno.EPERM)
    node.uid = node.uid if uid == _NO_ID else uid
    node.gid = node.gid if gid == _NO_ID else gid
    if not node.is_directory:
        node.mode &= ~stat.S_ISUID
        if node.mode & stat.S_IXGRP:
            node.mode &= ~stat.S_ISGID
    node.changed_ns = time.time_ns()
    return 0


def chown(supervisor: Supervisor, call: Notification) -> int:
    """``chown(path, uid, gid)``."""
    found = named(supervisor, call, AT_FDCWD, call.a0, 0)
    return change_owner(supervisor, call, found, call.a1, call.a2)


def lchown(supervisor: Supervisor, call: Notification) -> int:
    """``lchown(path, uid, gid)``."""
    found = named(supervisor, call, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return change_owner(supervisor, call, found, call.a1, call.a2)


def fchown(supervisor: Supervisor, call: Notification) -> int:
    """``fchown(fd, uid, gid)``."""
    return change_owner(supervisor, call, opened(supervisor, call), call.a1, call.a2)


def fchownat(supervisor: Supervisor, call: Notification) -> int:
    """``fchownat(dirfd, path, uid, gid, flags)``."""
    if call.a4 & ~_CHANGE_FLAGS:
        return PROCEED
    found = named(supervisor, call, signed32(call.a0), call.a1, call.a4)
    return change_owner(supervisor, call, found, call.a2, call.a3)


def set_times(  # noqa: PLR0917 - as the calls' arguments come
    supervisor: Supervisor,
    call: Notification,
    found: Found | None,
    address: int,
    layout: struct.Struct,
    decode: Callable[[tuple[int, ...]], _Times],
) -> int:
    """Set both times to what ``decode`` makes of the numbers at ``address``; to now if it is 0."""
    if found is None or found.link:
        return PROCEED
    node, who = found.node, supervisor.tasks.get(call.pid).credentials
    now = time.time_ns()
    times: _Times = (now, now)
    if address:
        data = read_memory(call.pid, address, layout.size)
        if len(data) < layout.size:
            raise os_error(errno.EFAULT)
        times = decode(layout.unpack(data))
        check_owner(node, who)
    elif who.uid != node.uid and not who.owner_rights:
        check(node, who, MAY_WRITE)
    node.accessed_ns = node.accessed_ns if times[0] is None else times[0]
    node.modified_ns = node.modified_ns if times[1] is None else times[1]
    node.changed_ns = now
    return 0


def from_timespecs(numbers: tuple[int, ...]) -> _Times:
    """Of two ``struct timespec``; EINVAL for nanoseconds that are none."""
    result: list[int | None] = []
    for second, part in (numbers[:2], numbers[2:]):
        if part == _UTIME_OMIT:
            result.append(None)
        elif part == _UTIME_NOW:
            result.append(time.time_ns())
        elif 0 <= part < _SECOND:
            result.append(second * _SECOND + part)
        else:
            raise os_error(errno.EINVAL)
    return result[0], result[1]


def from_timevals(numbers: tuple[int, ...]) -> _Times:
    """Of two ``struct timeval``; EINVAL for microseconds that are none."""
    access_s, access_us, change_s, change_us = numbers
    if not (0 <= access_us < 1_000_000 and 0 <= change_us < 1_000_000):
        raise os_error(errno.EINVAL)
    return access_s * _SECOND + access_us * 1000, change_s * _SECOND + change_us * 1000


def from_seconds(numbers: tuple[int, ...]) -> _Times:
    """Of a ``struct utimbuf``."""
    return numbers[0] * _SECOND, numbers[1] * _SECOND


def utime(supervisor: Supervisor, call: Notification) -> int:
    """``utime(path, times)``."""
    found = named(supervisor, call, AT_FDCWD, call.a0, 0)
    return set_times(supervisor, call, found, call.a1, _SECONDS, from_seconds)


def utimes(supervisor: Supervisor, call: Notification) -> int:
    """``utimes(path, times)``."""
    found = named(supervisor, call, AT_FDCWD, call.a0, 0)
    return set_times(supervisor, call, found, call.a1, _TIMES, from_timevals)


def futimesat(supervisor: Supervisor, call: Notification) -> int:
    """``futimesat(dirfd, path, times)``."""
    found = by_path_or_descriptor(supervisor, call, 0)
    return set_times(supervisor, call, found, call.a2, _TIMES, from_timevals)


def utimensat(supervisor: Supervisor, call: Notification, layout: struct.Struct = _TIMES) -> int:
    """``utimensat(dirfd, path, times, flags)``; futimens passes no path."""
    if call.a3 & ~_CHANGE_FLAGS or (call.a1 == 0 and call.a3):
        return PROCEED
    found = by_path_or_descriptor(supervisor, call, call.a3)
    return set_times(supervisor, call, found, call.a2, layout, from_timespecs)


def by_path_or_descriptor(supervisor: Supervisor, call: Notification, flags: int) -> Found | None:
    base = signed32(call.a0)
    if call.a1 == 0:
        return opened(supervisor, call)
    return named(supervisor, call, base, call.a1, flags)


def _attribute(found: Found | None, *, code: int) -> int:
    if found is None or found.link:
        return PROCEED
    if code:
        raise os_error(code)
    return 0


def getxattr(supervisor: Supervisor, call: Notification) -> int:
    """``getxattr(path, ...)``: a node has no extended attributes."""
    return _attribute(looked_at(supervisor, call, AT_FDCWD, call.a0, 0), code=errno.ENODATA)


def lgetxattr(supervisor: Supervisor, call: Notification) -> int:
    """``lgetxattr(path, ...)``."""
    found = looked_at(supervisor, call, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return _attribute(found, code=errno.ENODATA)


def fgetxattr(supervisor: Supervisor, call: Notification) -> int:
    """``fgetxattr(fd, ...)``."""
    return _attribute(opened(supervisor, call), code=errno.ENODATA)


def listxattr(supervisor: Supervisor, call: Notification) -> int:
    """``listxattr(path, ...)``."""
    return _attribute(looked_at(supervisor, call, AT_FDCWD, call.a0, 0), code=0)


def llistxattr(supervisor: Supervisor, call: Notification) -> int:
    """``llistxattr(path, ...)``."""
    found = looked_at(supervisor, call, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return _attribute(found, code=0)


def flistxattr(supervisor: Supervisor, call: Notification) -> int:
    """``flistxattr(fd, ...)``."""
    return _attribute(opened(supervisor, call), code=0)


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
    "chmod": chmod,
    "fchmod": fchmod,
    "fchmodat": fchmodat,
    "fchmodat2": fchmodat2,
    "chown": chown,
    "lchown": lchown,
    "fchown": fchown,
    "fchownat": fchownat,
    "utime": utime,
    "utimes": utimes,
    "futimesat": futimesat,
    "utimensat": utimensat,
    "getxattr": getxattr,
    "lgetxattr": lgetxattr,
    "fgetxattr": fgetxattr,
    "listxattr": listxattr,
    "llistxattr": llistxattr,
    "flistxattr": flistxattr,
}
