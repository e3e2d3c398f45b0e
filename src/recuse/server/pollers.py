"""The waiting pollers of a file, as far as the server half knows."""

from __future__ import annotations

from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.pending_reply import Send
from recuse.wire.fuse import FUSE_NOTIFY_POLL, fuse_notify_poll_wakeup_out, fuse_out_header
from recuse.wire.ids import Kh

log = Log("recuse.server")

_SIZE = fuse_out_header.SIZE + fuse_notify_poll_wakeup_out.SIZE


class Pollers:
    """Notifications for one file that the kernel half has asked for and not received. Thread-safe.

    Each is sent once, like that of libfuse's pollhandle. Pollers that continue to wait ask again.
    """

    def __init__(self) -> None:
        self._lock = new_lock("Pollers")
        self._scheduled: set[tuple[Kh, Send]] = set()

    def add(self, kh: Kh, send: Send) -> None:
        """Remember to notify ``kh``, through ``send``."""
        with self._lock:
            self._scheduled.add((kh, send))

    def wake(self) -> None:
        """Send the notifications that were asked for."""
        with self._lock:
            scheduled, self._scheduled = self._scheduled, set()
        # Not under the lock: sending may take long, and may take other locks.
        for kh, send in scheduled:
            header = fuse_out_header(len=_SIZE, error=FUSE_NOTIFY_POLL, unique=0)
            try:
                send(header.pack() + fuse_notify_poll_wakeup_out(kh=kh).pack())
            except OSError as error:
                # The connection has ended, so nobody waits any longer.
                log.debug("a notification was not taken: %s", error)
