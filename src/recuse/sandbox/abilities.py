"""Which of several ways this process may go: a container's seccomp profile may refuse system calls.

Each is tried on this process itself, where nothing but such a filter, or a kernel without the call,
refuses it. Whether other processes may be looked into is another question: without that nothing
works.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from typing import Final

from recuse.sandbox.arch import arch

_libc = ctypes.CDLL(None, use_errno=True)

_DETACH: Final = 17
_NOT_ALLOWED: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)


@functools.cache
def may_hold() -> bool:
    """Whether pidfd_open(2) may be called."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        return False
    return True


@functools.cache
def may_fetch() -> bool:
    """Whether a descriptor of another process can be copied: pidfd_getfd(2)."""
    if not may_hold():
        return False
    process = os.pidfd_open(os.getpid())
    try:
        copy = _libc.syscall(arch.SYSCALLS["pidfd_getfd"], process, process, 0)
        if copy >= 0:
            os.close(copy)
        return bool(copy >= 0)
    finally:
        os.close(process)


@functools.cache
def may_trace() -> bool:
    """Whether ptrace(2) may be called."""
    # ESRCH: we have not attached to it.
    return _libc.ptrace(_DETACH, os.getpid(), None, None) < 0 and ctypes.get_errno() == errno.ESRCH
