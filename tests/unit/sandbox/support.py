"""Trapped calls without programs."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from recuse.sandbox.arch import arch
from recuse.sandbox.trap import answers
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.trap.trap import Trap

READ = arch.SYSCALLS["read"]


class Found:
    """What signals were found for a call that waits."""

    def __init__(self, *, sure: bool = False, anew: bool = False) -> None:
        self.sure = sure
        self.can_start_anew = lambda: anew


class NoSignals:
    """Stands for a SignalWatch whose thread never looks."""

    def __init__(self) -> None:
        self.waiting: dict[int, Any] = {}
        self.ended: list[int] = []

    def watch(self, call: TrappedCall, interrupt: Any, *, late: bool = False) -> None:
        if not call.over and not (late and call.id in self.waiting):
            self.waiting[call.id] = Found()

    def attend(self, call: TrappedCall, look: Callable[[], None]) -> None:
        self.waiting[call.id] = Found()

    def ends(self, call: TrappedCall) -> None:
        self.ended.append(call.id)


class Programs:
    """A listener, and what the program with a call is told."""

    def __init__(self) -> None:
        self.answers: list[int | str] = []
        self.gone = False

    def alive(self, call_id: int) -> bool:
        return not self.answers and not self.gone

    def _tell(self, answer: int | str) -> bool:
        if not self.alive(1):
            return False
        self.answers.append(answer)
        return True

    def answer(self, call_id: int, value: int) -> bool:
        return self._tell(value)

    def fail(self, call_id: int, number: int) -> bool:
        return self._tell(errno.errorcode.get(number, str(number)))

    def proceed(self, call_id: int) -> bool:
        return self._tell("proceed")


def made_call(
    listener: Any,
    signals: Any = None,
    *,
    unseen: Any = None,
    id: int = 1,  # noqa: A002 - as the call has it
    pid: int = 0,
    number: int = READ,
) -> TrappedCall:
    """A call of a thread, as a listener tells of it."""
    tasks: Any = None
    if signals is None:
        signals = NoSignals()
    trap = Trap(listener, tasks, signals, unseen)
    return TrappedCall(trap, (id, pid, 0, number, arch.AUDIT_ARCH, 0, 0, 0, 0, 0, 0, 0))


@pytest.fixture
def mistakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mistakes in the lives of calls, which a test makes on purpose."""
    made: list[str] = []
    note: Callable[[str], None] = made.append
    monkeypatch.setattr(answers, "on_mistake", note)
    return made
