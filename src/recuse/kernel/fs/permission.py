"""Whether a caller may do something with a file (fs/namei.c, fs/fuse/dir.c)."""

import errno
import stat
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.acl import AclEntry, acl_permits, get_acl
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import allowed, refresh
from recuse.kernel.fs.credentials import (
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    FileCaller,
)
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import STATX_GID, STATX_MODE, STATX_UID, Inode
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.filesystem import fuse_access_in
from recuse.wire.fuse import FUSE_ACCESS, FUSE_POSIX_ACL

# linux/fs.h
MAY_EXEC: Final = 1
MAY_WRITE: Final = 2
MAY_READ: Final = 4
MAY_ACCESS: Final = 0x10
"""access(2) asks."""
MAY_CHDIR: Final = 0x40

_OF_PERMISSION: Final = STATX_MODE | STATX_UID | STATX_GID
_KINDS: Final = MAY_READ | MAY_WRITE | MAY_EXEC


def permission(
    superblock: Superblock, caller: FileCaller, inode: Inode, mask: int
) -> Operation[None]:
    """Check that a caller may read, write or execute (search) a file.

    Raises OSError: EACCES, EROFS, EIO, or what the server answers to GETATTR or ACCESS.
    """
    # fs/namei.c, sb_permission; fs/fuse/dir.c, fuse_permission.
    writes = mask & MAY_WRITE and inode.kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    if writes and superblock.options.read_only:
        raise os_error(errno.EROFS)
    inode.check()
    allowed(superblock, caller)
    checks = superblock.options.default_permissions
    executes = mask & MAY_EXEC and stat.S_ISREG(inode.attr.mode)
    fresh = False
    if (checks or executes) and inode.needs(_OF_PERMISSION):
        fresh = True
        yield from refresh(superblock, caller, inode)
    if checks:
        denied = not (yield from _is_permitted(superblock, caller, inode, mask))
        if denied and not fresh:
            yield from refresh(superblock, caller, inode)
            denied = not (yield from _is_permitted(superblock, caller, inode, mask))
        if denied:
            raise os_error(errno.EACCES)
    elif mask & (MAY_ACCESS | MAY_CHDIR):
        yield from _ask_server(superblock, caller, inode, mask)
    elif executes:
        if not inode.attr.mode & 0o111 and not fresh:
            yield from refresh(superblock, caller, inode)
        if not inode.attr.mode & 0o111:
            raise os_error(errno.EACCES)


def may_search(superblock: Superblock, caller: FileCaller, inode: Inode) -> bool:
    """Whether a caller is known to be allowed to look up names in a directory.

    If not, `permission` finds out; it may have to ask the server.
    """
    if inode.bad or not inode.is_directory:
        return False
    options = superblock.options
    if not options.allow_other and (caller.uid, caller.gid) != (options.user_id, options.group_id):
        return False
    if not options.default_permissions:
        return True
    if inode.needs(_OF_PERMISSION) or superblock.has(FUSE_POSIX_ACL):
        return False
    return permitted(caller, inode, MAY_EXEC)


def _ask_server(
    superblock: Superblock, caller: FileCaller, inode: Inode, mask: int
) -> Operation[None]:
    if FUSE_ACCESS in superblock.lacks:
        return
    body = fuse_access_in(mask=mask & _KINDS).pack()
    try:
        yield from ask(caller, FUSE_ACCESS, inode.nodeid, body)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        superblock.lacks.add(FUSE_ACCESS)


def _is_permitted(
    superblock: Superblock, caller: FileCaller, inode: Inode, mask: int
) -> Operation[bool]:
    """The same as `permitted`, with the file's access control list (acl_permission_check)."""
    acl = None
    if caller.uid != inode.attr.uid and inode.attr.mode & stat.S_IRWXG:
        acl = yield from get_acl(superblock, caller, inode)
    return permitted(caller, inode, mask, acl)


def permitted(
    caller: FileCaller, inode: Inode, mask: int, acl: tuple[AclEntry, ...] | None = None
) -> bool:
    """Whether the mode of a file or its list allows it, or a capability (generic_permission)."""
    mode = inode.attr.mode
    wanted = mask & _KINDS
    if acl is not None:
        granted = wanted if acl_permits(acl, caller, inode, wanted) else 0
    elif caller.uid == inode.attr.uid:
        granted = mode >> 6
    elif caller.is_in(inode.attr.gid):
        granted = mode >> 3
    else:
        granted = mode
    if not wanted & ~granted:
        return True
    if inode.is_directory:
        if not wanted & MAY_WRITE and caller.may(CAP_DAC_READ_SEARCH):
            return True
        return caller.may(CAP_DAC_OVERRIDE)
    if wanted == MAY_READ and caller.may(CAP_DAC_READ_SEARCH):
        return True
    return (not wanted & MAY_EXEC or bool(mode & 0o111)) and caller.may(CAP_DAC_OVERRIDE)


def may_create(
    superblock: Superblock, caller: FileCaller, directory: Inode, child: Dentry
) -> Operation[None]:
    """Check that a caller may give something a name that is not taken.

    Raises OSError: EEXIST, ENOENT in a removed directory, or as `permission`.
    """
    if child.inode is not None:
        raise os_error(errno.EEXIST)
    if directory.removed:
        raise os_error(errno.ENOENT)
    yield from permission(superblock, caller, directory, MAY_WRITE | MAY_EXEC)


def may_delete(
    superblock: Superblock,
    caller: FileCaller,
    directory: Inode,
    child: Dentry,
    is_directory: bool,
) -> Operation[Inode]:
    """Check that a caller may take a name away; return what it leads to.

    Raises OSError: ENOENT, EPERM in a sticky directory, ENOTDIR, EISDIR, EBUSY for the root, or as
    `permission`.
    """
    victim = child.inode
    if victim is None:
        raise os_error(errno.ENOENT)
    yield from permission(superblock, caller, directory, MAY_WRITE | MAY_EXEC)
    sticky = directory.attr.mode & stat.S_ISVTX
    owner = caller.uid in (victim.attr.uid, directory.attr.uid)
    if sticky and not owner and not caller.may(CAP_FOWNER):
        raise os_error(errno.EPERM)
    if is_directory:
        if not victim.is_directory:
            raise os_error(errno.ENOTDIR)
        if child.parent is None:
            raise os_error(errno.EBUSY)
    elif victim.is_directory:
        raise os_error(errno.EISDIR)
    if directory.removed:
        raise os_error(errno.ENOENT)
    return victim
