"""A trapped call's states against their table, and the one answer that it gets."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recuse.sandbox.tasks.memory import HiddenError, UnreadableError
from recuse.sandbox.trap import answers
from recuse.sandbox.trap.answers import ANSWERED, PROCEED, TRANSITIONS, CallError, State
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.trap.listener import Listener, TableFullError
from recuse.sandbox.trap.signals import ERESTARTSYS

from ..support import Found, NoSignals, Programs, made_call, mistakes  # noqa: F401 - a fixture

SEND, ID_VALID = 0xC0182101, 0x40082102
"""linux/seccomp.h"""


def attend(call: TrappedCall) -> None:
    """Hold its thread, as who makes it make calls does."""
    if call.state is State.RUNNING:
        call.attend(lambda: None)
    if not call.hold() and call.state is State.ANSWERED:
        call.leave()


def let_go(call: TrappedCall) -> None:
    call.let_go(7)
    call.leave()


METHODS: dict[str, Callable[[TrappedCall], object]] = {
    "wait": lambda call: call.wait(lambda call, fatal: None),
    "hold": attend,
    "let_go": let_go,
    "answer": lambda call: call.answer(5),
    "fail": lambda call: call.fail(errno.EBADF),
    "proceed": TrappedCall.proceed,
    "restart": TrappedCall.restart,
}

TOLD: dict[str, int | str] = {
    "hold": 0,
    "answer": 5,
    "fail": "EBADF",
    "proceed": "proceed",
    "restart": "EINTR",
}


def in_state(state: State) -> tuple[TrappedCall, Programs]:
    programs = Programs()
    call = made_call(programs)
    for method in {
        State.RUNNING: [],
        State.WAITING: ["wait"],
        State.HELD: ["hold"],
        State.ANSWERED: ["answer"],
    }[state]:
        METHODS[method](call)
    assert call.state is state
    return call, programs


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The errors that a call was answered with, for a caller that does not run to take them."""
    taken: list[int] = []

    def ioctl(descriptor: int, command: int, data: bytes, *args: object) -> int:
        if command == ID_VALID and taken:
            raise OSError(errno.ENOENT, "")
        if taken:  # kernel/seccomp.c: the state is SECCOMP_NOTIFY_REPLIED
            raise OSError(errno.EINPROGRESS, "")
        if command == SEND:
            taken.append(struct.unpack("=QqiI", data)[2])
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return taken


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("method", TRANSITIONS)
def test_a_method_makes_its_transition_and_no_other(
    method: str,
    state: State,
    mistakes: list[str],  # noqa: F811
) -> None:
    call, programs = in_state(state)
    told = list(programs.answers)
    allowed, target = TRANSITIONS[method]
    METHODS[method](call)
    if state in allowed:
        assert call.state is target
        assert programs.answers == told + [TOLD[name] for name in (method,) if name in TOLD]
        assert mistakes == []
    else:
        assert call.state is state
        assert programs.answers == told
        assert len(mistakes) == 1
    if call.state is State.ANSWERED:
        assert call.trap.waiting == {}
    call.leave()


def test_a_mistake_raises_in_tests_and_else_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, programs = in_state(State.ANSWERED)

    def raises(what: str) -> None:
        raise CallError(what)

    monkeypatch.setattr(answers, "on_mistake", raises)
    with pytest.raises(CallError):
        call.fail(errno.EIO)
    monkeypatch.setattr(answers, "on_mistake", answers._log_mistake)
    with caplog.at_level(logging.ERROR):
        assert not call.fail(errno.EIO)
    assert "internal error: <TrappedCall read of thread 0 ANSWERED>" in caplog.text
    assert programs.answers == [5]


@pytest.mark.parametrize("state", [State.RUNNING, State.WAITING])
def test_a_call_that_is_dropped_is_answered(
    state: State,
    mistakes: list[str],  # noqa: F811
) -> None:
    call, programs = in_state(state)
    trap = call.trap
    del call
    assert programs.answers == ["EIO"]
    assert trap.waiting == {}
    (mistake,) = mistakes
    assert mistake.startswith("<TrappedCall read of thread 0")
    assert mistake.endswith("dropped without an answer")


@pytest.mark.parametrize("state", [State.HELD, State.ANSWERED])
def test_one_that_is_dropped_when_it_is_over_is_not(state: State) -> None:
    call, programs = in_state(state)
    told = list(programs.answers)
    del call
    assert programs.answers == told


def test_nor_one_whose_program_is_gone() -> None:
    call, programs = in_state(State.WAITING)
    programs.gone = True
    del call
    assert programs.answers == []


def test_who_gives_up_for_another_makes_no_mistake_of_its_answer() -> None:
    call, programs = in_state(State.WAITING)
    assert call.give_up(errno.ECONNABORTED)
    assert call.trap.waiting == {}
    assert not call.give_up(errno.ECONNABORTED)
    assert not call.answer(5)
    assert programs.answers == ["ECONNABORTED"]


# The caller takes its answer when it runs again. Until then the kernel knows the call as answered.

OWNERS: dict[str, Callable[[TrappedCall], object]] = {
    "answer": lambda call: call.answer(5),
    "fail": lambda call: call.fail(errno.EBADF),
    "proceed": TrappedCall.proceed,
    "restart": TrappedCall.restart,
    "hold": attend,
    "finish": lambda call: call.finish(5, None),
    "finish with an error": lambda call: call.finish(None, OSError(errno.EIO, "")),
    "raised": lambda call: call.raised(OSError(errno.EIO, "")),
}


@pytest.mark.parametrize("owner", OWNERS)
def test_an_answer_after_one_that_is_not_taken_yet(owner: str, kernel: list[int]) -> None:
    call = made_call(Listener(100))
    assert call.give_up(ERESTARTSYS)
    assert call.add_descriptor(5, cloexec=True) is None
    OWNERS[owner](call)
    assert call.state is State.ANSWERED
    assert call.trap.waiting == {}
    assert kernel == [-ERESTARTSYS]


def test_who_gives_up_after_an_answer_that_is_not_taken_yet(kernel: list[int]) -> None:
    call = made_call(Listener(100))
    assert call.answer(5)
    assert not call.give_up(ERESTARTSYS)
    assert kernel == [0]


def test_one_that_is_dropped_before_its_answer_is_taken(
    kernel: list[int],
    mistakes: list[str],  # noqa: F811
) -> None:
    call = made_call(Listener(100))
    assert call.give_up(ERESTARTSYS)
    del call
    assert kernel == [-ERESTARTSYS]
    assert mistakes == []


def test_what_cannot_be_sent_is_still_owed() -> None:
    call, programs = in_state(State.RUNNING)

    def lacks(answer: int | str) -> bool:
        raise MemoryError

    tell, programs._tell = programs._tell, lacks  # type: ignore[method-assign]
    for method in ("answer", "fail", "proceed", "hold"):
        with pytest.raises(MemoryError):
            METHODS[method](call)
        assert call.state is State.RUNNING
    programs._tell = tell  # type: ignore[method-assign]
    assert call.answer(5)


@pytest.mark.parametrize(
    ("result", "told"), [(0, [0]), (1, [1]), (PROCEED, ["proceed"]), (ANSWERED, [])]
)
def test_a_handlers_result(result: int, told: list[int | str]) -> None:
    call, programs = in_state(State.RUNNING)
    call.conclude(result)
    assert programs.answers == told
    if not told:
        assert call.state is State.RUNNING
        call.answer(0)  # as who has it does


@pytest.mark.parametrize("sure", [False, True])
def test_a_restart_is_as_signals_say(sure: bool) -> None:
    call, programs = in_state(State.WAITING)
    signals: Any = call.trap.signals
    call.trap.waiting[1] = Found(sure=sure, anew=False)  # type: ignore[assignment]
    assert call.restart()
    assert programs.answers == ["512" if sure else "EINTR"]
    assert signals.ended == [1]


@pytest.mark.parametrize("anew", [False, True])
def test_so_is_the_end_of_an_operation(anew: bool) -> None:
    call, programs = in_state(State.RUNNING)
    call.trap.waiting[1] = Found(sure=True, anew=anew)  # type: ignore[assignment]
    call.finish(None, InterruptedError(errno.EINTR, ""))
    assert programs.answers == ["512" if anew else "EINTR"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, ""), "ENFILE"),
        (TableFullError(errno.EMFILE, ""), "EMFILE"),
        (OSError("without a number"), "EIO"),
        (MemoryError(), "ENOMEM"),
        (ValueError("odd"), "EIO"),
        (UnreadableError(), "proceed"),
    ],
)
def test_what_a_handler_raises(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    call, programs = in_state(State.RUNNING)
    call.raised(error)
    assert programs.answers == [told]
    assert ("internal error" in caplog.text) == isinstance(error, ValueError)


def test_a_process_that_hides_is_told_of() -> None:
    class Unseen:
        def __init__(self) -> None:
            self.told: list[int] = []

        def tell(self, pid: int) -> None:
            self.told.append(pid)

    programs, unseen = Programs(), Unseen()
    call = made_call(programs, unseen=unseen, pid=7)
    call.raised(HiddenError())
    assert programs.answers == ["proceed"]
    assert unseen.told == [7]


def test_what_is_raised_after_the_answer_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    for error in (OSError(errno.EIO, ""), KeyError("odd")):
        call, programs = in_state(State.ANSWERED)
        call.raised(error)
        assert programs.answers == [5]
        assert ("internal error" in caplog.text) == isinstance(error, KeyError)


class Life(RuleBasedStateMachine):
    """A call and a model of it: any order of what its owner, signals and the kernel can do."""

    def __init__(self) -> None:
        super().__init__()
        self.signals = NoSignals()
        self.programs = Programs()
        self.call: TrappedCall | None = made_call(self.programs, self.signals)
        self.state = State.RUNNING
        self.told: list[int | str] = []
        self.mistakes = self.expected_mistakes = 0
        self.before = answers.on_mistake
        answers.on_mistake = self.mistaken

    def mistaken(self, _: str) -> None:
        self.mistakes += 1

    def teardown(self) -> None:
        self.call = None
        gc.collect(0)
        answers.on_mistake = self.before

    @precondition(lambda self: self.call is not None)
    @rule(method=st.sampled_from(sorted(METHODS)))
    def owner(self, method: str) -> None:
        assert self.call is not None
        allowed, target = TRANSITIONS[method]
        reached = self.programs.alive(1)
        METHODS[method](self.call)
        if self.state not in allowed:
            self.expected_mistakes += 1
            return
        self.state = target
        if method in TOLD and reached:
            self.told.append(TOLD[method])
        elif method == "hold":
            self.state = State.ANSWERED

    @precondition(lambda self: self.call is not None)
    @rule()
    def give_up(self) -> None:
        assert self.call is not None
        if self.call.give_up(errno.ECONNABORTED):
            self.told.append("ECONNABORTED")

    @precondition(lambda self: self.call is not None)
    @rule()
    def watch_late(self) -> None:
        assert self.call is not None
        self.signals.watch(self.call, TrappedCall.interrupt, late=True)

    @rule()
    def kill(self) -> None:
        self.programs.gone = True

    @precondition(lambda self: self.call is not None)
    @rule()
    def drop(self) -> None:
        owed = self.state in (State.RUNNING, State.WAITING) and self.programs.alive(1)
        self.call = None
        if owed:
            self.told.append("EIO")
            self.expected_mistakes += 1

    @invariant()
    def is_as_the_model_says(self) -> None:
        assert self.programs.answers == self.told
        assert len(self.told) <= 1
        assert self.mistakes == self.expected_mistakes
        if self.call is None:
            assert not self.signals.waiting
        else:
            assert self.call.state is self.state
            assert self.call.state is not State.ANSWERED or not self.signals.waiting


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=12, deadline=None)
test_any_life = Life.TestCase
