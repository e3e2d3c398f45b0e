"""Calls that recuse only needs to see: they change what it remembers of a process."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import (
    AT_EMPTY_PATH,
    AT_SYMLINK_NOFOLLOW,
    inspected,
    named,
)
from recuse.sandbox.tasks.tasks import in_our_namespace
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.native_files import start_of, status_from
from recuse.sandbox.vfs.resolve import AT_FDCWD, Found, NativeFile, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall


_MOUNTING: Final = (b"fusermount3", b"fusermount", b"umount", b"mount")
"""The names of programs that call mount(2) or umount2(2), and not much else."""


def clone(call: TrappedCall, machine: Machine) -> int:
    """``clone(flags, ...)`` of a process that gets its own namespaces of mounts or users."""
    machine.tree.many_roots = True
    machine.tasks.alike = False
    return PROCEED


def socket_call(call: TrappedCall, machine: Machine) -> int:
    """Calls that only sockets have: a device fails with ENOTSOCK."""
    if machine.files.find(call.tid, call.a0) is not None:
        raise os_error(errno.ENOTSOCK)
    return PROCEED


def execute(call: TrappedCall, machine: Machine) -> Outcome:
    """``execve(path, argv, envp)``."""
    return _execute(call, machine, AT_FDCWD, call.a0, 0)


def execute_at(call: TrappedCall, machine: Machine) -> Outcome:
    """``execveat(dirfd, path, argv, envp, flags)``."""
    return _execute(call, machine, signed32(call.a0), call.a1, call.a4 & 0xFFFFFFFF)


def _execute(call: TrappedCall, machine: Machine, base: int, address: int, flags: int) -> Outcome:
    """The process gets a new memory image, and the thread perhaps a new ID."""
    depth = machine.scripts.pop(call.tid, 0)
    if machine.tree.mounts.covers_files or machine.tree.mounts.filesystems:
        # The kernel would find files that are covered, and none of a filesystem's.
        if flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW):
            return PROCEED  # EINVAL
        found = outside = None
        try:
            found = named(call, machine, base, address, flags)
        except OutsideError as error:
            outside = error.file
        if found is not None:
            return _execute_found(call, machine, found, (base, address, depth))
        if outside is not None and not machine.tree.many_roots:
            path = machine.strings.read(call.tid, address)
            if not _is_found(call, base, path, outside):
                from recuse.sandbox.syscalls import execution  # noqa: PLC0415 - rarely needed

                shown = _shown(path, base)
                return execution.execute_native(call, machine, outside, shown, depth)
    if not machine.tree.many_roots and not in_our_namespace(call.tid, "mnt"):
        machine.tree.many_roots = True  # made by clone3, whose flags no filter sees
    if machine.tasks.alike and not in_our_namespace(call.tid, "user"):
        machine.tasks.alike = False
    if machine.renumbered is not None and address:
        path = machine.strings.read(call.tid, address)
        if path.rpartition(b"/")[2] in _MOUNTING:
            machine.renumbered.watch(call.tid, -1)
    machine.files.unseen.executes(call.tid)
    machine.tasks.forget_ended()
    machine.tasks.forget_process(call.tid)
    machine.strings.forget(call.tid)
    machine.strings.forget_others(call.tid)
    return PROCEED


def _is_found(call: TrappedCall, base: int, path: bytes, file: NativeFile) -> bool:
    """Whether the kernel itself finds a file by that path."""
    try:
        found = status_from(call.task.acting, start_of(call.tid, base), path)
    except OSError:
        return False
    return os.path.samestat(found, file.status)


def _execute_found(
    call: TrappedCall, machine: Machine, found: Found, how: tuple[int, int, int]
) -> Outcome:
    base, address, depth = how
    filesystem = filesystem_of(found.location)
    if filesystem is None:
        raise os_error(errno.EACCES)
    if found.node.is_link:
        raise os_error(errno.ELOOP)
    path = _shown(machine.strings.read(call.tid, address), base)
    from recuse.sandbox.syscalls import execution  # noqa: PLC0415 - rarely needed

    return execution.execute(call, machine, filesystem, found.location, path, depth)


def _shown(path: bytes, base: int) -> bytes:
    """The path by which a script finds itself (fs/exec.c, alloc_bprm)."""
    if base == AT_FDCWD or path.startswith(b"/"):
        return path
    return b"/dev/fd/%d" % base + (b"/" + path if path else b"")


def change_credentials(call: TrappedCall, machine: Machine) -> int:
    """The ``set*id`` calls, ``setgroups`` and ``capset``."""
    machine.tasks.change(call.tid)
    return PROCEED


def chroot(call: TrappedCall, machine: Machine) -> int:
    """``chroot(path)``; ENOTDIR if it is not a directory."""
    found = inspected(call, machine, AT_FDCWD, call.a0, 0)
    if found is not None and not found.node.is_directory:
        raise os_error(errno.ENOTDIR)
    return change_root(call, machine)


def restrict(call: TrappedCall, machine: Machine) -> int:
    """``landlock_restrict_self(ruleset, flags)``."""
    machine.tasks.restrict(call.tid)
    return PROCEED


def change_root(call: TrappedCall, machine: Machine) -> int:
    """``pivot_root``, ``unshare`` and ``setns``, and ``chroot`` to a native directory."""
    machine.tree.many_roots = True
    return change_credentials(call, machine)


HANDLERS: Final[dict[str, Handler]] = {
    "clone": clone,
    "execve": execute,
    "execveat": execute_at,
    **dict.fromkeys(
        (
            "setuid",
            "setgid",
            "setreuid",
            "setregid",
            "setresuid",
            "setresgid",
            "setfsuid",
            "setfsgid",
            "setgroups",
            "capset",
        ),
        change_credentials,
    ),
    **dict.fromkeys(
        (
            "sendto",
            "recvfrom",
            "recvmsg",
            "recvmmsg",
            "getsockopt",
            "setsockopt",
            "getsockname",
            "getpeername",
            "shutdown",
            "connect",
            "listen",
            "accept",
            "accept4",
        ),
        socket_call,
    ),
    "chroot": chroot,
    **dict.fromkeys(("pivot_root", "unshare", "setns"), change_root),
    "landlock_restrict_self": restrict,
}
