"""How work for the event loop arrives from other threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, EpollSelector, SelectorKey

from recuse.runtime.locks import new_lock


class Arrivals(EpollSelector):
    """Waits for a loop's events, and calls what arrives meanwhile before the loop's next callbacks.

    `asyncio.loop.call_soon_threadsafe` takes a pair of sockets, one more turn of the loop, and
    twice the time.
    """

    def __init__(self) -> None:
        """Make it. Raises OSError: EMFILE."""
        super().__init__()
        self._lock = new_lock("Arrivals")
        self._calls: deque[Callable[[], object]] = deque()
        try:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            super().close()
            raise
        self.register(self._event, EVENT_READ)

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop's thread call a function soon, from any thread.

        Raises RuntimeError if the loop has been closed.
        """
        with self._lock:
            if self._event < 0:
                raise RuntimeError("the event loop is closed")
            self._calls.append(function)
            os.eventfd_write(self._event, 1)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait for events; what this calls may add callbacks to the loop, which come next."""
        calls = self._calls
        ready = super().select(0 if calls else timeout)
        for index, (key, _) in enumerate(ready):
            if key.fd == self._event:
                # In this order, so that what comes meanwhile is not lost.
                os.eventfd_read(self._event)
                del ready[index]
                break
        while calls:
            calls.popleft()()
        return ready

    def close(self) -> None:
        """Close it, as the loop does at its end."""
        with self._lock:
            event, self._event = self._event, -1
        if event >= 0:
            os.close(event)
        super().close()
