"""What makes, moves and removes names (fs/namei.c, fs/fuse/dir.c).

Each operation takes a directory and a name in it, takes the directory's lock, looks the name up and
checks what the caller may do.
"""

import errno
import stat
from collections.abc import Generator
from typing import Any, Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask, ask_for_entry, inode_of, is_invalid_entry, named
from recuse.kernel.fs.credentials import CAP_FOWNER, CAP_FSETID, CAP_MKNOD, FileCaller
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import Inode
from recuse.kernel.fs.lookup import directory_of, lookup, set_validity
from recuse.kernel.fs.permission import (
    MAY_EXEC,
    MAY_READ,
    MAY_WRITE,
    may_create,
    may_delete,
    permission,
    permitted,
)
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import ctime_changed
from recuse.wire.filesystem import (
    fuse_link_in,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_rename2_in,
    fuse_rename_in,
)
from recuse.wire.fuse import (
    FUSE_DONT_MASK,
    FUSE_LINK,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_RMDIR,
    FUSE_SYMLINK,
    FUSE_UNLINK,
)

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
_RENAME_FLAGS: Final = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT
_SETGID_GROUP: Final = stat.S_ISGID | stat.S_IXGRP
_UNSURE: Final = (errno.EINTR, errno.ENOENT)
"""After these, nobody here knows whether a name still exists."""


def _find(
    superblock: Superblock, caller: FileCaller, directory: Dentry, name: bytes, again: bool = False
) -> Operation[Dentry]:
    """Look a name up, in a directory whose lock is held."""
    yield from permission(superblock, caller, directory_of(directory), MAY_EXEC)
    return (yield from lookup(superblock, caller, directory, name, again, locked=True))


def new_mode(superblock: Superblock, caller: FileCaller, directory: Inode, mode: int) -> int:
    """The mode of a new file: without the umask, and maybe without set-group-ID."""
    # fs/inode.c, mode_strip_sgid.
    if not superblock.has(FUSE_DONT_MASK):
        mode &= ~caller.umask
    attr = directory.attr
    inherits = mode & _SETGID_GROUP == _SETGID_GROUP and attr.mode & stat.S_ISGID
    if inherits and not caller.is_in(attr.gid) and not caller.may(CAP_FSETID):
        mode &= ~stat.S_ISGID
    return mode


def make_directory(
    superblock: Superblock, caller: FileCaller, directory: Dentry, name: bytes, mode: int
) -> Operation[None]:
    """Do mkdir(2). Raises OSError: EEXIST, EACCES, EROFS, EIO, or what the server answers."""
    parent = directory_of(directory)
    mode = new_mode(superblock, caller, parent, mode & 0o1777)  # set-group-ID is inherited
    body = named(name, fuse_mkdir_in(mode=mode, umask=caller.umask))
    yield from _make(superblock, caller, directory, name, FUSE_MKDIR, body, stat.S_IFDIR)


def make_node(  # noqa: PLR0917 - the arguments of mknod(2)
    superblock: Superblock,
    caller: FileCaller,
    directory: Dentry,
    name: bytes,
    mode: int,
    rdev: int = 0,
) -> Operation[None]:
    """Do mknod(2). Raises OSError: EPERM for a device without CAP_MKNOD; others as for mkdir."""
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        raise os_error(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and not caller.may(CAP_MKNOD):
        raise os_error(errno.EPERM)
    if kind not in (stat.S_IFCHR, stat.S_IFBLK):
        rdev = 0
    mode = new_mode(superblock, caller, directory_of(directory), kind | mode & 0o7777)
    body = named(name, fuse_mknod_in(mode=mode, rdev=rdev, umask=caller.umask))
    yield from _make(superblock, caller, directory, name, FUSE_MKNOD, body, kind)


def make_symlink(
    superblock: Superblock, caller: FileCaller, directory: Dentry, name: bytes, target: bytes
) -> Operation[None]:
    """Do symlink(2). Raises OSError: ENOENT for an empty target; others as for mkdir."""
    if not target:
        raise os_error(errno.ENOENT)
    if len(target) >= 4096:
        raise os_error(errno.ENAMETOOLONG)
    body = name + b"\0" + target + b"\0"
    yield from _make(superblock, caller, directory, name, FUSE_SYMLINK, body, stat.S_IFLNK)


def make_link(
    superblock: Superblock, caller: FileCaller, inode: Inode, directory: Dentry, name: bytes
) -> Operation[None]:
    """Do link(2): give an inode another name.

    Raises OSError: EPERM for a directory, or another user's file that the caller may not write;
    ENOENT for a file that has no name any more; others as for mkdir.
    """
    _may_link(caller, inode)
    body = named(name, fuse_link_in(oldnodeid=inode.nodeid))
    try:
        yield from _make(superblock, caller, directory, name, FUSE_LINK, body, inode.kind, inode)
    except OSError as error:
        if error.errno == errno.EINTR:
            inode.outdate()
        raise


def _may_link(caller: FileCaller, inode: Inode) -> None:
    # fs/namei.c, may_linkat, with protected_hardlinks.
    mode = inode.attr.mode
    if inode.attr.uid == caller.uid or caller.may(CAP_FOWNER) or inode.is_directory:
        return
    special = mode & stat.S_ISUID or mode & _SETGID_GROUP == _SETGID_GROUP
    if not stat.S_ISREG(mode) or special or not permitted(caller, inode, MAY_READ | MAY_WRITE):
        raise os_error(errno.EPERM)


def _make(  # noqa: PLR0917 - the parts of a request
    superblock: Superblock,
    caller: FileCaller,
    directory: Dentry,
    name: bytes,
    opcode: int,
    body: bytes,
    kind: int,
    linked: Inode | None = None,
) -> Operation[None]:
    """Make a name, and take what the server says that it leads to (create_new_entry)."""
    parent = directory_of(directory)
    yield from superblock.lock(parent)
    try:
        child = yield from _find(superblock, caller, directory, name, again=True)
        yield from may_create(superblock, caller, parent, child)
        if linked is not None and linked.is_directory:
            raise os_error(errno.EPERM)
        if linked is not None and not linked.attr.nlink and not linked.linkable:
            raise os_error(errno.ENOENT)
        try:
            entry = yield from ask_for_entry(caller, opcode, parent.nodeid, body)
        except OSError as error:
            if error.errno == errno.EEXIST:
                child.detach()
            raise
        if is_invalid_entry(entry) or stat.S_IFMT(entry.attr.mode) != kind:
            raise os_error(errno.EIO)
        made = directory.put(name, inode_of(superblock, entry, 0))
        if linked is not None:
            linked.linkable = False
        made.epoch = superblock.epoch
        set_validity(superblock, made, entry)
        parent.outdate()
        if linked is not None:
            yield from ctime_changed(superblock, linked, asked=False)
    finally:
        superblock.unlock(parent)


def unlink(
    superblock: Superblock, caller: FileCaller, directory: Dentry, name: bytes, slashes: bool
) -> Operation[None]:
    """Remove a name that is not a directory's; ``slashes``: some follow it in the path.

    Raises OSError: ENOENT, EISDIR, ENOTDIR, EACCES, EPERM, EROFS, or what the server answers.
    """
    parent = directory_of(directory)
    yield from superblock.lock(parent)
    try:
        child = yield from _find(superblock, caller, directory, name)
        if slashes and child.inode is not None:
            raise os_error(errno.EISDIR if child.inode.is_directory else errno.ENOTDIR)
        victim = yield from may_delete(superblock, caller, parent, child, False)
        yield from _remove(caller, FUSE_UNLINK, parent, child)
        parent.outdate()
        yield from _unlinked(superblock, child, victim)
    finally:
        superblock.unlock(parent)


def remove_directory(
    superblock: Superblock, caller: FileCaller, directory: Dentry, name: bytes
) -> Operation[None]:
    """Do rmdir(2). Raises OSError: ENOENT, ENOTDIR, EACCES, EPERM, EROFS, or the server's."""
    parent = directory_of(directory)
    yield from superblock.lock(parent)
    try:
        child = yield from _find(superblock, caller, directory, name)
        victim = yield from may_delete(superblock, caller, parent, child, True)
        yield from superblock.lock(victim)
        try:
            yield from _remove(caller, FUSE_RMDIR, parent, child)
            parent.outdate()
            yield from _unlinked(superblock, child, victim)
        finally:
            superblock.unlock(victim)
    finally:
        superblock.unlock(parent)


def _remove(caller: FileCaller, opcode: int, parent: Inode, child: Dentry) -> Operation[None]:
    try:
        yield from ask(caller, opcode, parent.nodeid, named(child.name))
    except OSError as error:
        if error.errno in _UNSURE:
            child.detach()
        raise


def _unlinked(superblock: Superblock, child: Dentry, victim: Inode) -> Operation[None]:
    """Note that something has lost a name (fuse_entry_unlinked)."""
    child.detach()
    victim.attr_version = superblock.new_version()
    attr = victim.attr
    if victim.is_directory or attr.nlink <= 1:
        attr.nlink = 0
        victim.removed = victim.is_directory
    else:
        attr.nlink -= 1
    yield from ctime_changed(superblock, victim)


class Rename:
    """One rename(2) or renameat2(2), from one place to another."""

    def __init__(
        self,
        superblock: Superblock,
        caller: FileCaller,
        old: tuple[Dentry, bytes, bool],
        new: tuple[Dentry, bytes, bool],
        flags: int = 0,
    ) -> None:
        """Prepare it; ``old`` and ``new`` are directory, name, and whether slashes follow."""
        self._superblock = superblock
        self._caller = caller
        self._old_directory, self._old_name, self._old_slashes = old
        self._new_directory, self._new_name, self._new_slashes = new
        self._flags = flags

    def run(self) -> Operation[None]:
        """Do it.

        Raises OSError: EINVAL for flags, and into itself; EEXIST, ENOENT, ENOTDIR, EISDIR,
        ENOTEMPTY, EACCES, EPERM, EROFS, or what the server answers.
        """
        superblock = self._superblock
        flags = self._flags
        if flags & ~_RENAME_FLAGS or (flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE):
            raise os_error(errno.EINVAL)
        with_lock = [*self._directories()]
        across = len(with_lock) > 1
        if across:
            yield from superblock.lock(superblock.renaming)
            with_lock = [*self._directories()]
        held: list[Inode] = []
        try:
            for inode in with_lock:
                yield from superblock.lock(inode)
                held.append(inode)
            yield from self._locked()
        finally:
            for inode in reversed(held):
                superblock.unlock(inode)
            if across:
                superblock.unlock(superblock.renaming)

    def _directories(self) -> Generator[Inode, Any, None]:
        """The directories in the order in which their locks are taken (lock_rename)."""
        old, new = self._old_directory, self._new_directory
        if new is not old and old.is_below(new):
            old, new = new, old
        yield directory_of(old)
        if new is not old:
            yield directory_of(new)

    def _locked(self) -> Operation[None]:
        superblock, caller, flags = self._superblock, self._caller, self._flags
        old_directory, new_directory = self._old_directory, self._new_directory
        old = yield from _find(superblock, caller, old_directory, self._old_name)
        source = old.inode
        if source is None:
            raise os_error(errno.ENOENT)
        again = not flags & RENAME_EXCHANGE  # LOOKUP_RENAME_TARGET
        new = yield from _find(superblock, caller, new_directory, self._new_name, again)
        self._check_kinds(source, old, new)
        target = new.inode
        if target is source:
            return
        yield from self._check_rights(old, new, source, target)
        replaced = target if not flags & RENAME_EXCHANGE else None
        if replaced is not None and replaced.is_directory:
            yield from superblock.lock(replaced)
        try:
            yield from self._ask(old, new)
            yield from self._done(old, new, source, target)
        finally:
            if replaced is not None and replaced.is_directory:
                superblock.unlock(replaced)

    def _check_kinds(self, source: Inode, old: Dentry, new: Dentry) -> None:
        # fs/namei.c, do_renameat2.
        flags, target = self._flags, new.inode
        if flags & RENAME_NOREPLACE and target is not None:
            raise os_error(errno.EEXIST)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise os_error(errno.ENOENT)
            if not target.is_directory and self._new_slashes:
                raise os_error(errno.ENOTDIR)
        if not source.is_directory:
            exchanges = flags & RENAME_EXCHANGE
            if self._old_slashes or (not exchanges and self._new_slashes):
                raise os_error(errno.ENOTDIR)
        if self._new_directory.is_below(old):
            raise os_error(errno.EINVAL)
        if self._old_directory.is_below(new):
            exchanges = flags & RENAME_EXCHANGE
            raise os_error(errno.EINVAL if exchanges else errno.ENOTEMPTY)

    def _check_rights(
        self, old: Dentry, new: Dentry, source: Inode, target: Inode | None
    ) -> Operation[None]:
        # fs/namei.c, vfs_rename.
        superblock, caller, flags = self._superblock, self._caller, self._flags
        old_directory = directory_of(self._old_directory)
        new_directory = directory_of(self._new_directory)
        yield from may_delete(superblock, caller, old_directory, old, source.is_directory)
        if target is None:
            yield from may_create(superblock, caller, new_directory, new)
        else:
            exchanges = flags & RENAME_EXCHANGE
            kind = target.is_directory if exchanges else source.is_directory
            yield from may_delete(superblock, caller, new_directory, new, kind)
        if old_directory is not new_directory:
            if source.is_directory:
                yield from permission(superblock, caller, source, MAY_WRITE)
            if target is not None and flags & RENAME_EXCHANGE and target.is_directory:
                yield from permission(superblock, caller, target, MAY_WRITE)

    def _ask(self, old: Dentry, new: Dentry) -> Operation[None]:
        # fs/fuse/dir.c, fuse_rename2.
        superblock, flags = self._superblock, self._flags
        old_directory = directory_of(self._old_directory)
        new_directory = directory_of(self._new_directory)
        names = old.name + b"\0" + new.name + b"\0"
        if not flags:
            opcode = FUSE_RENAME
            body = fuse_rename_in(newdir=new_directory.nodeid).pack()
        elif FUSE_RENAME2 in superblock.lacks or superblock.agreed.minor < 23:
            raise os_error(errno.EINVAL)
        else:
            opcode = FUSE_RENAME2
            body = fuse_rename2_in(newdir=new_directory.nodeid, flags=flags).pack()
        try:
            yield from ask(self._caller, opcode, old_directory.nodeid, body + names)
        except OSError as error:
            if error.errno in _UNSURE:
                old.detach()
                new.detach()
            if error.errno != errno.ENOSYS or not flags:
                raise
            superblock.lacks.add(FUSE_RENAME2)
        else:
            return
        raise os_error(errno.EINVAL)

    def _done(
        self, old: Dentry, new: Dentry, source: Inode, target: Inode | None
    ) -> Operation[None]:
        # The names first: nobody may see them as they were.
        superblock = self._superblock
        directory_of(self._old_directory).outdate()
        directory_of(self._new_directory).outdate()
        exchanged = target is not None and bool(self._flags & RENAME_EXCHANGE)
        if exchanged:
            old.exchange(new)
        else:
            new.detach()
            old.move(self._new_directory, self._new_name)
        yield from ctime_changed(superblock, source)
        if target is not None and exchanged:
            yield from ctime_changed(superblock, target)
        elif target is not None:
            yield from _unlinked(superblock, new, target)
