"""Tells the kernel half that what it has cached is out of date (fs/fuse/dev.c, fuse_notify).

For this Linux takes locks, which a program may hold while its own request is answered. To
invalidate a name it locks the directory (fs/fuse/dir.c, fuse_reverse_inval_entry). To invalidate
content it locks each page, even one that is being read (fs/fuse/inode.c, fuse_reverse_inval_inode).
So a method that waited for its notification could wait for itself. Therefore no method waits: a
separate thread sends the notifications, in order.
"""

from __future__ import annotations

import errno
import itertools
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.wire.declare import Structure
from recuse.wire.fuse import (
    FUSE_NOTIFY_RETRIEVE,
    fuse_in_header,
    fuse_out_header,
)
from recuse.wire.notify import fuse_notify_retrieve_in, fuse_notify_retrieve_out

if TYPE_CHECKING:
    from recuse.server.pending_reply import Send

log = Log("recuse.server")

_HEADER: Final = fuse_out_header.SIZE
_DATA: Final = fuse_in_header.SIZE + fuse_notify_retrieve_in.SIZE
_FIRST_UNIQUE: Final = 1 << 61
"""Of what is asked for. The kernel sends the answer as a request with that number, which none of
its own may have: with io_uring it finds by that what is answered (fs/fuse/dev_uring.c, 6.18)."""
_USUAL: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTDIR})
"""The kernel half does not know the node or name, or the connection is gone."""


class Notifications:
    """The notifications of one session. Thread-safe; no method waits."""

    def __init__(self, send: Send) -> None:
        """Send them through ``send``; the thread for that starts with the first one."""
        self._send = send
        self._lock = new_lock("Notifications")
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._uniques = itertools.count(_FIRST_UNIQUE, 2)
        self._wanted: dict[int, Future[bytes]] = {}
        self._refused: set[int] = set()

    def put(self, code: int, body: Structure | None = None, data: bytes = b"") -> None:
        """Send a notification soon; nothing happens once the session is closed.

        Raises:
            OSError: EAGAIN if no thread can be started for it.
        """
        packed = b"" if body is None else body.pack()
        message = fuse_out_header(len=_HEADER + len(packed) + len(data), error=code).pack()
        self._add(lambda: self._deliver(code, message + packed + data))

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """Ask for what the kernel half has of a node's content; see `RegularFile.retrieve`."""
        unique = next(self._uniques)
        wanted: Future[bytes] = Future()
        body = fuse_notify_retrieve_out(
            notify_unique=unique, nodeid=number, offset=offset, size=size
        )
        header = fuse_out_header(len=_HEADER + body.SIZE, error=FUSE_NOTIFY_RETRIEVE)

        def ask() -> None:
            self._wanted[unique] = wanted
            error = self._try(header.pack() + body.pack())
            if error is not None and self._wanted.pop(unique, None) is not None:
                wanted.set_exception(error)

        self._add(ask)
        return wanted

    def retrieved(self, unique: int, message: bytes) -> None:
        """Take the answer to a `retrieve`, the request NOTIFY_REPLY."""
        wanted = self._wanted.pop(unique, None)
        if wanted is not None:
            wanted.set_result(message[_DATA:])

    def close(self) -> None:
        """Send no more; those who wait for content get ENODEV."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._queue.put(None)
        for unique in list(self._wanted):
            wanted = self._wanted.pop(unique, None)
            if wanted is not None:
                wanted.set_exception(OSError(errno.ENODEV, os.strerror(errno.ENODEV)))
        if thread is not None and thread is not threading.current_thread():
            # A thread that a lock of the kernel's holds up is left behind: the connection ends it.
            thread.join(_END_S)

    def _add(self, send: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threads.start(self._work, name="recuse-notify")
        self._queue.put(send)

    def _work(self) -> None:
        while (send := self._queue.get()) is not None:
            send()

    def _deliver(self, code: int, message: bytes) -> None:
        error = self._try(message)
        if error is None or error.errno in _USUAL or code in self._refused:
            return
        self._refused.add(code)
        log.warning("this kernel does not take notifications of kind %d: %s", code, error.strerror)

    def _try(self, message: bytes) -> OSError | None:
        try:
            self._send(message)
        except OSError as error:
            return error.with_traceback(None)
        except Exception:
            log.exception("a notification was not sent")
            return OSError(errno.EIO, os.strerror(errno.EIO))
        return None


_END_S: Final = 1.0
"""How long the end of a session waits for a notification that is being sent."""
