"""Calls that recuse only has to see, because they change what it remembers of a process."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection import os_error
from recuse.sandbox.memory import UnreadableError, read_memory
from recuse.sandbox.syscalls.call import PROCEED, Handler

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

# linux/sched.h
_CLONE_FILES: Final = 0x400
_CLONE_THREAD: Final = 0x10000
_CLONE_NEWNS: Final = 0x20000
_CLONE_NEWUSER: Final = 0x10000000


def _spawn(supervisor: Supervisor, call: Notification, flags: int) -> int:
    if flags & (_CLONE_NEWNS | _CLONE_NEWUSER):
        supervisor.tree.many_roots = True
    supervisor.tasks.forget_ended()
    supervisor.strings.forget_others(call.pid)
    if flags & _CLONE_FILES and not flags & _CLONE_THREAD:
        supervisor.descriptors.all_shared(for_good=True)
    else:
        _shared(supervisor, call.pid)
    return PROCEED


def _shared(supervisor: Supervisor, tid: int) -> None:
    if len(supervisor.descriptors):
        supervisor.descriptors.shared(supervisor.tasks.get(tid).tgid)


def fork(supervisor: Supervisor, call: Notification) -> int:
    """``fork()`` and ``vfork()``."""
    return _spawn(supervisor, call, 0)


def clone(supervisor: Supervisor, call: Notification) -> int:
    """``clone(flags, ...)``: a thread, a process, or something between the two."""
    return _spawn(supervisor, call, call.a0)


def clone3(supervisor: Supervisor, call: Notification) -> int:
    """``clone3(args, size)``: the flags are the first word of the structure."""
    try:
        (flags,) = struct.unpack("=Q", read_memory(call.pid, call.a0, 8))
    except UnreadableError:
        flags = _CLONE_FILES | _CLONE_NEWNS  # whatever may be: the most that it can mean
    return _spawn(supervisor, call, flags)


def pass_descriptors(supervisor: Supervisor, call: Notification) -> int:
    """``sendmsg`` and ``sendmmsg`` may carry descriptors to another process."""
    _shared(supervisor, call.pid)
    return socket_call(supervisor, call)


def fetch_descriptor(supervisor: Supervisor, call: Notification) -> int:
    """``pidfd_getfd`` takes a descriptor out of any process."""
    del call
    supervisor.descriptors.all_shared()
    return PROCEED


def socket_call(supervisor: Supervisor, call: Notification) -> int:
    """What only sockets can do: a device says ENOTSOCK."""
    if supervisor.descriptors.find(call.pid, call.a0) is not None:
        raise os_error(errno.ENOTSOCK)
    return PROCEED


def execute(supervisor: Supervisor, call: Notification) -> int:
    """``execve`` and ``execveat``: a new memory image, and perhaps a new thread id."""
    supervisor.tasks.forget_process(call.pid)
    supervisor.strings.forget(call.pid)
    return PROCEED


def change_credentials(supervisor: Supervisor, call: Notification) -> int:
    """The ``set*id`` calls, ``setgroups`` and ``capset``."""
    supervisor.tasks.forget(call.pid)
    return PROCEED


def change_root(supervisor: Supervisor, call: Notification) -> int:
    """``chroot``, ``pivot_root``, ``unshare`` and ``setns``."""
    supervisor.tree.many_roots = True
    return change_credentials(supervisor, call)


HANDLERS: Final[dict[str, Handler]] = {
    "fork": fork,
    "vfork": fork,
    "clone": clone,
    "clone3": clone3,
    "sendmsg": pass_descriptors,
    "sendmmsg": pass_descriptors,
    "pidfd_getfd": fetch_descriptor,
    "execve": execute,
    "execveat": execute,
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
            "bind",
            "connect",
            "listen",
            "accept",
            "accept4",
        ),
        socket_call,
    ),
    **dict.fromkeys(("chroot", "pivot_root", "unshare", "setns"), change_root),
}
