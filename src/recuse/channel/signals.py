"""Signals that ask a server to end, whichever thread gets them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from recuse.runtime import threads
from recuse.runtime.locks import new_lock

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SAME_SIGNAL_S = 1.0
"""Signals that come within this time are one: timeout(1) sends to the process and to its group."""

_WOKEN = b"\0"  # the number of no signal


class EndingSignals:
    """Waits for a signal to end; a later one ends the process at once. For the main thread."""

    def __init__(self) -> None:
        # Linux may give a signal to any thread, or give it just before the main thread waits:
        # neither ends a wait for a lock or a queue. What Python writes into a pipe stays there.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # What is ignored (nohup) stays so.
        self._previous = {
            number: signal.signal(number, _note)
            for number in ENDING
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._watcher: threading.Thread | None = None
        self._lock = new_lock("EndingSignals")

    def wait(self) -> bool:
        """Wait for a signal, True, or for `wake`, False. Once for a signal."""
        while (number := os.read(self._reader, 1)[0]) not in self._previous:
            if number == _WOKEN[0]:
                return False
        try:
            self._watcher = threads.start(self._watch, name="recuse-ending")
        except OSError:
            # Nobody can wait for another one: the next ends the process by itself.
            for signal_number in self._previous:
                signal.signal(signal_number, signal.SIG_DFL)
        return True

    def wake(self) -> None:
        """End the wait, or the next one, for another reason; any thread may."""
        with self._lock:
            if self._writer >= 0:
                os.write(self._writer, _WOKEN)

    def close(self) -> None:
        """Have the signals do what they did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)
        with self._lock:
            os.close(self._writer)
            self._writer = -1
        if self._watcher is not None:
            self._watcher.join()
        os.close(self._reader)

    def _watch(self) -> None:
        first = time.monotonic()
        while data := os.read(self._reader, 1):
            if data[0] in self._previous and time.monotonic() - first > SAME_SIGNAL_S:
                os._exit(128 + data[0])


@contextmanager
def ending_signals() -> Iterator[EndingSignals]:
    """Take SIGINT, SIGTERM and SIGHUP for signals to end meanwhile."""
    signals = EndingSignals()
    try:
        yield signals
    finally:
        signals.close()


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing here: that there is a handler has the signal's number written to the pipe."""
