"""Names: whether what is known of one is still true, and what it leads to (fs/fuse/dir.c)."""

import errno

from recuse.kernel.caller import Caller
from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask_for_entry, inode_of, is_invalid_entry, named
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import Inode, is_invalid
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.filesystem import fuse_entry_out
from recuse.wire.fuse import FUSE_LOOKUP


def directory_of(dentry: Dentry) -> Inode:
    """The inode of a directory's name. Raises OSError: ENOENT, ENOTDIR, EIO."""
    inode = dentry.inode
    if inode is None:
        raise os_error(errno.ENOENT)
    if not inode.is_directory:
        raise os_error(errno.ENOTDIR)
    inode.check()
    return inode


def lookup(  # noqa: PLR0917
    superblock: Superblock,
    caller: Caller,
    directory: Dentry,
    name: bytes,
    again: bool = False,
    locked: bool = False,
) -> Operation[Dentry]:
    """Find a name in a directory; the inode of the result is None if nothing has it.

    Args:
        superblock: the filesystem.
        caller: who looks.
        directory: where.
        name: what, without "/"; not "." or "..".
        again: ask the server even if what is known has not expired (LOOKUP_REVAL, LOOKUP_EXCL).
        locked: the caller has the directory's lock.

    Raises:
        OSError: ENAMETOOLONG, EIO for an answer that cannot be true, or what the server says.
    """
    known = directory.children.get(name)
    if known is not None:
        if (yield from _revalidate(superblock, caller, known, again)):
            return known
        if known.is_attached:
            known.detach()
    inode = directory_of(directory)
    if locked:
        return (yield from _look_up(superblock, caller, directory, inode, name))
    yield from superblock.lock(inode, shared=True)
    try:
        return (yield from _look_up(superblock, caller, directory, inode, name))
    finally:
        superblock.unlock(inode, shared=True)


def is_known(superblock: Superblock, dentry: Dentry, now: int) -> bool:
    """Whether a name still leads where it did, and nobody has to be asked: then it is used.

    ``now`` is as `Superblock.clock`.
    """
    if dentry.epoch < superblock.epoch or dentry.valid_until < now:
        return False
    inode = dentry.inode
    if inode is not None:
        if inode.bad:
            return False
        if inode.from_plus:
            inode.from_plus = False
            directory = dentry.directory.inode
            if directory is not None:
                directory.advise_plus = True
    return True


def _revalidate(
    superblock: Superblock, caller: Caller, dentry: Dentry, again: bool
) -> Operation[bool]:
    """Whether a name still leads where it did (fuse_dentry_revalidate)."""
    if not again and is_known(superblock, dentry, superblock.clock()):
        return True
    inode = dentry.inode
    if (inode is not None and inode.bad) or dentry.epoch < superblock.epoch:
        return False
    if inode is None:
        return False
    version = superblock.attr_version
    parent = dentry.directory.inode
    assert parent is not None
    try:
        entry = yield from ask_for_entry(caller, FUSE_LOOKUP, parent.nodeid, named(dentry.name))
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EINTR):
            raise
        return False
    if not entry.nodeid:
        return False
    if entry.nodeid != inode.nodeid:
        superblock.forget(entry.nodeid, 1)
        return False
    superblock.inodes.count(inode)
    if is_invalid(entry.attr) or inode.is_stale(entry.generation, entry.attr):
        return False
    inode.update(entry.attr, superblock.until(entry.attr_valid, entry.attr_valid_nsec), version)
    set_validity(superblock, dentry, entry)
    return True


def _look_up(
    superblock: Superblock, caller: Caller, directory: Dentry, inode: Inode, name: bytes
) -> Operation[Dentry]:
    """Ask the server for a name that is not known (fuse_lookup)."""
    if len(name) > superblock.agreed.name_max:
        raise os_error(errno.ENAMETOOLONG)
    version = superblock.attr_version
    try:
        entry = yield from ask_for_entry(caller, FUSE_LOOKUP, inode.nodeid, named(name))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        entry = None
    if entry is None or not entry.nodeid:
        dentry = directory.put(name, None)
    else:
        if is_invalid_entry(entry):
            raise os_error(errno.EIO)
        dentry = directory.put(name, inode_of(superblock, entry, version))
        inode.advise_plus = True
    if entry is not None:
        set_validity(superblock, dentry, entry)
    dentry.epoch = superblock.epoch
    return dentry


def set_validity(superblock: Superblock, dentry: Dentry, entry: fuse_entry_out) -> None:
    """Note until when the server wants a name to be believed (fuse_change_entry_timeout)."""
    dentry.valid_until = superblock.until(entry.entry_valid, entry.entry_valid_nsec)
