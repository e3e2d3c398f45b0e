"""Readiness: fs/fuse/file.c, fuse_file_poll and fuse_notify_poll_wakeup, Linux 6.1.

A poll never waits.  Whoever wants to wait asks with ``waiting``, goes to sleep if there is nothing,
and asks again when the server has said that something changed (FUSE_NOTIFY_POLL).  A server may say
so at any moment, also between a request for it and the answer to that.
"""

import errno
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.request import Request
from recuse.runtime.log import Log
from recuse.wire.fuse import FUSE_POLL, FUSE_POLL_SCHEDULE_NOTIFY, fuse_poll_in, fuse_poll_out

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.kernel.devices import CharDevice
    from recuse.kernel.operation import Operation

log = Log("recuse.kernel")

POLLERR: Final = 0x8

DEFAULT_POLLMASK: Final = 0x145
"""POLLIN, POLLOUT, POLLRDNORM and POLLWRNORM: what a device without poll is always."""

POLL_KNOWN: Final = 0x27FF
"""The events that there are: POLLIN to POLLMSG, and POLLRDHUP (linux/poll.h, demangle_poll)."""


def do_poll(  # noqa: PLR0917  # by position, as `OpenFile` calls it
    device: "CharDevice", fh: int, kh: int, caller: "Caller", events: int, waiting: bool
) -> "Operation[int]":
    """Ask what a file is ready for, out of ``events``; see `OpenFile.poll`."""
    if device.no_poll:
        return DEFAULT_POLLMASK
    flags = FUSE_POLL_SCHEDULE_NOTIFY if waiting else 0
    reply = yield Request(
        FUSE_POLL,
        fuse_poll_in(fh=fh, kh=kh, flags=flags, events=events & POLL_KNOWN).pack(),
        fuse_poll_out.SIZE,
        fuse_poll_out.SIZE,
        caller.pid,
        caller.uid,
        caller.gid,
    )
    if not reply.error:
        return fuse_poll_out.unpack(reply.payload).revents & POLL_KNOWN
    if reply.error == -errno.ENOSYS:
        device.no_poll = True
        return DEFAULT_POLLMASK
    return POLLERR


class PolledFiles:
    """The files of one connection that somebody polls and waits for.  Thread-safe.

    A file is known to the server by its ``kh``.
    """

    def __init__(self) -> None:
        self._khs = itertools.count(1)
        self._wake: dict[int, Callable[[], None]] = {}

    def next_kh(self) -> int:
        """Return the number of a new file: opens are counted, also those that fail."""
        # fs/fuse/file.c, fuse_file_alloc.
        return next(self._khs)

    def add(self, kh: int, wake: Callable[[], None]) -> None:
        """Have ``wake`` called for each notification, and at the connection's end, until `remove`.

        It is called in the server's threads, in the middle of whatever they do: it must neither
        wait nor make requests.
        """
        self._wake[kh] = wake

    def remove(self, kh: int) -> None:
        """Forget a file; again, do nothing."""
        self._wake.pop(kh, None)

    def notify(self, kh: int) -> None:
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
