"""What a program natively holds of an open file: one end of something. recuse has the other.

So everything that can happen to a descriptor in Linux happens to this one without help: dup, fork,
exec, close-on-exec, SCM_RIGHTS, exit, kill. The kind of file decides which sort of end it is. The
kernel polls it, so it is made to look as ready as the file is.
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
"""The events of a socket that has something to read, and of one that has room (unix_poll)."""

# A device may report more than that. Sleepers are woken as well as possible.
READING: Final = READABLE | select.POLLRDBAND | select.POLLRDHUP | POLLERR | POLLHUP | POLLNVAL
WRITING: Final = WRITABLE | POLLERR | POLLHUP | POLLNVAL


class NativeEnd(Protocol):
    """The programs' end, controlled from recuse's end. At first it is readable and writable."""

    link: str
    """What ``/proc/PID/fd/N`` reads for it."""
    ours: int
    """The supervisor's end, which hangs up when the programs' end is gone; -1 once closed."""
    theirs: int
    """The supervisor's copy of the programs' end, until :meth:`hand_over`."""
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
        """How often :meth:`touch_writable` can still be noticed, plus one."""

    @property
    def full(self) -> bool:
        """Whether there is little room left for :meth:`make_readable`."""

    def check(self, events: int) -> None:
        """Raise OSError, EOPNOTSUPP, for a wait that nothing here could end."""

    def can_show(self, bits: int, events: int) -> bool:
        """Whether it can show exactly those of ``events`` that are in ``bits``."""

    def make_readable(self) -> None:
        """Show POLLIN. If it is shown already, be noticed once more."""

    def make_urgent(self) -> None:
        """Show POLLPRI. POLLIN cannot be avoided then."""

    def make_writable(self) -> None:
        """Show POLLOUT."""

    def touch_writable(self) -> None:
        """Show POLLOUT as before, and be noticed once more."""

    def lower(self, fetch: Callable[[], int], *, drain: bool, fill: bool, spare: bool) -> None:
        """Stop showing POLLIN and POLLPRI, stop showing POLLOUT, or get spare messages.

        Raises:
            OSError: as ``fetch`` does. It returns a copy of the programs' end.
        """

    def sever(self, close: Callable[[], None]) -> None:
        """Show for ever that the file has ended; ``close`` closes the supervisor's end for that."""

    def hand_over(self) -> None:
        """Close the supervisor's copy of the programs' end: it is installed, or never will be."""

    def hung_up(self) -> bool:
        """Whether no program holds it any more, or it was closed."""

    def close(self) -> None:
        """Close the supervisor's end, and its copy of the programs' end."""


def shown(bits: int) -> int:
    """What an end shows for a file with this readiness."""
    return (READABLE if bits & READING else 0) | (WRITABLE if bits & WRITING else 0)


def fetch(tid: Tid, number: int, link: str, copy: Callable[[int], int]) -> int:
    """Return a copy of an end that a thread has, under that number or another one.

    Raises:
        OSError: EBADF if it does not have it; as ``copy``, which copies a descriptor of the thread.
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
