"""Changes of attributes: chmod, chown, truncate, utimensat (fs/attr.c, fs/fuse/dir.c)."""

import errno
import stat
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import Handle, allowed, check_kind
from recuse.kernel.fs.credentials import CAP_CHOWN, CAP_FOWNER, CAP_FSETID, FileCaller
from recuse.kernel.fs.inodes import Inode
from recuse.kernel.fs.permission import MAY_WRITE, permission
from recuse.kernel.fs.privileges import lose_privileges
from recuse.kernel.fs.size_limits import check_growth
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import (
    drop_pages,
    set_times,
    split_time,
    take_stores,
    write_inode_now,
)
from recuse.runtime.records import record
from recuse.wire.filesystem import fuse_attr_out, fuse_setattr_in
from recuse.wire.fuse import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_CTIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_LOCKOWNER,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_SETATTR,
)

NOW: Final = 1 << 100
"""As a time to set: the server's present time. No time is as large."""


@record
class Changes:
    """What SETATTR is to change; None: nothing. Times are in nanoseconds, or NOW."""

    mode: int | None = None
    """Permission bits."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    file: Handle | None = None
    """The open file, for ftruncate(2). (fchmod and others go without.)"""
    opening: bool = False
    """The size is 0 because of O_TRUNC."""
    ctime_ns: int | None = None
    """Only for files whose times are kept here."""
    privileges: bool = False
    """Nobody asked for it: it is what a write takes away."""


def change_attributes(
    superblock: Superblock, caller: FileCaller, inode: Inode, changes: Changes
) -> Operation[None]:
    """Do `set_attributes` with the inode's lock."""
    yield from superblock.lock(inode)
    try:
        yield from set_attributes(superblock, caller, inode, changes)
    finally:
        superblock.unlock(inode)


def truncate(
    superblock: Superblock, caller: FileCaller, inode: Inode, size: int
) -> Operation[None]:
    """Give a regular file another size (fs/open.c, vfs_truncate).

    Raises OSError: EINVAL, EISDIR, EACCES; others as `set_attributes`.
    """
    if size < 0:
        raise os_error(errno.EINVAL)
    if inode.is_directory:
        raise os_error(errno.EISDIR)
    if not stat.S_ISREG(inode.attr.mode):
        raise os_error(errno.EINVAL)
    yield from permission(superblock, caller, inode, MAY_WRITE)
    yield from change_attributes(superblock, caller, inode, Changes(size=size))


def set_attributes(
    superblock: Superblock, caller: FileCaller, inode: Inode, changes: Changes
) -> Operation[None]:
    """Change a node's attributes, with its lock held (notify_change, fuse_setattr).

    Raises OSError: EACCES, EPERM, EROFS, EFBIG, EIO, or what the server answers.
    """
    inode.check()
    allowed(superblock, caller)
    if superblock.options.read_only:
        raise os_error(errno.EROFS)
    if changes.size is not None:
        take_stores(superblock, inode)
        if changes.size > inode.attr.size:
            check_growth(caller, changes.size)
    if superblock.options.default_permissions:
        yield from _may_change(superblock, caller, inode, changes)
    given_away = changes.uid is not None or changes.gid is not None
    if given_away or changes.size is not None:
        mode = yield from lose_privileges(superblock, caller, inode, given_away)
        if mode is not None and changes.mode is None:
            changes.mode = mode
    if changes.opening and superblock.has(FUSE_ATOMIC_O_TRUNC):
        inode.attr.size = 0  # OPEN has done it
        inode.pages.truncate(0)
        return
    kept = inode.is_kept
    if kept:
        yield from _prepare_kept(superblock, inode, changes)
    request = _request(superblock, caller, inode, changes)
    if not request.valid:
        return
    try:
        payload = yield from ask(
            caller, FUSE_SETATTR, inode.nodeid, request.pack(), fuse_attr_out.SIZE
        )
    except OSError as error:
        if error.errno == errno.EINTR:
            inode.outdate()
        raise
    out = fuse_attr_out.unpack(payload)
    check_kind(inode, out.attr)
    superblock.new_version()
    size, old_size = out.attr.size, inode.attr.size
    if kept:
        set_times(inode, changes.mtime_ns, changes.ctime_ns)
    inode.update(out.attr, superblock.until(out.attr_valid, out.attr_valid_nsec), 0)
    if kept and changes.size is not None:
        inode.attr.size = size
        if size != old_size:
            inode.pages.truncate(size)
            yield from drop_pages(superblock, inode)


def _prepare_kept(superblock: Superblock, inode: Inode, changes: Changes) -> Operation[None]:
    """Say the times of a file whose times are kept here; write it back first if need be."""
    # fs/fuse/dir.c, fuse_do_setattr: trust_local_cmtime
    now = superblock.now()
    sets_times = (changes.atime_ns, changes.mtime_ns) not in ((None, None), (NOW, NOW))
    mode_or_owner = (changes.mode, changes.uid, changes.gid) != (None, None, None)
    if mode_or_owner or sets_times:
        yield from write_inode_now(superblock, inode)
    if changes.size is not None:
        whole = changes.opening or changes.file is not None
        if (whole or changes.size != inode.attr.size) and changes.mtime_ns is None:
            changes.mtime_ns, changes.ctime_ns = now, now
    elif not changes.privileges:
        changes.ctime_ns = now
    if changes.mtime_ns == NOW:
        changes.mtime_ns = now


def _may_change(
    superblock: Superblock, caller: FileCaller, inode: Inode, changes: Changes
) -> Operation[None]:
    """Check what is asked for, and take out of it what is not granted."""
    # fs/attr.c, may_setattr and setattr_prepare
    attr = inode.attr
    owner = caller.uid == attr.uid
    if not caller.may(CAP_CHOWN):
        if changes.uid is not None and not (owner and changes.uid == attr.uid):
            raise os_error(errno.EPERM)
        mine = changes.gid == attr.gid or (changes.gid is not None and caller.is_in(changes.gid))
        if changes.gid is not None and not (owner and mine):
            raise os_error(errno.EPERM)
    if changes.mode is not None:
        if not owner and not caller.may(CAP_FOWNER):
            raise os_error(errno.EPERM)
        gid = attr.gid if changes.gid is None else changes.gid
        if not caller.is_in(gid) and not caller.may(CAP_FSETID):
            changes.mode &= ~stat.S_ISGID
    times = (changes.atime_ns, changes.mtime_ns)
    if times != (None, None) and not owner and not caller.may(CAP_FOWNER):
        if times != (NOW, NOW):
            raise os_error(errno.EPERM)
        yield from permission(superblock, caller, inode, MAY_WRITE)


def _request(
    superblock: Superblock, caller: FileCaller, inode: Inode, changes: Changes
) -> fuse_setattr_in:
    """Make the request (iattr_to_fattr)."""
    request = fuse_setattr_in()
    if changes.mode is not None:
        request.valid |= FATTR_MODE
        request.mode = inode.kind | changes.mode & 0o7777
    if changes.uid is not None:
        request.valid |= FATTR_UID
        request.uid = changes.uid
    if changes.gid is not None:
        request.valid |= FATTR_GID
        request.gid = changes.gid
    if changes.atime_ns is not None:
        request.valid |= FATTR_ATIME | (FATTR_ATIME_NOW if changes.atime_ns == NOW else 0)
        if changes.atime_ns != NOW:
            request.atime, request.atimensec = split_time(changes.atime_ns)
    if changes.mtime_ns is not None:
        request.valid |= FATTR_MTIME | (FATTR_MTIME_NOW if changes.mtime_ns == NOW else 0)
        if changes.mtime_ns != NOW:
            request.mtime, request.mtimensec = split_time(changes.mtime_ns)
    if changes.ctime_ns is not None:
        request.valid |= FATTR_CTIME
        request.ctime, request.ctimensec = split_time(changes.ctime_ns)
    if changes.size is not None:
        request.valid |= FATTR_SIZE | FATTR_LOCKOWNER
        request.size = changes.size
        request.lock_owner = caller.owner
        if not caller.may(CAP_FSETID) and superblock.has(FUSE_HANDLE_KILLPRIV_V2):
            request.valid |= FATTR_KILL_SUIDGID
    if changes.file is not None and changes.file.fh is not None and request.valid:
        request.valid |= FATTR_FH
        request.fh = changes.file.fh
    return request
