"""Room for descriptors: not all that are allowed are kept for long.

Each open device costs a sandbox one descriptor, and each recently seen thread costs it two. But
almost every call needs some for a moment, even a call of an ordinary program. So some numbers are
left free for that. The lowest free number is used first, so the number of a new descriptor shows
how many there are.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from types import TracebackType
from typing import Final

from recuse.runtime.log import Log

_LEFT: Final = (3, 64)
"""Numbers left free for short use: at least and at most. In between, about a quarter."""

_told = False
_log = Log("recuse.runtime")


def is_plenty(descriptor: int) -> bool:
    """Whether half of all descriptors are free, so that this one may be kept to save time."""
    return descriptor < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def has_room(number: int) -> bool:
    """Whether this many descriptors are available."""
    try:
        with select.epoll() as lowest:
            return lowest.fileno() <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - number
    except OSError:
        return False


def check_room(descriptor: int) -> None:
    """Check that a new descriptor may be kept; the caller still has to close it.

    Raises:
        OSError: ENFILE if too few would be left. The error is as if the machine's table were full.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    least, most = _LEFT
    if descriptor >= limit - max(least, min(most, limit // 4 - 3)):
        raise no_room()


class _Keeping:
    """See `keeping`. One object serves all: it has no state."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise no_room() from None


_KEEPING: Final = _Keeping()


def keeping() -> _Keeping:
    """For code that makes descriptors which are kept: if there can be no more, it raises ENFILE.

    EMFILE would mean that the caller's own table is full.
    """
    return _KEEPING


def no_room() -> OSError:
    """The error for a descriptor that cannot be kept; the user is told once."""
    global _told
    if not _told:
        _told = True
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        _log.error(
            "no more descriptors (ulimit -n is %d): what needs one for long fails with ENFILE",
            limit,
        )
    return OSError(errno.ENFILE, os.strerror(errno.ENFILE))
