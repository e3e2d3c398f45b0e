"""The loop between the programs under one listener and their machine's kernel half."""

from __future__ import annotations

import errno
import functools
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from recuse.channel.workers import TICK, Workers, pass_lead
from recuse.kernel.caller import Caller
from recuse.kernel.devices import CharDevice
from recuse.kernel.errors import os_error
from recuse.kernel.files import OpenFile
from recuse.kernel.operation import Operation, run
from recuse.kernel.request import Reply
from recuse.runtime.log import Log
from recuse.runtime.threads import must_not_block, no_more
from recuse.sandbox.arch import arch, name_of
from recuse.sandbox.listener import Listener, Notification, TableFullError
from recuse.sandbox.machine import Machine
from recuse.sandbox.memory import CallerMemory, HiddenError, UnreadableError
from recuse.sandbox.rights import LostRightsError
from recuse.sandbox.signals import ERESTARTSYS
from recuse.sandbox.syscalls import compat_handlers, handlers
from recuse.sandbox.syscalls.call import ANSWERED, PROCEED, Handler
from recuse.sandbox.tasks import Task

_log = Log("recuse.sandbox")

T = TypeVar("T")

_NATIVE: Final = arch.AUDIT_ARCH

_QUICK_CALLS: Final = 16
"""After how many quick calls in a row an operation that blocked once counts as quick again."""


class Supervisor:
    """Serves the programs under one listener, in threads of its own."""

    def __init__(
        self, machine: Machine, listener: Listener, broken: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            machine: what the programs find.
            listener: theirs.
            broken: is called when their calls cannot be received any more: they must not stay.
        """
        self.listener = listener
        self.tasks = machine.tasks
        self.descriptors = machine.descriptors
        self.areas = machine.areas
        self.tree = machine.tree
        self.table = machine.table
        self.strings = machine.strings
        self.signals = machine.signals
        self._waiting = machine.signals.waiting
        self._owed = machine.signals.owed
        self._handlers = handlers()
        self._compat_handlers = compat_handlers()
        self._workers = Workers(
            listener.receive,
            self._handle,
            stuck=self._stuck,
            broken=self._broken,
            name="recuse-calls",
        )
        self._on_broken = broken
        self._blocking: dict[tuple[int, int], int] = {}
        self._abandoned: set[int] = set()
        """Threads whose calls :meth:`let_go` has to answer, or has answered."""
        machine.supervisors.append(self)
        self._machine = machine
        self.first_process = 0
        """The number of the process that all programs under this listener descend from."""

        self.let_pass: set[int] = set()
        """Threads that make a call anew which may pass devices on."""

    def first_processes(self) -> set[int]:
        """Those from which all programs of this sandbox descend."""
        return {supervisor.first_process for supervisor in self._machine.supervisors}

    def start(self) -> None:
        """Serve until the last program under the filter has ended.

        Raises:
            OSError: EAGAIN if there can be no threads.
        """
        self._workers.start()

    def _broken(self, error: BaseException) -> None:
        _log.error("system calls cannot be received (%s): the programs are ended", error)
        self._on_broken()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the last program's end; False if it has not come within ``timeout`` seconds."""
        return self._workers.join(timeout)

    def close(self) -> None:
        """Let go of the listener. Programs that still run get ENOSYS from all trapped calls."""
        self._machine.supervisors.remove(self)
        self.listener.close()
        self.tasks.forget_ended()
        self.strings.forget_all()

    def _handle(self, call: Notification, handler: Handler | None = None) -> None:
        try:
            if handler is None:
                if self._abandoned:
                    self._abandoned.discard(call.pid)  # that call is over
                if self._owed:
                    self.signals.received(call)
                known = self._handlers if call.arch == _NATIVE else self._compat_handlers
                handler = known[call.number]
            result = handler(self, call)
            if result == PROCEED:
                self.listener.proceed(call.id)
            elif result != ANSWERED:
                self.listener.answer(call.id, result)
        except UnreadableError as error:
            # A process that lets nobody look into it sees no devices, and runs as it would.
            self.listener.proceed(call.id)
            if isinstance(error, HiddenError):
                self.descriptors.unseen.tell(call.pid)
        except BaseException as error:
            self._failed(call, error)

    def _failed(self, call: Notification, error: BaseException) -> None:
        """Answer a call whose handler has raised; that comes first, whatever else may fail."""
        number = errno.EIO
        if isinstance(error, OSError):
            number = error.errno or errno.EIO
            if number == errno.EINTR:
                self.signals.ends(call)
            if number == errno.EMFILE and not isinstance(error, TableFullError):
                number = errno.ENFILE  # it is ours that is full
        elif isinstance(error, MemoryError):
            number = errno.ENOMEM
        while True:
            try:
                self.listener.fail(call.id, number)
                break
            except MemoryError:  # not even for this: the program waits until there is some
                time.sleep(TICK)
        if isinstance(error, LostRightsError):
            error.stop()
        if not isinstance(error, OSError | MemoryError):
            name = name_of(call.arch, call.number)
            _log.error("internal error in %s of thread %d", name, call.pid, exc_info=error)

    def conclude(self, call: Notification, handler: Handler) -> None:
        """Go on with a call whose handler has returned ANSWERED before it was."""
        self.forget(call)
        self._handle(call, handler)

    def caller(self, call: Notification, task: Task | None = None) -> Caller:
        """Who makes the call, for the kernel half; ``task`` is the caller's, if it is known.

        Raises:
            OSError: ESRCH if the caller is gone.
        """
        task = task or self.tasks.get(call.pid)
        who = task.credentials
        memory = CallerMemory(self.listener, call.id, call.pid, task.writable)
        return Caller(call.pid, who.uid, who.gid, memory, task.owner, who.keeps_suid)

    def run(self, call: Notification, file: OpenFile, operation: Operation[int]) -> None:
        """Run a file's operation; its result answers the call, now or later."""
        done = functools.partial(self.finish, call)
        if self._blocking and (key := (file.device.serial, call.number)) in self._blocking:
            # It blocked lately, so it may again: let others be served meanwhile.
            pass_lead()
            began = time.monotonic()
            self.drive(call, file.device, operation, done)
            self._took(key, time.monotonic() - began)
        else:
            running = run(file.device.connection, operation, done)
            if running is not None:
                self.signals.watch(call, self.listener, running.interrupt)

    def drive(
        self,
        call: Notification,
        device: CharDevice,
        operation: Operation[T],
        done: Callable[[T | None, OSError | None], None],
    ) -> None:
        """Run an operation of a call's, which signals interrupt even while the device's method
        blocks this thread; ``done`` has to begin with :meth:`finish` or :meth:`forget`.
        """
        connection = device.connection
        pid = call.pid

        def interrupt(fatal: bool) -> None:
            requests = connection.requests_of(pid)
            # If it has been answered meanwhile, they may be of the thread's next call.
            if fatal or self.listener.alive(call.id):
                for request in requests:
                    connection.interrupt(request, fatal=fatal)

        self.signals.watch(call, self.listener, interrupt)
        run(connection, operation, done)

    def run_here(self, call: Notification, device: CharDevice, operation: Operation[T]) -> T:
        """Run an operation in this thread from its beginning to its end; return what it returns.

        Signals interrupt it until :meth:`forget`, which has to come before the call is answered.
        """
        if must_not_block():
            raise no_more()
        connection = device.connection
        pid = call.pid

        def interrupt(fatal: bool) -> None:
            for request in connection.requests_of(pid):
                connection.interrupt(request, fatal=fatal)

        self.signals.watch(call, self.listener, interrupt)
        leading = True
        reply: Reply | None = None
        while True:
            try:
                request = operation.send(reply)  # type: ignore[arg-type]  # None starts it
            except StopIteration as stop:
                result: T = stop.value
                return result
            connection.submit(request)
            if request.reply is None:
                replied = threading.Event()
                if connection.watch(request, lambda _, replied=replied: replied.set()):  # type: ignore[misc]
                    if leading:
                        leading = False
                        pass_lead()
                    replied.wait()
            reply = request.reply

    def _stuck(self, call: Notification, blocks: Callable[[], bool]) -> None:
        descriptor = self.descriptors.find(call.pid, call.a0)
        if descriptor is not None and descriptor.node.device is not None:
            self._blocking[descriptor.node.device.serial, call.number] = _QUICK_CALLS

        def interrupt(fatal: bool) -> None:
            for device in self.table:
                requests = device.connection.requests_of(call.pid)
                # The thread is in no other call as long as this one's handler has not returned.
                if requests and blocks():
                    for request in requests:
                        device.connection.interrupt(request, fatal=fatal)

        # Watched first, and only then looked whether its device has gone already; `let_go` does
        # it the other way round: one of the two sees the other.
        self.signals.watch(call, self.listener, interrupt, late=True)
        if call.pid in self._abandoned and blocks():
            self._abandon(call)

    def let_go(self, threads: frozenset[int]) -> None:
        """Answer the calls of threads whose device is gone, but whose method has not returned.

        As long as that method runs in our thread, the operation cannot go on to tell the caller.
        """
        self._abandoned |= threads
        for waiting in list(self._waiting.values()):
            if waiting.call.pid in threads and waiting.listener is self.listener:
                self._abandon(waiting.call)

    def _abandon(self, call: Notification) -> None:
        if any(device.connection.requests_of(call.pid) for device in self.table):
            return  # that was the thread's last call, and this one is another device's business
        if self.listener.alive(call.id):  # or it is an mmap that its thread has done already
            self.finish(call, None, os_error(errno.ECONNABORTED))

    def _took(self, key: tuple[int, int], duration_s: float) -> None:
        if duration_s >= TICK:
            self._blocking[key] = _QUICK_CALLS
            return
        left = self._blocking.get(key, 0) - 1
        if left > 0:
            self._blocking[key] = left
        else:
            self._blocking.pop(key, None)

    def finish(self, call: Notification, result: int | None, error: OSError | None) -> None:
        """Answer a call with an operation's result or error."""
        try:
            wait = self.signals.forget(call) if self._waiting else None
            if error is None:
                self.listener.answer(call.id, result or 0)
            elif error.errno == errno.EINTR:
                anew = wait is not None and wait.can_start_anew()
                self.signals.ends(call)
                self.listener.fail(call.id, ERESTARTSYS if anew else errno.EINTR)
            else:
                self.listener.fail(call.id, error.errno or errno.EIO)
        except BaseException as failure:
            self._failed(call, failure)

    def restart(self, call: Notification) -> None:
        """Answer a call that a signal has interrupted: the kernel does as SA_RESTART says."""
        wait = self.signals.forget(call)
        sure = wait is not None and wait.sure
        self.signals.ends(call)
        self.listener.fail(call.id, ERESTARTSYS if sure else errno.EINTR)

    def forget(self, call: Notification) -> None:
        """Let signals interrupt a call no more, which is about to be answered."""
        if self._waiting:
            self.signals.forget(call)
