"""Locks that see whether the order is kept which `recuse.runtime.locks` writes down.

In the tests, all of recuse's locks are such ones. What breaks the order fails the test
(`tests/conftest.py`), whether or not the threads met in a moment in which it did harm.
"""

import contextlib
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from recuse.runtime import locks

SOURCE = str(Path(locks.__file__).parents[1])
# Who waits by the standard library's means is who has called it.
PASSED_OVER = (sysconfig.get_path("stdlib"), __file__)


class Order(NamedTuple):
    """What may be done with which locks."""

    may_hold: dict[str, frozenset[str]]
    """By a lock's name: those that may be held when it is taken."""
    may_wait: frozenset[str]
    """Those that may be held in a wait."""


def parse(text: str) -> Order:
    """Read an order from its indented lines, of the form ``name[ (waits)][: what it protects]``.

    Raises:
        ValueError: if a name is explained not at all, twice, or not in the first place, or if two
            locks may each be taken while the other is held.
    """
    held: dict[str, set[str]] = {}
    waits = set()
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        head, colon, _ = line.strip().partition(": ")
        if not head:
            continue
        name, _, flag = head.partition(" ")
        if flag not in {"", "(waits)"} or bool(colon) == (name in held):
            raise ValueError(f"no lock, or not explained once and first: {line.strip()}")
        if flag:
            waits.add(name)
        indent = len(line) - len(line.lstrip())
        while above and above[-1][0] >= indent:
            above.pop()
        held.setdefault(name, set()).update(other for _, other in above)
        above.append((indent, name))
    _close(held)
    return Order({name: frozenset(others) for name, others in held.items()}, frozenset(waits))


def _close(held: dict[str, set[str]]) -> None:
    """Hold what may be held with those that may be held; nothing with itself."""
    for name, others in held.items():
        reached: set[str] = set()
        left = list(others)
        while left:
            one = left.pop()
            if one not in reached:
                reached.add(one)
                left += held[one]
        if name in reached:
            raise ValueError(f"{name} may be taken while it is held")


def written_order() -> Order:
    """The order of `recuse.runtime.locks`: the indented part of its docstring."""
    assert locks.__doc__ is not None
    return parse("\n".join(line for line in locks.__doc__.splitlines() if line.startswith("    ")))


class _Held(threading.local):
    """What a thread holds: each lock with the place where it was taken."""

    def __init__(self) -> None:
        self.stack: list[tuple[WatchedLock, CodeType, int]] = []


class Watch:
    """Makes watched locks, and keeps what has broken the order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.held = _Held()
        self._violations: list[str] = []

    def make(self, name: str, reentrant: bool) -> "WatchedLock":
        """Make a lock; KeyError if its name is not in the order."""
        return WatchedLock(self, name, reentrant, self.order.may_hold[name])

    def violations(self) -> list[str]:
        """What has broken the order since this was asked for last."""
        found, self._violations = self._violations, []
        return found

    def note(self, what: str, frame: FrameType) -> str:
        """Keep a violation, with all that the thread holds."""
        held = ", ".join(
            f"{lock.name} (taken at {_place(code, line)})" for lock, code, line in self.held.stack
        )
        thread = threading.current_thread().name
        text = f"{thread}: {what} at {_place(frame.f_code, frame.f_lineno)}, holding {held}"
        self._violations.append(text)
        return text

    def waits(self, besides: object = None) -> None:
        """The calling thread is about to wait for another; a condition does not hold its lock."""
        for frame in _frames(sys._getframe(1)):
            file = frame.f_code.co_filename
            if file.startswith(PASSED_OVER) and "site-packages" not in file:
                continue
            # That a test waits while it holds up one of our threads is its own business.
            if not file.startswith(SOURCE) or file.endswith("/runtime/threads.py"):
                return
            for lock, _, _ in self.held.stack:
                if lock is not besides and lock.name not in self.order.may_wait:
                    self.note(f"a wait with {lock.name}", frame)
            return


class WatchedLock:
    """A Lock or an RLock."""

    def __init__(self, watch: Watch, name: str, reentrant: bool, may_hold: frozenset[str]) -> None:
        self.name = name
        self._watch = watch
        self._held = watch.held
        self._may_hold = may_hold
        self._reentrant = reentrant
        self._lock = threading.RLock() if reentrant else threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it. One that is not waited for may be taken in any order."""
        return self._take(blocking, timeout, sys._getframe(1))

    def _take(self, blocking: bool, timeout: float, frame: FrameType) -> bool:
        stack = self._held.stack
        if stack and blocking:
            self._check(frame)
        got = self._lock.acquire(blocking, timeout)
        if got:
            while frame.f_code.co_filename == threading.__file__ and frame.f_back is not None:
                frame = frame.f_back  # through a condition
            stack.append((self, frame.f_code, frame.f_lineno))
        return got

    def _check(self, frame: FrameType) -> None:
        holders = [lock for lock, _, _ in self._held.stack]
        if self in holders:
            if not self._reentrant:
                # It would wait for ever.
                raise RuntimeError(self._watch.note(f"{self.name} is taken twice", frame))
            return
        for holder in holders:
            if holder.name not in self._may_hold:
                self._watch.note(f"{self.name} is taken after {holder.name}", frame)

    def release(self) -> None:
        """Give it back, in the thread that has it."""
        stack = self._held.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index][0] is self:
                del stack[index]
                break
        else:
            self._watch.note(f"{self.name} is given back by who has not taken it", sys._getframe(1))
        self._lock.release()

    def __enter__(self) -> bool:
        return self._take(True, -1, sys._getframe(1))

    def __exit__(self, *error: object) -> None:
        self.release()


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """What happens in the block is done by another process, or the kernel, as far as it matters."""
    held = WATCH.held
    stack, held.stack = held.stack, []
    try:
        yield
    finally:
        held.stack = stack


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(code: CodeType, line: int) -> str:
    return f"{os.path.relpath(code.co_filename, SOURCE)}:{line}"


WATCH = Watch(written_order())


def install() -> None:
    """Have all of recuse's locks watched from now on, and all waits that may last."""
    from recuse.sandbox.tasks import rights  # noqa: PLC0415
    from recuse.sandbox.trap import inject  # noqa: PLC0415
    from recuse.server import session  # noqa: PLC0415

    locks.watch = WATCH.make
    rights._acts.lock = locks.new_lock("rights.acts")  # made when it was imported

    _before(threading.Condition, "wait", lambda self, *_: WATCH.waits(self._lock))
    _before(threading.Thread, "join", lambda *_: WATCH.waits())
    # For a thread of a program's.
    _before(inject.Injection, "_wait", lambda _, options=0: None if options else WATCH.waits())
    # For a server: its methods run here, or it is somewhere else, where there is no lock of ours.
    _before(session.Session, "handle", lambda *_: WATCH.waits())


def _before(owner: type, name: str, look: Any) -> None:
    """Have something called before a method, with its arguments."""
    method = getattr(owner, name)

    def wrapper(self: Any, *arguments: Any, **named: Any) -> Any:
        if WATCH.held.stack:
            look(self, *arguments)
        return method(self, *arguments, **named)

    setattr(owner, name, wrapper)
