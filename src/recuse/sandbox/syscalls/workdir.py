"""chdir and getcwd (fs/open.c, fs/d_path.c; Linux 6.1).

A directory that exists only here becomes the working directory as its shadow
(:mod:`recuse.sandbox.shadows`), into which only the thread itself can go. Relative paths are
resolved from there by the sandbox's tree, and fork, exec and threads have it as any other.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.filter import MAP_ANONYMOUS
from recuse.sandbox.inject import GoneError, Injection
from recuse.sandbox.memory import PAGE, write_memory
from recuse.sandbox.permissions import MAY_EXECUTE, check
from recuse.sandbox.syscalls.call import ANSWERED, PROCEED, Handler
from recuse.sandbox.tree import AT_FDCWD, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.nodes import Node
    from recuse.sandbox.supervisor import Supervisor

_READ_WRITE: Final = 3
_PRIVATE: Final = 2
_FLAGS: Final = os.O_RDONLY | arch.O_DIRECTORY | os.O_CLOEXEC


def chdir(supervisor: Supervisor, call: Notification) -> int:
    """``chdir(path)``; EACCES for a thread that has a debugger, and so can make no calls for us."""
    path = supervisor.strings.read(call.pid, call.a0)
    try:
        found = supervisor.tree.find(call.pid, AT_FDCWD, path) if path else None
    except OutsideError as outside:
        node = outside.node()
        _check(supervisor, call, node)
        try:
            directory = os.open(outside.path, _FLAGS)
        except PermissionError:  # it may be searched, and not read
            return _go(supervisor, call, node)
        return _go(supervisor, call, directory)
    if found is None:
        return PROCEED
    _check(supervisor, call, found.node)
    return _go(supervisor, call, supervisor.tree.shadows.open(found.node))


def _check(supervisor: Supervisor, call: Notification, node: Node) -> None:
    if not stat.S_ISDIR(node.mode):
        raise os_error(errno.ENOTDIR)
    check(node, supervisor.tasks.get(call.pid).credentials, MAY_EXECUTE)


def _go(supervisor: Supervisor, call: Notification, directory: int | Node) -> int:
    """Have the thread go to a directory: by a descriptor of ours, which is closed, or by path."""
    try:
        with Injection(supervisor.listener, call) as thread:
            supervisor.forget(call)
            try:
                if isinstance(directory, int):
                    number = thread.give(directory)
                else:
                    number = _open(thread, call, directory.path)
                try:
                    if not isinstance(directory, int):
                        _check_same(directory, call.pid, number)
                    thread.result = thread.call("fchdir", number)
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


def _open(thread: Injection, call: Notification, path: bytes) -> int:
    """Have the thread open a path as O_PATH does, by a call that is not trapped."""
    page = thread.call("mmap", 0, PAGE, _READ_WRITE, _PRIVATE | MAP_ANONYMOUS, 0xFFFFFFFF, 0)
    try:
        data = path + b"\0"
        if write_memory(call.pid, page, data) < len(data):
            raise os_error(errno.EFAULT)
        return thread.call("open_tree", AT_FDCWD & 0xFFFFFFFF, page, os.O_CLOEXEC)
    finally:
        thread.call("munmap", page, PAGE)


def _check_same(directory: Node, tid: int, number: int) -> None:
    """Raise ENOENT unless a thread's descriptor is of that directory.

    The path may lead elsewhere from its root, or by now.
    """
    found = os.stat(f"/proc/{tid}/fd/{number}")
    if (found.st_dev, found.st_ino) != (directory.filesystem, directory.inode):
        raise os_error(errno.ENOENT)


def getcwd(supervisor: Supervisor, call: Notification) -> int:
    """``getcwd(buf, size)``, which the C library's function of that name calls."""
    node = supervisor.tree.directory(call.pid, AT_FDCWD)
    if node is None:
        return PROCEED
    data = node.path + b"\0"
    if call.a1 < len(data):
        raise os_error(errno.ERANGE)
    if supervisor.listener.alive(call.id) and write_memory(call.pid, call.a0, data) < len(data):
        raise os_error(errno.EFAULT)
    return len(data)


HANDLERS: Final[dict[str, Handler]] = {"chdir": chdir, "getcwd": getcwd}
