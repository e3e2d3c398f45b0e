"""ioctl and fcntl (fs/ioctl.c do_vfs_ioctl, fs/fcntl.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.trap.call import Outcome, TrappedCall
from recuse.sandbox.trap.filter import F_GETFL, F_SETFL

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
        0x40049409,  # FICLONE
        0x4020940D,  # FICLONERANGE
        0xC0189436,  # FIDEDUPERANGE
    }
)
"""For these a socket gives the same answer as a device: about close-on-exec, or an error because
it is not a regular file."""

_SETFL_MASK: Final = os.O_APPEND | os.O_NONBLOCK | arch.O_DIRECT | os.O_NOATIME


def ioctl(call: TrappedCall, machine: Machine) -> Outcome:
    """``ioctl(fd, command, argument)``."""
    file = machine.files.find(call.tid, call.a0)
    if file is None:
        return PROCEED
    if not file.opened:
        raise os_error(errno.EBADF)
    command = call.a1 & 0xFFFFFFFF
    if command in _FOR_ALL_FILES:
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
        if call.a2 & arch.O_DIRECT:
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
