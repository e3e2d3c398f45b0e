"""What is to be done soon, but not where it comes up: it may block, or need a lock held there."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TypeAlias

from recuse.channel.workers import Workers

Errand: TypeAlias = Callable[[], None]


class Errands:
    """The threads that do a machine's errands.

    They are there before any program runs: once there are no more threads, programs still wait for
    devices and must be woken up.
    """

    def __init__(self) -> None:
        """Start them.

        Raises:
            OSError: EAGAIN if there can be no threads.
        """
        self._queue: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._workers: Workers[Errand] = Workers(self._get, _do, name="recuse-errands")
        self._workers.start()

    def put(self, errand: Errand) -> None:
        """Have something done, in a thread that it may block; never waits."""
        self._queue.put(errand)

    def _get(self) -> Errand | None:
        errand = self._queue.get()
        if errand is None:
            self._queue.put(None)  # for a moment, there may be another thread here
        return errand

    def close(self) -> None:
        """End, when all that was put has been begun."""
        self._queue.put(None)
        self._workers.join()


def _do(errand: Errand) -> None:
    errand()
