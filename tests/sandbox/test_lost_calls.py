"""Handlers that lose a program's call, or answer it twice: no program waits for ever."""

import logging

import pytest

from recuse.sandbox import Sandbox, answers
from recuse.sandbox.answers import ANSWERED
from recuse.sandbox.syscalls import locks

from ..patience import PATIENCE_S

FLOCK = """
with open("/dev/null") as file:
    print(attempt(fcntl.flock, file, fcntl.LOCK_EX), attempt(fcntl.flock, file, fcntl.LOCK_UN))
"""


class Forgotten:
    """Something that is never going to be, and that nobody remembers."""

    def begin(self, go_on):
        return True


class Remembered(Forgotten):
    """The same, but who waits for it is kept until it is not."""

    def begin(self, go_on):
        self.kept = go_on
        return True


def forgets(call, machine):
    return ANSWERED


def forgets_who_waits(call, machine):
    call.wait(lambda call, fatal: None)
    return ANSWERED


def waits(call, machine):
    yield Forgotten()
    raise AssertionError("it was forgotten")


def answers_twice(call, machine):
    call.answer(0)
    return 5


def answers_and_fails(call, machine):
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
def test_a_mistake_is_no_program_s_end(clients, monkeypatch, caplog, handler, printed, logged):  # noqa: PLR0917
    monkeypatch.setitem(locks.HANDLERS, "flock", handler)
    monkeypatch.setattr(answers, "on_mistake", answers._log_mistake)
    with Sandbox() as sandbox, caplog.at_level(logging.ERROR):
        assert clients(sandbox)(FLOCK) == printed + "\n"
    mistakes = [record.getMessage() for record in caplog.records]
    assert len(mistakes) == 2
    assert all(logged in mistake and "flock" in mistake for mistake in mistakes)


def test_what_is_waited_for_keeps_a_call(start, monkeypatch):
    """Until it is let go of, as when what is waited for is gone."""
    pause = Remembered()

    def handler(call, machine):
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
        while not hasattr(pause, "kept"):
            assert program.poll() is None
        go_on, pause.kept = pause.kept, None
        go_on()
        assert program.communicate(timeout=PATIENCE_S)[0] == b"None\n"
