"""Where a connection's requests are: in exactly one place each, which their state names.

Transitions, with the method that makes each one and where in Linux it is made:

    NEW ------------------ hold ---> WAITING      before INIT is answered (fuse_get_req)
    NEW, WAITING --------- admit --> PENDING      gets its number (fuse_send_one)
    PENDING -------------- send ---> PROCESSING   read by the server (fuse_dev_do_read)
    all but FINISHED ----- finish -> FINISHED     the reply, or the lack of one (fuse_request_end)

Nothing here locks, calls back or knows a message's bytes: `recuse.kernel.connection` does.
"""

from collections import deque

from recuse.kernel.request import (
    FINISHED,
    NEW,
    PENDING,
    PROCESSING,
    WAITING,
    Reply,
    Request,
    State,
)

TRANSITIONS: dict[str, tuple[frozenset[State], State]] = {
    "hold": (frozenset({NEW}), WAITING),
    "admit": (frozenset({NEW, WAITING}), PENDING),
    "send": (frozenset({PENDING}), PROCESSING),
    "finish": (frozenset({NEW, WAITING, PENDING, PROCESSING}), FINISHED),
}
"""Method: the states that it takes a request from, and the one that it leads to."""

UNIQUE_STEP = 2
"""Requests have even numbers; one more than that is the number of their INTERRUPT."""


class QueueError(RuntimeError):
    """A transition that the table does not have: a mistake in this package or its caller."""


class RequestQueue:
    """The places; first in, first out, as far as the server keeps the order."""

    __slots__ = ("_last_unique", "interrupts", "pending", "processing", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.pending: deque[Request] = deque()
        self.processing: dict[int, Request] = {}
        self.interrupts: deque[Request] = deque()
        """Requests being processed whose INTERRUPT the server has yet to read."""
        self._last_unique = 0

    def __len__(self) -> int:
        """Return the number of requests that are not finished."""
        return len(self.waiting) + len(self.pending) + len(self.processing)

    def hold(self, request: Request) -> None:
        """Keep a request until it can be admitted."""
        if request.state is not NEW:
            raise QueueError(f"{request!r} cannot be held")
        request.state = WAITING
        self.waiting.append(request)

    def admit(self, request: Request) -> None:
        """Give a request its number and put it in line for the server."""
        if request.state is not NEW:
            if request.state is not WAITING:
                raise QueueError(f"{request!r} cannot be admitted")
            self.waiting.remove(request)
        self._last_unique = request.unique = self._last_unique + UNIQUE_STEP
        request.state = PENDING
        self.pending.append(request)

    def send(self) -> Request:
        """Take the request that is first in line: the server reads it now."""
        request = self.pending.popleft()
        request.state = PROCESSING
        self.processing[request.unique] = request
        return request

    def finish(self, request: Request, reply: Reply) -> None:
        """Take a request from wherever it is and give it its reply."""
        state = request.state
        if state is PROCESSING:
            del self.processing[request.unique]
            # An INTERRUPT that was not read yet would name a request that is no more.
            if request.interrupted and request in self.interrupts:
                self.interrupts.remove(request)
        elif state is PENDING:
            self.pending.remove(request)
        elif state is WAITING:
            self.waiting.remove(request)
        elif state is FINISHED:
            raise QueueError(f"{request!r} cannot finish twice")
        request.reply = reply
        request.state = FINISHED

    def interrupt(self, request: Request) -> None:
        """Have an INTERRUPT for a request in PROCESSING read by the server, once at a time."""
        if request not in self.interrupts:
            self.interrupts.append(request)

    def unfinished(self) -> list[Request]:
        """Return all requests that are not finished, the oldest first."""
        return [*self.processing.values(), *self.pending, *self.waiting]
