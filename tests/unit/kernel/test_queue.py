"""The places of requests, against their table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from recuse.kernel.queue import TRANSITIONS, QueueError, RequestQueue
from recuse.kernel.request import Reply, Request, State


def places(queue: RequestQueue) -> dict[State, list[Request]]:
    return {
        State.WAITING: list(queue.waiting),
        State.PENDING: list(queue.pending),
        State.PROCESSING: list(queue.processing.values()),
    }


def in_state(queue: RequestQueue, state: State) -> Request:
    """A request in that state, brought there by the queue alone."""
    request = Request(1)
    if state is State.WAITING:
        queue.hold(request)
    if state in (State.PENDING, State.PROCESSING):
        queue.admit(request)
    if state is State.PROCESSING:
        queue.pending.rotate(1)  # before those that are pending already
        assert queue.send() is request
    if state is State.FINISHED:
        queue.finish(request, Reply(0))
    assert request.state is state
    return request


METHODS: dict[str, Callable[[RequestQueue, Request], object]] = {
    "hold": RequestQueue.hold,
    "admit": RequestQueue.admit,
    "finish": lambda queue, request: queue.finish(request, Reply(-5)),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_its_transition_and_no_other(method: str, state: State) -> None:
    queue = RequestQueue()
    others = [in_state(queue, other) for other in State]
    before = {other: other.state for other in others}
    request = in_state(queue, state)
    allowed, target = TRANSITIONS[method]
    if state in allowed:
        METHODS[method](queue, request)
        assert request.state is target
    else:
        with pytest.raises(QueueError):
            METHODS[method](queue, request)
        assert request.state is state
    for place, found in places(queue).items():
        assert (request in found) == (place is request.state)
    assert {other: other.state for other in others} == before


def test_send_takes_the_oldest_pending_request() -> None:
    queue = RequestQueue()
    requests = [in_state(queue, State.PENDING) for _ in range(3)]
    allowed, target = TRANSITIONS["send"]
    for request in requests:
        assert request.state in allowed
        assert queue.send() is request
        assert request.state is target
        assert places(queue)[State.PROCESSING][-1] is request
    with pytest.raises(IndexError):
        queue.send()


def test_numbers_are_even_rise_and_are_given_on_admission() -> None:
    queue = RequestQueue()
    held = in_state(queue, State.WAITING)
    assert held.unique == 0
    first = in_state(queue, State.PENDING)
    queue.admit(held)
    assert (first.unique, held.unique) == (2, 4)


def test_length_counts_all_that_is_not_finished() -> None:
    queue = RequestQueue()
    for state in State:
        in_state(queue, state)
    assert len(queue) == 3
    for request in queue.unfinished():
        queue.finish(request, Reply(0))
    assert len(queue) == 0


def test_unfinished_are_listed_oldest_first() -> None:
    queue = RequestQueue()
    waiting = in_state(queue, State.WAITING)
    processing = in_state(queue, State.PROCESSING)
    pending = in_state(queue, State.PENDING)
    assert queue.unfinished() == [processing, pending, waiting]


def test_an_interrupt_is_queued_once_and_goes_with_its_request() -> None:
    queue = RequestQueue()
    request = in_state(queue, State.PROCESSING)
    request.interrupted = True
    queue.interrupt(request)
    queue.interrupt(request)
    assert list(queue.interrupts) == [request]
    queue.finish(request, Reply(0))
    assert not queue.interrupts


def test_a_finished_request_keeps_its_first_reply() -> None:
    queue = RequestQueue()
    request = in_state(queue, State.PROCESSING)
    reply = Reply(-5)
    queue.finish(request, reply)
    with pytest.raises(QueueError):
        queue.finish(request, Reply(0))
    assert request.reply is reply
