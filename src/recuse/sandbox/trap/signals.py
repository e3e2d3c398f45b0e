"""Signals for programs that wait in a trapped call, and the death of such programs.

With SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV only a signal that kills a process at once ends its
wait; of any other one the supervisor hears nothing, and of that one nothing either until it
answers. So it looks: while calls wait, each caller's pending signals are read every :data:`TICK`
seconds (:mod:`recuse.sandbox.trap.pending`), and it is asked whether the call is still there.
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
"""How long, in seconds, a signal may be pending before it is noticed; twice that for new waits, and
longer when so many calls wait that looking at them would take more than a tenth of a CPU."""

_SHARE: Final = 9
"""Looking pauses at least so many times as long as it took."""

_IDLE_TICKS: Final = 25
_MOST_OWED: Final = 64
_MOST_ENDED: Final = 1024

ERESTARTSYS: Final = 512
"""Kernel-internal error (linux/errno.h) that no program ever sees.

The kernel runs the handler and makes the call fail with EINTR or start anew, as SA_RESTART says, or
it stops the process and has the call start anew later. Only for a thread that has TIF_SIGPENDING:
another one would get the number 512.
"""


class Interruptible(Protocol):
    """A trapped call, as far as signals are concerned."""

    @property
    def id(self) -> int:
        """The kernel's name for it."""

    @property
    def tid(self) -> Tid:
        """The calling thread."""

    @property
    def instruction(self) -> int:
        """The address after its instruction."""

    @property
    def over(self) -> bool:
        """Whether signals are no business of it any more."""

    def alive(self) -> bool:
        """Whether its caller still waits for an answer."""

    def give_up(self, number: int) -> bool:
        """Fail it on behalf of its owner."""


C = TypeVar("C", bound=Interruptible)


class Waiting(Generic[C]):
    """A call that waits. It does not keep the call."""

    __slots__ = ("attend", "call", "found", "id", "interrupt", "looks", "owed", "tid")

    def __init__(
        self,
        call: C,
        interrupt: Callable[[C, bool], None],
        attend: Callable[[], None] | None = None,
    ) -> None:
        self.call = ref(call)
        self.id = call.id
        self.tid = call.tid
        self.interrupt = interrupt
        """Told that a signal has come for its caller, or (True) that it is no more."""
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


class _Once:
    """A number for each of some threads, told once. Thread-safe: each step is atomic.

    Those that nobody comes for are forgotten, all of them when there are too many.
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
        """Whether this is the thread's number, which it is not any more."""
        if self._numbers.get(tid) != number:
            return False
        self._numbers.pop(tid, None)
        return True


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
        self.waiting: dict[int, Waiting[Any]] = {}
        """By the call's id. Look here whether there is anything to forget before you do."""
        self._errands = errands
        self.owed: dict[Tid, int] = {}
        """Threads whose calls a signal has ended before they were received, and who make them once
        more: from the address, after its ``syscall`` instruction, that is here. If the call waits
        then, it is interrupted as by that signal."""
        self._owed_calls = _Once(_MOST_OWED)  # the others did not wait
        self._taking = new_lock("SignalWatch.taking")
        """Held while a wait is taken off for its caller's end, and while `attend` replaces one."""
        self._ended = _Once(_MOST_ENDED)  # no handler has run for the others, or they are gone
        """Threads whose calls were received and have ended with EINTR, from which address on."""
        self._again = _Once(_MOST_ENDED)  # the others were killed
        """Threads that make the call that ends a handler once more, and their stack pointers."""
        self._parked = False
        self._unpark = threading.Event()
        self._closed = threading.Event()
        self._thread = threads.start(self._work, name="recuse-signals")

    def watch(self, call: C, interrupt: Callable[[C, bool], None], *, late: bool = False) -> None:
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
        if self._owed_calls and self._owed_calls.take(call.tid, call.id):
            waiting.owed = True
        if late:
            self.waiting.setdefault(call.id, waiting)
        else:
            self.waiting[call.id] = waiting
        # The other way round than who answers it: one of the two sees the other.
        if call.over and self.waiting.get(call.id) is waiting:
            self.waiting.pop(call.id, None)
        self._wake()

    def attend(self, call: Interruptible, look: Callable[[], None]) -> None:
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

    def received(self, call: Interruptible) -> None:
        """A call has come, perhaps one of those of :attr:`owed`."""
        if self.owed.pop(call.tid, None) == call.instruction:
            self._owed_calls.put(call.tid, call.id)

    def ends(self, call: Interruptible) -> None:
        """A call is about to end with EINTR, or ERESTARTSYS: that is its result."""
        self._ended.put(call.tid, call.instruction)

    def has_ended(self, tid: Tid, after: int) -> bool:
        """Whether the call of a thread that left off at ``after`` was one of these; once."""
        return self._ended.take(tid, after)

    def will_come_again(self, tid: Tid, stack: int) -> None:
        """A thread's call at the end of a handler is dealt with, but it makes it once more."""
        self._again.put(tid, stack)

    def comes_again(self, tid: Tid, stack: int) -> bool:
        """Whether the end of a handler is one of these; once."""
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

    def _take_off(self, one: Waiting[C]) -> Waiting[C] | None:
        """Look at a wait no more; None if it was forgotten or replaced meanwhile."""
        with self._taking:
            return self.waiting.pop(one.id, None) if self.waiting.get(one.id) is one else None

    def _end(self, one: Waiting[C], call: C) -> bool:
        """The caller is gone, unless its call was forgotten meanwhile, and then answered."""
        left = self._take_off(one)
        if left is None:
            return False
        self._errands.put(partial(left.interrupt, call, True))
        return True


def _ignore(call: Interruptible, fatal: bool) -> None:
    del call, fatal
