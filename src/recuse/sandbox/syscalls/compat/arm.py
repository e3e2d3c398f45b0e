"""System calls of 32-bit programs on arm64: these programs see no devices.

A program may still have a device's descriptor from the program that started it. Natively that is a
socket, and must not be used as one: such calls fail with ENOSYS. Calls on other files proceed.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.log import Log
from recuse.sandbox.arch import arm
from recuse.sandbox.syscalls import aio, processes
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.table import Entry
from recuse.sandbox.tasks.memory import read_memory

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

_log = Log("recuse.sandbox")

_POLLFD_BYTES: Final = 8
_MOST_POLLED: Final = 1 << 16
"""No more descriptors than this are looked through."""


@functools.cache
def _tell() -> None:
    _log.warning(
        "a 32-bit program has a device's descriptor; its calls on it fail (ENOSYS), because only "
        "64-bit programs can use devices on arm64"
    )


def _refuse(call: TrappedCall, machine: Machine, numbers: Iterable[int]) -> int:
    """Return PROCEED if none of these descriptors is a device's; otherwise fail with ENOSYS."""
    if any(machine.files.find(call.tid, number) is not None for number in numbers):
        _tell()
        raise os_error(errno.ENOSYS)
    return PROCEED


def first(call: TrappedCall, machine: Machine) -> int:
    """A call whose first argument is the only descriptor."""
    return _refuse(call, machine, (call.a0,))


def first_two(call: TrappedCall, machine: Machine) -> int:
    """``sendfile(to, from, ...)`` and ``tee(from, to, ...)``."""
    return _refuse(call, machine, (call.a0, call.a1))


def first_and_third(call: TrappedCall, machine: Machine) -> int:
    """``splice(from, offset, to, ...)`` and ``copy_file_range``."""
    return _refuse(call, machine, (call.a0, call.a2))


def epoll_ctl(call: TrappedCall, machine: Machine) -> int:
    """``epoll_ctl(epoll, operation, fd, event)``."""
    return _refuse(call, machine, (call.a2,))


def mmap2(call: TrappedCall, machine: Machine) -> int:
    """``mmap2(addr, length, prot, flags, fd, pages)``."""
    return _refuse(call, machine, (call.a4,))


def status(call: TrappedCall, machine: Machine) -> int:
    """``statx(fd, path, ...)`` and ``fstatat64``: they are about the descriptor without a path."""
    if not len(machine.files) or read_memory(call.tid, call.a1, 1) != b"\0":
        return PROCEED
    return _refuse(call, machine, (call.a0,))


def poll(call: TrappedCall, machine: Machine) -> int:
    """``poll(fds, nfds, ...)`` and ppoll."""
    size = min(call.a1, _MOST_POLLED) * _POLLFD_BYTES
    if not len(machine.files) or not size:
        return PROCEED
    array = read_memory(call.tid, call.a0, size)
    starts = range(0, len(array), _POLLFD_BYTES)
    return _refuse(
        call, machine, (int.from_bytes(array[start : start + 4], "little") for start in starts)
    )


def select(call: TrappedCall, machine: Machine) -> int:
    """``_newselect(nfds, in, out, exceptions, ...)`` and pselect6."""
    count = min(call.a0 & 0x7FFFFFFF, _MOST_POLLED)
    if not len(machine.files) or not count:
        return PROCEED
    bits = 0
    for address in (call.a1, call.a2, call.a3):
        if address:
            bits |= int.from_bytes(read_memory(call.tid, address, -(-count // 8)), "little")
    return _refuse(call, machine, (number for number in range(count) if bits >> number & 1))


def io_submit(call: TrappedCall, machine: Machine) -> int:
    """``io_submit(context, count, blocks)``."""
    if not len(machine.files) or signed32(call.a1) <= 0:
        return PROCEED
    blocks = aio.read_blocks(call, call.a1, aio.COMPAT_POINTER)
    return _refuse(call, machine, (aio.descriptor_of(content) for _, content in blocks))


_SEEN: Final = frozenset(
    {
        processes.clone,
        processes.execute,
        processes.change_credentials,
        processes.change_root,
    }
)
"""Handlers of calls that only need to be seen. Those of 64-bit programs can be used here too."""

_OWN: Final[dict[str, Handler]] = {
    **dict.fromkeys(("sendfile", "sendfile64", "tee"), first_two),
    **dict.fromkeys(("splice", "copy_file_range"), first_and_third),
    **dict.fromkeys(("statx", "fstatat64"), status),
    **dict.fromkeys(("poll", "ppoll", "ppoll_time64"), poll),
    **dict.fromkeys(("_newselect", "pselect6", "pselect6_time64"), select),
    "epoll_ctl": epoll_ctl,
    "io_submit": io_submit,
    "mmap2": mmap2,
}


def _handler(call: Entry) -> Handler:
    if call.name == "chroot":
        return processes.change_root  # nothing else needs to be done
    native = processes.HANDLERS.get(call.alias)
    return native if native in _SEEN else _OWN.get(call.name, first)


def handlers() -> dict[int, Handler]:
    """The handlers by number."""
    return {call.number: _handler(call) for call in arm.CALLS if call.trapped}
