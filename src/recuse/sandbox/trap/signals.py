"""Signals for programs that wait in a trapped call, and the death of such programs.

With SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, only a signal that kills a process at once ends its
wait. The supervisor is not told of other signals, and of that one only when it answers. So it looks
for itself while calls wait. Every :data:`TICK` seconds it reads each caller's pending signals
(:mod:`recuse.sandbox.trap.pending`), and asks whether the call is still there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar
from weakref import ref

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log, report
from recuse.sandbox.errands import Errands
from recuse.sandbox.trap.pending import Signals, pending_signals
from recuse.wire.ids import Tgid, Tid

_log = Log("recuse.sandbox")

TICK: Final = 0.02
"""How long, in seconds, a signal may be pending before it is noticed. It is twice that for new
waits, and longer if so many calls wait that looking at them would take over a tenth of a CPU."""

_SHARE: Final = 9
"""The pause between looks is at least this many times as long as the look took."""

_IDLE_TICKS: Final = 25
_MOST_OWED: Final = 64
_MOST_ENDED: Final = 1024

ERESTARTSYS: Final = 512
"""Kernel-internal error (linux/errno.h) that no program ever sees.

The kernel runs the handler, and the call fails with EINTR or is restarted, as SA_RESTART says. Or
the kernel stops the process, and restarts the call later. This works only for a thread that has
TIF_SIGPENDING: any other thread would see the number 512.
"""


class Interruptible(Protocol):
    """A trapped call, as far as signals are concerned."""

    @property
    def id(self) -> int:
        """The kernel's ID for it."""

    @property
    def tid(self) -> Tid:
        """The calling thread."""

    @property
    def instruction(self) -> int:
        """The address after its instruction."""

    @property
    def over(self) -> bool:
        """Whether signals no longer concern it."""

    def alive(self) -> bool:
        """Whether its caller still waits for an answer."""

    def give_up(self, number: int) -> bool:
        """Fail it on behalf of its owner."""


C = TypeVar("C", bound=Interruptible)


class Waiting(Generic[C]):
    """A call that waits. It does not keep the call alive."""

    __slots__ = ("attend", "call", "found", "id", "interrupt", "look", "looks", "owed", "tid")

    def __init__(
        self,
        call: C,
        interrupt: Callable[[C, bool], None],
        attend: Callable[[], None] | None = None,
        look: Callable[[], None] | None = None,
    ) -> None:
        self.call = ref(call)
        self.id = call.id
        self.tid = call.tid
        self.interrupt = interrupt
        """Called when a signal has come for the caller, or (True) when the caller is gone."""
        self.attend = attend
        """Called at each look, which then does nothing else."""
        self.look = look
        """Called at each look by another thread."""
        self.looks = 0
        """How many looks in a row have found a signal, plus one from the second look on."""
        self.found: list[Signals] = []
        """The signals that it was last interrupted for."""
        self.owed = False
        """Whether it must still be interrupted for a signal that came before it was received."""

    @property
    def sure(self) -> bool:
        """Whether ERESTARTSYS may be the answer."""
        return all(signals.sure for signals in self.found)

    def can_start_anew(self) -> bool:
        """Whether the caller need not notice any of the signals that interrupted it.

        An example is the terminal's Ctrl-Z: the program should stop, and later continue.
        """
        if not self.found or not self.sure or any(signals.caught for signals in self.found):
            return False
        now = pending_signals(self.tid)
        return now is None or not now.caught


class _Once:
    """A number for each of some threads, which is taken once. Thread-safe: each step is atomic.

    Numbers that nobody takes are forgotten: all of them, when there are too many.
    """

    __slots__ = ("_most", "_numbers")

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers: dict[Tid, int] = {}

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def put(self, tid: Tid, number: int) -> None:
        if len(self._numbers) >= self._most:
            self._numbers.clear()
        self._numbers[tid] = number

    def take(self, tid: Tid, number: int) -> bool:
        """Whether this is the thread's number, which is then forgotten."""
        if self._numbers.get(tid) != number:
            return False
        self._numbers.pop(tid, None)
        return True


class SignalWatch:
    """The calls that wait, and the thread that looks at their callers. It sleeps if none waits."""

    def __init__(self, errands: Errands) -> None:
        """Start the thread now: even when no more can be started, signals must end what waits.

        Args:
            errands: do the interrupting, which may have to continue an operation and so call a
                method that blocks.

        Raises:
            OSError: EAGAIN if no thread can be started.
        """
        # There is no lock, because each call that is not answered at once comes here. Setting,
        # popping and copying are atomic.
        self.waiting: dict[int, Waiting[Any]] = {}
        """By the call's ID. Check whether it is empty before you remove something."""
        self._errands = errands
        self.owed: dict[Tid, int] = {}
        """Threads that repeat a call which a signal has ended before it was received, with the
        address after the call's ``syscall`` instruction. If the call then waits, it is interrupted
        as by that signal."""
        self._owed_calls = _Once(_MOST_OWED)  # the others did not wait
        self._taking = new_lock("SignalWatch.taking")
        """Held while a wait is removed because its caller is gone, and while one is replaced."""
        self._ended = _Once(_MOST_ENDED)  # no handler has run for the others, or they are gone
        """Threads whose calls were received and have ended with EINTR, with the address after."""
        self._again = _Once(_MOST_ENDED)  # the others were killed
        """Threads that repeat the call at the end of a handler, and their stack pointers."""
        self._parked = False
        self._unpark = threading.Event()
        self._closed = threading.Event()
        self._thread = threads.start(self._work, name="recuse-signals")

    def watch(
        self,
        call: C,
        interrupt: Callable[[C, bool], None],
        *,
        late: bool = False,
        look: Callable[[], None] | None = None,
    ) -> None:
        """Call ``interrupt`` if a signal is pending for the caller, or the caller is killed.

        This lasts until the call is answered. Each look that finds a signal calls ``interrupt``
        again, but none does after ``interrupt(call, True)``. A watch replaces an earlier one,
        unless it is ``late``.

        Args:
            call: is not kept alive: a waiting call is kept by what it waits for.
            interrupt: is given the call, and must not have a reference to it either.
            late: set if this may be another thread than the one that has the call.
            look: called now and then, in a thread that it may block.
        """
        waiting = Waiting(call, interrupt, look=look)
        if self._owed_calls and self._owed_calls.take(call.tid, call.id):
            waiting.owed = True
        if late:
            self.waiting.setdefault(call.id, waiting)
        else:
            self.waiting[call.id] = waiting
        # `OwedCall.answer` uses the opposite order, so one of the two sees the other.
        if call.over and self.waiting.get(call.id) is waiting:
            self.waiting.pop(call.id, None)
        self._wake()

    def attend(self, call: Interruptible, look: Callable[[], None]) -> None:
        """Call ``look`` now and then until `OwedCall.leave`: signals cannot reach the caller.

        An example is a thread that makes calls for recuse: its own call is answered, and so is not
        alive. Call this before that answer. It replaces an earlier `watch`.
        """
        with self._taking:
            self.waiting[call.id] = Waiting(call, _ignore, look)
        self._wake()

    def _wake(self) -> None:
        if self._parked:
            self._unpark.set()

    def received(self, call: Interruptible) -> None:
        """A call was received. It may be one of those in :attr:`owed`."""
        if self.owed.pop(call.tid, None) == call.instruction:
            self._owed_calls.put(call.tid, call.id)

    def ends(self, call: Interruptible) -> None:
        """A call is about to end with EINTR or ERESTARTSYS as its result."""
        self._ended.put(call.tid, call.instruction)

    def has_ended(self, tid: Tid, after: int) -> bool:
        """Whether a thread's call before the address ``after`` was one of these; true once."""
        return self._ended.take(tid, after)

    def will_come_again(self, tid: Tid, stack: int) -> None:
        """A thread's call at the end of a handler was handled, but the thread will repeat it."""
        self._again.put(tid, stack)

    def comes_again(self, tid: Tid, stack: int) -> bool:
        """Whether the end of a handler is such a repeated call; true once."""
        return self._again.take(tid, stack)

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
                # When memory is short, anything may raise.
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

    def _look(self, waiting: list[Waiting[Any]]) -> None:
        stopping: dict[Tgid, bool] = {}
        for one in waiting:
            try:
                self._look_at(one, stopping)
            except Exception:
                _log.exception("internal error while looking for signals")

    def _look_at(self, one: Waiting[C], stopping: dict[Tgid, bool]) -> None:
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
        if one.look is not None:
            self._errands.put(one.look)
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
            # It dies with a core dump as soon as it is let go, and nobody will miss the result.
            if self._end(one, call):
                call.give_up(ERESTARTSYS)
        else:
            one.looks += 1
            if one.looks > 2 or signals.for_thread:
                one.found = [*one.found[-1:], signals]
                self._errands.put(partial(one.interrupt, call, False))

    def _take_off(self, one: Waiting[C]) -> Waiting[C] | None:
        """Stop looking at a wait; return None if it was forgotten or replaced meanwhile."""
        with self._taking:
            return self.waiting.pop(one.id, None) if self.waiting.get(one.id) is one else None

    def _end(self, one: Waiting[C], call: C) -> bool:
        """The caller is gone. If its call was forgotten meanwhile, it was answered instead."""
        left = self._take_off(one)
        if left is None:
            return False
        self._errands.put(partial(left.interrupt, call, True))
        return True


def _ignore(call: Interruptible, fatal: bool) -> None:
    del call, fatal
