"""The files that somebody polls: fs/fuse/file.c, fuse_notify_poll_wakeup, Linux 6.1."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from recuse.runtime.log import Log
from recuse.wire.ids import Kh

log = Log("recuse.kernel")


class PolledFiles:
    """The files of one connection that somebody polls and waits for. Thread-safe.

    The server knows a file by its ``kh``.
    """

    def __init__(self) -> None:
        self._khs = itertools.count(1)
        self._wake: dict[Kh, Callable[[], None]] = {}

    def next_kh(self) -> Kh:
        """Return the number for a new file. All opens are counted, including those that fail."""
        # fs/fuse/file.c, fuse_file_alloc.
        return Kh(next(self._khs))

    def add(self, kh: Kh, wake: Callable[[], None]) -> None:
        """Have ``wake`` called for each notification, and at the connection's end, until `remove`.

        It is called in the server's threads, at any point of what they do: it must not wait or make
        requests.
        """
        self._wake[kh] = wake

    def remove(self, kh: Kh) -> None:
        """Forget a file; a second call does nothing."""
        self._wake.pop(kh, None)

    def notify(self, kh: Kh) -> None:
        """Wake the pollers of a file, if there are any."""
        wake = self._wake.get(kh)
        if wake is not None:
            _call(wake)

    def end(self) -> None:
        """Wake all pollers: the connection has ended, so polling again gives an error."""
        # fs/fuse/dev.c, end_polls.
        for wake in list(self._wake.values()):
            _call(wake)


def _call(wake: Callable[[], None]) -> None:
    try:
        wake()
    except Exception:
        log.exception("pollers were not woken")
