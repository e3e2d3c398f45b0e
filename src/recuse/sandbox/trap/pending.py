"""Which signals are pending for a waiting thread, so that they would end a wait in the kernel.

Such a wait ends when the thread has TIF_SIGPENDING, which no file shows. A signal for the thread
itself sets it. A signal for its process sets it for one thread that does not block the signal, if
possible the main thread (kernel/signal.c, complete_signal). If the signal is still there at the
next look, no thread was free to take it meanwhile. If another thread starts a stop, that sets it
for all threads (do_signal_stop).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final

from recuse.runtime.records import NamedTuple
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.wire.ids import Tgid, Tid


class Signals(NamedTuple):
    """The signals that are pending for a waiting thread."""

    for_thread: bool
    """Whether one is for this thread and no other."""
    sure: bool
    """Whether it certainly has TIF_SIGPENDING, if this lasts longer than a moment."""
    caught: bool
    """Whether the program catches one of them."""
    deadly: bool
    """Whether the process will die of them."""


def _mask(*numbers: int) -> int:
    return sum(1 << number - 1 for number in numbers)


_CORE_DUMPING: Final = _mask(
    signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGFPE, signal.SIGSEGV,
    signal.SIGBUS, signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ,
)  # fmt: skip
"""SIG_KERNEL_COREDUMP_MASK: signals of which a process dies only when it takes them."""

_SIGCHLD: Final = _mask(signal.SIGCHLD)


def _status(tid: int) -> ThreadStatus | None:
    try:
        return ThreadStatus(tid)
    except OSError:
        return None


def pending_signals(tid: Tid, stopping: dict[Tgid, bool] | None = None) -> Signals | None:
    """The signals for which the kernel would interrupt a thread's wait; None if there are none.

    A signal that the program ignores is never pending, unless the program is traced. In that case
    the signal does interrupt.

    Args:
        tid: the thread, in the supervisor's pid namespace.
        stopping: a memory for several threads: the processes that are being stopped.
    """
    status = _status(tid)
    if status is None:
        return None
    pending, shared = status.number(b"SigPnd", 16), status.number(b"ShdPnd", 16)
    if pending or shared:
        blocked = status.number(b"SigBlk", 16)
        pending, shared = pending & ~blocked, shared & ~blocked
    several = status[b"Threads"] != b"1"
    sure = True
    if several:
        process = status.tgid
        if shared and process != tid:
            leader = _status(process)
            if leader is not None and leader[b"State"][:1] not in b"ZX":
                shared &= leader.number(b"SigBlk", 16)
            sure = False
        if not pending | shared:
            stopping = {} if stopping is None else stopping
            if process not in stopping:
                stopping[process] = _is_stopping(process)
            if stopping[process]:
                return Signals(for_thread=True, sure=True, caught=False, deadly=False)
        # SIGCHLD may be for the thread that has made the child.
        sure = sure and not shared & _SIGCHLD
    signals = pending | shared
    if not signals:
        return None
    caught = status.number(b"SigCgt", 16)
    return Signals(
        for_thread=bool(pending) or not several,
        sure=sure or bool(pending),
        caught=bool(signals & caught),
        deadly=bool(signals & _CORE_DUMPING & ~caught) and status[b"TracerPid"] == b"0",
    )


def _is_stopping(tgid: Tgid) -> bool:
    """Whether a thread of the process is stopped, so that the others must stop too."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{tgid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{tgid}/task/{name}/stat", "rb") as stat:
                if stat.read().rpartition(b")")[2][1:2] == b"T":
                    return True
    return False
