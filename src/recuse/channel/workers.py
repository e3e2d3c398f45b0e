"""Threads that take turns to wait for the next thing to do.

One thread, the leader, receives an item and handles it itself: nothing is handed to another
thread, which would cost more than most items do. While a handler blocks, nobody receives; a monitor
notices within :data:`TICK` and lets another thread lead, and the first one steps back when its
handler returns. So there are as many threads as handlers that block at one moment, and one more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

TICK = 0.005
"""Seconds after which, at the latest twice over, a handler counts as blocking."""

_SPARE_THREADS = 8
_IDLE_TICKS = 100

_log = logging.getLogger("recuse.channel")

T = TypeVar("T")


class _Turn(Generic[T]):
    """One thread's time as the leader."""

    __slots__ = ("count", "item", "over")

    def __init__(self) -> None:
        self.count = 0  # odd while it handles an item
        self.item: T | None = None
        self.over = False


class Workers(Generic[T]):
    """The threads that serve one source of items."""

    def __init__(
        self,
        receive: Callable[[], T | None],
        handle: Callable[[T], None],
        *,
        stuck: Callable[[T, Callable[[], bool]], None] = lambda _, __: None,
        name: str = "recuse",
    ) -> None:
        """Prepare; :meth:`start` makes the first threads.

        Args:
            receive: waits for an item; None is the end. Called by one thread at a time, but for
                moments in which leadership changes.
            handle: handles an item, and may block. An exception that escapes is logged.
            stuck: told of an item whose handler was found blocking, and given what tells whether it
                still is.
            name: the beginning of the threads' names.
        """
        self._receive = receive
        self._handle = handle
        self._stuck = stuck
        self._name = name
        self._turn: _Turn[T] = _Turn()
        self._lock = threading.Lock()
        self._spare = 0
        self._called = threading.Semaphore(0)
        self._made = 0
        self._ended = threading.Event()
        self._parked = False
        self._unpark = threading.Event()

    def start(self) -> None:
        """Start leading."""
        threading.Thread(target=self._monitor, name=f"{self._name}-monitor", daemon=True).start()
        self._make_thread()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of the source; False if it has not come by then.

        Threads whose handlers still block then are not waited for: they end with their handlers.
        """
        return self._ended.wait(timeout)

    def pass_lead(self) -> None:
        """Let another thread lead: the calling handler knows that it will block."""
        turn = self._turn
        with self._lock:
            if self._turn is turn and not turn.over:
                self._change_leader()

    def _make_thread(self) -> None:
        self._made += 1
        threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()

    def _change_leader(self) -> None:
        self._turn.over = True
        self._turn = _Turn()
        if self._spare:
            self._spare -= 1
            self._called.release()
        else:
            self._make_thread()

    def _work(self) -> None:
        while self._lead(self._turn) and self._wait_for_turn():
            pass

    def _lead(self, turn: _Turn[T]) -> bool:
        """Receive and handle until the turn is over; False at the end of the source."""
        receive, handle = self._receive, self._handle
        while not turn.over:
            item = receive()
            if item is None:
                self._end()
                return False
            turn.item = item
            turn.count += 1
            if self._parked:
                self._unpark.set()
            try:
                handle(item)
            except Exception:
                _log.exception("internal error while handling %r", item)
            turn.count += 1
        return True

    def _wait_for_turn(self) -> bool:
        with self._lock:
            if self._ended.is_set() or self._spare >= _SPARE_THREADS:
                return False
            self._spare += 1
        self._called.acquire()
        return not self._ended.is_set()

    def _end(self) -> None:
        with self._lock:
            self._ended.set()
            for _ in range(self._spare):
                self._called.release()
            self._spare = 0
        self._unpark.set()

    def _tell_stuck(self, turn: _Turn[T], count: int) -> None:
        item = turn.item
        if item is not None:
            try:
                self._stuck(item, lambda: turn.count == count)
            except Exception:
                _log.exception("internal error while looking at %r", item)

    def _monitor(self) -> None:
        """Find turns that stand still. Sleeps for good while nothing happens."""
        seen, count, idle = self._turn, 0, 0
        while not self._ended.wait(TICK):
            turn = self._turn
            if turn is not seen or turn.count != count:
                seen, count, idle = turn, turn.count, 0
            elif count % 2:
                with self._lock:
                    stuck = self._turn is turn and turn.count == count
                    if stuck:
                        self._change_leader()
                if stuck:
                    self._tell_stuck(turn, count)
                idle = 0
            else:
                idle += 1
                if idle > _IDLE_TICKS:
                    self._unpark.clear()
                    self._parked = True
                    if turn.count == count and not self._ended.is_set():
                        self._unpark.wait()
                    self._parked = False
                    idle = 0
