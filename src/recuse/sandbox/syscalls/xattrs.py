"""Extended attributes, and a filesystem's own attributes (fs/xattr.c, Linux 6.18).

A node has none. Linux keeps some for a device, for access lists and security modules, if the
filesystem of its node can. Here everything is as on a filesystem that cannot. The files of mounted
filesystems have those that the filesystem has.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    inspected,
    named,
    opened,
)
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.resolve import AT_FDCWD, Found

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall

_AT_FLAGS: Final = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
_AT_SYMLINK_FOLLOW: Final = 0x400

# linux/limits.h, linux/xattr.h
_NAME_MAX: Final = 255
_SIZE_MAX: Final = 65536
_FLAGS: Final = 3
_ARGUMENTS = struct.Struct("=QII")
"""``struct xattr_args``: the value's address, its size, flags."""

_SORTS: Final = (b"user.", b"trusted.", b"security.")
_ACCESS_LISTS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")

_FILE_ATTRIBUTES: Final = 24
"""The size of the first ``struct file_attr`` (linux/fs.h)."""


def _unsupported(found: Found | None) -> int:
    if found is None or found.link:
        return PROCEED
    raise os_error(errno.EOPNOTSUPP)


class _Value(NamedTuple):
    """Where in the caller's memory a value is, or where it goes."""

    address: int
    size: int
    flags: int = 0


def _name(call: TrappedCall, machine: Machine, address: int) -> bytes:
    name = machine.strings.read(call.tid, address)
    if not 0 < len(name) <= _NAME_MAX:
        raise os_error(errno.ERANGE)
    return name


def _get_attribute(
    call: TrappedCall, machine: Machine, found: Found | None, address: int, value: _Value
) -> Outcome:
    """ENODATA if the attribute is of a known sort, as a node has none of them (fs/xattr.c)."""
    if found is None or found.link:
        return PROCEED
    name = _name(call, machine, address)
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        return filesystem.get_xattr(call, found.location.dentry, name, *value[:2])
    known = name.startswith(_SORTS) or name in _ACCESS_LISTS
    raise os_error(errno.ENODATA if known else errno.EOPNOTSUPP)


def _set_attribute(
    call: TrappedCall, machine: Machine, found: Found | None, address: int, value: _Value
) -> Outcome:
    """EPERM for attributes that only regular files and directories have, EOPNOTSUPP for others."""
    if found is None or found.link:
        return PROCEED
    name = _name(call, machine, address)
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        data = read_memory(call.tid, value.address, value.size) if value.size else b""
        if len(data) < value.size:
            raise os_error(errno.EFAULT)
        return filesystem.set_xattr(call, found.location.dentry, name, data, value.flags)
    raise os_error(errno.EPERM if name.startswith(b"user.") else errno.EOPNOTSUPP)


def _remove_attribute(
    call: TrappedCall, machine: Machine, found: Found | None, address: int, value: _Value
) -> Outcome:
    """The same."""
    filesystem = None if found is None or found.link else filesystem_of(found.location)
    if found is None or filesystem is None:
        return _set_attribute(call, machine, found, address, value)
    name = _name(call, machine, address)
    return filesystem.remove_xattr(call, found.location.dentry, name)


def _list_attributes(
    call: TrappedCall, machine: Machine, found: Found | None, address: int, value: _Value
) -> Outcome:
    """The list is empty."""
    if found is None or found.link:
        return PROCEED
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        return filesystem.list_xattr(call, found.location.dentry, *value[:2])
    return 0


def _at(call: TrappedCall, machine: Machine, find: Callable[..., Found | None]) -> Found | None:
    """What ``(dirfd, path, flags, ...)`` name; EBADF for an O_PATH descriptor without a path."""
    if call.a2 & ~_AT_FLAGS:
        return None
    if call.a2 & AT_EMPTY_PATH and not (call.a1 and machine.strings.read(call.tid, call.a1)):
        return opened(call, machine)
    return find(call, machine, signed32(call.a0), call.a1, call.a2)


def _arguments(call: TrappedCall) -> _Value | None:
    """What the ``struct xattr_args`` in argument 4 has; None if it is too small."""
    if call.a5 < _ARGUMENTS.size:
        return None
    data = read_memory(call.tid, call.a4, _ARGUMENTS.size)
    if len(data) < _ARGUMENTS.size:
        raise os_error(errno.EFAULT)
    return _Value(*_ARGUMENTS.unpack(data))


_Act = Callable[["TrappedCall", "Machine", Found | None, int, _Value], "Outcome"]
"""Does something to what was found. The address is the attribute's name's, if there is one."""


def _value(call: TrappedCall, first: int = 2) -> _Value:
    """The value that is described by arguments from ``first`` on."""
    address, size, flags = (*call.arguments, 0)[first : first + 3]
    return _Value(address, size, flags & 0xFFFFFFFF)


def _by_path(
    act: _Act, find: Callable[..., Found | None], flags: int = 0, value: int = 2
) -> Handler:
    """``act(path, name, ...)``; with AT_SYMLINK_NOFOLLOW, the call of that kind for links."""

    def handle(call: TrappedCall, machine: Machine) -> Outcome:
        found = find(call, machine, AT_FDCWD, call.a0, flags)
        return act(call, machine, found, call.a1, _value(call, value))

    return handle


def _by_descriptor(act: _Act, value: int = 2) -> Handler:
    """``act(fd, name, ...)``."""

    def handle(call: TrappedCall, machine: Machine) -> Outcome:
        return act(call, machine, opened(call, machine), call.a1, _value(call, value))

    return handle


def getxattrat(call: TrappedCall, machine: Machine) -> Outcome:
    """``getxattrat(dirfd, path, at_flags, name, arguments, size)``."""
    value = _arguments(call)
    if value is None or value.flags:
        return PROCEED
    return _get_attribute(call, machine, _at(call, machine, inspected), call.a3, value)


def listxattrat(call: TrappedCall, machine: Machine) -> Outcome:
    """``listxattrat(dirfd, path, at_flags, list, size)``."""
    return _list_attributes(call, machine, _at(call, machine, inspected), 0, _value(call, 3))


def _bad_value(size: int, flags: int) -> bool:
    """Whether the kernel refuses an attribute's value before it looks at the path."""
    return size > _SIZE_MAX or bool(flags & 0xFFFFFFFF & ~_FLAGS)


def _setting(handle: Handler) -> Handler:
    """``act(path, name, value, size, flags)``."""

    def checked(call: TrappedCall, machine: Machine) -> Outcome:
        return PROCEED if _bad_value(call.a3, call.a4) else handle(call, machine)

    return checked


def setxattrat(call: TrappedCall, machine: Machine) -> Outcome:
    """``setxattrat(dirfd, path, at_flags, name, arguments, size)``."""
    value = _arguments(call)
    if value is None or _bad_value(value.size, value.flags):
        return PROCEED
    return _set_attribute(call, machine, _at(call, machine, named), call.a3, value)


def removexattrat(call: TrappedCall, machine: Machine) -> Outcome:
    """``removexattrat(dirfd, path, at_flags, name)``."""
    return _remove_attribute(call, machine, _at(call, machine, named), call.a3, _Value(0, 0))


def file_attributes(call: TrappedCall, machine: Machine) -> int:
    """``file_getattr(dirfd, path, attributes, size, at_flags)`` and ``file_setattr``.

    A device has none of the attributes that filesystems have (fs/file_attr.c, Linux 6.17).
    """
    if call.a4 & ~_AT_FLAGS or call.a3 < _FILE_ATTRIBUTES:
        return PROCEED
    found = named(call, machine, signed32(call.a0), call.a1, call.a4)
    return _unsupported(found)


def name_to_handle_at(call: TrappedCall, machine: Machine) -> int:
    """``name_to_handle_at(dirfd, path, handle, mount_id, flags)``: a node has no handle."""
    flags = call.a4 & AT_EMPTY_PATH
    flags |= 0 if call.a4 & _AT_SYMLINK_FOLLOW else AT_SYMLINK_NOFOLLOW
    found = named(call, machine, signed32(call.a0), call.a1, flags)
    return _unsupported(found)


HANDLERS: Final[dict[str, Handler]] = {
    "getxattr": _by_path(_get_attribute, inspected),
    "lgetxattr": _by_path(_get_attribute, inspected, AT_SYMLINK_NOFOLLOW),
    "fgetxattr": _by_descriptor(_get_attribute),
    "getxattrat": getxattrat,
    "listxattr": _by_path(_list_attributes, inspected, value=1),
    "llistxattr": _by_path(_list_attributes, inspected, AT_SYMLINK_NOFOLLOW, value=1),
    "flistxattr": _by_descriptor(_list_attributes, value=1),
    "listxattrat": listxattrat,
    "setxattr": _setting(_by_path(_set_attribute, named)),
    "lsetxattr": _setting(_by_path(_set_attribute, named, AT_SYMLINK_NOFOLLOW)),
    "fsetxattr": _setting(_by_descriptor(_set_attribute)),
    "setxattrat": setxattrat,
    "removexattr": _by_path(_remove_attribute, named),
    "lremovexattr": _by_path(_remove_attribute, named, AT_SYMLINK_NOFOLLOW),
    "fremovexattr": _by_descriptor(_remove_attribute),
    "removexattrat": removexattrat,
    "file_getattr": file_attributes,
    "file_setattr": file_attributes,
    "name_to_handle_at": name_to_handle_at,
}
