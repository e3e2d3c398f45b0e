"""Which threads have ended. Their IDs may then be used again for other threads.

A thread's end is not trapped, but a pidfd reports it (kernel/fork.c, pidfd_poll) before the ID is
free. On every kernel there are pidfds for the first thread of a process, and since Linux 6.9 for
the others too (PIDFD_THREAD).
"""

from __future__ import annotations

import os
import select
from typing import Final

from recuse.runtime.room import is_plenty
from recuse.wire.ids import Tid

_PIDFD_THREAD: Final = os.O_EXCL


class ThreadEnds:
    """Watches threads. Not thread-safe."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        """``poll(0, 1)`` is not empty if some have ended. It takes 0.25 us, and must be asked each
        time."""
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

    def take(self) -> list[Tid]:
        """The threads that have ended. They are no longer watched."""
        ended = [self._tids[pidfd] for pidfd, _ in self.poll(0)]
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
