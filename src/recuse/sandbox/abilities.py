"""Which of several ways recuse can go: a container's seccomp profile may refuse system calls.

Each is tried on this process itself, where only such a filter refuses it, or a kernel without the
call. Whether other processes may be looked into is another question: without that nothing works.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import signal
import threading
from typing import Final

from recuse.sandbox.arch import arch

_libc = ctypes.CDLL(None, use_errno=True)

_DETACH: Final = 17
PIDFD_THREAD: Final = os.O_EXCL
"""A flag of pidfd_open(2) (linux/pidfd.h)."""
_NOT_ALLOWED: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)


@functools.cache
def may_hold() -> bool:
    """Whether pidfd_open(2) and pidfd_send_signal(2) may be called."""
    try:
        process = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(process, 0)
        finally:
            os.close(process)
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
def may_hold_threads() -> bool:
    """Whether a pidfd can be one thread's: PIDFD_THREAD, since Linux 6.9."""
    if not may_hold():
        return False
    try:
        os.close(os.pidfd_open(threading.get_native_id(), PIDFD_THREAD))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


@functools.cache
def may_trace() -> bool:
    """Whether ptrace(2) may be called."""
    # ESRCH: this process is not attached to itself.
    return _libc.ptrace(_DETACH, os.getpid(), None, None) < 0 and ctypes.get_errno() == errno.ESRCH


@functools.cache
def may_mount() -> bool:
    """Whether mount(2) may be called at all. Otherwise programs' calls of it do not arrive here."""
    # EFAULT: there is no target.
    return _libc.mount(None, None, None, 0, None) < 0 and ctypes.get_errno() not in _NOT_ALLOWED


@functools.cache
def may_open_tree() -> bool:
    """Whether open_tree(2) may be called."""
    file = _libc.syscall(arch.INJECTED["open_tree"], -1, b"/", os.O_CLOEXEC)
    if file >= 0:
        os.close(file)
    return bool(file >= 0)


@functools.cache
def may_copy_memory() -> bool:
    """Whether process_vm_readv(2) and process_vm_writev(2) may be called."""
    own = ctypes.create_string_buffer(1)
    area = (ctypes.c_size_t * 2)(ctypes.addressof(own), 1)
    for copy in (_libc.process_vm_readv, _libc.process_vm_writev):
        if copy(os.getpid(), area, 1, area, 1, 0) < 0 and ctypes.get_errno() in _NOT_ALLOWED:
            return False
    return True


def may_borrow() -> bool:
    """Whether a thread's descriptor can be copied (:mod:`recuse.sandbox.trap.borrowing`)."""
    return may_fetch() or may_trace()
