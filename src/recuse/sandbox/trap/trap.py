"""Where the calls of the programs under one listener arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.channel.workers import TICK

if TYPE_CHECKING:
    from recuse.sandbox.tasks.tasks import Tasks
    from recuse.sandbox.tasks.unseen import Unseen
    from recuse.sandbox.trap.listener import Listener
    from recuse.sandbox.trap.signals import SignalWatch


QUICK_CALLS: Final = 16
"""After how many quick calls in a row an operation that blocked once counts as quick again."""


class Trap:
    """Where the calls of the programs under one listener arrive, and what all of them need."""

    __slots__ = ("blocking", "listener", "signals", "tasks", "unseen", "waiting")

    def __init__(
        self, listener: Listener, tasks: Tasks, signals: SignalWatch, unseen: Unseen
    ) -> None:
        """Prepare.

        Args:
            listener: takes the answers.
            tasks: tells who makes the calls.
            signals: looks for signals while calls wait.
            unseen: is told of processes that let nobody look into them.
        """
        self.listener = listener
        self.tasks = tasks
        self.signals = signals
        self.unseen = unseen
        self.waiting = signals.waiting
        self.blocking: dict[tuple[int, int], int] = {}
        """By device and system call: how often operations that blocked are still expected to."""

    def took(self, key: tuple[int, int], duration_s: float) -> None:
        """An operation that was expected to block has taken so long."""
        if duration_s >= TICK:
            self.blocking[key] = QUICK_CALLS
            return
        left = self.blocking.get(key, 0) - 1
        if left > 0:
            self.blocking[key] = left
        else:
            self.blocking.pop(key, None)
