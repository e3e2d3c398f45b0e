"""Starting threads, of which there may be no more; and threads that are the last ones."""

import errno
import threading
from collections.abc import Callable
from typing import Final

LAST_THREADS: Final[dict[int, Callable[[], bool]]] = {}
"""Those that must not block, by `threading.get_ident`: there is no other to do their work. With
each what tries once more to find one.

Hardly ever are there any: look at this before asking `must_not_block`.
"""


def start(target: Callable[..., object], *arguments: object, name: str) -> threading.Thread:
    """Start a daemon thread.

    Raises:
        OSError: EAGAIN if there can be none, for lack of memory or of ids (RLIMIT_NPROC, a
            cgroup's pids.max), or since the interpreter ends.
    """
    try:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        thread.start()
    except (RuntimeError, MemoryError) as error:
        # All that the interpreter says is "can't start new thread".
        raise no_more() from error
    return thread


def must_not_block() -> bool:
    """Whether the calling thread is one of `LAST_THREADS`, and still has to be."""
    relieve = LAST_THREADS.get(threading.get_ident())
    return relieve is not None and not relieve()


def no_more() -> OSError:
    """The error of what needs another thread and cannot have it."""
    return OSError(errno.EAGAIN, "no more threads can be started")
