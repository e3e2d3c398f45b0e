"""Calls that have an effect on filesystems and their regular files only (fs/sync.c, fs/open.c).

They are trapped in sandboxes with filesystems only. A device answers as natively its socket does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.kernel.connection.operation import run
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32, signed64
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree, filesystem_of

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall

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


def syncfs(call: TrappedCall, machine: Machine) -> Outcome:
    """``syncfs(fd)``."""
    file = machine.files.find_opened(call.tid, call.a0)
    tree = None if file is None else filesystem_of(file.location)
    return PROCEED if tree is None else _written(tree.write_back())


def _written(step: OnDevice[None]) -> Steps[int]:
    yield step
    return 0


def sync(call: TrappedCall, machine: Machine) -> int:
    """``sync()``: it waits for no server, which may be the caller itself."""
    del call
    for mount in machine.tree.mounts.filesystems:
        assert isinstance(mount.tree, FilesystemTree)
        step = mount.tree.write_back()
        run(step.device.connection, step.operation, _nobody)
    return PROCEED


def _nobody(result: None, error: OSError | None) -> None:
    """Those who have the files open hear of errors."""


HANDLERS: Final[dict[str, Handler]] = {
    "fsync": fsync,
    "fdatasync": fdatasync,
    "ftruncate": ftruncate,
    "fallocate": fallocate,
    "sync_file_range": sync_file_range,
    "readahead": readahead,
    "sync": sync,
    "syncfs": syncfs,
}
