"""Asks devices for their readiness, on behalf of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.native_end import POLLERR, POLLNVAL, fetch
from recuse.sandbox.files.readiness import Moment, Readiness
from recuse.sandbox.trap.call import Steps, TrappedCall

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.borrowing import Borrowing


class PolledFile:
    """A file that a call looks at; ``bits`` is its readiness once that is known."""

    __slots__ = ("bits", "events", "file", "index", "moment", "number", "readiness")

    def __init__(self, index: int, number: int, events: int, file: FileDescription) -> None:
        self.index = index
        self.number = number
        self.events = events
        self.file = file
        self.readiness: Readiness | None = None
        self.moment = Moment(0, 0)
        self.bits = 0

    def fetcher(self, borrowing: Borrowing) -> Callable[[], int]:
        """Return a function that gets a copy of the programs' end; it raises as :func:`fetch`."""
        return lambda: fetch(borrowing.tid, self.number, self.file.link, borrowing.copy)

    def show(self, borrowing: Borrowing) -> None:
        """Make the descriptor show what the device says. OSError as :func:`fetch`."""
        if self.readiness is not None:
            fetch = self.fetcher(borrowing)
            self.readiness.show(self.bits, self.events, self.moment, fetch)


def ask(
    call: TrappedCall, machine: Machine, caller: Caller, asked: list[PolledFile], waits: int
) -> Steps[None]:
    """Ask the devices of a call, one after the other.

    Args:
        call: the call.
        machine: the machine that it is made on.
        caller: who makes it.
        asked: the files; their ``bits`` are set.
        waits: the caller will wait unless a file before this index is ready.
    """
    waited: set[Readiness] = set()
    for one in asked:
        file = one.file
        if not file.opened:
            one.events |= POLLNVAL
            one.bits = POLLNVAL
        else:
            readiness = one.readiness = machine.files.readiness(file)
            one.moment = readiness.asking()
            readiness.awake(call.tid)
            if one.index < waits:
                waited.add(readiness)
            waiting = readiness.polled or readiness in waited
            try:
                answer = file.poll(caller, one.events, waiting)
                one.bits = answer if isinstance(answer, int) else (yield answer)
            except OSError:
                one.bits = POLLERR
        if one.bits & one.events:
            waits = 0
