"""Handlers that lose a program's call, or answer it twice: no program waits for ever."""

import logging
from collections.abc import Callable

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.machine import Machine
from recuse.sandbox.syscalls import locks
from recuse.sandbox.syscalls.handler import Handler
from recuse.sandbox.trap import answers
from recuse.sandbox.trap.answers import ANSWERED
from recuse.sandbox.trap.call import Steps, TrappedCall

from ..patience import PATIENCE_S
from .conftest import Clients, Start

FLOCK = """
with open("/dev/null") as file:
    print(attempt(fcntl.flock, file, fcntl.LOCK_EX), attempt(fcntl.flock, file, fcntl.LOCK_UN))
"""


class Forgotten:
    """Something that is never going to be, and that nobody remembers."""

    def begin(self, go_on: Callable[[], None]) -> bool:
        return True


class Remembered(Forgotten):
    """The same, but who waits for it is kept until it is not."""

    def __init__(self) -> None:
        self.kept: list[Callable[[], None]] = []

    def begin(self, go_on: Callable[[], None]) -> bool:
        self.kept.append(go_on)
        return True


def forgets(call: TrappedCall, machine: Machine) -> int:
    return ANSWERED


def forgets_who_waits(call: TrappedCall, machine: Machine) -> int:
    call.wait(lambda call, fatal: None)
    return ANSWERED


def waits(call: TrappedCall, machine: Machine) -> Steps[int]:
    yield Forgotten()
    raise AssertionError("it was forgotten")


def answers_twice(call: TrappedCall, machine: Machine) -> int:
    call.answer(0)
    return 5


def answers_and_fails(call: TrappedCall, machine: Machine) -> None:
    call.answer(0)
    raise ValueError("too late")


@pytest.mark.parametrize(
    ("handler", "printed", "logged"),
    [
        (forgets, "EIO EIO", "dropped without an answer"),
        (forgets_who_waits, "EIO EIO", "dropped without an answer"),
        (waits, "EIO EIO", "dropped without an answer"),
        (answers_twice, "None None", "answered again"),
        (answers_and_fails, "None None", "internal error in flock"),
    ],
)
def test_a_mistake_is_no_program_s_end(  # noqa: PLR0917
    clients: Clients,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    handler: Handler,
    printed: str,
    logged: str,
) -> None:
    monkeypatch.setitem(locks.HANDLERS, "flock", handler)
    monkeypatch.setattr(answers, "on_mistake", answers._log_mistake)
    with Sandbox() as sandbox, caplog.at_level(logging.ERROR):
        assert clients(sandbox)(FLOCK) == printed + "\n"
    mistakes = [record.getMessage() for record in caplog.records]
    assert len(mistakes) == 2
    assert all(logged in mistake and "flock" in mistake for mistake in mistakes)


def test_what_is_waited_for_keeps_a_call(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is let go of, as when what is waited for is gone."""
    pause = Remembered()

    def handler(call: TrappedCall, machine: Machine) -> Steps[int]:
        yield pause
        return 0

    monkeypatch.setitem(locks.HANDLERS, "flock", handler)
    script = """
with open("/dev/null") as file:
    print("begins", flush=True)
    print(attempt(fcntl.flock, file, fcntl.LOCK_EX))
"""
    with Sandbox() as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"begins\n"
        while not pause.kept:
            assert program.poll() is None
        pause.kept.pop()()
        assert program.communicate(timeout=PATIENCE_S)[0] == b"None\n"
