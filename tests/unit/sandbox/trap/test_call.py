"""Operations that answer a trapped call, and handlers that wait."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from recuse.channel.workers import Workers
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Reply, Request
from recuse.sandbox.errands import Errands
from recuse.sandbox.supervisor import Supervisor
from recuse.sandbox.trap import call as call_module
from recuse.sandbox.trap.answers import PROCEED, State
from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall, UnansweredError
from recuse.sandbox.trap.signals import SignalWatch
from recuse.wire.fuse import FUSE_INTERRUPT, FUSE_READ

from ...kernel.support import Answer, Message, Server, device, drain
from ..support import NoSignals, Programs, made_call, mistakes  # noqa: F401 - a fixture

WAIT_S = 20


def ask(times: int = 1, force: bool = False) -> Operation[int]:
    """Send some requests; the result is how many bytes the answers have."""
    done = 0
    for _ in range(times):
        reply = yield Request(FUSE_READ, bytes(40), 0, 64, pid=7, force=force)
        if reply.error:
            raise OSError(-reply.error, "")
        done += len(reply.payload)
    return done


class Waits:
    """A call, a device, and its server, which answers when it is told to."""

    def __init__(self, signals: Any = None) -> None:
        self.programs = Programs()
        self.call: TrappedCall | None = made_call(self.programs, signals, pid=7)
        self.device = device()
        self.server = Server(self.device.connection)

    @property
    def answers(self) -> list[int | str]:
        return self.programs.answers

    def take(self) -> TrappedCall:
        """The call; from now on it is the caller's."""
        call, self.call = self.call, None
        assert call is not None
        return call

    def reply(self, answer: Answer = b"12") -> None:
        """Answer the last request."""
        assert answer is not None
        self.server.reply(self.server.messages[-1], answer)


def test_what_a_server_answers_at_once_is_the_answer() -> None:
    waits = Waits()
    waits.server.handler = lambda message: b"123"
    call = waits.take()
    call.run(waits.device, ask(2))
    assert waits.answers == [6]
    assert call.trap.waiting == {}


def test_what_it_answers_later_is_too() -> None:
    waits = Waits()
    waits.take().run(waits.device, ask(2))
    assert waits.answers == []
    for _ in range(2):
        waits.reply()
    assert waits.answers == [4]


def state_of(call: TrappedCall) -> State:
    """What it is in now, which mypy takes to be what it was before a reply."""
    return call.state


def test_what_it_answers_just_before_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits()
    connection = waits.device.connection
    watch = connection.watch

    def late(request: Request, replied: Callable[[Reply], None]) -> bool:
        waits.reply()
        return watch(request, replied)

    monkeypatch.setattr(connection, "watch", late)
    waits.take().run(waits.device, ask(2))
    assert waits.answers == [4]


def test_a_call_that_waits_is_watched_until_it_is_answered() -> None:
    waits = Waits()
    call = waits.take()
    call.run(waits.device, ask())
    assert state_of(call) is State.WAITING
    assert list(call.trap.waiting) == [1]
    waits.reply()
    assert state_of(call) is State.ANSWERED
    assert call.trap.waiting == {}


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(errno.EMFILE, ""), "EMFILE"), (MemoryError(), "ENOMEM"), (ValueError("odd"), "EIO")],
)
def test_what_an_operation_raises(error: Exception, told: str) -> None:
    def operation() -> Operation[int]:
        raise error
        yield

    waits = Waits()
    waits.take().run(waits.device, operation())
    assert waits.answers == [told]


def interrupts(waits: Waits) -> list[int]:
    return [message.unique & ~1 for message in waits.server.messages if is_interrupt(message)]


def is_interrupt(message: Message) -> bool:
    return message.opcode == FUSE_INTERRUPT


def test_a_signal_reaches_the_request_that_is_waited_for() -> None:
    waits = Waits()
    call = waits.take()
    call.run(waits.device, ask(2))
    first = waits.server.messages[0]
    call.interrupt(False)
    call.interrupt(False)
    assert interrupts(waits) == [first.unique]
    waits.server.reply(first, b"1")
    # And those that the operation goes on to.
    second = next(message for message in waits.server.messages[1:] if not is_interrupt(message))
    assert interrupts(waits) == [first.unique, second.unique]
    waits.server.reply(second, -errno.EINTR)
    assert waits.answers == ["EINTR"]


def test_but_none_that_has_to_come() -> None:
    waits = Waits()
    call = waits.take()
    call.run(waits.device, ask(force=True))
    call.interrupt(True)
    assert interrupts(waits) == []
    waits.reply()


def test_a_death_ends_what_the_server_has_not_read() -> None:
    waits = Waits()
    waits.device.connection.on_pending = None
    call = waits.take()
    call.run(waits.device, ask(2))
    waits.programs.gone = True
    call.interrupt(True)
    assert call.state is State.ANSWERED
    assert list(drain(waits.device.connection)) == []


def test_a_method_that_blocks_is_interrupted_too() -> None:
    """Its request was submitted, and that has not returned."""
    waits = Waits()
    call = waits.take()
    told = []

    def handler(message: Message) -> Answer:
        if is_interrupt(message):
            told.append(message.unique & ~1)
            return None
        call.interrupt(False)  # as another thread does it
        return b"1"

    waits.server.handler = handler
    call.run(waits.device, ask())
    assert told == [waits.server.messages[0].unique]
    assert waits.answers == [1]


def test_a_device_that_goes_answers_who_is_held_up_in_it() -> None:
    waits = Waits()
    call = waits.take()
    connection = waits.device.connection

    def handler(message: Message) -> Answer:
        connection.abort()
        call.blocks(lambda: True)
        assert waits.answers == ["ECONNABORTED"]
        return None

    waits.server.handler = handler
    call.run(waits.device, ask())
    assert waits.answers == ["ECONNABORTED"]
    assert call.state is State.ANSWERED
    assert call.trap.waiting == {}


def test_and_not_who_waits_for_another() -> None:
    waits, other = Waits(), device()
    call = waits.take()

    def handler(message: Message) -> Answer:
        other.connection.abort()
        call.device_ended(other.connection)
        return b"1"

    waits.server.handler = handler
    call.run(waits.device, ask())
    assert waits.answers == [1]


def test_what_has_blocked_gives_way_until_it_is_quick_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No time passes, however busy the machine is.
    monkeypatch.setattr(call_module, "time", SimpleNamespace(monotonic=lambda: 0.0))
    waits = Waits()
    waits.server.handler = lambda message: b""
    first = waits.take()
    trap, key = first.trap, (waits.device.serial, first.number)
    trap.blocking[key] = 2
    first.run(waits.device, ask())
    for left in ({key: 1}, {}, {}):
        assert waits.answers == [0]
        assert trap.blocking == left
        waits.answers.clear()
        call = TrappedCall(trap, (1, 7, 0, first.number, first.arch, 0, 0, 0, 0, 0, 0, 0))
        call.run(waits.device, ask())


def test_an_operation_can_be_completed_here() -> None:
    waits = Waits()
    call = waits.take()
    asked = threading.Semaphore(0)

    def serve() -> None:
        for _ in range(2):
            assert asked.acquire(timeout=WAIT_S)
            waits.server.reply(waits.server.messages[-1], b"12")

    def handler(message: Message) -> Answer:
        asked.release()
        return None

    waits.server.handler = handler
    thread = threading.Thread(target=serve)
    thread.start()
    assert call.complete(waits.device, ask(2)) == 4
    thread.join()
    assert call.state is State.RUNNING
    assert waits.answers == []
    waits.server.handler = lambda message: -errno.ENXIO
    with pytest.raises(OSError, match=str(int(errno.ENXIO))):
        call.complete(waits.device, ask())
    call.answer(0)


# Handlers that wait


def add_up(waits: Waits, times: int) -> Steps[int]:
    found = 0
    for _ in range(times):
        found += yield OnDevice(waits.device, ask())
    return found


def test_the_steps_of_a_handler_that_does_not_have_to_wait() -> None:
    waits = Waits()
    waits.server.handler = lambda message: b"1"
    waits.take().take(add_up(waits, 2000))  # which is not a depth
    assert waits.answers == [2000]


def test_the_steps_of_one_that_has_to() -> None:
    waits = Waits()
    waits.take().take(add_up(waits, 3))
    for _ in range(3):
        assert waits.answers == []
        waits.reply()
    assert waits.answers == [6]


class Pausing:
    """A pause that another thread ends, or that is over."""

    def __init__(self, over: bool) -> None:
        self.over = over
        self.go_on: Callable[[], None] | None = None

    def begin(self, go_on: Callable[[], None]) -> bool:
        self.go_on = None if self.over else go_on
        return not self.over

    def end(self) -> None:
        go_on, self.go_on = self.go_on, None
        assert go_on is not None
        go_on()


@pytest.mark.parametrize("over", [False, True])
def test_a_pause(over: bool) -> None:
    def steps() -> Steps[int]:
        yield pause
        return (yield OnDevice(waits.device, ask()))  # type: ignore[no-any-return]

    waits, pause = Waits(), Pausing(over)
    call = waits.take()
    call.take(steps())
    if not over:
        assert call.state is State.WAITING
        assert waits.server.messages == []
        pause.end()
        # In a thread that nobody looks at.
        assert list(call.trap.waiting) == [1]
    waits.reply()
    assert waits.answers == [2]


def test_errors_are_raised_where_the_handler_waits() -> None:
    def steps() -> Steps[int]:
        try:
            yield OnDevice(waits.device, ask())
        except OSError as error:
            raised.append(error.errno)
        return PROCEED

    raised: list[int | None] = []
    waits = Waits()
    waits.take().take(steps())
    waits.reply(-errno.EBUSY)
    assert raised == [errno.EBUSY]
    assert waits.answers == ["proceed"]


def test_a_device_s_error_is_the_call_s_as_it_is() -> None:
    """Unlike one of ours: our table is not the program's."""
    waits = Waits()
    waits.take().take(add_up(waits, 2))
    waits.reply(-errno.EMFILE)
    assert waits.answers == ["EMFILE"]

    def ours() -> Steps[int]:
        yield OnDevice(waits.device, ask())
        raise OSError(errno.EMFILE, "")

    waits = Waits()
    waits.take().take(ours())
    waits.reply()
    assert waits.answers == ["ENFILE"]


def test_a_signal_ends_the_step_that_is_waited_for_and_no_other() -> None:
    def steps() -> Steps[int]:
        for _ in range(2):
            try:
                yield OnDevice(waits.device, ask())
            except InterruptedError:
                ended.append(waits.answers)
        return 3

    waits = Waits()
    ended: list[object] = []
    call = waits.take()
    call.take(steps())
    call.interrupt(False)
    waits.server.reply(waits.server.messages[0], -errno.EINTR)
    assert len(ended) == 1
    assert len(interrupts(waits)) == 1
    waits.server.reply(waits.server.messages[-1], b"")
    assert waits.answers == [3]


def test_a_pause_that_is_forgotten_loses_no_program(mistakes: list[str]) -> None:  # noqa: F811
    closed: list[int] = []

    def steps(call: TrappedCall) -> Steps[int]:
        try:
            yield pause
        finally:
            closed.append(call.id)
        return 0

    waits, pause = Waits(), Pausing(over=False)
    call = waits.take()
    call.take(steps(call))
    del call
    assert waits.answers == []
    pause.go_on = None
    assert waits.answers == ["EIO"]
    assert closed == [1]
    assert len(mistakes) == 1


def test_what_is_waited_for_is_seen_to_by_signals_and_kept_by_nobody_else() -> None:
    """With a real watch, which must not keep it from being found lost."""
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        waits = Waits(watch)
        call = waits.take()
        call.run(waits.device, ask())
        assert list(watch.waiting) == [1]
        waits.reply()
        assert watch.waiting == {}


@pytest.fixture
def supervised() -> Callable[[list[tuple[TrappedCall, Callable[..., Outcome]]]], None]:
    """Serves calls with handlers as a supervisor does, in one thread after the other."""

    def serve(todo: list[tuple[TrappedCall, Callable[..., Outcome]]]) -> None:
        def handle(item: tuple[TrappedCall, Callable[..., Outcome]]) -> None:
            call, handler = item
            result = handler(call)
            if isinstance(result, int):
                call.conclude(result)
            else:
                call.take(result)

        workers = Workers(lambda: todo.pop(0) if todo else None, handle)
        workers.start()
        assert workers.join(WAIT_S)

    return serve


def test_a_handler_that_waits_where_it_resolves_a_path_blocks_no_other(
    supervised: Callable[[list[tuple[TrappedCall, Callable[..., Outcome]]]], None],
) -> None:
    """As that of a file of a server's filesystem, which has to be asked for each name (LOOKUP)."""

    def resolve(path: str) -> Steps[int]:
        found = 0
        for _ in path.split("/"):
            found += yield OnDevice(waits.device, ask())
        return found

    def stat(call: TrappedCall) -> Steps[int]:
        return (yield from resolve("usr/share/doc"))

    def getpid(call: TrappedCall) -> int:
        return 42

    waits = Waits()
    others = [Programs() for _ in range(3)]
    todo: list[tuple[TrappedCall, Callable[..., Outcome]]] = [(waits.take(), stat)]
    todo += [(made_call(one), getpid) for one in others]
    supervised(todo)
    # All others have been served, by threads that are there no more, and it still waits.
    assert [one.answers for one in others] == [[42]] * 3
    assert waits.answers == []
    for _ in range(3):
        waits.reply()
    assert waits.answers == [6]


def test_signals_are_not_asked_about_by_quick_handlers() -> None:
    signals = NoSignals()
    waits = Waits(signals)
    waits.server.handler = lambda message: b""
    watched = []
    signals.watch = lambda *_, **__: watched.append(1)  # type: ignore[method-assign]
    waits.take().run(waits.device, ask())
    assert watched == []


class Later:
    """Errands that are done when the test says so."""

    def __init__(self) -> None:
        self.left: list[Callable[[], None]] = []

    def put(self, errand: Callable[[], None]) -> None:
        self.left.append(errand)


class Asking:
    """A handler that asks two questions, one of them twice, and counts how often it begins."""

    def __init__(self, waits: Waits, end: Callable[[int], Outcome] = lambda total: total) -> None:
        self.device = waits.device
        self.call = waits.take()
        self.errands: Any = Later()
        self.begun = 0
        self._end = end

    def handle(self) -> Outcome:
        self.begun += 1
        first: int = self.call.ask("first", lambda: OnDevice(self.device, ask()))
        second: int = self.call.ask("second", lambda: OnDevice(self.device, ask()))
        again: int = self.call.ask("first", lambda: OnDevice(self.device, ask()))
        return self._end(first + second + again)

    def start(self) -> None:
        with pytest.raises(UnansweredError) as asked:
            self.handle()
        steps = self.call.answered(asked.value, self.handle, self.errands)
        asked.value.__traceback__ = None
        self.call.take(steps)


def test_a_handler_that_asks_begins_anew_with_the_answer() -> None:
    waits = Waits()
    waits.server.handler = lambda message: b"123"
    asking = Asking(waits)
    asking.start()
    assert waits.answers == [9]
    assert (asking.begun, len(waits.server.messages)) == (3, 2)
    assert not asking.errands.left


def test_not_in_the_thread_that_brings_the_answer() -> None:
    waits = Waits()
    asking = Asking(waits)
    asking.start()
    for begun in 1, 2:
        thread = threading.Thread(target=waits.reply)
        thread.start()
        thread.join(WAIT_S)
        assert asking.begun == begun
        assert waits.answers == []
        asking.errands.left.pop()()
    assert waits.answers == [6]


def test_what_it_comes_to_may_take_steps() -> None:
    waits = Waits()

    def end(total: int) -> Steps[int]:
        more: int = yield OnDevice(waits.device, ask())
        return total + more

    waits.server.handler = lambda message: b"1"
    Asking(waits, end).start()
    assert waits.answers == [4]


@pytest.mark.parametrize("end", [PROCEED, OSError(errno.EPERM, "")])
def test_it_may_end_in_any_way(end: int | OSError) -> None:
    waits = Waits()
    waits.server.handler = lambda message: b"1"

    def ending(_: int) -> Outcome:
        if isinstance(end, OSError):
            raise end
        return end

    Asking(waits, ending).start()
    assert waits.answers == ["EPERM" if isinstance(end, OSError) else "proceed"]


def test_an_error_is_an_answer() -> None:
    waits = Waits()
    asking = Asking(waits)
    asking.start()
    waits.reply(-errno.EACCES)
    assert waits.answers == ["EACCES"]
    assert asking.begun == 2


def test_it_does_not_begin_for_a_caller_that_is_gone() -> None:
    waits = Waits()
    asking = Asking(waits)
    asking.start()
    waits.programs.gone = True
    waits.reply()
    assert asking.begun == 1
    assert asking.call.over


def test_a_32_bit_handler_gets_its_arguments_as_they_were() -> None:
    waits = Waits()
    waits.server.handler = lambda message: b"1"
    call = waits.take()
    call.a1, call.a2 = 5, 1
    seen = []

    def handler(call: TrappedCall, _: object) -> int:
        seen.append((call.a1, call.a2))
        call.a1 |= call.a2 << 32
        return call.ask("it", lambda: OnDevice(waits.device, ask()))

    machine = SimpleNamespace(errands=Later())
    supervisor: Any = SimpleNamespace(
        _compat_handlers={call.number: handler},
        _machine=machine,
        _handle_again=lambda call: handler(call, machine),
    )
    outcome = Supervisor._handle_compat(supervisor, call)
    assert not isinstance(outcome, int)
    call.take(outcome)
    assert waits.answers == [1]
    assert seen == [(5, 1)] * 2


class Staying(Asking):
    """The same, but it only leaves when an answer is not there."""

    def handle(self) -> Outcome:
        self.begun += 1
        first, second = self.asked("first", 2), self.asked("second", 1)
        return self._end(first + second + self.asked("first", 2))

    def asked(self, question: str, times: int) -> int:
        if self.call.has_answer(question):
            return self.call.ask(question, never)
        return self.call.ask_here(question, self.device, ask(times))


def never() -> OnDevice[int]:
    raise AssertionError("it was answered")


def test_a_handler_stays_if_answers_are_there_at_once() -> None:
    waits = Waits()
    waits.server.handler = lambda message: b"123"
    staying = Staying(waits)
    assert staying.handle() == 6 + 3 + 6
    assert (staying.begun, len(waits.server.messages)) == (1, 3)
    staying.call.answer(0)


def test_an_operation_goes_on_where_it_was_when_its_handler_leaves() -> None:
    waits = Waits()
    answers = iter([b"1", None, b"333"])
    waits.server.handler = lambda message: next(answers)
    staying = Staying(waits)
    staying.start()
    assert (staying.begun, len(waits.server.messages), waits.answers) == (1, 2, [])
    waits.reply(b"22")
    assert (staying.begun, len(waits.server.messages), waits.answers) == (2, 3, [3 + 3 + 3])


def test_a_signal_reaches_what_it_has_left() -> None:
    waits = Waits()
    staying = Staying(waits)
    staying.start()
    asked = waits.server.messages[-1]
    staying.call.interrupt(False)
    assert interrupts(waits) == [asked.unique]
    waits.server.reply(asked, -errno.EINTR)
    assert waits.answers == ["EINTR"]


def test_an_error_that_is_there_at_once_is_remembered_too() -> None:
    waits = Waits()
    waits.server.handler = lambda message: -errno.EACCES
    call = waits.take()
    with pytest.raises(PermissionError):
        call.ask_here("it", waits.device, ask(2))
    with pytest.raises(PermissionError):
        call.ask("it", never)
    assert len(waits.server.messages) == 1
    call.answer(0)
