"""chdir and getcwd (fs/open.c, fs/d_path.c; Linux 6.1).

For a directory that exists only here, its placeholder (:mod:`recuse.sandbox.vfs.placeholder_dirs`)
becomes the working directory. Only the thread itself can go there. From there the sandbox's tree
resolves relative paths, and fork, exec and threads inherit it like any other working directory.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.trap.filter import OURS
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.sandbox.vfs.by_thread import look_by_thread
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.native_files import open_again
from recuse.sandbox.vfs.permissions import MAY_EXECUTE, check
from recuse.sandbox.vfs.resolve import AT_FDCWD, NativeFile, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall


def chdir(call: TrappedCall, machine: Machine) -> int:
    """``chdir(path)``; EACCES for a thread with a debugger, which recuse cannot have make calls."""
    path = machine.strings.read(call.tid, call.a0)
    try:
        found = machine.tree.find(call, AT_FDCWD, path) if path else None
    except OutsideError as outside:
        return _go_outside(call, machine, outside.file)
    if found is None:
        return PROCEED
    if not found.node.is_directory:
        raise os_error(errno.ENOTDIR)
    return _enter(call, machine, found.location)


def fchdir(call: TrappedCall, machine: Machine) -> int:
    """``fchdir(fd)``, for an open directory of a filesystem: others are native ones."""
    file = machine.files.find(call.tid, call.a0)
    if file is None:
        return PROCEED
    if not file.node.is_directory:
        raise os_error(errno.ENOTDIR)
    return _enter(call, machine, file.location)


def _enter(call: TrappedCall, machine: Machine, location: Location) -> int:
    """Go to a directory of recuse's."""
    filesystem = filesystem_of(location)
    if filesystem is not None:
        filesystem.check_enter(call, location.dentry)
    else:
        check(location.node, call.task.credentials, MAY_EXECUTE)
    return _go(call, machine.tree.placeholders.open(location))


def _go_outside(call: TrappedCall, machine: Machine, file: NativeFile) -> int:
    """Go to a native directory. The kernel tells the thread itself if it may not search it."""
    if not stat.S_ISDIR(file.status.st_mode):
        raise os_error(errno.ENOTDIR)
    acting = call.task.acting
    try:
        machine.tasks.check_confinement(call.tid)
        # The directory is opened as the caller, because all threads of its process can read it.
        directory = open_again(acting, file.descriptor, arch.O_DIRECTORY, 0, 0)
    except PermissionError:  # the caller may perhaps search it, but not read it
        return _go(call, file)
    return _go(call, directory)


def _go(call: TrappedCall, directory: int | NativeFile) -> int:
    """Have the thread go to a directory: by a descriptor, which is closed here, or by path."""
    try:
        with Injection(call) as thread:
            try:
                if isinstance(directory, int):
                    number = thread.give(directory)
                else:
                    number = look_by_thread(thread, call.tid, directory, os.O_CLOEXEC)
                try:
                    thread.result = thread.call("fchdir", number, 0, 0, OURS)
                finally:
                    thread.take_back(number)
            except OSError as error:
                thread.result = -(error.errno or errno.EIO)
    except GoneError:
        pass
    except OSError:
        raise os_error(errno.EACCES) from None
    finally:
        if isinstance(directory, int):
            os.close(directory)
    return ANSWERED


def getcwd(call: TrappedCall, machine: Machine) -> int:
    """``getcwd(buf, size)``, which the C library's function of the same name calls."""
    location = machine.tree.directory(call.tid, AT_FDCWD)
    if location is None:
        return PROCEED
    filesystem = filesystem_of(location)
    if filesystem is not None and filesystem.is_removed(location.dentry):
        raise os_error(errno.ENOENT)
    data = machine.tree.shown_path(call.tid, location) + b"\0"
    if call.a1 < len(data):
        raise os_error(errno.ERANGE)
    if call.alive() and write_memory(call.tid, call.a0, data) < len(data):
        raise os_error(errno.EFAULT)
    return len(data)


HANDLERS: Final[dict[str, Handler]] = {"chdir": chdir, "fchdir": fchdir, "getcwd": getcwd}
