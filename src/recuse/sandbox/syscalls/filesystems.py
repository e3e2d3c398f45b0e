"""statfs: which filesystem a file is on (fs/statfs.c; Linux 6.1).

Nodes seem to be on the filesystems on which they seem to be: that of /dev, /sys or /proc.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.memory import write_memory
from recuse.sandbox.syscalls.attributes import held, looked_at
from recuse.sandbox.syscalls.call import PROCEED, Handler, signed32
from recuse.sandbox.tree import AT_FDCWD, Found

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

_SIZE: Final = 120
"""Of a ``struct statfs`` (asm-generic/statfs.h)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _fill(supervisor: Supervisor, call: Notification, found: Found | None) -> int:
    if found is None or found.link:
        return PROCEED
    top = b"/" + found.node.path.split(b"/", 2)[1]
    buffer = ctypes.create_string_buffer(_SIZE)
    if _libc.syscall(arch.SYSCALLS["statfs"], top, buffer) < 0:
        raise os_error(ctypes.get_errno())
    alive = supervisor.listener.alive(call.id)
    if alive and write_memory(call.pid, call.a1, buffer.raw) < _SIZE:
        raise os_error(errno.EFAULT)
    return 0


def statfs(supervisor: Supervisor, call: Notification) -> int:
    """``statfs(path, buf)``."""
    return _fill(supervisor, call, looked_at(supervisor, call, AT_FDCWD, call.a0, 0))


def fstatfs(supervisor: Supervisor, call: Notification) -> int:
    """``fstatfs(fd, buf)``."""
    return _fill(supervisor, call, held(supervisor, call, signed32(call.a0)))


HANDLERS: Final[dict[str, Handler]] = {"statfs": statfs, "fstatfs": fstatfs}
