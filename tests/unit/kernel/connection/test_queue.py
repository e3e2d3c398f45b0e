"""The places of requests, against their table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from recuse.kernel.connection.queue import MAX_BACKGROUND, TRANSITIONS, QueueError, RequestQueue
from recuse.kernel.connection.request import Reply, Request, State


def places(queue: RequestQueue) -> dict[State, list[Request]]:
    return {
        State.WAITING: list(queue.waiting),
        State.QUEUED: list(queue.background),
        State.PENDING: list(queue.pending),
        State.PROCESSING: list(queue.processing.values()),
    }


def in_state(queue: RequestQueue, state: State, background: bool = False) -> Request:
    """A request in that state, brought there by the queue alone.

    There it stays if it is queued: the limit is 0.
    """
    queue.set_max_background(0)
    request = Request(1, background=background or state is State.QUEUED)
    if state is State.WAITING:
        queue.hold(request)
    if state is State.QUEUED:
        queue.queue(request)
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
    "queue": RequestQueue.queue,
    "admit": RequestQueue.admit,
    "start": RequestQueue.start,
    "finish": lambda queue, request: queue.finish(request, Reply(-5)),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_its_transition_and_no_other(method: str, state: State) -> None:
    queue = RequestQueue()
    others = [in_state(queue, other) for other in State]
    before = {other: other.state for other in others}
    request = in_state(queue, state, background=method == "queue")
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
    assert len(queue) == 4
    for request in queue.unfinished():
        queue.finish(request, Reply(0))
    assert len(queue) == 0


def test_unfinished_are_listed_oldest_first() -> None:
    queue = RequestQueue()
    waiting = in_state(queue, State.WAITING)
    processing = in_state(queue, State.PROCESSING)
    pending = in_state(queue, State.PENDING)
    queued = in_state(queue, State.QUEUED)
    assert queue.unfinished() == [processing, pending, queued, waiting]


def test_so_many_are_served_in_the_background_and_the_others_follow_in_their_order() -> None:
    queue = RequestQueue()
    requests = [Request(1, background=True) for _ in range(MAX_BACKGROUND + 3)]
    for number, request in enumerate(requests, 1):
        queue.queue(request)
        assert queue.blocked == (number >= MAX_BACKGROUND)
        assert queue.num_background == number
        assert queue.active_background == min(number, MAX_BACKGROUND)
    assert list(queue.pending) == requests[:MAX_BACKGROUND]
    assert list(queue.background) == requests[MAX_BACKGROUND:]
    for _ in range(2):
        queue.finish(queue.send(), Reply(0))
    # One that has not had its turn.
    queue.finish(requests[-1], Reply(0))
    assert queue.blocked
    assert queue.num_background == queue.active_background == MAX_BACKGROUND
    assert list(queue.pending) == requests[2:-1]
    queue.finish(queue.send(), Reply(0))
    assert not queue.blocked
    assert queue.active_background == queue.num_background == MAX_BACKGROUND - 1


def test_a_higher_limit_unblocks_and_a_lower_one_blocks() -> None:
    queue = RequestQueue()
    requests = [Request(1, background=True) for _ in range(4)]
    queue.set_max_background(2)
    for request in requests:
        queue.queue(request)
    queue.set_max_background(5)
    assert not queue.blocked
    # As in Linux, what is queued notices when something finishes.
    assert list(queue.background) == requests[2:]
    queue.finish(queue.send(), Reply(0))
    assert not queue.background
    queue.set_max_background(3)
    assert queue.blocked


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
