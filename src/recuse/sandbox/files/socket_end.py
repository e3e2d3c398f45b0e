"""A descriptor as the kernel sees it: one end of a socket pair, with its own readiness.

The socket is made as ready as the file is, so programs can sleep in poll, select and epoll
natively:

    POLLIN     there is data in its receive queue. Recuse's end sends; only this end takes it out
    POLLPRI    there is out-of-band data
    POLLOUT    its send queue has room. Only this end can fill it; recuse's end empties it
    POLLERR    recuse's end was closed with something unread. It stays

So the file can become ready at any time. To become unready, a copy of the programs' end is needed.
It is fetched for a moment during a trapped call, from the caller, who holds the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from recuse.runtime.room import check_room, keeping
from recuse.sandbox.files.native_end import shown

READY: Final = b"\0"
"""What is in the programs' end while it is readable. No program ever sees it."""

_SEND_BUFFER: Final = 16384
"""For SO_SNDBUF: with :data:`_SPARES` small messages on their way the end is writable, with
:data:`_FILL` bytes more it is not (unix_writable: a quarter of twice this, with overheads)."""
_SPARES: Final = 8
_FILL: Final = 16000
_MOST: Final = 1 << 16
_SENT: Final = 64


class SocketEnd:
    """One end of a socket pair: see `recuse.sandbox.files.native_end.NativeEnd`.

    Not thread-safe, except :meth:`hung_up` and what closes it.
    """

    __slots__ = (
        "_buffered",
        "_sent",
        "_socket",
        "link",
        "ours",
        "readable",
        "severed",
        "spares",
        "theirs",
        "urgent",
        "writable",
    )

    def __init__(self) -> None:
        """Make the pair.

        Raises:
            OSError: ENFILE if the supervisor has no descriptors left.
        """
        with keeping():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # A byte to read, and room to write: a device without a poll method is always ready.
        ours.send(READY)
        theirs.send(READY)  # for `sever`
        self._socket = ours
        self.ours = ours.fileno()
        self.theirs = theirs.detach()
        self.severed = False
        self.readable = True
        self._sent = 1
        self.urgent = False
        self.writable = True
        self.spares = 1
        """Small messages on their way to recuse. Taking one is news to those that wait to write."""
        self._buffered = False
        try:
            check_room(self.ours)
            self.link = f"socket:[{os.fstat(self.theirs).st_ino}]"
        except OSError:
            self.close()
            raise

    @property
    def full(self) -> bool:
        """Whether there is little room left for :meth:`make_readable`."""
        return self._sent > _SENT

    def check(self, events: int) -> None:
        """All events can wake somebody."""

    def can_show(self, bits: int, events: int) -> bool:
        """Whether it can show exactly those of ``events`` that are in ``bits``."""
        return not (shown(bits) ^ bits) & events

    def make_readable(self) -> None:
        """Show POLLIN. If it is shown already, be noticed once more."""
        self.readable = True
        self._sent += 1
        with contextlib.suppress(OSError):
            self._socket.send(READY, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def make_urgent(self) -> None:
        """Show POLLPRI. POLLIN cannot be avoided then."""
        self.readable = self.urgent = True
        with contextlib.suppress(OSError):
            try:
                self._socket.send(READY, socket.MSG_OOB | socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except OSError:  # before Linux 5.15, or a kernel configured without it
                self.make_readable()

    def make_writable(self) -> None:
        """Show POLLOUT."""
        self.writable = True
        with contextlib.suppress(OSError):
            # One byte stays: `sever` needs it.
            self._socket.recv(self.spares + _FILL, socket.MSG_DONTWAIT)
        self.spares = 1

    def touch_writable(self) -> None:
        """Show POLLOUT as before, and be noticed once more."""
        if self.spares > 1:
            self.spares -= 1
            with contextlib.suppress(OSError):
                self._socket.recv(1, socket.MSG_DONTWAIT)

    def lower(self, fetch: Callable[[], int], *, drain: bool, fill: bool, spare: bool) -> None:
        """Stop showing POLLIN and POLLPRI, stop showing POLLOUT, or get spare messages.

        Raises:
            OSError: as ``fetch``, except EBADF and ESRCH: the caller no longer has the end then.
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

    def sever(self, close: Callable[[], None]) -> None:
        """Show POLLERR for ever, and with it POLLHUP and POLLIN: close the supervisor's end."""
        if not self.severed:
            self.severed = True
            self.readable = self.writable = True
            close()

    def hand_over(self) -> None:
        """Close the supervisor's copy of the programs' end: it is installed, or never will be."""
        theirs, self.theirs = self.theirs, -1
        if theirs >= 0:
            os.close(theirs)

    def hung_up(self) -> bool:
        """Whether no program holds it any more, or it was closed."""
        try:
            self._socket.send(b"", socket.MSG_NOSIGNAL)  # quicker than asking poll
        except OSError:
            return True
        # The order matters: the number of a closed end may be another descriptor's by now.
        return self.ours < 0

    def close(self) -> None:
        """Close the supervisor's end, and its copy of the programs' end."""
        self.hand_over()
        self.ours = -1
        self._socket.close()
