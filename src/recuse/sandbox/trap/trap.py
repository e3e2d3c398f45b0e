"""The place where the calls of the programs under one listener arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.channel.workers import TICK

if TYPE_CHECKING:
    from recuse.sandbox.tasks.tasks import Tasks
    from recuse.sandbox.tasks.unseen import Unseen
    from recuse.sandbox.trap.listener import Listener
    from recuse.sandbox.trap.signals import SignalWatch


QUICK_CALLS: Final = 16
"""After this many quick calls in a row, an operation that has blocked counts as quick again."""


class Trap:
    """Where the calls of the programs under one listener arrive, and what all of them need."""

    __slots__ = ("blocking", "listener", "signals", "tasks", "unseen", "waiting")

    def __init__(
        self, listener: Listener, tasks: Tasks, signals: SignalWatch, unseen: Unseen
    ) -> None:
        """Prepare.

        Args:
            listener: takes the answers.
            tasks: knows who makes the calls.
            signals: looks for signals while calls wait.
            unseen: is told of processes that nobody may look into.
        """
        self.listener = listener
        self.tasks = tasks
        self.signals = signals
        self.unseen = unseen
        self.waiting = signals.waiting
        self.blocking: dict[tuple[int, int], int] = {}
        """By device and system call: for how many more calls the operation is expected to block."""

    def took(self, key: tuple[int, int], duration_s: float) -> None:
        """An operation that was expected to block has taken this long."""
        if duration_s >= TICK:
            self.blocking[key] = QUICK_CALLS
            return
        left = self.blocking.get(key, 0) - 1
        if left > 0:
            self.blocking[key] = left
        else:
            self.blocking.pop(key, None)
