"""Signals for programs that wait in a trapped call.

With SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV only a signal that kills a process ends its wait; of any
other one the supervisor hears nothing. So it looks: while calls wait that a signal should end, each
caller's pending signals are read from ``/proc/TID/status`` every :data:`TICK` seconds.

Answering with ERESTARTSYS leaves the rest to the kernel: it runs the handler and makes the call
fail with EINTR or start anew, as SA_RESTART says, or stops the process and has it start anew later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from recuse.sandbox.listener import Notification

ERESTARTSYS: Final = 512
"""Kernel-internal error (linux/errno.h) that no program ever sees."""

TICK: Final = 0.02
"""How long, in seconds, a signal may be pending before it is noticed."""


class SignalWatch:
    """The calls that wait, and the thread that looks at their callers; it sleeps without any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}
        self._some = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, call: Notification, interrupt: Callable[[], None]) -> None:
        """Call ``interrupt`` if a signal is pending for the caller, until :meth:`forget`."""
        with self._lock:
            self._waiting[call.id] = (call.pid, interrupt)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._look, name="recuse-signals", daemon=True
                )
                self._thread.start()
        self._some.set()

    def forget(self, call: Notification) -> None:
        """The call waits no more."""
        with self._lock:
            self._waiting.pop(call.id, None)

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._some.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(TICK):
            with self._lock:
                waiting = list(self._waiting.values())
                if not waiting:
                    self._some.clear()
            if not waiting:
                self._some.wait()
            for tid, interrupt in waiting:
                if has_signal(tid):
                    interrupt()


def has_signal(tid: int) -> bool:
    """Whether a signal is pending for a thread or its process that the thread does not block."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            fields = dict(line.split(b":", 1) for line in status.read().splitlines())
    except (OSError, ValueError):
        return False
    pending, shared, blocked = (int(fields[key], 16) for key in (b"SigPnd", b"ShdPnd", b"SigBlk"))
    return bool((pending | shared) & ~blocked)
