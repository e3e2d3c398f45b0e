"""Extended attributes (fs/xattr.c, fs/fuse/xattr.c)."""

import errno
import stat
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.acl import ACCESS, DEFAULT, parse_acl
from recuse.kernel.fs.asking import ask, named
from recuse.kernel.fs.attributes import allowed
from recuse.kernel.fs.credentials import CAP_FOWNER, CAP_FSETID, CAP_SYS_ADMIN, FileCaller
from recuse.kernel.fs.inodes import UNKNOWN_ACL, Inode
from recuse.kernel.fs.permission import MAY_READ, MAY_WRITE, permission
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import ctime_changed
from recuse.wire.filesystem import fuse_getxattr_in, fuse_getxattr_out, fuse_setxattr_in
from recuse.wire.fuse import (
    FUSE_COMPAT_SETXATTR_IN_SIZE,
    FUSE_GETXATTR,
    FUSE_LISTXATTR,
    FUSE_POSIX_ACL,
    FUSE_REMOVEXATTR,
    FUSE_SETXATTR,
    FUSE_SETXATTR_ACL_KILL_SGID,
    FUSE_SETXATTR_EXT,
)

MOST_SIZE: Final = 65536
"""XATTR_SIZE_MAX, XATTR_LIST_MAX."""
_NAME_MAX: Final = 255
_FLAGS: Final = 3


def get_xattr(
    superblock: Superblock, caller: FileCaller, inode: Inode, name: bytes, size: int = MOST_SIZE
) -> Operation[bytes]:
    """Return an attribute's value, of at most ``size`` bytes.

    Raises OSError: ENODATA, ERANGE if it is longer, EOPNOTSUPP, EACCES, or the server's.
    """
    yield from _permission(superblock, caller, inode, name, MAY_READ)
    body = named(name, fuse_getxattr_in(size=size))
    return (yield from _get(superblock, caller, FUSE_GETXATTR, inode, body, size))


def list_xattr(
    superblock: Superblock, caller: FileCaller, inode: Inode, size: int = MOST_SIZE
) -> Operation[list[bytes]]:
    """Return the names of a file's attributes.

    Raises OSError: ERANGE, EOPNOTSUPP, EACCES, EIO if a name is empty, or what the server answers.
    """
    inode.check()
    allowed(superblock, caller)
    body = fuse_getxattr_in(size=size).pack()
    listed = yield from _get(superblock, caller, FUSE_LISTXATTR, inode, body, size)
    if not listed:
        return []
    names = listed.removesuffix(b"\0").split(b"\0")
    if not listed.endswith(b"\0") or b"" in names:
        raise os_error(errno.EIO)
    return names


def xattr_size(
    superblock: Superblock, caller: FileCaller, inode: Inode, name: bytes | None
) -> Operation[int]:
    """Return how many bytes an attribute's value has; None: the list of all names.

    Raises OSError as `get_xattr` and `list_xattr`.
    """
    if name is None:
        inode.check()
        allowed(superblock, caller)
        opcode, body = FUSE_LISTXATTR, fuse_getxattr_in().pack()
    else:
        yield from _permission(superblock, caller, inode, name, MAY_READ)
        opcode, body = FUSE_GETXATTR, named(name, fuse_getxattr_in())
    told = yield from _get(superblock, caller, opcode, inode, body, 0)
    # fs/fuse/xattr.c, fuse_getxattr and fuse_listxattr
    return min(fuse_getxattr_out.unpack(told).size, MOST_SIZE)


def _get(  # noqa: PLR0917 - the parts of a request
    superblock: Superblock, caller: FileCaller, opcode: int, inode: Inode, body: bytes, size: int
) -> Operation[bytes]:
    """Send GETXATTR or LISTXATTR; with size 0 the answer is how many bytes there are."""
    if opcode in superblock.lacks:
        raise os_error(errno.EOPNOTSUPP)
    room, least = (size, 0) if size else (fuse_getxattr_out.SIZE, fuse_getxattr_out.SIZE)
    try:
        payload = yield from ask(caller, opcode, inode.nodeid, body, room, least)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        superblock.lacks.add(opcode)
    else:
        return bytes(payload)
    raise os_error(errno.EOPNOTSUPP)


def set_xattr(  # noqa: PLR0917 - the arguments of setxattr(2)
    superblock: Superblock,
    caller: FileCaller,
    inode: Inode,
    name: bytes,
    value: bytes,
    flags: int = 0,
) -> Operation[None]:
    """Set an attribute.

    Raises OSError: EINVAL for flags, ERANGE for the name, E2BIG, EPERM, EACCES, EROFS, EOPNOTSUPP,
    or what the server answers (EEXIST, ENODATA).
    """
    if flags & ~_FLAGS:
        raise os_error(errno.EINVAL)
    if len(value) > MOST_SIZE:
        raise os_error(errno.E2BIG)
    structure = fuse_setxattr_in(size=len(value), flags=flags)
    if name in (ACCESS, DEFAULT):
        # fs/fuse/acl.c, fuse_set_acl
        if not parse_acl(value):
            yield from remove_xattr(superblock, caller, inode, name)
            return
        structure.flags = 0
        keeps = caller.is_in(inode.attr.gid) or caller.may(CAP_FSETID)
        if superblock.has(FUSE_POSIX_ACL) and not keeps:
            structure.setxattr_flags = FUSE_SETXATTR_ACL_KILL_SGID
    request = structure.pack()
    if not superblock.has(FUSE_SETXATTR_EXT):
        request = request[:FUSE_COMPAT_SETXATTR_IN_SIZE]
    body = request + name + b"\0" + value
    yield from _change(superblock, caller, FUSE_SETXATTR, inode, name, body)


def remove_xattr(
    superblock: Superblock, caller: FileCaller, inode: Inode, name: bytes
) -> Operation[None]:
    """Remove an attribute. Raises OSError: ENODATA; others as `set_xattr`."""
    yield from _change(superblock, caller, FUSE_REMOVEXATTR, inode, name, named(name))


def _change(  # noqa: PLR0917 - the parts of a request
    superblock: Superblock,
    caller: FileCaller,
    opcode: int,
    inode: Inode,
    name: bytes,
    body: bytes,
) -> Operation[None]:
    yield from superblock.lock(inode)
    try:
        yield from _permission(superblock, caller, inode, name, MAY_WRITE)
        if opcode not in superblock.lacks:
            try:
                yield from ask(caller, opcode, inode.nodeid, body)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                superblock.lacks.add(opcode)
            else:
                yield from ctime_changed(superblock, inode)
                if name in (ACCESS, DEFAULT) and superblock.has(FUSE_POSIX_ACL):
                    inode.acl = UNKNOWN_ACL
                    inode.outdate()  # its mode has changed too (fuse_set_acl)
                return
    finally:
        superblock.unlock(inode)
    raise os_error(errno.EOPNOTSUPP)


def _permission(
    superblock: Superblock, caller: FileCaller, inode: Inode, name: bytes, mask: int
) -> Operation[None]:
    """Check a name, and what its namespace demands (xattr_permission)."""
    if not 0 < len(name) <= _NAME_MAX:
        raise os_error(errno.ERANGE)
    inode.check()
    if mask & MAY_WRITE and superblock.options.read_only:
        raise os_error(errno.EROFS)
    refused = errno.EPERM if mask & MAY_WRITE else errno.ENODATA
    if name in (ACCESS, DEFAULT) and mask & MAY_WRITE:
        # fs/posix_acl.c, set_posix_acl
        if name == DEFAULT and not inode.is_directory:
            raise os_error(errno.EACCES)
        if caller.uid != inode.attr.uid and not caller.may(CAP_FOWNER):
            raise os_error(errno.EPERM)
    if name.startswith((b"security.", b"system.")):
        return
    if name.startswith(b"trusted."):
        if not caller.may(CAP_SYS_ADMIN):
            raise os_error(refused)
        return
    if name.startswith(b"user."):
        if inode.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise os_error(refused)
        sticky = inode.is_directory and inode.attr.mode & stat.S_ISVTX and mask & MAY_WRITE
        if sticky and caller.uid != inode.attr.uid and not caller.may(CAP_FOWNER):
            raise os_error(errno.EPERM)
    yield from permission(superblock, caller, inode, mask)
