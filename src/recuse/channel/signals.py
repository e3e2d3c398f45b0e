"""Signals that ask a server to end, in whichever thread they arrive."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recuse.runtime import threads
from recuse.runtime.children import not_for_children
from recuse.runtime.locks import new_lock

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SAME_SIGNAL_S = 1.0
"""Signals within this time count as one: timeout(1) signals the process and its group."""

_WOKEN, _CLOSED = b"\0", b"\xff"  # no signal has these numbers


class EndingSignals:
    """Waits for a signal to end. A second one ends the process at once. For the main thread."""

    def __init__(self) -> None:
        # Linux may deliver a signal to another thread, or just before the main thread waits. Then
        # it does not end a wait for a lock or a queue. But what Python writes to a pipe stays
        # there.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # A signal that is ignored (nohup) stays ignored.
        self._previous = {
            number: signal.signal(number, _note)
            for number in ENDING
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._watcher: threading.Thread | None = None
        self._lock = new_lock("EndingSignals")
        not_for_children(self)

    def wait(self) -> bool:
        """Wait for a signal (True) or for `wake` (False). Call it only once for a signal."""
        while (number := os.read(self._reader, 1)[0]) not in self._previous:
            if number == _WOKEN[0]:
                return False
        try:
            self._watcher = threads.start(self._watch, name="recuse-ending")
        except OSError:
            # Nobody can wait for another one: the next signal ends the process.
            for signal_number in self._previous:
                signal.signal(signal_number, signal.SIG_DFL)
        return True

    def wake(self) -> None:
        """End the wait, or the next one, for another reason. Any thread may call this."""
        with self._lock:
            if self._writer >= 0:
                os.write(self._writer, _WOKEN)

    def close(self) -> None:
        """Restore what the signals did before."""
        with self._lock:
            if self._writer < 0:
                return  # this is a child
            self._restore()
            if self._watcher is not None:
                # A child of this process may have a copy: that it is closed may not be seen.
                os.write(self._writer, _CLOSED)
            os.close(self._writer)
            self._writer = -1
        if self._watcher is not None:
            self._watcher.join()
        os.close(self._reader)

    def leave_to_parent(self) -> None:
        """See `recuse.runtime.children`; a signal for the child would end the parent's wait."""
        if self._writer >= 0:
            self._restore()
            os.close(self._writer)
            os.close(self._reader)
            self._writer = -1

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)

    def _watch(self) -> None:
        first = time.monotonic()
        while (data := os.read(self._reader, 1)) != _CLOSED:
            if data[0] in self._previous and time.monotonic() - first > SAME_SIGNAL_S:
                os._exit(128 + data[0])


@contextmanager
def ending_signals() -> Iterator[EndingSignals]:
    """While this is open, take SIGINT, SIGTERM and SIGHUP as signals to end."""
    signals = EndingSignals()
    try:
        yield signals
    finally:
        signals.close()


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. As there is a handler, Python writes the signal's number to the pipe."""
