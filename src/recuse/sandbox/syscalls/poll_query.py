"""Asking devices for what they are ready for, on behalf of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from recuse.kernel.char.files import OpenFile
from recuse.sandbox.files.readiness import Moment, Readiness
from recuse.sandbox.files.socket_end import POLLERR, POLLNVAL
from recuse.sandbox.files.table import Descriptor
from recuse.sandbox.trap.call import OnDevice, Steps, TrappedCall

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.borrowing import Borrowing


class PolledFile:
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


def ask(
    call: TrappedCall, machine: Machine, caller: Caller, asked: list[PolledFile], waits: int
) -> Steps[None]:
    """Ask the devices that a call is about, one after the other.

    Args:
        call: is about them.
        machine: what the call is made on.
        caller: who makes it.
        asked: the files; their ``bits`` are set.
        waits: the caller will wait unless one of the files before this index is ready.
    """
    waited: set[Readiness] = set()
    for one in asked:
        file = one.descriptor.file
        if not isinstance(file, OpenFile):  # O_PATH
            one.events |= POLLNVAL
            one.bits = POLLNVAL
        else:
            readiness = one.readiness = machine.files.readiness(one.descriptor, file)
            one.moment = readiness.asking()
            readiness.awake(call.tid)
            if one.index < waits:
                waited.add(readiness)
            waiting = readiness.polled or readiness in waited
            try:
                one.bits = yield OnDevice(file.device, file.poll(caller, one.events, waiting))
            except OSError:
                one.bits = POLLERR
        if one.bits & one.events:
            waits = 0
