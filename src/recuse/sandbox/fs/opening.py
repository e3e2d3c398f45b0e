"""open(2) on a filesystem: the kernel half's open files become descriptions."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.directories import Directory
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.fs.opening import find_or_create, open_dentry, open_unnamed
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.walk import Last, Walk
from recuse.sandbox.arch import arch
from recuse.sandbox.files.device_file import device_end
from recuse.sandbox.fs.caller import caller_of
from recuse.sandbox.fs.directory_file import DirectoryFile
from recuse.sandbox.fs.file import OpenedFile
from recuse.sandbox.fs.regular_file import DataFile
from recuse.sandbox.fs.running import Mounted
from recuse.sandbox.fs.views import Name
from recuse.sandbox.trap.answers import ANSWERED
from recuse.sandbox.trap.call import OnDevice, Steps, TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.filesystem_tree import Place
from recuse.sandbox.vfs.native_files import O_TMPFILE

if TYPE_CHECKING:
    from recuse.kernel.fs import dentries
    from recuse.kernel.fs.credentials import FileCaller


def open_found(
    tree: Mounted, call: TrappedCall, location: Location, flags: int, mode: int
) -> Steps[int]:
    """Open what was found, or make a file without a name in it (O_TMPFILE)."""
    assert isinstance(location.dentry, Name)
    superblock, found = tree.superblock, location.dentry.of
    if flags & O_TMPFILE:
        if flags & os.O_ACCMODE not in (os.O_WRONLY, os.O_RDWR):
            raise os_error(errno.EINVAL)
        caller = caller_of(call, creates=True)
        operation = open_unnamed(superblock, caller, found, _told(call, flags), mode)
    else:
        caller = caller_of(call)
        operation = open_dentry(superblock, caller, found, _told(call, flags))
    return _open(tree, call, location, flags, caller, operation)


def create(  # noqa: PLR0917 - as open(2) has them
    tree: Mounted, call: TrappedCall, place: Place, flags: int, mode: int, absent: bool
) -> Steps[int]:
    """Open a file that is made if there is none."""
    if place.slashes:
        raise os_error(errno.EISDIR)
    caller = caller_of(call, creates=True)
    directory = place.directory.dentry
    assert isinstance(directory, Name)
    operation = _create(tree, caller, directory.of, place.name, _told(call, flags), mode, absent)
    return _open(tree, call, place.directory, flags, caller, operation)


def _create(  # noqa: PLR0917 - as open(2) has them
    tree: Mounted,
    caller: FileCaller,
    directory: dentries.Dentry,
    name: bytes,
    flags: int,
    mode: int,
    absent: bool,
) -> Operation[FilesystemFile]:
    superblock = tree.superblock
    walk = Walk(superblock, caller, directory)
    last = Last(directory, name, False)
    made = yield from find_or_create(walk, last, flags, mode, absent=absent)
    if isinstance(made, FilesystemFile):
        return made
    # Somebody else has made it since the path was looked at.
    assert made.inode is not None
    if stat.S_ISLNK(made.inode.attr.mode) and not flags & (os.O_EXCL | arch.O_NOFOLLOW):
        raise os_error(errno.ESTALE)
    return (yield from open_dentry(superblock, caller, made, flags))


def _told(call: TrappedCall, flags: int) -> int:
    """The flags that concern the filesystem."""
    if call.arch == arch.AUDIT_ARCH:
        # Where file positions have 64 bits, every file is opened like this (force_o_largefile).
        flags |= arch.O_LARGEFILE
    return flags & ~os.O_CLOEXEC


def _open(  # noqa: PLR0917 - as open(2) has them
    tree: Mounted,
    call: TrappedCall,
    location: Location,
    flags: int,
    caller: FileCaller,
    operation: Operation[FilesystemFile],
) -> Steps[int]:
    """Give the program a descriptor of what an operation opens."""
    yield tree.files.releases(tree)
    end = device_end()
    try:
        opened: FilesystemFile = yield OnDevice(tree, tree.whole(operation))
    except BaseException:
        end.close()
        raise
    there = Location(location.mount, Name(opened.dentry))
    file: OpenedFile
    if isinstance(opened, Directory):
        file = DirectoryFile(there, opened, end, tree, caller)
    else:
        assert isinstance(opened, RegularFile)
        file = DataFile(there, opened, end, tree, caller)
    number = tree.files.install(call, file, cloexec=bool(flags & os.O_CLOEXEC))
    return ANSWERED if number is None else number
