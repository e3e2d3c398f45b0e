"""One trapped system call, from its receipt to the one answer that it gets.

Who has a :class:`TrappedCall` in hand owes the program an answer. What happens to it, with the
method that makes each transition:

    RUNNING ---------- wait, a step --> WAITING   a reply or somebody else goes on with it
    WAITING ---------- a reply -------> RUNNING   in whatever thread brings it
    RUNNING ---------- hold ----------> HELD      its thread is stopped, and makes calls for us
    HELD ------------- let_go --------> ANSWERED  by what is in its registers then
    RUNNING, WAITING - answer, fail,
                       proceed -------> ANSWERED

It is RUNNING when it is received. There is no way from ANSWERED: a second answer has no effect, and
is a mistake that is logged. One that is dropped before has been lost: it is answered with EIO, and
logged. So whoever waits for something is to be referred to by what it waits for, and by nobody
else: who looks for signals meanwhile does not keep a call.

The kernel takes one answer only, and nobody can take back from a program what another one has told
it. So a call may be over though it is none of these: its thread was killed, or :meth:`give_up` has
answered for an owner who is held up. What the owner answers then has no effect, and is no mistake.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from recuse.channel.workers import TICK
from recuse.kernel.caller import Caller
from recuse.runtime.log import Log, report
from recuse.sandbox.arch import name_of
from recuse.sandbox.tasks.memory import CallerMemory, HiddenError, UnreadableError
from recuse.sandbox.tasks.rights import LostRightsError
from recuse.sandbox.trap.listener import TableFullError
from recuse.sandbox.trap.signals import ERESTARTSYS
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.sandbox.tasks.tasks import Task
    from recuse.sandbox.trap.trap import Trap

_log = Log("recuse.sandbox")

PROCEED: Final = -1
"""A handler's result: the call has nothing to do with devices; let the kernel run it."""

ANSWERED: Final = -2
"""A handler's result: the call was answered, or will be by who has it."""

_OF_SIGNALS: Final = (errno.EINTR, ERESTARTSYS)


class State(IntEnum):
    """See the table at the top."""

    RUNNING = 0
    """In the hands of a thread of ours."""
    WAITING = 1
    """In nobody's hands until what it waits for comes."""
    HELD = 2
    """Answered as far as the kernel knows, but its thread has not seen that."""
    ANSWERED = 3


# Names of the module, as in recuse.kernel.connection.request.
RUNNING: Final = State.RUNNING
WAITING: Final = State.WAITING
_HELD: Final = State.HELD
_ANSWERED: Final = State.ANSWERED

TRANSITIONS: Final[dict[str, tuple[frozenset[State], State]]] = {
    "wait": (frozenset({RUNNING}), WAITING),
    "hold": (frozenset({RUNNING}), _HELD),
    "let_go": (frozenset({_HELD}), _ANSWERED),
    "answer": (frozenset({RUNNING, WAITING}), _ANSWERED),
    "fail": (frozenset({RUNNING, WAITING}), _ANSWERED),
    "proceed": (frozenset({RUNNING, WAITING}), _ANSWERED),
    "restart": (frozenset({RUNNING, WAITING}), _ANSWERED),
}
"""Method: the states that it takes a call from, and the one that it leads to."""


class CallError(RuntimeError):
    """A transition that the table does not have: a mistake in this package."""


def _log_mistake(what: str) -> None:
    _log.error("internal error: %s", what, stack_info=True)


on_mistake: Callable[[str], None] = _log_mistake
"""Told of each mistake in the life of a call; tests have it raise CallError."""


class OwedCall:
    """One trapped system call.

    id
        The kernel's name for it while it waits.
    tid
        The calling *thread*, in the supervisor's pid namespace.
    number, arch
        Which call it is; a 32-bit program's has a number of its own.
    instruction
        The address after its instruction, to which the thread returns.
    a0 to a5
        Its arguments. Those of a 32-bit program's call are what its 64-bit namesake would have, as
        soon as its handler has seen to that.
    """

    __slots__ = (
        "__weakref__",
        "_state",
        "_task",
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
        "a5",
        "arch",
        "flags",
        "id",
        "instruction",
        "number",
        "tid",
        "trap",
    )

    id: int
    tid: Tid
    number: int
    arch: int
    instruction: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int
    trap: Trap
    _state: State
    _task: Task | None

    def __repr__(self) -> str:
        return f"<TrappedCall {self.name} of thread {self.tid} {self._state.name}>"

    # What is known of it

    @property
    def state(self) -> State:
        """See the table at the top."""
        return self._state

    @property
    def over(self) -> bool:
        """Whether signals are no business of it any more."""
        return self._state is _ANSWERED or self._state is _HELD

    @property
    def name(self) -> str:
        """The system call's name."""
        return name_of(self.arch, self.number)

    @property
    def task(self) -> Task:
        """Who makes it. OSError: ESRCH if that is gone."""
        task = self._task
        if task is None:
            task = self._task = self.trap.tasks.get(self.tid)
        return task

    def caller(self) -> Caller:
        """Who makes it, for the kernel half. OSError: ESRCH if that is gone."""
        task = self.task
        who = task.credentials
        memory = CallerMemory(self.trap.listener, self.id, self.tid, task.writable)
        return Caller(self.tid, who.uid, who.gid, memory, task.owner, who.keeps_suid)

    def alive(self) -> bool:
        """Whether it still waits for an answer, so that its tid still means the same thread."""
        return self.trap.listener.alive(self.id)

    def add_descriptor(self, descriptor: int, *, cloexec: bool) -> int | None:
        """See `Listener.add_descriptor`."""
        return self.trap.listener.add_descriptor(self.id, descriptor, cloexec=cloexec)

    @property
    def arguments(self) -> tuple[int, ...]:
        """All six."""
        return self.a0, self.a1, self.a2, self.a3, self.a4, self.a5

    @arguments.setter
    def arguments(self, values: tuple[int, ...]) -> None:
        self.a0, self.a1, self.a2, self.a3, self.a4, self.a5 = values

    # The answers. Each tells whether the program was still there to get it. What all three have in
    # common stands in each: one of them is on the way of every call.

    def answer(self, value: int) -> bool:
        """Give it its result, which is not negative."""
        state = self._state
        if state is _ANSWERED or state is _HELD:
            return self._mistaken("answered again")
        # First this and then that: who looks for signals does it the other way round.
        self._state = _ANSWERED
        trap = self.trap
        if trap.waiting:
            trap.waiting.pop(self.id, None)
        try:
            return trap.listener.answer(self.id, value)
        except BaseException:
            self._state = state  # it is still owed
            raise

    def fail(self, number: int) -> bool:
        """Fail it with a positive errno."""
        state = self._state
        if state is _ANSWERED or state is _HELD:
            return self._mistaken("answered again")
        self._state = _ANSWERED
        trap = self.trap
        if trap.waiting:
            trap.waiting.pop(self.id, None)
        try:
            if number in _OF_SIGNALS:
                trap.signals.ends(self)
            return trap.listener.fail(self.id, number)
        except BaseException:
            self._state = state
            raise

    def proceed(self) -> bool:
        """Let it run as if it had never been trapped."""
        state = self._state
        if state is _ANSWERED or state is _HELD:
            return self._mistaken("answered again")
        self._state = _ANSWERED
        trap = self.trap
        if trap.waiting:
            trap.waiting.pop(self.id, None)
        try:
            return trap.listener.proceed(self.id)
        except BaseException:
            self._state = state
            raise

    def restart(self) -> bool:
        """Fail it since a signal has come: the kernel does as SA_RESTART says."""
        wait = self.trap.waiting.get(self.id)
        return self.fail(ERESTARTSYS if wait is not None and wait.sure else errno.EINTR)

    def grant(self) -> bool:
        """Answer with 0, for who waits for nothing else."""
        return self.answer(0)

    def finish(self, result: int | None, error: OSError | None) -> None:
        """Answer with an operation's result or error."""
        try:
            if error is None:
                self.answer(result or 0)
            elif error.errno == errno.EINTR:
                wait = self.trap.waiting.get(self.id)
                anew = wait is not None and wait.can_start_anew()
                self.fail(ERESTARTSYS if anew else errno.EINTR)
            else:
                self.fail(error.errno or errno.EIO)
        except BaseException as failure:
            self.raised(failure)

    def conclude(self, result: int) -> None:
        """Answer with a handler's result."""
        if result == PROCEED:
            self.proceed()
        elif result != ANSWERED:
            self.answer(result)

    def raised(self, error: BaseException) -> None:
        """Answer with what a handler has raised; that comes first, whatever else may fail.

        If it was answered before, there is nothing to answer, but an internal error is still one.
        """
        if not self.over:
            if isinstance(error, UnreadableError):
                # A process that lets nobody look into it sees no devices, and runs as it would.
                self.proceed()
                if isinstance(error, HiddenError):
                    self.trap.unseen.tell(self.tid)
                return
            number = errno.EIO
            if isinstance(error, OSError):
                number = error.errno or errno.EIO
                if number == errno.EMFILE and not isinstance(error, TableFullError):
                    number = errno.ENFILE  # it is ours that is full
            elif isinstance(error, MemoryError):
                number = errno.ENOMEM
            while True:
                try:
                    self.fail(number)
                    break
                except MemoryError:  # not even for this: the program waits until there is some
                    time.sleep(TICK)
        if isinstance(error, LostRightsError):
            error.stop()
        if not isinstance(error, OSError | MemoryError | UnreadableError):
            what = "internal error in %s of thread %d"
            _log.error(what, self.name, self.tid, exc_info=error)

    def give_up(self, number: int) -> bool:
        """Fail it on behalf of its owner, who may be held up for long, and still owes an answer."""
        if not self.trap.listener.fail(self.id, number):
            return False
        self._forget()
        return True

    def leave(self) -> None:
        """See `TrappedCall.attend`."""
        self._forget()

    def hold(self) -> bool:
        """Have its thread go on to where a debugger has it stop, to make calls for us.

        False if it is over already: somebody has answered it, or its thread was killed.
        """
        if self._state is not RUNNING:
            return self._mistaken("held")
        self._state = _HELD
        try:
            waited = self.trap.listener.answer(self.id, 0)
        except BaseException:
            self._state = RUNNING
            raise
        if not waited:
            self._state = _ANSWERED
        return waited

    def let_go(self, result: int) -> None:
        """Its thread goes on, and sees this result, a negative errno if it has failed."""
        if self._state is not _HELD:
            self._mistaken("let go")
            return
        self._state = _ANSWERED
        if result == -errno.EINTR:
            self.trap.signals.ends(self)

    def _forget(self) -> None:
        self.trap.waiting.pop(self.id, None)

    def _mistaken(self, what: str) -> bool:
        on_mistake(f"{self!r} was {what}")
        return False

    def __del__(self) -> None:
        if self._state is not _ANSWERED:
            self._lost()

    def _lost(self) -> None:
        try:
            self._forget()
            if self._state is not _HELD and self.trap.listener.fail(self.id, errno.EIO):
                self._mistaken("dropped without an answer")
        except Exception as error:
            report(error)
