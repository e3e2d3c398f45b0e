"""Threads that take turns to wait for the next item.

One thread, the leader, receives an item and handles it itself. It hands nothing to another thread,
as that would cost more than most items do. While a handler blocks, nobody receives. A monitor
notices this within :data:`TICK` and lets another thread lead. The first thread steps back when its
handler returns. So there is one thread for each handler that is blocking, and one more.

Whatever fails, memory included, an item that was received is either handled, or given to the
function for failures: nobody may wait for it in vain.

If no more threads can be started, the monitor itself leads. It is the last thread: what would block
it must fail instead (`recuse.runtime.threads`), so that everything else continues. As soon as there
is another thread, the monitor gives it the lead, or the monitor's role.

None of these threads ends because a handler, a source or logging raises something.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, Final, Generic, TypeVar

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log, report
from recuse.runtime.threads import LAST_THREADS

TICK = 0.005
"""Seconds after which a handler counts as blocking; it may take up to twice that."""

_SPARE_THREADS = 8
_IDLE_TICKS = 100

_RELIEF_S = 0.02
"""How long a call that would block waits for a thread before it fails."""

_THREAD_S: Final = 2
_HANDLER_S: Final = 0.1
"""How long, at most, `Workers.join` waits for threads that end, and for handlers that may block."""

_PAUSE_S: Final = 0.01
_MOST_PAUSE_S: Final = 0.5
_TRIES: Final = 10
"""After this many failures to receive in a row, about 3 s in all, a source counts as broken."""

_log = Log("recuse.channel")

T = TypeVar("T")


def pass_lead() -> None:
    """Let another thread lead: the calling handler knows that it will block.

    Does nothing in a thread that is not a leader. If there is no other thread, it also does
    nothing: the monitor then deals with it.

    Raises:
        OSError: EAGAIN if the calling thread must not block.
    """
    if threads.must_not_block():
        raise threads.no_more()
    led = getattr(_this_thread, "led", None)
    if led is not None:
        workers, turn = led
        workers._pass_lead(turn)


class _Turn(Generic[T]):
    """One thread's time as the leader."""

    __slots__ = ("busy", "count", "given", "item", "last", "over")

    def __init__(self, item: T | None = None, *, last: bool = False) -> None:
        """Begin with an item that was already received, if there is one."""
        self.busy = False
        """Whether it handles an item; to set it takes no memory."""
        self.count = 0
        """How many items it has begun to handle."""
        self.item = item
        self.given = item is not None
        self.last = last
        """Whether its thread is also the monitor."""
        self.over = False


_MONITOR: Final[_Turn[Any]] = _Turn()
"""Given to a thread in place of a turn: it becomes the monitor."""

_this_thread = threading.local()
"""``led``: the Workers, and the turn that the thread has or last had."""


class Workers(Generic[T]):
    """The threads that serve one source of items."""

    def __init__(
        self,
        receive: Callable[[], T | None],
        handle: Callable[[T], None],
        *,
        stuck: Callable[[T, Callable[[], bool]], None] = lambda _, __: None,
        failed: Callable[[T, BaseException], None] = lambda _, __: None,
        broken: Callable[[BaseException], None] | None = None,
        name: str = "recuse",
    ) -> None:
        """Prepare; :meth:`start` makes the first threads.

        Args:
            receive: waits for an item; None is the end. One thread at a time calls it, except for
                moments when the leader changes. What it raises is logged, and it is called
                again.
            handle: handles an item, and may block. An exception that escapes is logged.
            failed: called with an item whose handler has raised, or was not even called for lack of
                memory, and the exception. It is called again if it raises MemoryError.
            stuck: called with an item whose handler was found blocking, and with a function that
                says whether it still is.
            broken: called with what ``receive`` raises if it does so each time; then this is the
                end. Without it, receive is called again for ever.
            name: the beginning of the threads' names.
        """
        self._receive = receive
        self._handle = handle
        self._stuck = stuck
        self._failed = failed
        self._broken = broken
        self._name = name
        self._turn: _Turn[T] = _Turn()
        self._lock = new_lock("Workers")
        self._spare = 0
        self._called: queue.SimpleQueue[_Turn[T] | None] = queue.SimpleQueue()
        """What the spare threads wait for: a turn, the monitor's role, or None at the end."""
        self._relief = threading.Condition(self._lock)
        self._wants_relief = False
        self._made = 0
        self._live: dict[threading.Thread, _Turn[T]] = {}
        """The threads that have not ended, and the turn that each has or last had."""
        self._ended = threading.Event()
        self._parked = False
        self._unpark = threading.Event()
        self._failures = 0
        self._last_failure = 0.0
        self._refused = self._told_of_lack = False

    def start(self) -> None:
        """Start leading.

        Raises:
            OSError: EAGAIN if no threads can be started. Then these workers have ended.
        """
        try:
            self._make_thread(_MONITOR)
            self._make_thread(self._turn)
        except BaseException:
            self._end()
            raise

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the source and the threads to end; False if they have not by then.

        If they were not started, there is nothing to wait for.

        It waits only a moment for threads whose handlers still block: these end when their handlers
        return.
        """
        if self._made and not self._ended.wait(timeout):
            return False
        now = time.monotonic()
        for thread, turn in list(self._live.items()):
            if thread is not threading.current_thread():
                end = now + (_HANDLER_S if turn.busy else _THREAD_S)
                thread.join(max(end - time.monotonic(), 0))
        return True

    def _pass_lead(self, turn: _Turn[T]) -> None:
        with self._lock:
            if self._turn is turn and not turn.over:
                self._change_leader()

    def _make_thread(self, turn: _Turn[T]) -> None:
        made = self._made + 1
        threads.start(self._work, turn, name=f"{self._name}-{made}")
        self._made = made

    def _change_leader(self, item: T | None = None) -> bool:
        """Have another thread lead, and return True; it begins with the item, if there is one.

        Return False if there is no other thread. Called with the lock held.
        """
        turn = _Turn(item)
        if not self._give(turn):
            # Its thread may have started after all. It finds nothing to do.
            turn.item = None
            turn.given, turn.over = False, True
            return False
        self._turn.over = True
        self._turn = turn
        return True

    def _give(self, turn: _Turn[T]) -> bool:
        """Give a turn, or the monitor's role, to another thread, if there is one; with the lock."""
        if self._spare:
            self._called.put(turn)
            self._spare -= 1
            return True
        try:
            self._make_thread(turn)
        except OSError:
            return False
        return True

    def _work(self, turn: _Turn[T]) -> None:
        self._live[threading.current_thread()] = turn
        try:
            self._take_turns(turn)
        finally:
            self._live.pop(threading.current_thread(), None)

    def _take_turns(self, turn: _Turn[T]) -> None:
        while True:
            try:
                if turn is _MONITOR:
                    mine = self._monitor()
                else:
                    mine = self._wait_for_turn() if self._lead(turn) else None
            except BaseException as error:
                # Without memory, anything may raise, at any place.
                self._recover(turn, error)
                continue
            if mine is None:
                return
            turn = mine

    def _lead(self, turn: _Turn[T]) -> bool:
        """Receive and handle until the turn is over; return False at the end of the source."""
        self._live[threading.current_thread()] = turn
        receive, handle = self._receive, self._handle
        _this_thread.led = self, turn
        if turn.given:
            self._handle_given(turn)
        while not turn.over:
            try:
                item = receive()
            except BaseException as error:
                item = None
                if self._try_again(error):
                    continue
            if item is None:
                self._end()
                return False
            turn.item = item
            turn.busy = True
            turn.count += 1
            if self._parked:
                self._unpark.set()
            handle(item)
            turn.busy = False
            # While this thread waits for the next item, it does not keep this one.
            item = turn.item = None
        return True

    def _handle_given(self, turn: _Turn[T]) -> None:
        """Handle the item that a turn begins with, unless it was taken back."""
        with self._lock:
            turn.busy, turn.given = turn.given, False
            turn.count += 1
        if turn.item is not None:
            self._handle(turn.item)
        turn.busy = False
        turn.item = None

    def _recover(self, turn: _Turn[T], error: BaseException) -> None:
        """Go on after something has raised: no item is left unhandled."""
        while True:
            try:
                if turn.item is None:
                    report(error)
                    time.sleep(_PAUSE_S)
                else:
                    self._give_up(turn.item, error)
                break
            except MemoryError:
                time.sleep(_PAUSE_S)
        turn.item = None
        turn.busy = turn.given = False

    def _give_up(self, item: T, error: BaseException) -> None:
        try:
            self._failed(item, error)
        except MemoryError:
            raise
        except BaseException as failure:
            report(failure)
        _log.error("internal error while handling %r", item, exc_info=error)

    def _try_again(self, error: BaseException) -> bool:
        """Wait a moment after an error in receiving; return False if it is no use to try again."""
        now = time.monotonic()
        if now - self._last_failure > 2 * _MOST_PAUSE_S:
            self._failures = 0
        if not self._failures:
            _log.error("%s: receiving failed, and is tried again", self._name, exc_info=error)
        elif self._failures >= _TRIES and self._broken is not None:
            self._broken(error)
            return False
        pause = min(_PAUSE_S * 2**self._failures, _MOST_PAUSE_S)
        self._failures = min(self._failures + 1, _TRIES)
        time.sleep(pause)
        self._last_failure = now + pause
        return True

    def _wait_for_turn(self) -> _Turn[T] | None:
        with self._lock:
            if self._ended.is_set():
                return None
            if self._wants_relief:
                self._wants_relief = False
                self._relief.notify()
                return _MONITOR
            current = self._turn
            if current.last and current.busy:
                # The last thread does what it cannot refuse. It may leave the lead to this one.
                current.over = True
                self._turn = _Turn()
                return self._turn
            if self._spare >= _SPARE_THREADS:
                return None
            self._spare += 1
        return self._called.get()

    def _end(self) -> None:
        with self._lock:
            self._ended.set()
            for _ in range(self._spare):
                self._called.put(None)
            self._spare = 0
        self._unpark.set()

    def _tell_stuck(self, turn: _Turn[T], count: int) -> None:
        item = turn.item
        if item is not None:
            try:
                self._stuck(item, lambda: turn.busy and turn.count == count)
            except BaseException:
                _log.exception("internal error while looking at %r", item)

    def _monitor(self) -> _Turn[T] | None:
        """Find turns that are stuck. Sleeps for as long as nothing happens.

        Returns:
            The turn that the thread gets when another one becomes the monitor; None at the end.
        """
        with self._lock:
            turn = self._turn
            leads = turn.last and not turn.over
        if leads:  # it was in the middle of it when something failed
            self._lead_as_last(turn)
            if not turn.last:
                return turn
        seen, count, idle = self._turn, 0, 0
        while not self._ended.wait(TICK):
            turn = self._turn
            if turn is not seen or turn.count != count:
                seen, count, idle = turn, turn.count, 0
            elif turn.busy:
                mine = self._relieve(turn, count)
                if mine is not None:
                    return mine
                idle = 0
            else:
                idle += 1
                if idle > _IDLE_TICKS:
                    self._unpark.clear()
                    self._parked = True
                    if turn.count == count and not turn.busy and not self._ended.is_set():
                        self._unpark.wait()
                    self._parked = False
                    idle = 0
        return None

    def _relieve(self, turn: _Turn[T], count: int) -> _Turn[T] | None:
        """Have another thread lead, if a turn is still where it was.

        Returns:
            The turn that the calling thread has now, if it is no longer the monitor.
        """
        last: _Turn[T] | None = None
        with self._lock:
            if self._turn is not turn or turn.count != count or not turn.busy:
                return None
            if not self._change_leader():
                turn.over = True
                self._turn = last = _Turn(last=True)
        self._tell_stuck(turn, count)
        if last is None:
            return None
        self._lead_as_last(last)
        return None if last.last else last

    def _lead_as_last(self, turn: _Turn[T]) -> None:
        """Lead until there is another thread; what is handled here must not block."""
        self._live[threading.current_thread()] = turn
        while turn.last and not turn.over:
            try:
                if not self._handle_as_last(turn):
                    return
            except BaseException as error:
                self._recover(turn, error)

    def _handle_as_last(self, turn: _Turn[T]) -> bool:
        """Receive and handle one item; False if that was the last one, or another thread does."""
        try:
            item = self._receive()
        except BaseException as error:
            item = None
            if self._try_again(error):
                return True
        if item is None:
            self._end()
            return False
        turn.item = item
        with self._lock:
            with suppress(MemoryError):
                if self._change_leader(item):
                    turn.item = None
                    return False
            turn.busy = True
            turn.count += 1
        LAST_THREADS[get_ident()] = partial(self._hand_over, turn)
        try:
            self._handle(item)
        finally:
            LAST_THREADS.pop(get_ident(), None)
            with self._lock:
                turn.busy = False
        item = turn.item = None
        if self._refused:
            self._tell_of_lack()
        return True

    def _hand_over(self, turn: _Turn[T]) -> bool:
        """Have another thread be the monitor, so that the calling one may block.

        Waits a moment for one: a handler that was blocking may just have answered a program, and
        this may be the program's next call.
        """
        with self._lock:
            turn.last = False  # before there is another monitor
            if not self._give(_MONITOR):
                self._wants_relief = True
                self._relief.wait(_RELIEF_S)
                if self._wants_relief:
                    self._wants_relief = False
                    self._refused = turn.last = True
                    return False
        LAST_THREADS.pop(get_ident(), None)
        _this_thread.led = self, turn
        return True

    def _tell_of_lack(self) -> None:
        if not self._told_of_lack:
            self._told_of_lack = True
            _log.error(
                "%s: no more threads can be started (RLIMIT_NPROC, the cgroup's pids.max, memory): "
                "until one can, calls that a device's method might keep waiting fail with EAGAIN",
                self._name,
            )
