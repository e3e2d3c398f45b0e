"""Signals for programs that wait in a trapped call, and the death of such programs.

With SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV only a signal that kills a process at once ends its
wait; of any other one the supervisor hears nothing, and of that one nothing either until it
answers. So it looks: while calls wait, each caller's pending signals are read from
``/proc/TID/status`` every :data:`TICK` seconds, and it is asked whether the call is still there.

What a wait in the kernel would be woken up by is the thread's TIF_SIGPENDING, which no file shows.
A signal for the thread itself sets it. One for its process sets that of one thread that does not
block it, the main thread if it can be (kernel/signal.c, complete_signal). The signal's being still
there at the next look shows that no thread was free to take it meanwhile. A stop that another
thread has begun sets that of all (do_signal_stop).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeAlias
from weakref import ref

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log, report
from recuse.sandbox.errands import Errands
from recuse.sandbox.trap.answers import ERESTARTSYS, OwedCall
from recuse.sandbox.trap.call import TrappedCall

_log = Log("recuse.sandbox")

TICK: Final = 0.02
"""How long, in seconds, a signal may be pending before it is noticed; twice that for new waits, and
longer when so many calls wait that looking at them would take more than a tenth of a CPU."""

_SHARE: Final = 9
"""Looking pauses at least so many times as long as it took."""

_IDLE_TICKS: Final = 25
_MOST_OWED: Final = 64
_MOST_ENDED: Final = 1024

Interrupt: TypeAlias = Callable[[TrappedCall, bool], None]
"""Told that a signal has come for a caller that waits, or (True) that it is no more."""


class Waiting:
    """A call that waits. It does not keep the call."""

    __slots__ = ("attend", "call", "found", "id", "interrupt", "looks", "owed", "tid")

    def __init__(
        self, call: TrappedCall, interrupt: Interrupt, attend: Callable[[], None] | None = None
    ) -> None:
        self.call = ref(call)
        self.id = call.id
        self.tid = call.tid
        self.interrupt = interrupt
        self.attend = attend
        """Is called at each look, which then does nothing else."""
        self.looks = 0
        """In a row, that found a signal; one more than that from the second look on."""
        self.found: list[Signals] = []
        """What the last ones found that it was interrupted for."""
        self.owed = False
        """Whether it is still to be interrupted for a signal that came before it was received."""

    @property
    def sure(self) -> bool:
        """Whether ERESTARTSYS may be the answer."""
        return all(signals.sure for signals in self.found)

    def can_start_anew(self) -> bool:
        """Whether the caller was interrupted by nothing but signals that it need not notice.

        Such as the terminal's Ctrl-Z: the program is to stop, and then to go on where it was.
        """
        if not self.found or not self.sure or any(signals.caught for signals in self.found):
            return False
        now = pending_signals(self.tid)
        return now is None or not now.caught


class SignalWatch:
    """The calls that wait, and the thread that looks at their callers; it sleeps without any."""

    def __init__(self, errands: Errands) -> None:
        """Start the thread: once there are no more, signals must still end what waits.

        Args:
            errands: do the interrupting, which may have to go on with an operation, and come to a
                method that blocks.

        Raises:
            OSError: EAGAIN if there can be no thread.
        """
        # Without a lock, as each call that is not answered at once passes here: setting, popping
        # and copying are atomic.
        self.waiting: dict[int, Waiting] = {}
        """By the call's id. Look here whether there is anything to forget before you do."""
        self._errands = errands
        self.owed: dict[int, int] = {}
        """Threads whose calls a signal has ended before they were received, and who make them once
        more: from the address, after its ``syscall`` instruction, that is here. If the call waits
        then, it is interrupted as by that signal."""
        self._owed_calls: set[int] = set()
        self._taking = new_lock("SignalWatch.taking")
        """Held while a wait is taken off for its caller's end, and while `attend` replaces one."""
        self._ended: dict[int, int] = {}
        """Threads whose calls were received and have ended with EINTR, from which address on."""
        self._again: dict[int, int] = {}
        """Threads that make the call that ends a handler once more, and their stack pointers."""
        self._parked = False
        self._unpark = threading.Event()
        self._closed = threading.Event()
        self._thread = threads.start(self._work, name="recuse-signals")

    def watch(self, call: TrappedCall, interrupt: Interrupt, *, late: bool = False) -> None:
        """Call ``interrupt`` if a signal is pending for the caller, or the caller is killed.

        Until the call is answered, and again for each look that finds a signal; but no more after
        ``interrupt(call, True)``. It replaces an earlier one; a ``late`` one, perhaps from another
        thread than the one that has the call, does not.

        Args:
            call: is not kept: who waits for something is kept by what it waits for.
            interrupt: must not refer to the call either, but is given it.
            late: see there.
        """
        waiting = Waiting(call, interrupt)
        if self._owed_calls and call.id in self._owed_calls:
            self._owed_calls.discard(call.id)
            waiting.owed = True
        if late:
            self.waiting.setdefault(call.id, waiting)
        else:
            self.waiting[call.id] = waiting
        # The other way round than who answers it: one of the two sees the other.
        if call.over and self.waiting.get(call.id) is waiting:
            self.waiting.pop(call.id, None)
        self._wake()

    def attend(self, call: TrappedCall, look: Callable[[], None]) -> None:
        """Call ``look`` now and then until `OwedCall.leave`: signals cannot reach its caller.

        Such as one that makes calls for us: its own call is answered, and so not alive. This comes
        before that answer, and replaces what `watch` was told.
        """
        with self._taking:
            self.waiting[call.id] = Waiting(call, _ignore, look)
        self._wake()

    def _wake(self) -> None:
        if self._parked:
            self._unpark.set()

    def received(self, call: TrappedCall) -> None:
        """A call has come, perhaps one of those of :attr:`owed`."""
        if self.owed.pop(call.tid, None) == call.instruction:
            if len(self._owed_calls) >= _MOST_OWED:
                self._owed_calls.clear()  # those did not wait
            self._owed_calls.add(call.id)

    def ends(self, call: OwedCall) -> None:
        """A call is about to end with EINTR, or ERESTARTSYS: that is its result."""
        if len(self._ended) >= _MOST_ENDED:
            self._ended.clear()  # no handler has run for those, or they are gone
        self._ended[call.tid] = call.instruction

    def has_ended(self, tid: int, after: int) -> bool:
        """Whether the call of a thread that left off at ``after`` was one of these; once."""
        if self._ended.get(tid) != after:
            return False
        self._ended.pop(tid, None)
        return True

    def will_come_again(self, tid: int, stack: int) -> None:
        """A thread's call at the end of a handler is dealt with, but it makes it once more."""
        if len(self._again) >= _MOST_ENDED:
            self._again.clear()  # those were killed
        self._again[tid] = stack

    def comes_again(self, tid: int, stack: int) -> bool:
        """Whether the end of a handler is one of these; once."""
        if not self._again or self._again.get(tid) != stack:
            return False
        self._again.pop(tid, None)
        return True

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        self._unpark.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                self._look_around()
            except BaseException as error:
                # For lack of memory, anything may raise.
                report(error)
                time.sleep(TICK)

    def _look_around(self) -> None:
        pause, idle = TICK, 0
        while not self._closed.wait(pause):
            waiting = list(self.waiting.copy().values())
            if waiting:
                idle = 0
                began = time.monotonic()
                self._look(waiting)
                pause = max(TICK, _SHARE * (time.monotonic() - began))
                continue
            pause, idle = TICK, idle + 1
            if idle > _IDLE_TICKS:
                self._unpark.clear()
                self._parked = True
                if not self.waiting and not self._closed.is_set():
                    self._unpark.wait()
                self._parked = False
                idle = 0

    def _look(self, waiting: list[Waiting]) -> None:
        stopping: dict[int, bool] = {}
        for one in waiting:
            try:
                self._look_at(one, stopping)
            except Exception:
                _log.exception("internal error while looking for signals")

    def _look_at(self, one: Waiting, stopping: dict[int, bool]) -> None:
        if not one.looks:
            one.looks = 1  # most calls are answered soon
            return
        call = one.call()
        if call is None:
            self._take_off(one)
            return
        if one.attend is not None:
            one.attend()
            return
        if one.owed:
            one.owed = False
            self._errands.put(partial(one.interrupt, call, False))
            return
        signals = pending_signals(one.tid, stopping)
        if not call.alive():
            self._end(one, call)
        elif signals is None:
            one.looks = 1
        elif signals.deadly:
            # It dies with a core dump as soon as it is let go; nobody will miss the result.
            if self._end(one, call):
                call.give_up(ERESTARTSYS)
        else:
            one.looks += 1
            if one.looks > 2 or signals.for_thread:
                one.found = [*one.found[-1:], signals]
                self._errands.put(partial(one.interrupt, call, False))

    def _take_off(self, one: Waiting) -> Waiting | None:
        """Look at a wait no more; None if it was forgotten or replaced meanwhile."""
        with self._taking:
            return self.waiting.pop(one.id, None) if self.waiting.get(one.id) is one else None

    def _end(self, one: Waiting, call: TrappedCall) -> bool:
        """The caller is gone, unless its call was forgotten meanwhile, and then answered."""
        left = self._take_off(one)
        if left is None:
            return False
        self._errands.put(partial(left.interrupt, call, True))
        return True


def _ignore(call: TrappedCall, fatal: bool) -> None:
    del call, fatal


class Signals(NamedTuple):
    """What is pending for a thread that waits."""

    for_thread: bool
    """For this thread and no other."""
    sure: bool
    """Whether it has TIF_SIGPENDING for certain, if this is so for longer than a moment."""
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
"""SIG_KERNEL_COREDUMP_MASK: a process dies of these only when it takes them."""

_SIGCHLD: Final = _mask(signal.SIGCHLD)


class _Status(NamedTuple):
    state: bytes
    tgid: int
    traced: bool
    threads: int
    pending: int
    shared: int
    blocked: int
    caught: int


def _read_status(tid: int) -> _Status | None:
    try:
        with open(f"/proc/{tid}/status", "rb", 0) as status:
            text = status.read(8192)
        at = text.index(b"\nState:\t") + 8
        state = text[at : at + 1]
        at = text.index(b"\nTgid:\t", at) + 7
        tgid = int(text[at : text.index(b"\n", at)])
        at = text.index(b"\nTracerPid:\t", at) + 12
        traced = text[at : at + 1] != b"0"
        at = text.index(b"\nThreads:\t", at) + 10
        threads = int(text[at : text.index(b"\n", at)])
        at = text.index(b"\nSigPnd:\t", at) + 1
        # SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt, all of this form.
        pending, shared, blocked, _, caught = (
            int(line[8:], 16) for line in text[at : at + 5 * 25].splitlines()
        )
    except (OSError, ValueError):
        return None
    return _Status(state, tgid, traced, threads, pending, shared, blocked, caught)


def pending_signals(tid: int, stopping: dict[int, bool] | None = None) -> Signals | None:
    """The signals that the kernel would interrupt a thread's wait for; None if there are none.

    A signal that the program ignores is never pending, but for a program that is traced, and then
    it does interrupt.

    Args:
        tid: the thread, in the supervisor's pid namespace.
        stopping: a memory for several threads: the processes that are being stopped.
    """
    status = _read_status(tid)
    if status is None:
        return None
    private = status.pending & ~status.blocked
    shared = status.shared & ~status.blocked
    sure = True
    if status.threads > 1:
        if shared and status.tgid != tid:
            leader = _read_status(status.tgid)
            if leader is not None and leader.state not in b"ZX":
                shared &= leader.blocked
            sure = False
        if not private | shared:
            stopping = {} if stopping is None else stopping
            if status.tgid not in stopping:
                stopping[status.tgid] = _is_stopping(status.tgid)
            if stopping[status.tgid]:
                return Signals(for_thread=True, sure=True, caught=False, deadly=False)
        # For the thread that has made the child, it may be.
        sure = sure and not shared & _SIGCHLD
    signals = private | shared
    if not signals:
        return None
    return Signals(
        for_thread=bool(private) or status.threads == 1,
        sure=sure or bool(private),
        caught=bool(signals & status.caught),
        deadly=bool(signals & _CORE_DUMPING & ~status.caught) and not status.traced,
    )


def _is_stopping(tgid: int) -> bool:
    """Whether a thread of the process is stopped, so that the others are to stop."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{tgid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{tgid}/task/{name}/stat", "rb") as stat:
                if stat.read().rpartition(b")")[2][1:2] == b"T":
                    return True
    return False
