"""Starting threads, which may fail; and threads that are the last ones."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Final

LAST_THREADS: Final[dict[int, Callable[[], bool]]] = {}
"""Threads that must not block, by `threading.get_ident`: no other could do their work. Each has a
function that tries once more to find another thread.

It is almost always empty: look at this before calling `must_not_block`.
"""


def start(target: Callable[..., object], *arguments: object, name: str) -> threading.Thread:
    """Start a daemon thread.

    Raises:
        OSError: EAGAIN if it cannot be started: there is no memory, there are no more IDs
            (RLIMIT_NPROC, a cgroup's pids.max), or the interpreter is ending.
    """
    try:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        thread.start()
    except (RuntimeError, MemoryError) as error:
        # The interpreter only says "can't start new thread".
        raise no_more() from error
    return thread


def must_not_block() -> bool:
    """Whether the calling thread is one of `LAST_THREADS`, and still needs to be."""
    relieve = LAST_THREADS.get(threading.get_ident())
    return relieve is not None and not relieve()


def no_more() -> OSError:
    """The error for what needs another thread and cannot get it."""
    return OSError(errno.EAGAIN, "no more threads can be started")
