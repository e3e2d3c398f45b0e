"""Asking devices for what they are ready for, on behalf of one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from recuse.kernel.files import OpenFile
from recuse.kernel.operation import Running, run
from recuse.sandbox.descriptors import Descriptor
from recuse.sandbox.native import POLLERR, POLLNVAL
from recuse.sandbox.readiness import Moment, Readiness
from recuse.sandbox.syscalls.call import ANSWERED

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.sandbox.borrowing import Borrowing
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor


class Asked:
    """A file that a call looks at: ``bits`` is what it is ready for, when that is known."""

    __slots__ = ("bits", "descriptor", "events", "index", "moment", "number", "readiness")

    def __init__(self, index: int, number: int, events: int, descriptor: Descriptor) -> None:
        self.index = index
        self.number = number
        self.events = events
        self.descriptor = descriptor
        self.readiness: Readiness | None = None
        self.moment = Moment(0, 0)
        self.bits = 0

    def fetcher(self, borrowing: Borrowing) -> Callable[[], int]:
        """Return what gives a copy of the descriptor; it raises as :meth:`Descriptor.fetch`."""
        return lambda: self.descriptor.fetch(borrowing.tid, self.number, borrowing.copy)

    def show(self, borrowing: Borrowing) -> None:
        """Make the descriptor look as the device says; OSError as :meth:`Descriptor.fetch`."""
        if self.readiness is not None:
            fetch = self.fetcher(borrowing)
            self.readiness.show(self.bits, self.events, self.moment, fetch)


class Asking:
    """Asks the devices that a call is about, one after the other, and goes on then.

    In whatever thread brings the last answer.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        call: Notification,
        asked: list[Asked],
        waits: int,
        then: Callable[[], int],
    ) -> None:
        """Prepare.

        Args:
            supervisor: serves the call.
            call: is answered by whoever called ``then``, with what it returns or raises.
            asked: the files; their ``bits`` are set.
            waits: the caller will wait unless one of the files before this index is ready.
            then: called once, when all have answered.
        """
        self._supervisor = supervisor
        self._call = call
        self._asked = asked
        self._next = 0
        self._waits = waits
        self._then = then
        self._caller = supervisor.caller(call)
        self._waited: set[Readiness] = set()
        self._lock = threading.Lock()
        self._running: Running | None = None

    @property
    def caller(self) -> Caller:
        """Who makes the call."""
        return self._caller

    def go_on(self) -> int:
        """Ask all that is left; returns ANSWERED, or the call's result, if that is all."""
        while self._next < len(self._asked):
            one = self._asked[self._next]
            self._next += 1
            if not self._ask(one):
                return ANSWERED
            self._note(one)
        return self._then()

    def _note(self, one: Asked) -> None:
        if one.bits & one.events:
            self._waits = 0

    def _ask(self, one: Asked) -> bool:
        """Ask one; False if the answer is still to come, in another thread."""
        file = one.descriptor.file
        if not isinstance(file, OpenFile):  # O_PATH
            one.events |= POLLNVAL
            one.bits = POLLNVAL
            return True
        readiness = one.readiness = self._supervisor.descriptors.readiness(one.descriptor, file)
        one.moment = readiness.asking()
        readiness.awake(self._call.pid)
        if one.index < self._waits:
            self._waited.add(readiness)
        waiting = readiness.polled or readiness in self._waited
        # This thread may also be the one that brings the answer later: an event loop's.
        thread: int | None = threading.get_ident()
        answered = False

        def done(bits: int | None, error: OSError | None) -> None:
            nonlocal answered
            one.bits = POLLERR if bits is None or error is not None else bits
            if threading.get_ident() == thread:
                answered = True
            else:
                self._note(one)
                self._supervisor.conclude(self._call, lambda _, __: self.go_on())

        turn = self._next
        operation = file.poll(self._caller, one.events, waiting)
        running = run(file.device.connection, operation, done)
        thread = None
        if running is not None:
            with self._lock:
                if self._next == turn:  # or another thread has gone on with it
                    self._running = running
            self._supervisor.signals.watch(self._call, self._supervisor.listener, self._interrupt)
        return answered

    def _interrupt(self, fatal: bool) -> None:
        running = self._running
        if running is not None:
            running.interrupt(fatal)
