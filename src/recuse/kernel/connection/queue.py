"""Where a connection's requests are: each in exactly one place, named by its state.

The transitions, the method that makes each, and where Linux makes it:

    NEW ------------------ hold ---> WAITING      before INIT is answered (fuse_get_req)
    NEW, WAITING --------- queue --> QUEUED       in the background (fuse_request_queue_background)
    NEW, WAITING, QUEUED - admit --> PENDING      gets its number (queue_request_and_unlock)
    NEW ------------------ start --> PROCESSING   both at once, for a server in this process
    PENDING -------------- send ---> PROCESSING   read by the server (fuse_dev_do_read)
    PROCESSING ----------- resend -> PENDING      the server asks for it once more (fuse_resend)
    all but FINISHED ----- finish -> FINISHED     the reply, or the lack of one (fuse_request_end)

`queue` and `finish` admit QUEUED requests themselves, as soon as the limit allows (flush_bg_queue).

Nothing here locks, calls back or knows a message's bytes: `recuse.kernel.connection.connection`
does that.
"""

from __future__ import annotations

from collections import deque

from recuse.kernel.connection.request import (
    FINISHED,
    NEW,
    PENDING,
    PROCESSING,
    QUEUED,
    WAITING,
    Reply,
    Request,
    State,
)
from recuse.wire.fuse import FUSE_UNIQUE_RESEND

TRANSITIONS: dict[str, tuple[frozenset[State], State]] = {
    "hold": (frozenset({NEW}), WAITING),
    "queue": (frozenset({NEW, WAITING}), QUEUED),
    "admit": (frozenset({NEW, WAITING, QUEUED}), PENDING),
    "start": (frozenset({NEW}), PROCESSING),
    "send": (frozenset({PENDING}), PROCESSING),
    "finish": (frozenset({NEW, WAITING, QUEUED, PENDING, PROCESSING}), FINISHED),
}
"""For each method: the states that it takes a request from, and the state that it leads to."""

MAX_BACKGROUND = 12
"""FUSE_DEFAULT_MAX_BACKGROUND."""
CONGESTION_THRESHOLD = MAX_BACKGROUND * 3 // 4
"""FUSE_DEFAULT_CONGESTION_THRESHOLD."""

UNIQUE_STEP = 2
"""Requests have even numbers; one more than that is the number of their INTERRUPT."""


class QueueError(RuntimeError):
    """A transition that the table does not have: a bug in this package or its caller."""


class RequestQueue:
    """The places. First in, first out, as long as the server keeps the order."""

    __slots__ = (
        "active_background",
        "admitted",
        "background",
        "blocked",
        "congestion_threshold",
        "interrupts",
        "last_unique",
        "max_background",
        "num_background",
        "pending",
        "processing",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.pending: deque[Request] = deque()
        self.processing: dict[int, Request] = {}
        self.interrupts: deque[Request] = deque()
        """Requests being processed whose INTERRUPT the server has yet to read."""
        self.last_unique = 0
        """The number of the request that was admitted last."""
        self.background: deque[Request] = deque()
        """Those that are QUEUED."""
        self.max_background = MAX_BACKGROUND
        self.congestion_threshold = CONGESTION_THRESHOLD
        self.num_background = 0
        """Requests in the background that are not finished: queued, pending or processing."""
        self.active_background = 0
        """How many of them are pending or processing: at most `max_background`."""
        self.blocked = False
        """No more of them are accepted, except those with `force`."""
        self.admitted = 0
        """For `Connection`: how many have become pending without being announced yet."""

    def __len__(self) -> int:
        """Return the number of requests that are not finished."""
        places = (self.waiting, self.background, self.pending, self.processing)
        return sum(map(len, places))

    def hold(self, request: Request) -> None:
        """Keep a request until it can be admitted."""
        if request.state is not NEW:
            raise QueueError(f"{request!r} cannot be held")
        request.state = WAITING
        self.waiting.append(request)

    def admit(self, request: Request) -> None:
        """Give a request its number and put it in line for the server."""
        if request.state is not NEW:
            if request.state is WAITING:
                self.waiting.remove(request)
            elif request.state is QUEUED:
                self.background.remove(request)
            else:
                raise QueueError(f"{request!r} cannot be admitted")
        self.last_unique = request.unique = self.last_unique + UNIQUE_STEP
        request.state = PENDING
        self.pending.append(request)

    def start(self, request: Request) -> None:
        """Give a request its number; the server has it already."""
        if request.state is not NEW:
            raise QueueError(f"{request!r} cannot be started")
        self.last_unique = request.unique = self.last_unique + UNIQUE_STEP
        request.state = PROCESSING
        self.processing[request.unique] = request

    def queue(self, request: Request) -> None:
        """Put a request in line behind the others in the background."""
        if request.state is WAITING:
            self.waiting.remove(request)
        elif request.state is not NEW:
            raise QueueError(f"{request!r} cannot be queued")
        request.state = QUEUED
        self.background.append(request)
        self.num_background += 1
        if self.num_background == self.max_background:
            self.blocked = True
        self._flush()

    def set_max_background(self, number: int) -> None:
        """Change the limit; queued requests are checked against it when the next one finishes."""
        self.max_background = number
        self.blocked = self.num_background >= number

    def _flush(self) -> None:
        """Admit queued requests until `max_background` of them are being served."""
        while self.active_background < self.max_background and self.background:
            self.active_background += 1
            self.admit(self.background[0])
            self.admitted += 1

    def send(self) -> Request:
        """Take the request that is first in line: the server reads it now."""
        request = self.pending.popleft()
        request.state = PROCESSING
        self.processing[request.unique] = request
        return request

    def resend(self) -> int:
        """Put all requests that the server has read in line again; return how many messages."""
        # fs/fuse/dev.c, fuse_resend (Linux 6.9)
        again = list(self.processing.values())
        self.processing.clear()
        for request in again:
            request.state = PENDING
            request.unique |= FUSE_UNIQUE_RESEND
            if request in self.interrupts:
                self.interrupts.remove(request)  # it follows when the request has been read
        self.pending.extendleft(reversed(again))
        return sum(2 if request.interrupted else 1 for request in again)

    def finish(self, request: Request, reply: Reply) -> None:
        """Take a request from wherever it is and give it its reply."""
        state = request.state
        if state is PROCESSING:
            del self.processing[request.unique]
            # An unread INTERRUPT would name a request that no longer exists.
            if request.interrupted and request in self.interrupts:
                self.interrupts.remove(request)
        elif state is PENDING:
            self.pending.remove(request)
        elif state is WAITING:
            self.waiting.remove(request)
        elif state is QUEUED:
            self.background.remove(request)
        elif state is FINISHED:
            raise QueueError(f"{request!r} cannot finish twice")
        request.reply = reply
        request.state = FINISHED
        if request.background:
            self._end_background(state)

    def _end_background(self, state: State) -> None:
        """Make room for another request in the background."""
        if state is NEW or state is WAITING:
            return  # it was not counted
        if self.num_background == self.max_background:
            self.blocked = False
        self.num_background -= 1
        if state is not QUEUED:
            self.active_background -= 1
        self._flush()

    def interrupt(self, request: Request) -> None:
        """Queue an INTERRUPT for a request in PROCESSING, unless one is queued already."""
        if request not in self.interrupts:
            self.interrupts.append(request)

    def unfinished(self) -> list[Request]:
        """Return all requests that are not finished, the oldest first."""
        return [*self.processing.values(), *self.pending, *self.background, *self.waiting]
