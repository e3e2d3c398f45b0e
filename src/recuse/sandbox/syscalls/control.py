"""ioctl and fcntl (fs/ioctl.c do_vfs_ioctl, fs/fcntl.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.trap.call import Outcome, TrappedCall
from recuse.sandbox.trap.filter import F_GETFL, F_SETFL
from recuse.sandbox.vfs.filesystem_tree import filesystem_of

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

# Commands that the kernel answers for every file before it asks the driver (linux/fs.h).
_FIONBIO: Final = 0x5421
_FIOASYNC: Final = 0x5452
_FOR_ALL_FILES: Final = frozenset(
    {
        0x5451,  # FIOCLEX
        0x5450,  # FIONCLEX
        0x5460,  # FIOQSIZE
        0x02,  # FIGETBSZ
        0xC0045877,  # FIFREEZE
        0xC0045878,  # FITHAW
        0xC020660B,  # FS_IOC_FIEMAP
    }
)
"""For these a socket gives the same answer as a device: about close-on-exec, or an error because
it is not a regular file."""
_FICLONE: Final = 0x40049409
_FICLONERANGE: Final = 0x4020940D
_FIDEDUPERANGE: Final = 0xC0189436
_SHARING: Final = frozenset((_FICLONE, _FICLONERANGE, _FIDEDUPERANGE))
"""A device that shares no content is like a socket. For filesystems, see `_share`."""

_SETFL_MASK: Final = os.O_APPEND | os.O_NONBLOCK | arch.O_DIRECT | os.O_NOATIME


def ioctl(call: TrappedCall, machine: Machine) -> Outcome:
    """``ioctl(fd, command, argument)``."""
    file = machine.files.find(call.tid, call.a0)
    if file is None:
        return PROCEED
    if not file.opened:
        raise os_error(errno.EBADF)
    command = call.a1 & 0xFFFFFFFF
    if command in _SHARING and filesystem_of(file.location) is not None:
        return _share(call, machine, file, command)
    if command in _FOR_ALL_FILES or command in _SHARING:
        return PROCEED
    if command == _FIONBIO:
        on = any(_read_int(call))
        file.set_flags(file.flags | os.O_NONBLOCK if on else file.flags & ~os.O_NONBLOCK)
        return 0
    if command == _FIOASYNC:
        # There is no SIGIO, so it cannot be on (fs/ioctl.c, ioctl_fioasync).
        if any(_read_int(call)):
            raise os_error(errno.ENOTTY)
        return 0
    return file.ioctl(call, command, call.a2)


def _share(call: TrappedCall, machine: Machine, file: FileDescription, command: int) -> int:
    """Refuse to have files share their content, as fs/remap_range.c does.

    Raises:
        OSError: always, unless it returns PROCEED: EBADF, EFAULT, EISDIR, EXDEV, EOPNOTSUPP.
    """
    other: FileDescription | None = file
    if command != _FIDEDUPERANGE:
        number = call.a2 if command == _FICLONE else int.from_bytes(_read_int(call), sys.byteorder)
        other = machine.files.find_opened(call.tid, number)
        if other is None:
            return PROCEED  # EBADF or EXDEV
    assert other is not None
    if other.group is not file.group:
        raise os_error(errno.EXDEV)
    if file.node.is_directory or other.node.is_directory:
        raise os_error(errno.EISDIR)
    if command != _FIDEDUPERANGE and not (
        other.readable and file.writable and not file.flags & os.O_APPEND
    ):
        raise os_error(errno.EBADF)
    raise os_error(errno.EOPNOTSUPP)


def _read_int(call: TrappedCall) -> bytes:
    data = read_memory(call.tid, call.a2, 4)
    if len(data) < 4:
        raise os_error(errno.EFAULT)
    return data


def fcntl(call: TrappedCall, machine: Machine) -> Outcome:
    """``fcntl(fd, command, argument)``, for the commands that the filter traps."""
    command = signed32(call.a1)
    file = machine.files.find(call.tid, call.a0)
    if file is None:
        return PROCEED
    if command == F_GETFL:
        return file.flags
    if command == F_SETFL:
        if not file.opened:
            raise os_error(errno.EBADF)
        if call.a2 & arch.O_DIRECT and not file.can_be_direct:
            raise os_error(errno.EINVAL)
        file.set_flags(file.flags & ~_SETFL_MASK | call.a2 & _SETFL_MASK)
        return 0
    if not file.opened:
        raise os_error(errno.EBADF)
    return file.record_lock(call, command, call.a2)


HANDLERS: Final[dict[str, Handler]] = {
    "ioctl": ioctl,
    "fcntl": fcntl,
}
