"""Signals that ask a server to end, in whichever thread they arrive."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.signals import SignalPipe

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SAME_SIGNAL_S = 1.0
"""Signals within this time count as one: timeout(1) signals the process and its group."""

_WOKEN, _CLOSED = b"\0", b"\xff"  # no signal has these numbers


class EndingSignals:
    """Waits for a signal to end. A second one ends the process at once. For the main thread."""

    def __init__(self) -> None:
        self._pipe = SignalPipe()
        self._pipe.take(ENDING)
        self._watcher: threading.Thread | None = None
        self._lock = new_lock("EndingSignals")

    def wait(self) -> bool:
        """Wait for a signal (True) or for `wake` (False). Call it only once for a signal."""
        while (number := os.read(self._pipe.reader, 1)[0]) not in self._pipe.taken:
            if number == _WOKEN[0]:
                return False
        try:
            self._watcher = threads.start(self._watch, name="recuse-ending")
        except OSError:
            # Nobody can wait for another one: the next signal ends the process.
            for signal_number in self._pipe.taken:
                signal.signal(signal_number, signal.SIG_DFL)
        return True

    def wake(self) -> None:
        """End the wait, or the next one, for another reason. Any thread may call this."""
        with self._lock:
            if not self._pipe.closed:
                os.write(self._pipe.writer, _WOKEN)

    def close(self) -> None:
        """Restore what the signals did before."""
        if self._pipe.closed:
            return  # this is a child
        self._pipe.restore()
        if self._watcher is not None:
            # A child of this process may have a copy: that it is closed may not be seen.
            os.write(self._pipe.writer, _CLOSED)
            self._watcher.join()
        with self._lock:
            self._pipe.close()

    def _watch(self) -> None:
        first = time.monotonic()
        while (data := os.read(self._pipe.reader, 1)) != _CLOSED:
            if data[0] in self._pipe.taken and time.monotonic() - first > SAME_SIGNAL_S:
                os._exit(128 + data[0])


@contextmanager
def ending_signals() -> Iterator[EndingSignals]:
    """While this is open, take SIGINT, SIGTERM and SIGHUP as signals to end."""
    signals = EndingSignals()
    try:
        yield signals
    finally:
        signals.close()
