"""A handle of a process: it never means another process that gets the same ID later."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from recuse.sandbox.abilities import may_hold
from recuse.sandbox.arch import arch

_DEAD = (b"Z", b"X", b"x")


class ProcessHandle:
    """A pidfd; or, where pidfds are refused, an open ``/proc/PID``, which is almost as good."""

    def __init__(self, pid: int) -> None:
        """Get a handle of the process. OSError: ESRCH or ENOENT if there is none."""
        self._pid = pid
        self._by_pidfd = may_hold()
        flags = os.O_RDONLY | arch.O_DIRECTORY | os.O_CLOEXEC
        self._descriptor = os.pidfd_open(pid) if self._by_pidfd else os.open(f"/proc/{pid}", flags)

    def ended(self) -> bool:
        """Whether it has ended, even if nobody has waited for it yet."""
        if self._descriptor < 0:
            return True
        if self._by_pidfd:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            return bool(poll.poll(0))
        try:
            stat = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
        except OSError:
            return True
        with open(stat, "rb") as file:
            try:
                line = file.read()
            except ProcessLookupError:
                return True
        # PID (NAME, which may contain anything) STATE ...
        return line.rpartition(b")")[2].split()[0] in _DEAD

    def send_signal(self, number: int) -> None:
        """Send it a signal; do nothing if it has ended."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._by_pidfd:
                signal.pidfd_send_signal(self._descriptor, number)
            elif not self.ended():
                os.kill(self._pid, number)

    def close(self) -> None:
        """Close the handle."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
