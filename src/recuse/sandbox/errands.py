"""Work that is due soon, but not where it comes up: it may block, or need a lock held there."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import TypeAlias

from recuse.channel.workers import Workers

Errand: TypeAlias = Callable[[], None]


class Errands:
    """The threads that do a machine's errands.

    They exist before any program runs: when no more threads can be started, programs still wait
    for devices and must be woken.
    """

    def __init__(self) -> None:
        """Start them.

        Raises:
            OSError: EAGAIN if no thread can be started.
        """
        self._queue: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._workers: Workers[Errand] = Workers(self._get, _do, name="recuse-errands")
        self._workers.start()

    def put(self, errand: Errand) -> None:
        """Have something done in a thread that it may block. This never waits."""
        self._queue.put(errand)

    def _get(self) -> Errand | None:
        errand = self._queue.get()
        if errand is None:
            self._queue.put(None)  # for a moment, another thread may be here
        return errand

    def close(self) -> None:
        """End when everything that was put has started."""
        self._queue.put(None)
        self._workers.join()


def _do(errand: Errand) -> None:
    errand()
