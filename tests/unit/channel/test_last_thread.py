"""Workers where no more threads can be started."""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from recuse.channel.workers import Workers, pass_lead
from recuse.runtime.threads import LAST_THREADS, must_not_block, no_more

WAIT_S = 20.0


class Supply:
    """Of threads: how many more can be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1000
        self._start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self._begin(thread))  # noqa: PLW0108 - as a method

    def _begin(self, thread: threading.Thread) -> None:
        if self.left <= 0:
            raise RuntimeError("can't start new thread")
        self.left -= 1
        self._start(thread)


@pytest.fixture
def supply(monkeypatch: pytest.MonkeyPatch) -> Supply:
    return Supply(monkeypatch)


class Handled:
    """Workers whose items are functions; what these return or raise is put into `results`."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.workers = Workers(self.items.get, self._handle)

    def _handle(self, item: Callable[[], object]) -> None:
        try:
            self.results.put(item())
        except OSError as error:
            self.results.put(error.errno)

    def next(self) -> object:
        return self.results.get(timeout=WAIT_S)


@pytest.fixture
def handled(supply: Supply) -> Iterator[Handled]:
    made = Handled()
    made.workers.start()
    yield made
    made.items.put(None)
    assert made.workers.join(WAIT_S)
    assert not LAST_THREADS


def block_or_fail(gate: threading.Event) -> str:
    """What a careful handler does that will wait."""
    if must_not_block():
        raise no_more()
    assert gate.wait(WAIT_S)
    return "waited"


@pytest.mark.parametrize("left", [0, 1])
def test_what_cannot_be_started_leaves_nothing_running(supply: Supply, left: int) -> None:
    before = threading.active_count()
    supply.left = left
    made = Handled()
    with pytest.raises(OSError, match="no more threads") as raised:
        made.workers.start()
    assert raised.value.errno == errno.EAGAIN
    assert made.workers.join(0)
    while threading.active_count() > before:
        pass


def test_the_rest_goes_on_while_a_handler_blocks(supply: Supply, handled: Handled) -> None:
    supply.left = 0
    gate = threading.Event()
    handled.items.put(lambda: block_or_fail(gate))
    for number in range(100):
        handled.items.put(lambda number=number: number)  # type: ignore[misc]
        assert handled.next() == number
    gate.set()
    assert handled.next() == "waited"


def test_what_would_block_fails_until_a_thread_is_free(supply: Supply, handled: Handled) -> None:
    supply.left = 0
    gate, second = threading.Event(), threading.Event()
    handled.items.put(lambda: block_or_fail(gate))
    for _ in range(3):
        handled.items.put(lambda: block_or_fail(second))
        assert handled.next() == errno.EAGAIN
    gate.set()
    assert handled.next() == "waited"
    while not handled.workers._spare:
        pass
    # The first thread is back: not the first of these may fail.
    for _ in range(3):
        second.clear()
        handled.items.put(lambda: block_or_fail(second))
        second.set()
        assert handled.next() == "waited"


def test_a_thread_that_can_be_started_again_leads(supply: Supply, handled: Handled) -> None:
    supply.left = 0
    gates = [threading.Event() for _ in range(3)]
    handled.items.put(lambda: block_or_fail(gates[0]))
    handled.items.put(lambda: block_or_fail(gates[1]))
    assert handled.next() == errno.EAGAIN
    supply.left = 100
    for gate in gates[1:]:
        handled.items.put(lambda gate=gate: block_or_fail(gate))  # type: ignore[misc]
    for gate in reversed(gates):
        gate.set()
        assert handled.next() == "waited"


def test_who_knows_that_he_waits_is_told_that_he_must_not(supply: Supply, handled: Handled) -> None:
    def wait_knowingly() -> str:
        pass_lead()
        assert gate.wait(WAIT_S)
        return "waited"

    supply.left = 0
    gate = threading.Event()
    handled.items.put(wait_knowingly)  # nobody to pass the lead to: the monitor sees to it
    handled.items.put(wait_knowingly)
    assert handled.next() == errno.EAGAIN
    gate.set()
    assert handled.next() == "waited"


def test_a_last_thread_that_blocks_all_the_same_is_relieved(
    supply: Supply, handled: Handled
) -> None:
    supply.left = 0
    first, careless = threading.Event(), threading.Event()
    handled.items.put(lambda: block_or_fail(first))
    handled.items.put(lambda: careless.wait(WAIT_S))
    while not LAST_THREADS:
        pass
    first.set()
    assert handled.next() == "waited"
    # The monitor stands in the careless handler; the first thread leads again.
    handled.items.put(lambda: 7)
    assert handled.next() == 7
    careless.set()
    assert handled.next() is True
    # And the monitor is one again.
    supply.left = 1
    gate = threading.Event()
    handled.items.put(lambda: block_or_fail(gate))
    handled.items.put(lambda: 8)
    assert handled.next() == 8
    gate.set()
    assert handled.next() == "waited"


def test_who_is_about_to_fail_waits_a_moment_for_a_thread(
    supply: Supply, handled: Handled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As who has just answered a program may not be back when its next call comes."""
    monkeypatch.setattr("recuse.channel.workers._RELIEF_S", WAIT_S)
    supply.left = 0
    first, second, entered = threading.Event(), threading.Event(), threading.Event()

    def enter() -> str:
        entered.set()
        return block_or_fail(second)

    for _ in range(2):
        handled.items.put(lambda: block_or_fail(first))
        handled.items.put(enter)
        assert entered.wait(WAIT_S)
        first.set()
        assert handled.next() == "waited"
        # The first thread is the monitor now, and leads while the other waits.
        handled.items.put(lambda: "went on")
        assert handled.next() == "went on"
        second.set()
        assert handled.next() == "waited"
        for event in (first, second, entered):
            event.clear()


def test_it_is_told_once_that_something_fails(
    supply: Supply, handled: Handled, caplog: pytest.LogCaptureFixture
) -> None:
    supply.left = 0
    gate = threading.Event()
    handled.items.put(lambda: block_or_fail(gate))
    handled.items.put(lambda: "went on")
    assert handled.next() == "went on"
    assert not caplog.records
    for _ in range(2):
        handled.items.put(lambda: block_or_fail(gate))
        assert handled.next() == errno.EAGAIN
    handled.items.put(lambda: "went on")
    assert handled.next() == "went on"
    gate.set()
    assert handled.next() == "waited"
    (record,) = caplog.records
    assert "no more threads can be started" in record.getMessage()
    assert record.levelno == logging.ERROR


def test_the_end_comes_while_the_last_thread_leads(supply: Supply) -> None:
    made = Handled()
    made.workers.start()
    supply.left = 0
    gate = threading.Event()
    made.items.put(lambda: block_or_fail(gate))
    made.items.put(lambda: 1)
    assert made.next() == 1
    made.items.put(None)
    assert made.workers.join(WAIT_S)
    gate.set()
    assert made.next() == "waited"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, ""), SystemExit(3)])
def test_what_receiving_raises_ends_nothing(error: BaseException) -> None:
    failures = [error] * 3
    items: queue.SimpleQueue[object] = queue.SimpleQueue()
    handled: queue.SimpleQueue[object] = queue.SimpleQueue()

    def receive() -> object:
        if failures:
            raise failures.pop()
        return items.get()

    workers = Workers(receive, handled.put)
    workers.start()
    items.put(1)
    assert handled.get(timeout=WAIT_S) == 1
    items.put(None)
    assert workers.join(WAIT_S)


def test_a_source_that_stays_broken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recuse.channel.workers._MOST_PAUSE_S", 0.01)
    told: list[BaseException] = []

    def receive() -> object:
        raise OSError(errno.EPERM, "not permitted")

    workers: Workers[object] = Workers(receive, lambda _: None, broken=told.append)
    workers.start()
    assert workers.join(WAIT_S)
    assert [str(error) for error in told] == ["[Errno 1] not permitted"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_what_a_handler_raises_ends_no_thread(error: BaseException) -> None:
    made = Handled()
    made.workers.start()

    def fail() -> None:
        raise error

    for _ in range(3):
        made.items.put(fail)
        made.items.put(threading.get_ident)
        assert isinstance(made.next(), int)
    made.items.put(None)
    assert made.workers.join(WAIT_S)
