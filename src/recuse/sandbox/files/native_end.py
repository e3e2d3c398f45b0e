"""What a program natively holds of an open file: an end of something, of which we have the other.

So everything that can happen to a descriptor in Linux happens to this one by itself: dup, fork,
exec, close-on-exec, SCM_RIGHTS, exit, kill. Which end it is, is its kind of file's choice. The
kernel polls it, so it is made to look as the file is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable
from typing import Final, Protocol

from recuse.kernel.errors import os_error
from recuse.wire.ids import Tid

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


class NativeEnd(Protocol):
    """The programs' end, as it is made to look from ours. At first it is readable and writable."""

    link: str
    """As ``/proc/PID/fd/N`` reads for it."""
    ours: int
    """Our end, which hangs up with the last reference to theirs; -1 when it is closed."""
    theirs: int
    """Our copy of the programs' end, until :meth:`hand_over`."""
    severed: bool

    @property
    def readable(self) -> bool:
        """Whether it shows POLLIN."""

    @property
    def urgent(self) -> bool:
        """Whether it shows POLLPRI."""

    @property
    def writable(self) -> bool:
        """Whether it shows POLLOUT."""

    @property
    def spares(self) -> int:
        """How often :meth:`touch_writable` can be noticed, and one."""

    @property
    def full(self) -> bool:
        """Whether there is not much room left for :meth:`make_readable`."""

    def check(self, events: int) -> None:
        """Raise OSError, EOPNOTSUPP, for a wait that nothing here could end."""

    def can_show(self, bits: int, events: int) -> bool:
        """Whether it can show just those of ``events`` that are in ``bits``."""

    def make_readable(self) -> None:
        """Show POLLIN; again, to be noticed once more."""

    def make_urgent(self) -> None:
        """Show POLLPRI, and POLLIN with it, which cannot be helped."""

    def make_writable(self) -> None:
        """Show POLLOUT."""

    def touch_writable(self) -> None:
        """Show POLLOUT as before, to be noticed once more."""

    def lower(self, fetch: Callable[[], int], *, drain: bool, fill: bool, spare: bool) -> None:
        """Show no POLLIN and POLLPRI any more, no POLLOUT, or get spare messages; or several.

        Raises:
            OSError: as ``fetch`` does, which returns a copy of the programs' end.
        """

    def sever(self, close: Callable[[], None]) -> None:
        """Show for good that there is an end; ``close`` closes ours, if that is how to show it."""

    def hand_over(self) -> None:
        """The programs' end is theirs now, or never will be: close our copy."""

    def hung_up(self) -> bool:
        """Whether no program holds it any more, or it was closed."""

    def close(self) -> None:
        """Close our end, and our copy of theirs if it is still there."""


def shown(bits: int) -> int:
    """What an end shows for what a file is ready for."""
    return (READABLE if bits & READING else 0) | (WRITABLE if bits & WRITING else 0)


def fetch(tid: Tid, number: int, link: str, copy: Callable[[int], int]) -> int:
    """Return a copy of an end, which a thread has by that number or another one.

    Raises:
        OSError: EBADF if it has not; as ``copy``, which copies one of the thread's descriptors.
    """
    found = copy(number)
    if _is(found, link):
        return found
    os.close(found)
    for name in os.listdir(f"/proc/{tid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{tid}/fd/{name}") == link:
                found = copy(int(name))
                if _is(found, link):
                    return found
                os.close(found)
    raise os_error(errno.EBADF)


def _is(copy: int, link: str) -> bool:
    return link == f"socket:[{os.fstat(copy).st_ino}]"
