"""Access control lists, acl(5), of servers that agree on FUSE_POSIX_ACL (fs/posix_acl.c)."""

import errno
import struct
from typing import Final, NamedTuple

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask, named
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.inodes import UNKNOWN_ACL, Inode
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.filesystem import fuse_getxattr_in
from recuse.wire.fuse import FUSE_GETXATTR, FUSE_POSIX_ACL

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

# linux/posix_acl.h, linux/posix_acl_xattr.h
_USER_OBJ: Final = 0x01
_USER: Final = 0x02
_GROUP_OBJ: Final = 0x04
_GROUP: Final = 0x08
_MASK: Final = 0x10
_OTHER: Final = 0x20
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """One line of a list."""

    tag: int
    permissions: int
    """MAY_READ, MAY_WRITE, MAY_EXEC."""
    id: int
    """Of a user or group."""


def parse_acl(value: bytes) -> tuple[AclEntry, ...]:
    """Take a list apart. Raises OSError: EOPNOTSUPP for another version, EINVAL."""
    # posix_acl_from_xattr
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise os_error(errno.EINVAL)
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise os_error(errno.EOPNOTSUPP)
    entries = tuple(AclEntry(*one) for one in _ENTRY.iter_unpack(value[_HEADER.size :]))
    known = _USER_OBJ | _USER | _GROUP_OBJ | _GROUP | _MASK | _OTHER
    if any(entry.tag & ~known or entry.tag.bit_count() != 1 for entry in entries):
        raise os_error(errno.EINVAL)
    return entries


def get_acl(
    superblock: Superblock, caller: FileCaller, inode: Inode
) -> Operation[tuple[AclEntry, ...] | None]:
    """Return a file's list, None if it has none, or none counts (check_acl, fuse_get_acl).

    Raises OSError: E2BIG, EIO, or what the server answers.
    """
    if not superblock.has(FUSE_POSIX_ACL):
        return None
    acl: tuple[AclEntry, ...] | None = inode.acl
    if acl is UNKNOWN_ACL:
        acl = inode.acl = yield from _ask_for_acl(superblock, caller, inode)
    return acl


def _ask_for_acl(
    superblock: Superblock, caller: FileCaller, inode: Inode
) -> Operation[tuple[AclEntry, ...] | None]:
    if FUSE_GETXATTR in superblock.lacks:
        return None
    body = named(ACCESS, fuse_getxattr_in(size=PAGE_SIZE))
    try:
        value = yield from ask(caller, FUSE_GETXATTR, inode.nodeid, body, PAGE_SIZE, 0)
    except OSError as error:
        number = error.errno
        if number == errno.ENOSYS:
            superblock.lacks.add(FUSE_GETXATTR)
        if number not in (errno.ENODATA, errno.ENOSYS):
            raise os_error(errno.E2BIG if number == errno.ERANGE else number or errno.EIO) from None
        return None
    return parse_acl(bytes(value)) if value else None


def acl_permits(acl: tuple[AclEntry, ...], caller: FileCaller, inode: Inode, wanted: int) -> bool:
    """Whether a list allows something (posix_acl_permission); EIO would be a list without end."""
    is_in_group = False
    for index, entry in enumerate(acl):
        if entry.tag == _USER_OBJ and caller.uid == inode.attr.uid:
            return not wanted & ~entry.permissions
        if entry.tag == _USER and entry.id == caller.uid:
            return _masked(acl, index, wanted)
        if entry.tag in (_GROUP_OBJ, _GROUP):
            group = inode.attr.gid if entry.tag == _GROUP_OBJ else entry.id
            if caller.is_in(group):
                is_in_group = True
                if not wanted & ~entry.permissions:
                    return _masked(acl, index, wanted)
        if entry.tag == _OTHER:
            return not is_in_group and not wanted & ~entry.permissions
    return False


def _masked(acl: tuple[AclEntry, ...], index: int, wanted: int) -> bool:
    permissions = acl[index].permissions
    for entry in acl[index + 1 :]:
        if entry.tag == _MASK:
            return not wanted & ~(permissions & entry.permissions)
    return not wanted & ~permissions
