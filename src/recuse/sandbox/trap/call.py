"""A trapped system call, and how the operations that answer it are run.

An *operation* of the kernel half (:mod:`recuse.kernel.connection.operation`) yields requests. It is
driven to its end here. If the reply is there as soon as a request has been submitted, the operation
continues at once. Otherwise the thread that brings the reply continues it, or the thread that
submitted the request, if one thread has to do everything. Signals, the caller's death and the end
of the device reach each request that is waited for.

A handler that has more to do before and after is a generator itself. It yields steps
(:class:`OnDevice`, :class:`Pause`). Nothing else waits meanwhile.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from recuse.channel.workers import pass_lead
from recuse.kernel.connection.operation import Operation, failure
from recuse.kernel.errors import os_error
from recuse.runtime.threads import must_not_block, no_more
from recuse.sandbox.trap.answers import ANSWERED, RUNNING, WAITING, OwedCall
from recuse.sandbox.trap.trap import QUICK_CALLS, Trap

if TYPE_CHECKING:
    from recuse.kernel.connection.connection import Connection
    from recuse.kernel.connection.request import Reply, Request
    from recuse.sandbox.errands import Errands

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Served(Protocol):
    """What a server provides: a device, or a tree of files."""

    @property
    def connection(self) -> Connection:
        """The connection to the server."""

    @property
    def serial(self) -> int:
        """A number that no other one has ever had."""


class OnDevice(Generic[T_co]):
    """A step: an operation of the kernel half on a device. Its result is the step's result."""

    __slots__ = ("device", "operation", "request")

    def __init__(
        self, device: Served, operation: Operation[T_co], request: Request | None = None
    ) -> None:
        self.device = device
        self.operation = operation
        self.request = request
        """What it waits for, if it has begun."""


class Pause(Protocol):
    """A step that waits for something else."""

    def begin(self, go_on: Callable[[], None]) -> bool:
        """Have ``go_on`` called once, in any thread, when the wait is over; return True.

        Return False if there is nothing to wait for. Signals cannot end such a wait, so it must be
        short.
        """


Steps: TypeAlias = Generator["OnDevice[Any] | Pause", Any, T]
"""Code that may wait: it yields steps, and is sent their results or has their errors raised."""


Outcome: TypeAlias = int | Steps[int]
"""What a handler returns: its result, or the steps that lead to one."""


class Errand:
    """A pause after which the handler continues in a thread that it may block.

    It must not block the thread that brought an answer, which may have more answers to bring.
    """

    __slots__ = ("_errands",)

    def __init__(self, errands: Errands) -> None:
        self._errands = errands

    def begin(self, go_on: Callable[[], None]) -> bool:
        """See :class:`Pause`."""
        self._errands.put(go_on)
        return True


class UnansweredError(BaseException):
    """A handler has asked a question (:meth:`TrappedCall.ask`) that has no answer yet."""

    def __init__(self, question: Hashable, step: OnDevice[Any] | Pause) -> None:
        super().__init__(question)
        self.question = question
        self.step = step


class TrappedCall(OwedCall):
    """A call, together with what it waits for."""

    __slots__ = (
        *("_answers", "_device", "_interrupted", "_operation", "_request", "_runs", "_signalled"),
    )

    def __init__(self, trap: Trap, fields: tuple[Any, ...]) -> None:
        """Make it from the members of ``struct seccomp_notif`` and ``struct seccomp_data``."""
        self._state = RUNNING
        self.trap = trap
        (
            self.id,
            self.tid,
            self.flags,
            self.number,
            self.arch,
            self.instruction,
            self.a0,
            self.a1,
            self.a2,
            self.a3,
            self.a4,
            self.a5,
        ) = fields
        self._task = None
        self.file_caller = None
        self._device: Served | None = None
        self._operation: Operation[Any] | None = None
        self._request: Request | None = None
        self._runs = False
        """Whether its operation was given to :meth:`run`."""
        self._answers: dict[Hashable, tuple[Any, int]] | None = None
        """The answers to its questions, each with an errno or 0."""
        self._interrupted = 0
        """1 if a signal has come while the operation ran, 2 if the signal killed the caller."""
        self._signalled = False
        """Whether one has come while nothing was asked."""

    # Signals, and other things that end a wait

    def wait(self, interrupt: Callable[[TrappedCall, bool], None]) -> None:
        """Leave the call to somebody else. Signals are reported to ``interrupt`` from now on.

        ``interrupt`` is given the call, and must not hold a reference to it: see
        `SignalWatch.watch`.
        """
        if self._state is not RUNNING:
            self._mistaken("left to wait")
            return
        self._state = WAITING
        self.trap.signals.watch(self, interrupt)

    def look_around(self, look: Callable[[], None]) -> None:
        """Have ``look`` called now and then while it waits, in a thread that it may block."""
        self.trap.signals.watch(self, TrappedCall.interrupt, look=look)

    def attend(self, look: Callable[[], None]) -> None:
        """Have ``look`` called now and then until :meth:`leave`. Signals no longer interrupt it.

        Call this before `hold`, because the thread may be killed while it is held.
        """
        self.trap.signals.attend(self, look)

    def interrupt(self, fatal: bool) -> None:
        """Report a signal to the server whose reply is awaited; or (fatal) that nobody waits."""
        while True:
            request, device = self._request, self._device
            if self._request is request:  # so the device is this request's
                break
        if fatal:
            self._interrupted = 2
        elif request is not None and not self._interrupted:
            self._interrupted = 1
        elif request is None:
            self._signalled = True
        if request is not None and device is not None:
            self._pass_on(device.connection, request)

    def _pass_on(self, connection: Connection, request: Request) -> None:
        # A RELEASE no longer concerns the caller.
        if not request.force:
            connection.interrupt(request, fatal=self._interrupted == 2)

    @property
    def interrupted(self) -> bool:
        """Whether a signal has come while nothing was asked, or has killed the caller."""
        return self._signalled or self._interrupted == 2

    def blocks(self, still: Callable[[], bool]) -> None:
        """The supervisor's thread that serves it was found to block; ``still`` says if it does."""
        device = self._device
        if device is not None and self._runs:
            self.trap.blocking[device.serial, self.number] = QUICK_CALLS
        # Watch first, then check whether the device has already gone. `device_ended` does these in
        # the opposite order, so one of the two sees the other.
        self.watch()
        if device is not None and still():
            self.device_ended(device.connection)

    def is_served_by(self, connection: Connection) -> bool:
        """Whether it is, or was last, for that connection's server to answer it."""
        return self._device is not None and self._device.connection is connection

    def device_ended(self, connection: Connection) -> None:
        """Answer the call if its device has gone but the device's method has not returned.

        While that method runs in the supervisor's thread, the operation cannot tell the caller.
        """
        device = self._device
        if (
            device is not None
            and device.connection is connection
            and self.tid in connection.abandoned
        ):
            self.give_up(errno.ECONNABORTED)  # no effect if its thread has already done an mmap

    def watch(self) -> None:
        """Have signals looked for from now on, while a thread of the supervisor serves it."""
        if self.id not in self.trap.waiting:
            self.trap.signals.watch(self, TrappedCall.interrupt, late=True)

    # Operations of the kernel half. While a thread of the supervisor serves the call, nobody looks
    # for signals. If that thread is found to block, `blocks` starts the watch.

    def run(self, device: Served, operation: Operation[int]) -> int:
        """Run an operation; its result answers the call, now or later. Returns ANSWERED."""
        self._device = device
        self._operation = operation
        self._runs = True
        blocking = self.trap.blocking
        if blocking and (key := (device.serial, self.number)) in blocking:
            # It blocked recently, so it may block again. Let others be served meanwhile.
            self.watch()
            pass_lead()
            began = time.monotonic()
            self._go_on(None, None)
            self.trap.took(key, time.monotonic() - began)
        elif (outcome := self._attempt(None)) is not None:
            result, error = outcome
            if error is None:
                self.answer(result)
            else:
                self.finish(None, error)
        return ANSWERED

    def complete(self, device: Served, operation: Operation[T]) -> T:
        """Run an operation in this thread from start to end, and return its result."""
        if must_not_block():
            raise no_more()
        self._device = device
        self._operation = operation
        self.watch()
        outcome = self._attempt(None, stays=True)
        assert outcome is not None
        result, error = outcome
        if error is not None:
            try:
                raise error
            finally:
                # The error's traceback has this frame, which would keep the error and the call.
                del error, outcome
        done: T = result
        return done

    def take(self, steps: Steps[int]) -> None:
        """Run the steps of a handler that may wait. What they return or raise is the answer."""
        self._step(steps, None, None)

    # Questions

    def ask(self, question: Hashable, step: Callable[[], OnDevice[T]]) -> T:
        """Return the result of a step. The handler must not have changed anything yet.

        The first time, this leaves the handler by an exception, which undoes whatever rights it has
        taken on and closes what it has opened. When the answer is there, the handler starts again,
        asks again, and gets the answer. So a path may lead through any number of directories whose
        servers must be asked. Nothing is held while a server takes its time.

        Args:
            question: what is asked. The same question has the same answer during a call.
            step: makes the step, which is run once.

        Raises:
            OSError: as the step does.
        """
        answers = self._answers
        if answers is None or question not in answers:
            raise UnansweredError(question, step())
        answer, code = answers[question]
        if code:
            raise os_error(code)
        found: T = answer
        return found

    def ask_here(self, question: Hashable, device: Served, operation: Operation[T]) -> T:
        """Do the same for an operation. The handler stays as long as replies are there at once.

        The server's method may run in this thread, which must have its own rights.
        """
        connection = device.connection
        self._device = device
        error = result = reply = None
        try:
            while True:
                request = operation.send(reply)  # type: ignore[arg-type]  # None starts it
                self._request = request
                if self._interrupted:
                    self._pass_on(connection, request)
                connection.submit(request)
                reply = request.reply
                if reply is None:
                    raise UnansweredError(question, OnDevice(device, operation, request))
        except StopIteration as stop:
            result = stop.value
        except Exception as exception:
            error = failure(exception)
        self._request = None
        if self._interrupted == 1:
            self._interrupted = 0
        if self._answers is None:
            self._answers = {}
        code = 0 if error is None else error.errno or errno.EIO
        self._answers[question] = result, code
        if code:
            raise os_error(code)
        found: T = result  # type: ignore[assignment]
        return found

    @property
    def has_answers(self) -> bool:
        """Whether any question has been answered."""
        return self._answers is not None

    def has_answer(self, question: Hashable) -> bool:
        """Whether a question has been answered."""
        return self._answers is not None and question in self._answers

    def after(self, question: Hashable, pause: Pause) -> None:
        """Leave the handler as :meth:`ask` does, until a pause is over."""
        if not self.has_answer(question):
            raise UnansweredError(question, pause)

    def answered(
        self, asked: UnansweredError, handle: Callable[[], Outcome], errands: Errands
    ) -> Steps[int]:
        """The steps of a handler that has asked. ``handle`` starts it again for each answer."""
        question, step = asked.question, asked.step
        del asked  # it has the frames of the code that asked
        if (answers := self._answers) is None:
            answers = self._answers = {}
        while True:
            thread = threading.get_ident()
            try:
                answers[question] = (yield step), 0
            except OSError as error:
                answers[question] = None, error.errno or errno.EIO
            if threading.get_ident() != thread:
                yield Errand(errands)
            if not self.alive():
                raise os_error(errno.ESRCH)  # its tid may mean another thread by now
            try:
                outcome = handle()
            except UnansweredError as unanswered:
                question, step = unanswered.question, unanswered.step
            else:
                return outcome if isinstance(outcome, int) else (yield from outcome)

    # The call has no reference to its handler's steps, which refer to the call. What they wait for
    # refers to the steps, and nothing else keeps the two alive.

    def _go_on(self, steps: Steps[int] | None, reply: Reply | None) -> None:
        """Continue the operation, which is a step of the handler or answers the call itself."""
        self._state = RUNNING
        outcome = self._attempt(reply, steps)
        if outcome is None:
            return
        if steps is None:
            self.finish(*outcome)
        else:
            self._step(steps, *outcome)

    def _attempt(
        self,
        reply: Reply | None,
        steps: Steps[int] | None = None,
        *,
        stays: bool = False,
        request: Request | None = None,
    ) -> tuple[Any, OSError | None] | None:
        """Continue the operation with a reply; return its result or error when it has ended.

        Return None if a reply is still to come, which then continues it. That does not happen if
        the thread ``stays``. ``request`` was submitted before.
        """
        operation, device = self._operation, self._device
        assert operation is not None
        assert device is not None
        connection = device.connection
        result = error = None
        led = False
        try:
            while True:
                if request is None:
                    request = operation.send(reply)  # type: ignore[arg-type]  # None starts it
                    self._request = request
                    if self._interrupted:
                        self._pass_on(connection, request)
                    connection.submit(request)
                reply = request.reply
                if reply is None:
                    if stays:
                        reply = _wait_for_reply(connection, request, led)
                        led = True
                    else:
                        reply = self._leave(connection, request, steps)
                        if reply is None:
                            return None
                request = None
        except StopIteration as stop:
            result = stop.value
        except Exception as exception:
            error = failure(exception)
        self._request = self._operation = None
        if self._interrupted == 1:
            self._interrupted = 0
        return result, error

    def _leave(
        self, connection: Connection, request: Request, steps: Steps[int] | None
    ) -> Reply | None:
        """Have the operation continued by the reply's thread; if the reply is there, return it."""
        self.watch()
        self._state = WAITING
        if not connection.watch(request, partial(self._go_on, steps)):
            self._state = RUNNING
            return request.reply
        # From here on another thread may have the call, and may have answered it.
        if self._interrupted:
            self._pass_on(connection, request)
        return None

    def _step(self, steps: Steps[int], result: Any, error: OSError | None) -> None:
        """Continue the handler with the result or error of its last step."""
        outcome: tuple[Any, OSError | None] | None = result, error
        while outcome is not None:
            result, error = outcome
            try:
                step = steps.send(result) if error is None else steps.throw(error)
            except StopIteration as stop:
                self._end(stop.value)
                return
            except BaseException as raised:
                if raised is error:  # from the device or the kernel half, so not a handler's fault
                    self.finish(None, error.with_traceback(None))
                else:
                    self.raised(raised)
                return
            if isinstance(step, OnDevice):
                self._device = step.device
                self._operation = step.operation
                outcome = self._attempt(None, steps, request=step.request)
            else:
                self._state = WAITING
                if step.begin(partial(self._resume, steps)):
                    return
                self._state = RUNNING
                outcome = None, None

    def _end(self, result: int) -> None:
        try:
            self.conclude(result)
        except BaseException as error:
            self.raised(error)

    def _resume(self, steps: Steps[int]) -> None:
        """Continue after a pause, in a thread that no monitor watches."""
        self._state = RUNNING
        self.watch()
        self._step(steps, None, None)


def _wait_for_reply(connection: Connection, request: Request, led: bool) -> Reply | None:
    """Wait for a reply in this thread. Let another thread lead, unless that was done before."""
    replied = threading.Event()
    if connection.watch(request, lambda _: replied.set()):
        if not led:
            pass_lead()
        replied.wait()
    return request.reply
