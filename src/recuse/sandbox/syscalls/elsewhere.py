"""Calls that open, make, change, remove or watch native files by paths through our directories.

An example is ``mkdir("../new")`` in a directory of a filesystem, or a link there to ``/dev/null``.
The kernel does not find that place by this path. So the thread is made to make its call again, with
the native path. Nothing is done with other rights than its own, and the result is the kernel's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from recuse.channel.workers import pass_lead
from recuse.kernel.errors import os_error
from recuse.sandbox.abilities import may_trace
from recuse.sandbox.syscalls.handler import ANSWERED, signed32
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.sandbox.vfs.resolve import AT_FDCWD, NativelyAbsentError, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

Elsewhere = OutsideError | NativelyAbsentError

_SPARE: Final = 1024
"""Bytes below the stack pointer that are left alone: more than the 128 that leaf functions use."""

_ONE: Final = {
    **dict.fromkeys(
        (
            *("open", "creat", "mkdir", "mknod", "unlink", "rmdir", "truncate", "truncate64"),
            *("chmod", "chown", "chown32", "lchown", "lchown32", "utime", "utimes"),
            *("setxattr", "lsetxattr", "removexattr", "lremovexattr"),
        ),
        0,
    ),
    **dict.fromkeys(
        (
            *("openat", "mkdirat", "mknodat", "unlinkat", "symlink", "fchmodat", "fchmodat2"),
            *("fchownat", "futimesat", "utimensat", "utimensat_time64"),
            *("setxattrat", "removexattrat", "inotify_add_watch"),
        ),
        1,
    ),
    "symlinkat": 2,
    "fanotify_mark": 4,
}
"""For calls with one path that they may change something by, the argument that it is."""

_OPENING: Final = ("open", "openat", "creat")

_TWO: Final[dict[str, tuple[tuple[int | None, int], ...]]] = {
    **dict.fromkeys(("rename", "link"), ((None, 0), (None, 1))),
    **dict.fromkeys(("renameat", "renameat2", "linkat"), ((0, 1), (2, 3))),
}
"""For calls with two paths, the arguments that they are, each after that of its directory."""


def repeat(call: TrappedCall, machine: Machine, error: Elsewhere) -> int:
    """Have a call made with the native path to which its path leads.

    Raises:
        OSError: ``error``, if the call is none of these, or the thread cannot be made to do that.
    """
    paths: dict[int, bytes] = {}
    waits = call.name in _OPENING and isinstance(error, OutsideError) and error.file.may_wait
    if call.name in _ONE and not waits:
        paths[_ONE[call.name]] = _path_in(call, error)
    for base, place in _TWO.get(call.name, ()):
        path = _native(call, machine, base, place)
        if path is not None:
            paths[place] = path
    if not paths or not may_trace() or machine.tree.many_roots:
        raise os_error(error.errno or 0)
    pass_lead()
    try:
        with Injection(call) as thread:
            try:
                thread.result = thread.repeat(_put(call, thread, paths))
            except OSError as failed:
                thread.result = -(failed.errno or 0)
    except GoneError:
        pass
    except OSError:
        raise os_error(error.errno or 0) from None
    return ANSWERED


def _path_in(call: TrappedCall, error: Elsewhere) -> bytes:
    if isinstance(error, NativelyAbsentError):
        return error.path
    return error.file.path_for(call.tid)


def _native(call: TrappedCall, machine: Machine, base: int | None, place: int) -> bytes | None:
    """The native path to which one of the call's paths leads; None if it may stay as it is."""
    arguments = call.arguments
    directory = AT_FDCWD if base is None else signed32(arguments[base])
    path = machine.strings.read(call.tid, arguments[place])
    try:
        machine.tree.find(call, directory, path, follow=False)
    except (OutsideError, NativelyAbsentError) as error:
        return _path_in(call, error)
    return None


def _put(call: TrappedCall, thread: Injection, paths: dict[int, bytes]) -> dict[int, int]:
    """Put paths where no program keeps anything: below the thread's stack.

    Raises:
        OSError: as writing memory does.
    """
    address = thread.stack - _SPARE
    places = {}
    for place, path in paths.items():
        address -= len(path) + 1
        if write_memory(call.tid, address, path + b"\0") <= len(path):
            raise os_error(errno.EFAULT)
        places[place] = address
    return places
