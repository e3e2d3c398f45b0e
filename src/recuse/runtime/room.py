"""Room for descriptors: not all that there may be are kept for long.

Each open device costs a sandbox a descriptor, and each thread that was seen lately two. But almost
every call needs some for a moment, an ordinary program's too. So some numbers are left to
those; numbers are given from the lowest, so the number of a new descriptor says how many there are.
"""

import contextlib
import errno
import os
import resource
import select
from collections.abc import Iterator
from typing import Final

from recuse.runtime.log import Log

_LEFT: Final = (3, 64)
"""Numbers for what is needed for a moment: at least, at most; between, about a quarter."""

_told = False
_log = Log("recuse.runtime")


def is_plenty(descriptor: int) -> bool:
    """Whether half of all descriptors are free: so this one may be kept to save time."""
    return descriptor < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def has_room(number: int) -> bool:
    """Whether so many descriptors can be had."""
    try:
        with select.epoll() as lowest:
            return lowest.fileno() <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - number
    except OSError:
        return False


def check_room(descriptor: int) -> None:
    """Check that a new descriptor may be kept; it is still the caller's to close.

    Raises:
        OSError: ENFILE if too few would be left. The machine's table is full, as it were.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    least, most = _LEFT
    if descriptor >= limit - max(least, min(most, limit // 4 - 3)):
        raise no_room()


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """For what makes descriptors that are kept: if there can be no more, that is ENFILE here.

    EMFILE would say that the caller's own table is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise no_room() from None


def no_room() -> OSError:
    """The error of what cannot be kept; the user is told once."""
    global _told
    if not _told:
        _told = True
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        _log.error(
            "no more descriptors (ulimit -n is %d): what needs one for long fails with ENFILE",
            limit,
        )
    return OSError(errno.ENFILE, os.strerror(errno.ENFILE))
