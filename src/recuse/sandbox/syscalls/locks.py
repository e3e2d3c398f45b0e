"""flock (fs/locks.c; Linux 6.1).

Natively each open file of a device is a socket of its own, so that locks of two would never meet.
Record locks (fcntl's F_SETLK) are left to the kernel: they work within one open file only.
"""

from __future__ import annotations

import errno
import fcntl
from functools import partial
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.kernel.files import OpenFile
from recuse.kernel.locks import FileLocks
from recuse.sandbox.syscalls.call import ANSWERED, PROCEED, Handler

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

_EXCLUSIVE: Final = {fcntl.LOCK_SH: False, fcntl.LOCK_EX: True}


def flock(supervisor: Supervisor, call: Notification) -> int:
    """``flock(fd, operation)``."""
    descriptor = supervisor.descriptors.find(call.pid, call.a0)
    wanted = call.a1 & ~fcntl.LOCK_NB & 0xFFFFFFFF
    if descriptor is None or (wanted not in _EXCLUSIVE and wanted != fcntl.LOCK_UN):
        return PROCEED
    file, device = descriptor.file, descriptor.node.device
    if file is None:
        raise os_error(errno.EBADF)
    if device is None or descriptor.node.anonymous or not isinstance(file, OpenFile):
        return PROCEED
    locks = device.locks
    if wanted == fcntl.LOCK_UN:
        locks.unlock(file)
    elif not locks.lock(file, exclusive=_EXCLUSIVE[wanted]):
        # A file that was closed, or whose process has ended, is in nobody's way.
        again = partial(_again, supervisor, call, locks, file)
        supervisor.descriptors.after_releases(descriptor.node, again)
        return ANSWERED
    return 0


def _again(supervisor: Supervisor, call: Notification, locks: FileLocks, file: OpenFile) -> None:
    """Lock, and if that cannot be done, fail or wait."""
    exclusive = _EXCLUSIVE[call.a1 & ~fcntl.LOCK_NB & 0xFFFFFFFF]
    if call.a1 & fcntl.LOCK_NB:
        if locks.lock(file, exclusive=exclusive):
            supervisor.listener.answer(call.id, 0)
        else:
            supervisor.listener.fail(call.id, errno.EWOULDBLOCK)
        return

    def granted() -> bool:
        supervisor.forget(call)
        return supervisor.listener.answer(call.id, 0)

    def interrupt(_: bool) -> None:
        if locks.cancel(granted):
            supervisor.restart(call)

    supervisor.signals.watch(call, supervisor.listener, interrupt)
    if locks.lock(file, exclusive=exclusive, granted=granted) and not granted():
        locks.unlock(file)


HANDLERS: Final[dict[str, Handler]] = {"flock": flock}
