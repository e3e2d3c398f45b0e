"""Attributes: what is known of them, and asking for them (fs/fuse/dir.c, inode.c)."""

import errno
import os
import stat
from typing import Final, Protocol

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.inodes import (
    MODIFIED_SIZE,
    MOST_SIZE,
    STATX_BASIC_STATS,
    STATX_BTIME,
    STATX_SIZE,
    STATX_TYPE,
    Inode,
    is_invalid,
)
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import modified
from recuse.wire.filesystem import (
    fuse_attr,
    fuse_attr_out,
    fuse_getattr_in,
    fuse_kstatfs,
    fuse_statfs_out,
    fuse_statx_in,
    fuse_statx_out,
)
from recuse.wire.fuse import FUSE_GETATTR, FUSE_GETATTR_FH, FUSE_STATFS, FUSE_STATX

_STATX_MINOR: Final = 39
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000
"""linux/stat.h"""


class Handle(Protocol):
    """An open file, as far as requests about attributes name it."""

    fh: int | None


def allowed(superblock: Superblock, caller: FileCaller) -> None:
    """Raise OSError(EACCES) if the mount is not for this user (fuse_allow_current_process)."""
    options = superblock.options
    if options.allow_other:
        return
    if (caller.uid, caller.gid) != (options.user_id, options.group_id):
        raise os_error(errno.EACCES)


def refresh(
    superblock: Superblock, caller: FileCaller, inode: Inode, file: Handle | None = None
) -> Operation[None]:
    """Ask for a node's attributes (fuse_do_getattr).

    Raises OSError: EIO if the server says that it is another kind of file, which it then stays.
    """
    version = superblock.attr_version
    body = fuse_getattr_in()
    if file is not None and file.fh is not None and stat.S_ISREG(inode.attr.mode):
        body = fuse_getattr_in(getattr_flags=FUSE_GETATTR_FH, fh=file.fh)
    payload = yield from ask(caller, FUSE_GETATTR, inode.nodeid, body.pack(), fuse_attr_out.SIZE)
    out = fuse_attr_out.unpack(payload)
    check_kind(inode, out.attr)
    valid = superblock.until(out.attr_valid, out.attr_valid_nsec)
    inode.update(out.attr, valid, version)


def check_kind(inode: Inode, attr: fuse_attr) -> None:
    """Raise OSError(EIO), now and ever after, if a reply makes another kind of file of it."""
    if is_invalid(attr) or stat.S_IFMT(attr.mode) != inode.kind:
        inode.bad = True
        raise os_error(errno.EIO)


def get_attributes(
    superblock: Superblock,
    caller: FileCaller,
    inode: Inode,
    mask: int = STATX_BASIC_STATS,
    file: Handle | None = None,
    *,
    sync: int = 0,
) -> Operation[fuse_attr]:
    """Return a node's attributes, asking for them if they are not known (fuse_getattr).

    ``mask`` has the STATX_ bits of those that are needed, ``sync`` the flag of statx(2) that says
    whether to ask. Raises OSError: EACCES, EIO, or what the server answers.
    """
    inode.check()
    allowed(superblock, caller)
    if sync == AT_STATX_FORCE_SYNC or (sync != AT_STATX_DONT_SYNC and inode.needs(mask)):
        yield from refresh(superblock, caller, inode, file)
    return inode.attr


def known_attributes(
    superblock: Superblock, caller: FileCaller, inode: Inode, mask: int = STATX_BASIC_STATS
) -> fuse_attr | None:
    """What `get_attributes` returns; None if somebody has to be asked."""
    options = superblock.options
    if inode.bad or inode.needs(mask):
        return None
    if not options.allow_other and (caller.uid, caller.gid) != (options.user_id, options.group_id):
        return None
    return inode.attr


def truncated(superblock: Superblock, inode: Inode) -> None:
    """Note that OPEN has truncated a file (fuse_truncate_update_attr)."""
    inode.change(MODIFIED_SIZE, size=0)
    inode.pages.truncate(0)
    modified(superblock, inode)


def written(inode: Inode, end: int) -> None:
    """Note that bytes were written up to ``end`` (fuse_write_update_attr)."""
    inode.change(MODIFIED_SIZE, at_least=end)


def get_birth_time(
    superblock: Superblock, caller: FileCaller, inode: Inode
) -> Operation[int | None]:
    """Return when a node was made, in nanoseconds (STATX_BTIME); None if the server does not say.

    Raises OSError: EACCES, EIO, or what the server answers.
    """
    # fs/fuse/dir.c, fuse_do_statx
    inode.check()
    allowed(superblock, caller)
    if FUSE_STATX in superblock.lacks or superblock.agreed.minor < _STATX_MINOR:
        return None
    body = fuse_statx_in(sx_mask=STATX_BASIC_STATS | STATX_BTIME).pack()
    try:
        payload = yield from ask(caller, FUSE_STATX, inode.nodeid, body, fuse_statx_out.SIZE)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        superblock.lacks.add(FUSE_STATX)
        return None
    told = fuse_statx_out.unpack(payload).stat
    wrong_size = told.mask & STATX_SIZE and told.size > MOST_SIZE
    if wrong_size or (told.mask & STATX_TYPE and stat.S_IFMT(told.mode) != inode.kind):
        inode.bad = True
        raise os_error(errno.EIO)
    if not told.mask & STATX_BTIME:
        return None
    return told.btime.tv_sec * 10**9 + told.btime.tv_nsec


def statfs(
    superblock: Superblock, caller: FileCaller, inode: Inode
) -> Operation[os.statvfs_result]:
    """Return what is known about the whole filesystem; zeros for those whom it is not for."""
    # fs/fuse/inode.c, fuse_statfs
    try:
        allowed(superblock, caller)
    except OSError:
        told = fuse_kstatfs()
    else:
        payload = yield from ask(caller, FUSE_STATFS, inode.nodeid, b"", fuse_statfs_out.SIZE)
        told = fuse_statfs_out.unpack(payload).st
    flags = os.ST_RDONLY if superblock.options.read_only else 0
    return os.statvfs_result((
        *(told.bsize, told.frsize or told.bsize, told.blocks, told.bfree, told.bavail),
        *(told.files, told.ffree, told.ffree, flags, told.namelen),
    ))  # fmt: skip
