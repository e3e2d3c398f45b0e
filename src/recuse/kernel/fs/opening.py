"""What a path leads to is checked, made, opened, truncated: open(2) (fs/namei.c, path_openat)."""

import errno
import os
import stat
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask, inode_of, is_invalid_entry, named
from recuse.kernel.fs.attributes import truncated
from recuse.kernel.fs.changes import Changes, set_attributes
from recuse.kernel.fs.credentials import CAP_FOWNER, FileCaller
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.directories import Directory
from recuse.kernel.fs.files import FilesystemFile, kill_flag, send_open
from recuse.kernel.fs.inodes import Inode
from recuse.kernel.fs.lookup import directory_of, lookup, set_validity
from recuse.kernel.fs.names import make_node, new_mode
from recuse.kernel.fs.permission import MAY_EXEC, MAY_READ, MAY_WRITE, permission
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.walk import Last, Walk
from recuse.kernel.fs.writeback import drop_pages
from recuse.wire.filesystem import create_out, fuse_create_in
from recuse.wire.fuse import (
    FOPEN_KEEP_CACHE,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_CREATE,
    FUSE_TMPFILE,
    FUSE_WRITEBACK_CACHE,
    fuse_open_out,
)

_ACCESS: Final = {
    os.O_RDONLY: MAY_READ,
    os.O_WRONLY: MAY_WRITE,
    os.O_RDWR: MAY_READ | MAY_WRITE,
    os.O_ACCMODE: MAY_READ | MAY_WRITE,
}
_TMPFILE: Final = os.O_TMPFILE & ~os.O_DIRECTORY
_SETTABLE: Final = ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC)


def open_path(walk: Walk, path: bytes, flags: int, mode: int = 0) -> Operation[FilesystemFile]:
    """Open what a path leads to, or make it (O_CREAT, O_TMPFILE).

    Raises OSError: EINVAL for flags that contradict each other; ENOENT, EEXIST, ENOTDIR, EISDIR,
    ELOOP, EACCES, EROFS, ENXIO for what is no regular file or directory; or what the server
    answers.
    """
    if flags & os.O_CREAT and flags & os.O_DIRECTORY:
        raise os_error(errno.EINVAL)
    if flags & _TMPFILE:
        if flags & os.O_ACCMODE not in (os.O_WRONLY, os.O_RDWR):
            raise os_error(errno.EINVAL)
        found = yield from walk.find(path, directory=True)
        return (yield from open_unnamed(walk.superblock, walk.caller, found, flags, mode))
    last = yield from walk.find_last(path)
    while True:
        if not flags & os.O_CREAT or last.is_dots:
            found = yield from walk.go_on(
                last, not flags & os.O_NOFOLLOW, bool(flags & os.O_DIRECTORY)
            )
            break
        if last.slashes:
            raise os_error(errno.EISDIR)
        made = yield from find_or_create(walk, last, flags, mode)
        if isinstance(made, FilesystemFile):
            return made
        found = made
        inode = found.inode
        assert inode is not None
        if flags & (os.O_EXCL | os.O_NOFOLLOW) or not stat.S_ISLNK(inode.attr.mode):
            break
        last = yield from walk.follow(last, inode)
    return (yield from open_dentry(walk.superblock, walk.caller, found, flags))


def find_or_create(
    walk: Walk, last: Last, flags: int, mode: int, *, absent: bool = False
) -> Operation[FilesystemFile | Dentry]:
    """Find the last name of a path, or make a file of that name and open it (lookup_open).

    ``absent``: the caller has just looked, and nothing had that name.

    Raises OSError as `open_path`, except what `open_dentry` checks.
    """
    superblock, caller = walk.superblock, walk.caller
    parent = directory_of(last.directory)
    again = walk.again or bool(flags & os.O_EXCL)
    yield from permission(superblock, caller, parent, MAY_EXEC)
    known = last.directory.children.get(last.name)
    if known is not None and known.inode is not None and not again:
        # lookup_fast_for_open
        found = yield from lookup(superblock, caller, last.directory, last.name)
        if found.inode is not None:
            return found
    yield from superblock.lock(parent)
    try:
        if parent.removed:
            raise os_error(errno.ENOENT)
        denied = yield from _may_not_create(superblock, caller, parent)
        known = last.directory.children.get(last.name)
        if absent and known is not None and known.inode is None:
            found = known
        else:
            found = yield from lookup(
                superblock, caller, last.directory, last.name, again, locked=True
            )
        if found.inode is not None:
            if flags & os.O_EXCL:
                raise os_error(errno.EEXIST)
            return found
        if denied is not None:
            raise denied
        if FUSE_CREATE not in superblock.lacks:
            made = yield from _create(superblock, caller, last, found, flags, mode)
            if made is not None:
                return made
    finally:
        superblock.unlock(parent)
    yield from make_node(superblock, caller, last.directory, last.name, stat.S_IFREG | mode)
    found = yield from lookup(superblock, caller, last.directory, last.name)
    if found.inode is None:
        raise os_error(errno.ENOENT)
    opened = yield from open_file(superblock, caller, found, found.inode, flags & ~os.O_TRUNC)
    return opened


def _may_not_create(
    superblock: Superblock, caller: FileCaller, parent: Inode
) -> Operation[OSError | None]:
    """Return why a file may not be made in a directory, None if it may (may_o_create)."""
    try:
        yield from permission(superblock, caller, parent, MAY_WRITE | MAY_EXEC)
    except OSError as error:
        return error.with_traceback(None)
    return None


def _create(  # noqa: PLR0917 - all that there is
    superblock: Superblock, caller: FileCaller, last: Last, child: Dentry, flags: int, mode: int
) -> Operation[RegularFile | None]:
    """Make a file and open it in one (fuse_create_open); None if the server cannot do that."""
    parent = directory_of(last.directory)
    try:
        out = yield from _ask_to_create(
            superblock, caller, FUSE_CREATE, parent, last.name, flags, mode
        )
    except OSError as error:
        if error.errno == errno.ENOSYS:
            superblock.lacks.add(FUSE_CREATE)
            return None
        if error.errno == errno.EEXIST:
            child.detach()
        raise
    inode = inode_of(superblock, out.entry, 0)
    dentry = last.directory.put(last.name, inode)
    dentry.epoch = superblock.epoch
    set_validity(superblock, dentry, out.entry)
    parent.outdate()
    file = yield from _regular(superblock, dentry, flags, out.open)
    denied: OSError | None = None
    try:
        yield from permission(superblock, caller, inode, 0)  # may_open: attributes may expire
    except OSError as error:
        denied = error.with_traceback(None)
    if denied is not None:
        yield from file.release()
        raise denied
    return file


def _ask_to_create(  # noqa: PLR0917 - the parts of a request
    superblock: Superblock,
    caller: FileCaller,
    opcode: int,
    parent: Inode,
    name: bytes,
    flags: int,
    mode: int,
) -> Operation[create_out]:
    mode = new_mode(superblock, caller, parent, stat.S_IFREG | mode & 0o7777)
    body = fuse_create_in(
        flags=flags & ~os.O_NOCTTY,
        mode=mode,
        umask=caller.umask,
        open_flags=kill_flag(superblock, caller, flags),
    )
    payload = yield from ask(caller, opcode, parent.nodeid, named(name, body), create_out.SIZE)
    out = create_out.unpack(payload)
    if is_invalid_entry(out.entry) or not stat.S_ISREG(out.entry.attr.mode):
        raise os_error(errno.EIO)
    return out


def open_unnamed(
    superblock: Superblock, caller: FileCaller, found: Dentry, flags: int, mode: int
) -> Operation[FilesystemFile]:
    """Make and open a file without a name in a directory (do_tmpfile, fuse_tmpfile).

    Raises OSError: EOPNOTSUPP if the server cannot do that; others as `open_path`.
    """
    parent = directory_of(found)
    yield from permission(superblock, caller, parent, MAY_WRITE | MAY_EXEC)
    if FUSE_TMPFILE in superblock.lacks:
        raise os_error(errno.EOPNOTSUPP)
    try:
        out = yield from _ask_to_create(
            superblock, caller, FUSE_TMPFILE, parent, b"/", flags | os.O_CREAT, mode
        )
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        superblock.lacks.add(FUSE_TMPFILE)
        refused = True
    else:
        refused = False
    if refused:
        raise os_error(errno.EOPNOTSUPP)
    inode = inode_of(superblock, out.entry, 0)
    inode.linkable = not flags & os.O_EXCL
    unnamed = Dentry(b"#%d" % inode.nodeid, inode, found)
    return (yield from _regular(superblock, unnamed, flags, out.open))


def _regular(
    superblock: Superblock, dentry: Dentry, flags: int, opened: fuse_open_out | None
) -> Operation[RegularFile]:
    """Make the open file (fuse_finish_open). Raises OSError(EIO): see `ReadFile.start_io`."""
    file = RegularFile(superblock, dentry, flags & _SETTABLE, opened)
    error: OSError | None = None
    try:
        file.start_io(opened)
    except OSError as refused:
        error = refused.with_traceback(None)
    if error is not None:
        yield from file.release()
        raise error
    if file.writable and superblock.has(FUSE_WRITEBACK_CACHE):
        file.can_write_back()
    return file


def open_dentry(
    superblock: Superblock, caller: FileCaller, found: Dentry, flags: int
) -> Operation[FilesystemFile]:
    """Open what exists (do_open); see `open_path`."""
    inode = found.inode
    if inode is None:
        raise os_error(errno.ENOENT)
    mode = inode.attr.mode
    mask = _ACCESS[flags & os.O_ACCMODE]
    if flags & os.O_TRUNC:
        mask |= MAY_WRITE
    if flags & os.O_CREAT and flags & os.O_EXCL:
        raise os_error(errno.EEXIST)
    if inode.is_directory and flags & os.O_CREAT:
        raise os_error(errno.EISDIR)
    if flags & os.O_DIRECTORY and not inode.is_directory:
        raise os_error(errno.ENOTDIR)
    if stat.S_ISLNK(mode):
        raise os_error(errno.ELOOP)
    if inode.is_directory and mask & MAY_WRITE:
        raise os_error(errno.EISDIR)
    yield from permission(superblock, caller, inode, mask)
    if flags & os.O_NOATIME and caller.uid != inode.attr.uid and not caller.may(CAP_FOWNER):
        raise os_error(errno.EPERM)
    if not (stat.S_ISREG(mode) or inode.is_directory):
        # The kernel opens these itself, without the filesystem.
        raise os_error(errno.ENXIO)
    return (yield from open_file(superblock, caller, found, inode, flags))


def open_file(
    superblock: Superblock, caller: FileCaller, dentry: Dentry, inode: Inode, flags: int
) -> Operation[FilesystemFile]:
    """Send OPEN, and truncate for O_TRUNC (fuse_open, handle_truncate).

    Whether the caller may do that is not checked. Raises OSError: EIO, or the server's.
    """
    inode.check()
    opened: fuse_open_out | None = yield from send_open(superblock, caller, inode, flags)
    if inode.is_directory:
        return Directory(superblock, dentry, flags & _SETTABLE, opened)
    file = yield from _regular(superblock, dentry, flags, opened)
    if flags & os.O_TRUNC and superblock.has(FUSE_ATOMIC_O_TRUNC):
        truncated(superblock, inode)
    elif not file.open_flags & FOPEN_KEEP_CACHE:
        yield from drop_pages(superblock, inode)
    if not flags & os.O_TRUNC:
        return file
    error = None
    yield from superblock.lock(inode)
    try:
        changes = Changes(size=0, mtime_ns=None, opening=True)
        yield from set_attributes(superblock, caller, inode, changes)
    except OSError as refused:
        error = refused.with_traceback(None)
    finally:
        superblock.unlock(inode)
    if error is not None:
        yield from file.release()
        raise error
    return file
