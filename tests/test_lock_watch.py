"""The order of recuse's locks is one, has all of them, and what breaks it is found."""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse.runtime import locks, threads
from recuse.server.loop import Tasks
from tests.patience import PATIENCE_S

from .lock_watch import SOURCE, WATCH, Watch, WatchedLock, parse, written_order

ORDER = """
    a: the first
        b (waits): the second
            c: the third
    d: alone
        c
"""


@pytest.fixture
def watch() -> Watch:
    return Watch(parse(ORDER))


def test_the_order_has_the_locks_that_there_are() -> None:
    made: list[str] = []
    for file in Path(SOURCE).rglob("*.py"):
        made += re.findall(r'new_r?lock\("([^"]+)"\)', file.read_text(encoding="utf-8"))
    assert sorted(made) == sorted(written_order().may_hold)


def test_an_order_is_read() -> None:
    order = parse(ORDER)
    assert order.may_hold == {
        "a": frozenset(),
        "b": {"a"},
        "c": {"a", "b", "d"},
        "d": frozenset(),
    }
    assert order.may_wait == {"b"}


@pytest.mark.parametrize(
    "text",
    [
        "a: one\n  b: two\nb: three",
        "a: one\n  b",
        "a (sleeps): one",
        "a: one\n  b: two\n    a",
        "a: one\n  b: two\nc: three\n  a\nd: four\n  c\nb: five\n",
        "a: one\n  b: two\nc: three\n  d: four\nb\n  c\nd\n  a\n",
    ],
)
def test_an_order_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"is held|no lock"):
        parse(text)


def test_what_keeps_the_order(watch: Watch) -> None:
    a, b, c, d = (watch.make(name, False) for name in "abcd")
    with a, b, c:
        pass
    with d, c:
        pass
    with c:
        assert a.acquire(blocking=False)  # which nobody waits for
        a.release()
    condition = threading.Condition(a)  # type: ignore[arg-type]
    with condition:
        condition.notify_all()
    again = watch.make("d", True)
    with again, again:
        pass
    assert watch.violations() == []


@pytest.mark.parametrize(("first", "then"), ["ba", "ca", "da", "ad", "bb"])
def test_what_breaks_the_order(watch: Watch, first: str, then: str) -> None:
    with watch.make(first, False), watch.make(then, False):
        pass
    (violation,) = watch.violations()
    assert re.fullmatch(
        rf"MainThread: {then} is taken after {first} at \S+test_lock_watch.py:\d+, "
        rf"holding {first} \(taken at \S+test_lock_watch.py:\d+\)",
        violation,
    )
    assert watch.violations() == []


def test_what_would_wait_for_ever(watch: Watch) -> None:
    lock = watch.make("a", False)
    with lock, pytest.raises(RuntimeError, match="a is taken twice"):
        lock.acquire()
    assert len(watch.violations()) == 1


def test_a_lock_that_another_thread_gives_back(watch: Watch) -> None:
    lock = watch.make("a", False)
    thread = threads.start(lock.acquire, name="other")
    thread.join()
    lock.release()
    assert "given back by who has not taken it" in watch.violations()[0]


def wait_for_event(lock: WatchedLock, found: list[str]) -> None:
    """Call something of recuse's that waits for another thread."""
    threads_end = Tasks()
    with lock:
        threads_end.wait(_end_after(found), PATIENCE_S)
    threads_end.release()


async def _end_after(found: list[str]) -> None:
    """End when the wait has been noticed, if it is to be: what has ended is not waited for."""
    late = time.monotonic() + PATIENCE_S / 2
    while len(WATCH._violations) < len(found) and time.monotonic() < late:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("name", "found"),
    [("Workers", ["a wait with Workers"]), ("Runner", []), ("Client.ending", [])],
)
def test_a_wait(name: str, found: list[str]) -> None:
    wait_for_event(WATCH.make(name, False), found)
    assert [text.split(": ")[1].partition(" at ")[0] for text in WATCH.violations()] == found


@pytest.mark.parametrize("make", [locks.new_lock, locks.new_rlock])
def test_without_a_watch_they_are_plain_ones(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[str], object]
) -> None:
    monkeypatch.setattr(locks, "watch", None)
    assert type(make("any")) in {type(threading.Lock()), type(threading.RLock())}
