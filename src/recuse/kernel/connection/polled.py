"""Which files somebody waits for: fs/fuse/file.c, fuse_notify_poll_wakeup, Linux 6.1."""

import itertools
from collections.abc import Callable

from recuse.runtime.log import Log
from recuse.wire.ids import Kh

log = Log("recuse.kernel")


class PolledFiles:
    """The files of one connection that somebody polls and waits for.  Thread-safe.

    A file is known to the server by its ``kh``.
    """

    def __init__(self) -> None:
        self._khs = itertools.count(1)
        self._wake: dict[Kh, Callable[[], None]] = {}

    def next_kh(self) -> Kh:
        """Return the number of a new file: opens are counted, also those that fail."""
        # fs/fuse/file.c, fuse_file_alloc.
        return Kh(next(self._khs))

    def add(self, kh: Kh, wake: Callable[[], None]) -> None:
        """Have ``wake`` called for each notification, and at the connection's end, until `remove`.

        It is called in the server's threads, in the middle of whatever they do: it must neither
        wait nor make requests.
        """
        self._wake[kh] = wake

    def remove(self, kh: Kh) -> None:
        """Forget a file; again, do nothing."""
        self._wake.pop(kh, None)

    def notify(self, kh: Kh) -> None:
        """Wake the pollers of a file, if there are any."""
        wake = self._wake.get(kh)
        if wake is not None:
            _call(wake)

    def end(self) -> None:
        """Wake all pollers: the connection has ended, so whoever polls now gets an error."""
        # fs/fuse/dev.c, end_polls.
        for wake in list(self._wake.values()):
            _call(wake)


def _call(wake: Callable[[], None]) -> None:
    try:
        wake()
    except Exception:
        log.exception("pollers were not woken")
