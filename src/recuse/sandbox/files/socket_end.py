"""A device's descriptor as the kernel sees it: one end of a socket pair, with its own readiness.

That is made to be the device's, so that programs can sleep in poll, select and epoll natively:

    POLLIN     something lies in its receive queue. Our end sends; only their end can take it out
    POLLPRI    out-of-band data are among it
    POLLOUT    its send queue has room. Only their end can fill it; our end takes it out
    POLLERR    our end was closed with something unread: for good

So becoming ready can happen at any time. Becoming unready needs the programs' end, a copy of which
is fetched for a moment: in a trapped call, whose caller holds it.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Callable
from typing import Final

POLLIN: Final = select.POLLIN
POLLPRI: Final = select.POLLPRI
POLLOUT: Final = select.POLLOUT
POLLERR: Final = select.POLLERR
POLLHUP: Final = select.POLLHUP
POLLNVAL: Final = select.POLLNVAL
EPOLLET: Final = select.EPOLLET

READABLE: Final = POLLIN | select.POLLRDNORM
WRITABLE: Final = POLLOUT | select.POLLWRNORM | select.POLLWRBAND
"""What a socket shows with something to read, and with room to write (net/unix, unix_poll)."""

# A device may show more than that; whoever sleeps is woken as well as can be.
READING: Final = READABLE | select.POLLRDBAND | select.POLLRDHUP | POLLERR | POLLHUP | POLLNVAL
WRITING: Final = WRITABLE | POLLERR | POLLHUP | POLLNVAL

READY: Final = b"\0"
"""What lies in the programs' end while it is readable; no program sees it."""

_SEND_BUFFER: Final = 16384
"""For SO_SNDBUF: with :data:`_SPARES` small messages on their way the end is writable, with
:data:`_FILL` bytes more it is not (unix_writable: a quarter of twice this, with overheads)."""
_SPARES: Final = 8
_FILL: Final = 16000
_MOST: Final = 1 << 16
_SENT: Final = 64


class NativeEnd:
    """The programs' end of a socket pair, as it is made to look from ours.  Not thread-safe."""

    __slots__ = (
        "_buffered",
        "_sent",
        "_sever",
        "_socket",
        "readable",
        "severed",
        "spares",
        "urgent",
        "writable",
    )

    def __init__(self, ours: socket.socket, sever: Callable[[], None]) -> None:
        """Use a pair that is readable and writable, with one byte on its way to us.

        ``sever`` closes our end.
        """
        self._socket = ours
        self._sever = sever
        self.severed = False
        self.readable = True
        self._sent = 1
        self.urgent = False
        self.writable = True
        self.spares = 1
        """Small messages on their way to us: each taken is news to who waits to write."""
        self._buffered = False

    @property
    def full(self) -> bool:
        """Whether there is not much room left for :meth:`make_readable`."""
        return self._sent > _SENT

    def check(self, events: int) -> None:
        """All events can wake somebody."""

    def make_readable(self) -> None:
        """Show POLLIN; again, to be noticed once more."""
        self.readable = True
        self._sent += 1
        with contextlib.suppress(OSError):
            self._socket.send(READY, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def make_urgent(self) -> None:
        """Show POLLPRI, and POLLIN with it, which cannot be helped."""
        self.readable = self.urgent = True
        with contextlib.suppress(OSError):
            try:
                self._socket.send(READY, socket.MSG_OOB | socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except OSError:  # before Linux 5.15, or configured without
                self.make_readable()

    def make_writable(self) -> None:
        """Show POLLOUT."""
        self.writable = True
        with contextlib.suppress(OSError):
            # One byte stays: `sever` needs it.
            self._socket.recv(self.spares + _FILL, socket.MSG_DONTWAIT)
        self.spares = 1

    def touch_writable(self) -> None:
        """Show POLLOUT as before, to be noticed once more."""
        if self.spares > 1:
            self.spares -= 1
            with contextlib.suppress(OSError):
                self._socket.recv(1, socket.MSG_DONTWAIT)

    def lower(self, fetch: Callable[[], int], *, drain: bool, fill: bool, spare: bool) -> None:
        """Show no POLLIN and POLLPRI any more, no POLLOUT, or get spare messages; or several.

        Raises:
            OSError: as ``fetch`` does, but for EBADF and ESRCH: then the caller has it no more.
        """
        if self.severed:
            return
        try:
            theirs = socket.socket(fileno=fetch())
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ESRCH):
                return
            raise
        with theirs, contextlib.suppress(BlockingIOError):
            if drain:
                self.readable = self.urgent = False
                self._sent = 0
                with contextlib.suppress(OSError):  # there is none
                    theirs.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)
                with contextlib.suppress(BlockingIOError):
                    while theirs.recv(_MOST, socket.MSG_DONTWAIT):
                        pass
            if (fill or spare) and not self._buffered:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                self._buffered = True
            while spare and self.writable and self.spares < _SPARES:
                theirs.send(READY, socket.MSG_DONTWAIT)
                self.spares += 1
            if fill:
                self.writable = False
                theirs.send(bytes(_FILL), socket.MSG_DONTWAIT)
                theirs.send(READY, socket.MSG_DONTWAIT)

    def sever(self) -> None:
        """Show POLLERR, and with it POLLHUP and POLLIN, for good: close our end."""
        if not self.severed:
            self.severed = True
            self.readable = self.writable = True
            self._sever()
