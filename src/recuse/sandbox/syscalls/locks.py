"""flock (fs/locks.c; Linux 6.1).

Natively each open file of a device is a separate socket, so locks on two of them would never meet.
Record locks (fcntl's F_SETLK) are left to the kernel: they work within one open file only.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.kernel.locks import FileLocks
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed32
from recuse.sandbox.syscalls.mounting import renumbered
from recuse.sandbox.trap.call import Outcome, Pause, Steps, TrappedCall

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

_EXCLUSIVE: Final = {fcntl.LOCK_SH: False, fcntl.LOCK_EX: True}


def flock(call: TrappedCall, machine: Machine) -> Outcome:
    """``flock(fd, operation)``; or another call that is made to look like it."""
    others = machine.renumbered
    if others is not None and (name := others.names.get(call.tid)) is not None:
        return renumbered(call, machine, name)
    wanted = call.a1 & ~fcntl.LOCK_NB & 0xFFFFFFFF
    if wanted not in _EXCLUSIVE and wanted != fcntl.LOCK_UN:
        return PROCEED
    file = machine.files.find_opened(call.tid, call.a0)
    if file is None:
        return PROCEED
    if (outcome := file.flock(call, signed32(call.a1))) is not None:
        return outcome
    if (place := file.locks()) is None:
        return PROCEED
    locks, owner = place
    if wanted == fcntl.LOCK_UN:
        locks.unlock(owner)
    elif not locks.lock(owner, exclusive=_EXCLUSIVE[wanted]):
        # A file that was closed, or whose process has ended, should not be in the way.
        released = machine.files.releases(file.group)
        return _again(call, released, locks, owner)
    return 0


def _again(call: TrappedCall, released: Pause, locks: FileLocks, owner: Hashable) -> Steps[int]:
    """Lock after a pause. If that is not possible, fail or wait."""
    yield released
    exclusive = _EXCLUSIVE[call.a1 & ~fcntl.LOCK_NB & 0xFFFFFFFF]
    if call.a1 & fcntl.LOCK_NB:
        if locks.lock(owner, exclusive=exclusive):
            return 0
        raise os_error(errno.EWOULDBLOCK)
    call.wait(partial(_interrupt, locks))
    if locks.lock(owner, exclusive=exclusive, granted=call.grant) and not call.grant():
        locks.unlock(owner)
    return ANSWERED


def _interrupt(locks: FileLocks, call: TrappedCall, fatal: bool) -> None:
    del fatal
    if locks.cancel(call.grant):
        call.restart()


HANDLERS: Final[dict[str, Handler]] = {"flock": flock}
