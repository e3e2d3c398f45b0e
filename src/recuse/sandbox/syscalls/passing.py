"""Descriptors that programs send to other processes (SCM_RIGHTS; net/core/scm.c, Linux 6.1).

Between the programs of a sandbox, a device's descriptor works everywhere. In a process outside it
would be a socket with a byte of recuse's in it, whose reads and writes succeed and mean nothing. So
it is not sent there, as far as recuse can find out: it looks at who made or connected the other end
(SO_PEERCRED), but that process may have passed the end on since. If the socket is not connected,
nothing can be found out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.log import Log
from recuse.sandbox.arch import arch
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.processes import socket_call
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.tasks.tasks import parent_of
from recuse.sandbox.trap.borrowing import Borrowing
from recuse.wire.ids import NO_PROCESS, Tgid

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

_log = Log("recuse.sandbox")

_CREDENTIALS: Final = struct.Struct("=iII")
"""``struct ucred``: process, user, group."""
_NOBODY: Final = 0xFFFFFFFF
_MOST_MESSAGES: Final = 1024
"""UIO_MAXIOV, the most that one sendmmsg sends."""
_MOST_CONTROL: Final = 1 << 16

_Form = tuple[struct.Struct, struct.Struct, int]
"""How to read a ``struct msghdr`` and a ``struct cmsghdr``, and how many more bytes a ``struct
mmsghdr`` has. Of the first only the address and length of the control data are read."""
_WIDE: Final[_Form] = struct.Struct("=32xQQ8x"), struct.Struct("=Qii"), 8
_NARROW: Final[_Form] = struct.Struct("=16xII4x"), struct.Struct("=Iii"), 4


def send_message(call: TrappedCall, machine: Machine) -> int:
    """``sendmsg(fd, message, flags)``."""
    socket_call(call, machine)
    if not len(machine.files):
        return PROCEED
    return _check(call, machine, 1, _form(call)[0].size)


def send_messages(call: TrappedCall, machine: Machine) -> int:
    """``sendmmsg(fd, messages, count, flags)``."""
    socket_call(call, machine)
    if not len(machine.files):
        return PROCEED
    header, _, more = _form(call)
    size = header.size + more
    return _check(call, machine, min(call.a2 & 0xFFFFFFFF, _MOST_MESSAGES), size)


def _form(call: TrappedCall) -> _Form:
    return _WIDE if call.arch == arch.AUDIT_ARCH else _NARROW


def _check(call: TrappedCall, machine: Machine, count: int, size: int) -> int:
    """Refuse messages that would send a device outside; argument 1 is the address of the headers.

    Raises:
        OSError: EPERM.
    """
    header = _form(call)[0]
    try:
        headers = read_memory(call.tid, call.a1, count * size)
    except OSError:
        return PROCEED  # EFAULT
    sends = machine.files.find
    for start in range(0, len(headers) - size + 1, size):
        address, length = header.unpack_from(headers, start)
        if any(sends(call.tid, number) is not None for number in _rights(call, address, length)):
            return _let_inside_only(call, machine)
    return PROCEED


def _rights(call: TrappedCall, address: int, length: int) -> list[int]:
    """The descriptors in a message's control data, as far as the data make sense."""
    heading = _form(call)[1]
    numbers: list[int] = []
    if not heading.size <= length <= _MOST_CONTROL:
        return numbers
    try:
        data = read_memory(call.tid, address, length)
    except OSError:
        return numbers  # EFAULT
    at, align = 0, 8 if heading is _WIDE[1] else 4
    while at + heading.size <= len(data):
        part, level, kind = heading.unpack_from(data, at)
        if part < heading.size:
            break
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            content = data[at + heading.size : at + part]
            numbers += [
                number for (number,) in struct.iter_unpack("=i", content[: len(content) & ~3])
            ]
        at += (part + align - 1) & -align
    return numbers


def _let_inside_only(call: TrappedCall, machine: Machine) -> int:
    # A thread that has lent its socket repeats its call, and must not be checked again.
    if call.tid in machine.let_pass:
        machine.let_pass.discard(call.tid)
        return PROCEED
    with Borrowing(call) as borrowing:
        try:
            copy = borrowing.copy(signed32(call.a0))
        except PermissionError:
            pass  # nothing can be found out
        else:
            process, user = _other_end(copy)
            if user != _NOBODY and not _is_inside(machine, process):
                _log.warning(
                    "process %d was not sent a device's descriptor (EPERM): it is not in the "
                    "sandbox, and could not use it",
                    process,
                )
                raise os_error(errno.EPERM)
        result = borrowing.finish(PROCEED)
        if result != PROCEED:
            machine.let_pass.add(call.tid)
        return result


def _other_end(copy: int) -> tuple[Tgid, int]:
    """The process and user at the other end of a socket. The descriptor is closed."""
    try:
        there = socket.socket(fileno=copy)
    except OSError:  # it is no socket, and sendmsg fails with that
        os.close(copy)
        return NO_PROCESS, _NOBODY
    with there:
        try:
            data = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            process, user, _ = _CREDENTIALS.unpack(data)
        except (OSError, struct.error):
            return NO_PROCESS, _NOBODY  # a kind of socket that cannot pass descriptors
    return process, user


def _is_inside(machine: Machine, process: Tgid) -> bool:
    """Whether a process is one of the sandbox's, or has ended."""
    first = machine.first_processes()
    with contextlib.suppress(ProcessLookupError):
        while process > 1:
            if process in first:
                return True
            process = parent_of(process)
        return False
    return True


HANDLERS: Final[dict[str, Handler]] = {"sendmsg": send_message, "sendmmsg": send_messages}
