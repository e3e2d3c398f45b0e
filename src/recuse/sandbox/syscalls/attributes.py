"""Changes to a node: mode, owner, times (fs/attr.c)."""

from __future__ import annotations

import errno
import stat
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    by_path_or_descriptor,
    named,
    opened,
)
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.vfs.filesystem_tree import NOW, Times, filesystem_of
from recuse.sandbox.vfs.permissions import MAY_WRITE, check, check_owner
from recuse.sandbox.vfs.resolve import AT_FDCWD, Found

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall

# The kernel refuses other flags than these before it looks at the path, so calls with other flags
# are left to the kernel.
_CHANGE_FLAGS: Final = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH

_UTIME_NOW: Final = 0x3FFFFFFF
_UTIME_OMIT: Final = 0x3FFFFFFE
_NO_ID: Final = 0xFFFFFFFF
_SECOND: Final = 1_000_000_000

_TIMES = struct.Struct("=qqqq")
_SECONDS = struct.Struct("=qq")


def _change_mode(call: TrappedCall, found: Found | None, mode: int) -> Outcome:
    if found is None or found.link:
        return PROCEED
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        return filesystem.change_mode(call, found.location.dentry, mode)
    node = found.node
    check_owner(node, call.task.credentials)
    node.mode = stat.S_IFMT(node.mode) | mode & 0o7777
    node.changed_ns = time.time_ns()
    return 0


def chmod(call: TrappedCall, machine: Machine) -> Outcome:
    """``chmod(path, mode)``."""
    return _change_mode(call, named(call, machine, AT_FDCWD, call.a0, 0), call.a1)


def fchmod(call: TrappedCall, machine: Machine) -> Outcome:
    """``fchmod(fd, mode)``."""
    return _change_mode(call, opened(call, machine), call.a1)


def fchmodat(call: TrappedCall, machine: Machine) -> Outcome:
    """``fchmodat(dirfd, path, mode)``: this call has no flags."""
    found = named(call, machine, signed32(call.a0), call.a1, 0)
    return _change_mode(call, found, call.a2)


def fchmodat2(call: TrappedCall, machine: Machine) -> Outcome:
    """``fchmodat2(dirfd, path, mode, flags)``."""
    if call.a3 & ~_CHANGE_FLAGS:
        return PROCEED
    found = named(call, machine, signed32(call.a0), call.a1, call.a3)
    return _change_mode(call, found, call.a2)


def change_owner(call: TrappedCall, found: Found | None, uid: int, gid: int) -> Outcome:
    if found is None or found.link:
        return PROCEED
    uid, gid = uid & _NO_ID, gid & _NO_ID
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        new_uid, new_gid = (None if new == _NO_ID else new for new in (uid, gid))
        return filesystem.change_owner(call, found.location.dentry, new_uid, new_gid)
    node, who = found.node, call.task.credentials
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


def chown(call: TrappedCall, machine: Machine) -> Outcome:
    """``chown(path, uid, gid)``."""
    found = named(call, machine, AT_FDCWD, call.a0, 0)
    return change_owner(call, found, call.a1, call.a2)


def lchown(call: TrappedCall, machine: Machine) -> Outcome:
    """``lchown(path, uid, gid)``."""
    found = named(call, machine, AT_FDCWD, call.a0, AT_SYMLINK_NOFOLLOW)
    return change_owner(call, found, call.a1, call.a2)


def fchown(call: TrappedCall, machine: Machine) -> Outcome:
    """``fchown(fd, uid, gid)``."""
    return change_owner(call, opened(call, machine), call.a1, call.a2)


def fchownat(call: TrappedCall, machine: Machine) -> Outcome:
    """``fchownat(dirfd, path, uid, gid, flags)``."""
    if call.a4 & ~_CHANGE_FLAGS:
        return PROCEED
    found = named(call, machine, signed32(call.a0), call.a1, call.a4)
    return change_owner(call, found, call.a2, call.a3)


def set_times(
    call: TrappedCall,
    found: Found | None,
    address: int,
    layout: struct.Struct,
    decode: Callable[[tuple[int, ...]], Times],
) -> Outcome:
    """Set both times to what ``decode`` makes of the numbers at ``address``; to now if it is 0."""
    if found is None or found.link:
        return PROCEED
    times: Times = (NOW, NOW)
    if address:
        data = read_memory(call.tid, address, layout.size)
        if len(data) < layout.size:
            raise os_error(errno.EFAULT)
        times = decode(layout.unpack(data))
    if times == (None, None):
        return 0
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        return filesystem.set_times(call, found.location.dentry, times)
    node, who = found.node, call.task.credentials
    if times != (NOW, NOW):
        check_owner(node, who)
    elif who.uid != node.uid and not who.owner_rights:
        check(node, who, MAY_WRITE)
    now = time.time_ns()
    accessed, modified = (now if new == NOW else new for new in times)
    node.accessed_ns = node.accessed_ns if accessed is None else accessed
    node.modified_ns = node.modified_ns if modified is None else modified
    node.changed_ns = now
    return 0


def from_timespecs(numbers: tuple[int, ...]) -> Times:
    """The times of two ``struct timespec``; EINVAL for invalid nanoseconds."""
    result: list[int | None] = []
    for second, part in (numbers[:2], numbers[2:]):
        if part == _UTIME_OMIT:
            result.append(None)
        elif part == _UTIME_NOW:
            result.append(NOW)
        elif 0 <= part < _SECOND:
            result.append(second * _SECOND + part)
        else:
            raise os_error(errno.EINVAL)
    return result[0], result[1]


def from_timevals(numbers: tuple[int, ...]) -> Times:
    """The times of two ``struct timeval``; EINVAL for invalid microseconds."""
    access_s, access_us, change_s, change_us = numbers
    if not (0 <= access_us < 1_000_000 and 0 <= change_us < 1_000_000):
        raise os_error(errno.EINVAL)
    return access_s * _SECOND + access_us * 1000, change_s * _SECOND + change_us * 1000


def from_seconds(numbers: tuple[int, ...]) -> Times:
    """The times of a ``struct utimbuf``."""
    return numbers[0] * _SECOND, numbers[1] * _SECOND


def utime(call: TrappedCall, machine: Machine) -> Outcome:
    """``utime(path, times)``."""
    found = named(call, machine, AT_FDCWD, call.a0, 0)
    return set_times(call, found, call.a1, _SECONDS, from_seconds)


def utimes(call: TrappedCall, machine: Machine) -> Outcome:
    """``utimes(path, times)``."""
    found = named(call, machine, AT_FDCWD, call.a0, 0)
    return set_times(call, found, call.a1, _TIMES, from_timevals)


def futimesat(call: TrappedCall, machine: Machine) -> Outcome:
    """``futimesat(dirfd, path, times)``."""
    found = by_path_or_descriptor(call, machine, 0)
    return set_times(call, found, call.a2, _TIMES, from_timevals)


def utimensat(call: TrappedCall, machine: Machine, layout: struct.Struct = _TIMES) -> Outcome:
    """``utimensat(dirfd, path, times, flags)``; futimens passes no path."""
    if call.a3 & ~_CHANGE_FLAGS or (call.a1 == 0 and call.a3):
        return PROCEED
    found = by_path_or_descriptor(call, machine, call.a3)
    return set_times(call, found, call.a2, layout, from_timespecs)


HANDLERS: Final[dict[str, Handler]] = {
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
}
