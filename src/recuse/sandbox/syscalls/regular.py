"""Calls that only regular files of filesystems have an effect on (fs/sync.c, fs/open.c).

They are trapped in sandboxes with filesystems only. A device answers as natively its socket does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32, signed64

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall


def fsync(call: TrappedCall, machine: Machine) -> Outcome:
    """``fsync(fd)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    return PROCEED if file is None else file.sync(call, False)


def fdatasync(call: TrappedCall, machine: Machine) -> Outcome:
    """``fdatasync(fd)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    return PROCEED if file is None else file.sync(call, True)


def ftruncate(call: TrappedCall, machine: Machine) -> Outcome:
    """``ftruncate(fd, length)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    return PROCEED if file is None else file.truncate(call, signed64(call.a1))


def fallocate(call: TrappedCall, machine: Machine) -> Outcome:
    """``fallocate(fd, mode, offset, length)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    if file is None:
        return PROCEED
    return file.allocate(call, signed32(call.a1), signed64(call.a2), signed64(call.a3))


HANDLERS: Final[dict[str, Handler]] = {
    "fsync": fsync,
    "fdatasync": fdatasync,
    "ftruncate": ftruncate,
    "fallocate": fallocate,
}
