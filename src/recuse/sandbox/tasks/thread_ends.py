"""Which threads have ended. Their IDs may then be used again for other threads.

A thread's end is not trapped, but a pidfd reports it (kernel/fork.c, pidfd_poll) before the ID is
free. On every kernel there are pidfds for the first thread of a process, and since Linux 6.9 for
the others too (PIDFD_THREAD).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

from recuse.runtime.room import is_plenty
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.wire.ids import Tid

_PIDFD_THREAD: Final = os.O_EXCL

_CHOOSE_IDS: Final = 1 << 21 | 1 << 40
"""CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE (linux/capability.h)."""

SAME_ID_S: Final = 0.001
"""For this many seconds, an ID that comes in turn means the same thread as just now.

It is used again only after all others, tens of thousands of forks later (kernel/pid.c, alloc_pid).
"""


def ids_come_in_turn() -> bool:
    """Whether no program of ours can choose the ID of a thread.

    That takes a capability (clone3(2) with set_tid; ``/proc/sys/kernel/ns_last_pid``), and no
    program gets one that the supervisor lacks: no_new_privs is set for all of them.
    """
    return not ThreadStatus("thread-self").number(b"CapPrm", 16) & _CHOOSE_IDS


class ThreadEnds:
    """Watches threads. Not thread-safe."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.known_until = 0.0
        """Until this time (`time.monotonic`) the IDs mean the same threads. Later, `some` must be
        asked before what was kept about a thread is used."""
        self.some: Callable[[], object] = self._some
        """Whether some have ended; `take` says which. It takes 0.25 us."""
        if not ids_come_in_turn():
            self.some = partial(self._epoll.poll, 0, 1)  # nothing is known until later
        self._pidfds: dict[Tid, int] = {}
        self._tids: dict[int, Tid] = {}

    def watch(self, tid: Tid) -> bool:
        """Watch a thread that exists; return False if that cannot be done.

        Findings about a thread may be kept only if it is watched, and was watched before them.
        """
        if tid in self._pidfds:
            return True
        try:
            pidfd = _open(tid)
        except OSError:
            return False
        try:
            kept = is_plenty(pidfd)
            if kept:
                self._epoll.register(pidfd, select.EPOLLIN)
        except OSError:
            kept = False
        if not kept:
            os.close(pidfd)
            return False
        self._pidfds[tid] = pidfd
        self._tids[pidfd] = tid
        return True

    def _some(self) -> bool:
        now = monotonic()
        if self._epoll.poll(0, 1):
            return True
        self.known_until = now + SAME_ID_S
        return False

    def take(self) -> list[Tid]:
        """The threads that have ended. They are no longer watched."""
        ended = [self._tids[pidfd] for pidfd, _ in self._epoll.poll(0)]
        for tid in ended:
            self.forget(tid)
        return ended

    def forget(self, tid: Tid) -> None:
        """Stop watching a thread."""
        pidfd = self._pidfds.pop(tid, None)
        if pidfd is not None:
            del self._tids[pidfd]
            # Closing is not enough: a process that was just forked may have a copy.
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Stop watching all threads."""
        for tid in list(self._pidfds):
            self.forget(tid)
        self._epoll.close()


def _open(tid: Tid) -> int:
    try:
        return os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:
        return os.pidfd_open(tid)  # before Linux 6.9: ENOENT or EINVAL if it is not the first one
