"""Threads that take turns: who handles what, and what happens when a handler blocks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from recuse.channel.workers import Workers, pass_lead

WAIT_S = 20.0


class Source:
    """Items put by the test; None is the end."""

    def __init__(self, handle: Callable[[object], None], name: str = "recuse") -> None:
        self.items: queue.SimpleQueue[object | None] = queue.SimpleQueue()
        self.stuck: queue.SimpleQueue[tuple[object, Callable[[], bool]]] = queue.SimpleQueue()
        self.workers: Workers[object] = Workers(
            self.items.get, handle, stuck=lambda *told: self.stuck.put(told), name=name
        )

    def __enter__(self) -> Source:
        self.workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.items.put(None)
        assert self.workers.join(WAIT_S)


def test_items_are_handled_in_order_by_one_thread_while_none_blocks() -> None:
    handled: queue.SimpleQueue[tuple[object, int]] = queue.SimpleQueue()
    with Source(lambda item: handled.put((item, threading.get_ident()))) as source:
        for number in range(100):
            source.items.put(number)
        results = [handled.get(timeout=WAIT_S) for _ in range(100)]
    assert [item for item, _ in results] == list(range(100))


def test_no_thread_is_left_after_the_end() -> None:
    """None that might still hold what it has handled."""
    for _ in range(50):
        with Source(lambda _: None, "ending") as source:
            source.items.put(1)
        assert not [one for one in threading.enumerate() if one.name.startswith("ending")]


def test_another_thread_leads_while_a_handler_blocks() -> None:
    gates = [threading.Event() for _ in range(5)]
    entered: queue.SimpleQueue[int] = queue.SimpleQueue()
    left: queue.SimpleQueue[int] = queue.SimpleQueue()

    def handle(item: object) -> None:
        assert isinstance(item, int)
        entered.put(item)
        gates[item].wait()
        left.put(item)

    with Source(handle) as source:
        for number in range(5):
            source.items.put(number)
        # All five block at once, so five threads must have received.
        assert [entered.get(timeout=WAIT_S) for _ in range(5)] == list(range(5))
        for number in reversed(range(5)):
            gates[number].set()
            assert left.get(timeout=WAIT_S) == number
        # And those that stepped back lead again when they are needed.
        for gate in gates:
            gate.clear()
        for number in range(5):
            source.items.put(number)
        assert [entered.get(timeout=WAIT_S) for _ in range(5)] == list(range(5))
        for gate in gates:
            gate.set()
        assert sorted(left.get(timeout=WAIT_S) for _ in range(5)) == list(range(5))


def test_a_blocking_item_is_reported() -> None:
    gate = threading.Event()

    def handle(item: object) -> None:
        if item == "slow":
            gate.wait()

    with Source(handle) as source:
        source.items.put("quick")
        source.items.put("slow")
        item, blocks = source.stuck.get(timeout=WAIT_S)
        assert item == "slow"
        assert blocks()
        gate.set()
        while blocks():
            pass


def test_a_handler_that_knows_that_it_blocks_passes_the_lead() -> None:
    gate = threading.Event()
    entered: queue.SimpleQueue[object] = queue.SimpleQueue()

    def handle(item: object) -> None:
        if item == "slow":
            pass_lead()
            gate.wait()
        entered.put(item)

    source = Source(handle)
    with source:
        source.items.put("slow")
        source.items.put("quick")
        assert entered.get(timeout=WAIT_S) == "quick"
        gate.set()
        assert entered.get(timeout=WAIT_S) == "slow"


def test_the_monitor_wakes_up_after_a_long_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recuse.channel.workers.TICK", 0.0001)
    parked = threading.Event()
    gate = threading.Event()
    entered: queue.SimpleQueue[object] = queue.SimpleQueue()

    def handle(item: object) -> None:
        entered.put(item)
        if item == "slow":
            gate.wait()

    with Source(handle) as source:
        original = source.workers._unpark.wait

        def tell_and_wait(timeout: float | None = None) -> bool:
            parked.set()
            return original(timeout)

        source.workers._unpark.wait = tell_and_wait  # type: ignore[method-assign]  # of these only
        assert parked.wait(WAIT_S)
        source.items.put("slow")
        source.items.put("next")
        assert entered.get(timeout=WAIT_S) == "slow"
        assert entered.get(timeout=WAIT_S) == "next"
        gate.set()


def test_an_exception_in_a_handler_is_logged_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handled: queue.SimpleQueue[object] = queue.SimpleQueue()

    def handle(item: object) -> None:
        if item == "bad":
            raise ValueError("what a handler may not do")
        handled.put(item)

    with Source(handle) as source:
        source.items.put("bad")
        source.items.put("good")
        assert handled.get(timeout=WAIT_S) == "good"
    assert "internal error" in caplog.text
    assert "what a handler may not do" in caplog.text


def test_the_end_comes_even_while_a_handler_blocks() -> None:
    gate, entered = threading.Event(), threading.Event()

    def handle(item: object) -> None:
        entered.set()
        gate.wait()

    with Source(handle) as source:
        source.items.put("slow")
        assert entered.wait(WAIT_S)
    gate.set()
