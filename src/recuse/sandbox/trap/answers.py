"""One trapped system call, from its receipt to the one answer that it gets.

Whoever has a :class:`TrappedCall` in hand owes the program an answer. These are its states, and
the methods that make the transitions:

    RUNNING ---------- wait, a step --> WAITING   a reply or somebody else continues it
    WAITING ---------- a reply -------> RUNNING   in whatever thread brings it
    RUNNING ---------- hold ----------> HELD      its thread is stopped and makes calls for recuse
    HELD ------------- let_go --------> ANSWERED  by the contents of its registers
    RUNNING, WAITING - answer, fail,
                       proceed -------> ANSWERED

A call is RUNNING when it is received. ANSWERED is final: a second answer has no effect, and is
logged as an internal error. A call that is dropped before it is answered is answered with EIO, and
that is logged too. So what a call waits for must hold a reference to the call, and nothing else
may: the watch for signals does not keep a call alive.

The kernel takes one answer only, and an answer cannot be taken back. So a call may be over in any
of these states: its thread was killed, or :meth:`give_up` has answered because the call's owner is
held up. The owner's own answer then has no effect, and is not an error.
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
    from recuse.kernel.fs.credentials import FileCaller
    from recuse.sandbox.tasks.tasks import Task
    from recuse.sandbox.trap.trap import Trap

_log = Log("recuse.sandbox")

PROCEED: Final = -1
"""A handler's result: the call has nothing to do with devices; let the kernel run it."""

ANSWERED: Final = -2
"""A handler's result: the call has been answered, or whoever has it will answer it."""

_OF_SIGNALS: Final = (errno.EINTR, ERESTARTSYS)


class State(IntEnum):
    """See the table at the top."""

    RUNNING = 0
    """A thread of the supervisor works on it."""
    WAITING = 1
    """Nobody works on it until what it waits for comes."""
    HELD = 2
    """Answered as far as the kernel knows, but its thread has not seen the answer."""
    ANSWERED = 3


# Names of this module, as in recuse.kernel.connection.request.
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
"""For each method, the states that it may start from and the one that it leads to."""


class CallError(RuntimeError):
    """A transition that is not in the table: a bug in this package."""


def _log_mistake(what: str) -> None:
    _log.error("internal error: %s", what, stack_info=True)


on_mistake: Callable[[str], None] = _log_mistake
"""Called for each mistake in the life of a call. In tests it raises CallError."""


class OwedCall:
    """One trapped system call.

    id
        The kernel's ID for the call while it waits.
    tid
        The calling *thread*, in the supervisor's pid namespace.
    number, arch
        Which call it is. The calls of 32-bit programs have their own numbers.
    instruction
        The address after the call's instruction, where the thread continues.
    a0 to a5
        Its arguments. The handler of a 32-bit program's call replaces them with those of the
        64-bit call of the same name.
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
        "file_caller",
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
    file_caller: FileCaller | None
    """Who makes it, for a filesystem: kept by `recuse.sandbox.fs.caller.caller_of`."""
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
        """Whether signals no longer concern it."""
        return self._state is _ANSWERED or self._state is _HELD

    @property
    def name(self) -> str:
        """The system call's name."""
        return name_of(self.arch, self.number)

    @property
    def task(self) -> Task:
        """The thread that makes the call. OSError: ESRCH if it is gone."""
        task = self._task
        if task is None:
            task = self._task = self.trap.tasks.get(self.tid)
        return task

    def caller(self) -> Caller:
        """The caller, for the kernel half. OSError: ESRCH if it is gone."""
        task = self._task
        if task is None:  # as `task` does, but sooner
            task = self._task = self.trap.tasks.get(self.tid)
        who = task.credentials
        memory = CallerMemory(self.trap.listener, self.id, self.tid, task.writable)
        return Caller(self.tid, who.uid, who.gid, memory, task.owner, who.keeps_suid)

    def alive(self) -> bool:
        """Whether it still waits for an answer. If so, its tid still means the same thread."""
        return self.trap.listener.alive(self.id)

    def add_descriptor(self, descriptor: int, *, cloexec: bool) -> int | None:
        """See `Listener.add_descriptor`."""
        return self.trap.listener.add_descriptor(self.id, descriptor, cloexec=cloexec)

    @property
    def arguments(self) -> tuple[int, ...]:
        """All six arguments."""
        return self.a0, self.a1, self.a2, self.a3, self.a4, self.a5

    @arguments.setter
    def arguments(self, values: tuple[int, ...]) -> None:
        self.a0, self.a1, self.a2, self.a3, self.a4, self.a5 = values

    # The answers. Each method returns whether the program was still there to get its answer. The
    # common code is repeated in all three, because every call goes through one of them.

    def answer(self, value: int) -> bool:
        """Give the call its result, which must not be negative."""
        state = self._state
        if state is _ANSWERED or state is _HELD:
            return self._mistaken("answered again")
        # First the state, then the table of waiting calls: the watch for signals uses the opposite
        # order.
        self._state = _ANSWERED
        trap = self.trap
        if trap.waiting:
            trap.waiting.pop(self.id, None)
        try:
            return trap.listener.answer(self.id, value)
        except BaseException:
            self._state = state  # the answer is still owed
            raise

    def fail(self, number: int) -> bool:
        """Fail the call with a positive errno."""
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
        """Let the kernel run the call as if it had never been trapped."""
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
        """Fail the call because a signal has come. The kernel restarts it if SA_RESTART says so."""
        wait = self.trap.waiting.get(self.id)
        return self.fail(ERESTARTSYS if wait is not None and wait.sure else errno.EINTR)

    def grant(self) -> bool:
        """Answer with 0, for callers that wait for nothing else."""
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
        """Answer with the error that a handler has raised, before anything else can fail.

        If the call was answered before, nothing is answered, but an internal error is logged.
        """
        if not self.over:
            if isinstance(error, UnreadableError):
                # A process that nobody may look into sees no devices, and runs as it would outside.
                self.proceed()
                if isinstance(error, HiddenError):
                    self.trap.unseen.tell(self.tid)
                return
            number = errno.EIO
            if isinstance(error, OSError):
                number = error.errno or errno.EIO
                if number == errno.EMFILE and not isinstance(error, TableFullError):
                    number = errno.ENFILE  # the supervisor's table is full, not the program's
            elif isinstance(error, MemoryError):
                number = errno.ENOMEM
            while True:
                try:
                    self.fail(number)
                    break
                except MemoryError:  # even this needs memory, so the program waits until there is
                    time.sleep(TICK)
        if isinstance(error, LostRightsError):
            error.stop()
        if not isinstance(error, OSError | MemoryError | UnreadableError):
            what = "internal error in %s of thread %d"
            _log.error(what, self.name, self.tid, exc_info=error)

    def give_up(self, number: int) -> bool:
        """Fail the call on behalf of its owner, who may be held up for long and then answer too."""
        if not self.trap.listener.fail(self.id, number):
            return False
        self._forget()
        return True

    def leave(self) -> None:
        """See `TrappedCall.attend`."""
        self._forget()

    def hold(self) -> bool:
        """Have its thread run on to where it is stopped by ptrace, to make calls for recuse.

        Return False if the call is over already: it was answered, or its thread was killed.
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
        """Let the thread run on. It sees this result, or a negative errno."""
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
