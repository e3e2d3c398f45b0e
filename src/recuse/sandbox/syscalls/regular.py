"""Calls that only regular files of filesystems have an effect on (fs/sync.c, fs/open.c).

They are trapped in sandboxes with filesystems only. A device answers as natively its socket does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32, signed64

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall

_ALL_RANGE: Final = 7
"""The flags of sync_file_range."""


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


def sync_file_range(call: TrappedCall, machine: Machine) -> Outcome:
    """``sync_file_range(fd, offset, count, flags)``, of which more may be written than is asked."""
    file = machine.files.find_opened(call.tid, call.a0)
    offset, count = signed64(call.a1), signed64(call.a2)
    if file is None or call.a3 & ~_ALL_RANGE & 0xFFFFFFFF or offset < 0 or offset + count < offset:
        return PROCEED
    return file.write_range(call)


def readahead(call: TrappedCall, machine: Machine) -> Outcome:
    """``readahead(fd, offset, count)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    return PROCEED if file is None else file.read_ahead()


HANDLERS: Final[dict[str, Handler]] = {
    "fsync": fsync,
    "fdatasync": fdatasync,
    "ftruncate": ftruncate,
    "fallocate": fallocate,
    "sync_file_range": sync_file_range,
    "readahead": readahead,
}
