"""The programs' side of a connection: requests from their submission to their end.

On the other side a server reads and answers them: `recuse.kernel.connection.connection`. That
module describes both sides.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum

from recuse.kernel.connection.polled import PolledFiles
from recuse.kernel.connection.queue import RequestQueue
from recuse.kernel.connection.request import (
    FINISHED,
    PENDING,
    PROCESSING,
    WAITING,
    Reply,
    Request,
    Transfer,
)
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log

log = Log("recuse.kernel")

_LIMIT_MAX = (1 << 16) - 1
"""fs/fuse/control.c, fuse_conn_limit_write, for an administrator."""


class ConnectionState(Enum):
    """See the table in `recuse.kernel.connection.connection`."""

    INITIALISING = "initialising"
    CONNECTED = "connected"
    REFUSED = "refused"
    ABORTED = "aborted"


_INITIALISING = ConnectionState.INITIALISING
_CONNECTED = ConnectionState.CONNECTED
_REFUSED = ConnectionState.REFUSED
_ABORTED = ConnectionState.ABORTED


class SubmitSide:
    """The state and requests of one connection, which both sides share.

    See `recuse.kernel.connection.connection.Connection` for init, accept, on_pending and
    on_transfer.
    """

    def __init__(self, init: Request, accept: Callable[[Reply], None]) -> None:
        self.state = _INITIALISING
        self.on_pending: Callable[[], object] | None = None
        self.on_transfer: Callable[[Transfer], object] | None = None
        self.minor = 0
        """Of the protocol version that both sides speak, 7.minor."""
        self.error_when_aborted = errno.ENOTCONN
        """The error of calls on files that are still open after the connection was aborted."""
        self.polled = PolledFiles()
        self.no_interrupt = False
        """The server has answered an INTERRUPT with ENOSYS: it gets no more of them.

        Requests that existed by then are an exception.
        """
        self._interruptible = 0
        """The number of the last of those requests."""
        self._lock = new_lock("SubmitSide")
        # For the three methods that each request calls: "with" takes twice as long.
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._queue = RequestQueue()
        self._at_end: list[Callable[[], None]] = []
        self.abandoned: frozenset[int] = frozenset()
        """The threads (by pid) whose requests were finished by the end, with nobody to tell.

        Each has submitted a request and has not returned from that yet: a server in the same thread
        holds it up.
        """
        init.done = accept
        if init.background:
            self._queue.queue(init)
            self._queue.admitted = 0
        else:
            self._queue.admit(init)

    @property
    def ended(self) -> bool:
        """Whether it was refused or aborted."""
        return self.state is _ABORTED or self.state is _REFUSED

    @property
    def waiting(self) -> int:
        """How many requests have not been answered (sysfs: class/cuse/NAME/waiting)."""
        return len(self._queue)

    @property
    def max_background(self) -> int:
        """How many requests in the background are sent at a time: 0 to 65535, initially 12.

        A change lets requests continue that were held because of the limit.
        """
        return self._queue.max_background

    @max_background.setter
    def max_background(self, number: int) -> None:
        # fs/fuse/control.c, fuse_conn_max_background_write.
        _check_limit(number)
        with self._lock:
            self._queue.set_max_background(number)
            self._admit_held()
        self._notify_admitted()

    @property
    def congestion_threshold(self) -> int:
        """With this many requests in the background it is `congested`: 0 to 65535, initially 9."""
        return self._queue.congestion_threshold

    @congestion_threshold.setter
    def congestion_threshold(self, number: int) -> None:
        _check_limit(number)
        self._queue.congestion_threshold = number

    @property
    def congested(self) -> bool:
        """Whether so many requests are in the background that new ones should wait."""
        return self._queue.num_background >= self._queue.congestion_threshold

    # INIT

    def _initialised(self, minor: int) -> bool:
        with self._lock:
            if self.state is not _INITIALISING:
                return False
            self.minor = minor
            self.state = _CONNECTED
            self._admit_held()
        self._notify_admitted()
        return True

    def _admit_held(self) -> None:
        """Let held requests continue, as far as the limits allow; with the lock held."""
        queue = self._queue
        if self.state is _CONNECTED:
            for request in list(queue.waiting):
                if not request.background:
                    queue.admit(request)
                    queue.admitted += 1
                elif request.force or not queue.blocked:
                    queue.queue(request)

    def _background_ended(self) -> None:
        """A request in the background has finished: let others follow. Without the lock."""
        with self._lock:
            self._admit_held()
        self._notify_admitted()

    def _notify_admitted(self) -> None:
        """Announce the requests that the queue has admitted by itself; without the lock."""
        with self._lock:
            admitted, self._queue.admitted = self._queue.admitted, 0
        for _ in range(admitted):
            self._notify_reader()

    def refuse(self) -> None:
        """End the connection, as INIT got no usable answer."""
        self._end(_REFUSED, errno.ECONNREFUSED)

    # Requests

    def submit(self, request: Request, done: Callable[[Reply], None] | None = None) -> None:
        """Send a request; ``done`` is called once with its reply, maybe before this returns.

        Without ``done``, look at ``request.reply`` and then call `watch`.
        """
        on_transfer = self.on_transfer
        transfer: Transfer | None = None
        self._acquire()
        try:
            state = self.state
            if request.background and state is _CONNECTED:
                self._queue.hold(request)
                self._admit_held()
            elif state is _CONNECTED:
                if type(request) is Transfer and on_transfer is not None:
                    transfer = None if request.interrupted else request
                if transfer is None:
                    self._queue.admit(request)
                else:
                    self._queue.start(request)
            elif state is _INITIALISING:
                self._queue.hold(request)
            else:
                error = errno.ECONNREFUSED if state is _REFUSED else self.error_when_aborted
                self._queue.finish(request, Reply(-error))
            request.done = done
        finally:
            self._release()
        if request.background and state is _CONNECTED:
            self._notify_admitted()
        elif state is _CONNECTED:
            try:
                if transfer is not None and on_transfer is not None:
                    on_transfer(transfer)
                elif self.on_pending is not None:
                    self.on_pending()
            except Exception:
                self._channel_failed()
        elif state is not _INITIALISING:
            tell(request)

    def watch(self, request: Request, done: Callable[[Reply], None]) -> bool:
        """Have ``done`` called with the reply; return False instead if it has already finished."""
        with self._lock:
            if request.state is FINISHED:
                return False
            request.done = done
            return True

    def interrupt(self, request: Request, *, fatal: bool = True) -> None:
        """Tell the server once that the caller has a signal.

        An INTERRUPT is sent, at the earliest when the server has read the request. The request
        stays until the server replies to it. A fatal signal is different, as the caller has then
        left the system call: if the server has not read the request yet, it finishes with EINTR,
        unless it has `force`.
        """
        # fs/fuse/dev.c, request_wait_answer.
        with self._lock:
            state = request.state
            if state is FINISHED or (request.background and state is not WAITING):
                return  # nobody waits for it
            if fatal and (state is PENDING or state is WAITING) and not request.force:
                self._queue.finish(request, Reply(-errno.EINTR))
            elif request.interrupted and request not in self._queue.interrupts:
                return
            else:
                if self.no_interrupt and request.unique > self._interruptible:
                    return
                request.interrupted = True
                if state is not PROCESSING:
                    return
                self._queue.interrupt(request)
        if request.reply is None:
            self._notify_reader()
        else:
            tell(request)

    # The end

    def abort(self) -> None:
        """Finish all requests with ECONNABORTED and take no more; a second call does nothing."""
        # fs/fuse/dev.c, fuse_abort_conn.
        self._end(_ABORTED, errno.ECONNABORTED)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the connection has ended, or now if it has.

        No request is left by then, so it may take long.
        """
        with self._lock:
            if not self.ended:
                self._at_end.append(callback)
                return
        callback()

    def _end(self, state: ConnectionState, error: int) -> None:
        with self._lock:
            if self.ended:
                # Refused and then closed: new requests get the error of the latter.
                self.state = _ABORTED if state is _ABORTED else self.state
                return
            self.state = state
            ending = self._queue.unfinished()
            for request in ending:
                self._queue.finish(request, Reply(-error))
            self.abandoned = frozenset(request.pid for request in ending if request.done is None)
            callbacks, self._at_end = self._at_end, []
        self.polled.end()
        for request in ending:
            tell(request)
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback at the end of a connection failed")

    def _notify_reader(self) -> None:
        on_pending = self.on_pending
        if on_pending is not None:
            try:
                on_pending()
            except Exception:
                self._channel_failed()

    def _channel_failed(self) -> None:
        log.exception("a channel failed, its connection is aborted")
        self.abort()


def _check_limit(number: int) -> None:
    """Raise OSError(EINVAL) if a number cannot be one of fusectl's limits."""
    if not 0 <= number <= _LIMIT_MAX:
        raise os_error(errno.EINVAL)


def tell(request: Request) -> None:
    """Give a finished request's reply to the code that waits for it."""
    done = request.done
    # An operation's callback refers to the request. Without this each would keep the other.
    request.done = None
    if done is not None and request.reply is not None:
        try:
            done(request.reply)
        except Exception:
            log.exception("%r: its reply was not taken", request)
