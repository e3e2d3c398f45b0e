"""Copies of a thread's descriptors, where pidfd_getfd(2) is allowed."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from recuse.kernel.errors import os_error
from recuse.sandbox.abilities import PIDFD_THREAD, may_fetch, may_hold_threads
from recuse.sandbox.arch import arch
from recuse.wire.ids import Tgid, Tid

_libc = ctypes.CDLL(None, use_errno=True)

_KCMP: Final = arch.SYSCALLS["kcmp"]
_KCMP_FILES: Final = 2


def can_fetch(tid: Tid, tgid: Tgid) -> bool:
    """Whether a thread's descriptors can be fetched.

    They are the thread's own. Those of its process's first thread may be different, after
    unshare(CLONE_FILES), or missing, when the first thread has ended.
    """
    return may_fetch() and (tid == tgid or may_hold_threads() or _share_files(tid, tgid))


def _share_files(tid: int, other: int) -> bool:
    return not _libc.syscall(_KCMP, tid, other, _KCMP_FILES, 0, 0)


def fetch_descriptor(tid: Tid, tgid: Tgid, number: int) -> int:
    """Copy a descriptor of a thread into this process.

    Raises:
        OSError: EBADF if the thread has no such descriptor; ESRCH; EPERM, also where
            :func:`can_fetch` returns False; ENFILE if this process has no room for it.
    """
    try:
        if tid == tgid:
            process = os.pidfd_open(tgid)
        elif may_hold_threads():
            process = os.pidfd_open(tid, PIDFD_THREAD)
        elif _share_files(tid, tgid):
            process = os.pidfd_open(tgid)
        else:
            raise os_error(errno.EPERM)
        try:
            copy: int = _libc.syscall(arch.SYSCALLS["pidfd_getfd"], process, number, 0)
        finally:
            os.close(process)
        if copy < 0:
            raise os_error(ctypes.get_errno())
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        # EMFILE would say that the program's own table is full.
        raise os_error(errno.ENFILE) from None
    return copy
