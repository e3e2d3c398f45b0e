"""Signals whose numbers Python writes to a pipe, where any thread can wait for them.

Linux may deliver a signal to another thread than the one that waits, or just before that one waits.
Then it does not end a wait for a lock or a child. But what is in a pipe stays there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from recuse.runtime.children import not_for_children


def note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. As there is a handler, Python writes the signal's number to the pipe."""


class SignalPipe:
    """The pipe, from whose reader come bytes. It is made and closed in the main thread.

    A child that is made by `os.fork` or `multiprocessing` does not have it, nor the handlers: its
    signals are not the parent's.
    """

    def __init__(self) -> None:
        """Make it. What it is to tell, `take` says."""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self._previous: dict[int, Any] = {}
        self._previous_writer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        not_for_children(self)

    def take(
        self, numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any] = note
    ) -> None:
        """Have a handler for signals. One that is ignored (nohup) stays ignored."""
        for number in numbers:
            previous = signal.getsignal(number)
            # If that of children is ignored, their exit status is lost.
            if previous is not signal.SIG_IGN or number == signal.SIGCHLD:
                self._previous[number] = previous
                signal.signal(number, handler)

    @property
    def taken(self) -> Iterable[int]:
        """The signals that have a handler."""
        return self._previous.keys()

    @property
    def closed(self) -> bool:
        """Whether it is closed; it is in a child."""
        return self.writer < 0

    def restore(self) -> None:
        """Have the signals do again what they did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)

    def close(self) -> None:
        """Restore the signals, and close the pipe."""
        if not self.closed:
            self.restore()
            os.close(self.writer)
            os.close(self.reader)
            self.reader = self.writer = -1

    def leave_to_parent(self) -> None:
        """See `recuse.runtime.children`."""
        self.close()
