"""The programs' side of a connection: requests from their submission to their end.

The other side, where a server reads and answers them, is `recuse.kernel.connection.connection`,
which tells of both.
"""

import errno
from collections.abc import Callable
from enum import Enum

from recuse.kernel.connection.polled import PolledFiles
from recuse.kernel.connection.queue import RequestQueue
from recuse.kernel.connection.request import FINISHED, PENDING, PROCESSING, WAITING, Reply, Request
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log

log = Log("recuse.kernel")

_LIMIT_MAX = (1 << 16) - 1
"""fs/fuse/control.c, fuse_conn_limit_write, for an administrator."""


class ConnectionState(Enum):
    """See the table at the top."""

    INITIALISING = "initialising"
    CONNECTED = "connected"
    REFUSED = "refused"
    ABORTED = "aborted"


_INITIALISING = ConnectionState.INITIALISING
_CONNECTED = ConnectionState.CONNECTED
_REFUSED = ConnectionState.REFUSED
_ABORTED = ConnectionState.ABORTED


class SubmitSide:
    """The requests of one connection and its state, which both sides share.

    See `recuse.kernel.connection.connection.Connection` for init, accept and on_pending.
    """

    def __init__(self, init: Request, accept: Callable[[Reply], None]) -> None:
        self.state = _INITIALISING
        self.on_pending: Callable[[], None] | None = None
        self.minor = 0
        """Of the protocol version that both sides speak, 7.minor."""
        self.error_when_aborted = errno.ENOTCONN
        """What calls on files that are still open fail with once the connection was aborted."""
        self.polled = PolledFiles()
        self.no_interrupt = False
        """The server has answered an INTERRUPT with ENOSYS: it gets no more of them.

        But for the requests that there were by then.
        """
        self._interruptible = 0
        """The number of the last of those."""
        self._lock = new_lock("SubmitSide")
        # For the three methods that each request passes: "with" takes twice as long.
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._queue = RequestQueue()
        self._at_end: list[Callable[[], None]] = []
        self.abandoned: frozenset[int] = frozenset()
        """The threads (by pid) whose requests the end has finished without anybody to tell.

        Who has submitted them has not come back from that yet: a server in the same thread holds
        it up.
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
        """How many requests in the background are sent at a time: 0 to 65535, at first 12.

        Setting it lets requests go on that are held for it.
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
        """From how many requests in the background on it is `congested`: 0 to 65535, at first 9."""
        return self._queue.congestion_threshold

    @congestion_threshold.setter
    def congestion_threshold(self, number: int) -> None:
        _check_limit(number)
        self._queue.congestion_threshold = number

    @property
    def congested(self) -> bool:
        """Whether so many requests are in the background that new ones had better wait."""
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
        """Let the requests on that are held, as far as they may; with the lock held."""
        queue = self._queue
        if self.state is _CONNECTED:
            for request in list(queue.waiting):
                if not request.background:
                    queue.admit(request)
                    queue.admitted += 1
                elif request.force or not queue.blocked:
                    queue.queue(request)

    def _background_ended(self) -> None:
        """Let others follow a request in the background that has finished; without the lock."""
        with self._lock:
            self._admit_held()
        self._notify_admitted()

    def _notify_admitted(self) -> None:
        """Tell of the requests that the queue has admitted by itself; without the lock."""
        with self._lock:
            admitted, self._queue.admitted = self._queue.admitted, 0
        for _ in range(admitted):
            self._notify_reader()

    def refuse(self) -> None:
        """End the connection for lack of a usable answer to INIT."""
        self._end(_REFUSED, errno.ECONNREFUSED)

    # Requests

    def submit(self, request: Request, done: Callable[[Reply], None] | None = None) -> None:
        """Send a request; ``done`` is called with its reply once, maybe before this returns.

        Without ``done``, look at ``request.reply`` and then call `watch`.
        """
        self._acquire()
        try:
            state = self.state
            if request.background and state is _CONNECTED:
                self._queue.hold(request)
                self._admit_held()
            elif state is _CONNECTED:
                self._queue.admit(request)
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
            on_pending = self.on_pending
            if on_pending is not None:
                try:
                    on_pending()
                except Exception:
                    self._channel_failed()
        elif state is not _INITIALISING:
            tell(request)

    def watch(self, request: Request, done: Callable[[Reply], None]) -> bool:
        """Have ``done`` called with the reply, and return True; False if it is finished already."""
        with self._lock:
            if request.state is FINISHED:
                return False
            request.done = done
            return True

    def interrupt(self, request: Request, *, fatal: bool = True) -> None:
        """Tell the server of a signal for the caller, once.

        An INTERRUPT is sent, if need be as soon as the server has read the request, which stays
        until the server replies to it. Unless the signal is fatal, and so the caller has left the
        system call: a request that the server has not read is then finished with EINTR; but not
        one that has `force`.
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
        """Finish all requests with ECONNABORTED and take no more; again, do nothing."""
        # fs/fuse/dev.c, fuse_abort_conn.
        self._end(_ABORTED, errno.ECONNABORTED)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the connection has ended; now, if it has.

        By then no request is left, so it may take its time.
        """
        with self._lock:
            if not self.ended:
                self._at_end.append(callback)
                return
        callback()

    def _end(self, state: ConnectionState, error: int) -> None:
        with self._lock:
            if self.ended:
                # Refused and then closed: new requests learn of the latter.
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
    """Raise OSError(EINVAL) for what cannot be a limit of fusectl's."""
    if not 0 <= number <= _LIMIT_MAX:
        raise os_error(errno.EINVAL)


def tell(request: Request) -> None:
    """Give a finished request's reply to who waits for it."""
    done = request.done
    # An operation's callback refers to the request: without this they would keep each other.
    request.done = None
    if done is not None and request.reply is not None:
        try:
            done(request.reply)
        except Exception:
            log.exception("%r: its reply was not taken", request)
