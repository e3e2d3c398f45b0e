"""The loop between the programs under one listener and their machine's kernel half."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from recuse.channel.workers import Workers
from recuse.kernel.connection.connection import Connection
from recuse.runtime.log import Log
from recuse.sandbox.arch import arch
from recuse.sandbox.machine import Machine
from recuse.sandbox.syscalls import compat_handlers, elsewhere, handlers
from recuse.sandbox.trap.answers import ANSWERED, PROCEED
from recuse.sandbox.trap.call import Outcome, TrappedCall, UnansweredError
from recuse.sandbox.trap.listener import Listener
from recuse.sandbox.trap.trap import Trap
from recuse.sandbox.vfs.resolve import NativelyAbsentError, OutsideError

_log = Log("recuse.sandbox")

_NATIVE: Final = arch.AUDIT_ARCH


class Supervisor:
    """Serves the programs under one listener, in its own threads."""

    def __init__(
        self, machine: Machine, listener: Listener, broken: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            machine: what the programs see.
            listener: where their calls arrive.
            broken: called when no more calls can be received, so that the programs can be ended.
        """
        self.trap = Trap(listener, machine.tasks, machine.signals, machine.files.unseen)
        self._signals = machine.signals
        self._owed = machine.signals.owed
        self._handlers = handlers()
        self._compat_handlers = compat_handlers()
        self._workers = Workers(
            partial(listener.receive, partial(TrappedCall, self.trap)),
            self._handle,
            stuck=TrappedCall.blocks,
            broken=self._broken,
            name="recuse-calls",
        )
        self._on_broken = broken
        machine.supervisors.append(self)
        self._machine = machine
        self.first_process = 0
        """The process ID of the ancestor of all programs under this listener."""

    def start(self) -> None:
        """Serve until the last program under the filter has ended.

        Raises:
            OSError: EAGAIN if no thread can be started.
        """
        self._workers.start()

    def _broken(self, error: BaseException) -> None:
        _log.error("system calls cannot be received (%s): the programs are ended", error)
        self._on_broken()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the last program to end; return False after ``timeout`` seconds."""
        return self._workers.join(timeout)

    def close(self) -> None:
        """Close the listener. All trapped calls of programs that still run fail with ENOSYS."""
        self._machine.supervisors.remove(self)
        self.trap.listener.close()
        self._machine.tasks.forget_ended()
        self._machine.strings.forget_all()

    def _handle(self, call: TrappedCall) -> None:
        try:
            if self._owed:
                self._signals.received(call)
            if call.arch == _NATIVE:
                result = self._handlers[call.number](call, self._machine)
            else:
                result = self._handle_compat(call)
            if result == PROCEED:
                call.proceed()
            elif result == ANSWERED:
                pass
            elif isinstance(result, int):
                call.answer(result)
            else:
                call.take(result)
        except UnansweredError as asked:
            handle = partial(self._handle_again, call)
            call.take(call.answered(asked, handle, self._machine.errands))
        except (OutsideError, NativelyAbsentError):
            self._handle_elsewhere(call)
        except BaseException as error:
            call.raised(error)

    def _handle_again(self, call: TrappedCall) -> Outcome:
        """Run the handler; if it is about a native file behind recuse's, see `elsewhere`."""
        handlers = self._handlers if call.arch == _NATIVE else self._compat_handlers
        try:
            return handlers[call.number](call, self._machine)
        except (OutsideError, NativelyAbsentError) as error:
            return elsewhere.repeat(call, self._machine, error)

    def _handle_elsewhere(self, call: TrappedCall) -> None:
        try:
            result = self._handle_again(call)
            if isinstance(result, int):
                call.conclude(result)
            else:
                call.take(result)
        except UnansweredError as asked:
            handle = partial(self._handle_again, call)
            call.take(call.answered(asked, handle, self._machine.errands))
        except BaseException as error:
            call.raised(error)

    def _handle_compat(self, call: TrappedCall) -> Outcome:
        """Handle a call of a 32-bit program. The handler may replace the call's arguments."""
        arguments = call.arguments
        handler = self._compat_handlers[call.number]

        def handle() -> Outcome:
            call.arguments = arguments
            return self._handle_again(call)

        try:
            return handler(call, self._machine)
        except UnansweredError as asked:
            return call.answered(asked, handle, self._machine.errands)

    def waits_for(self, connection: Connection) -> bool:
        """Whether a call waits for that connection's server."""
        calls = [waiting.call() for waiting in list(self.trap.waiting.values())]
        return any(
            call is not None
            and call.trap is self.trap
            and call.is_served_by(connection)
            and call.alive()  # a thread that was killed does not wait, though it may be listed
            for call in calls
        )

    def let_go(self, connection: Connection) -> None:
        """Answer calls whose device has gone although its method has not returned."""
        for waiting in list(self.trap.waiting.values()):
            call = waiting.call()
            if call is not None and call.trap is self.trap:
                call.device_ended(connection)
