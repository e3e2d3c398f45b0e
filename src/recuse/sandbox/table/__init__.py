"""Every system call of Linux, once: its numbers, and whether it comes to recuse, or why not.

All else is made of this table: the filter, the numbers in :mod:`recuse.sandbox.arch`, which module
handles what, and docs/syscalls.md. What is needed at every start is in
:mod:`recuse.sandbox.table.used`, the rest in :mod:`recuse.sandbox.table.passing`. A call
of the kernel's headers that is in neither fails a test: a new one needs a decision.

A row is a line of

- the name;
- the numbers on x86-64, on arm64, of 32-bit programs on x86-64 (i386) and of those on arm64 (arm);
  ``.`` where there is none, and a ``-`` behind it where the call passes on that machine although it
  is trapped on others;
- the module of :mod:`recuse.sandbox.syscalls` that handles it, or ``-``;
- the decision;
- of some trapped calls, the one that it is by another name, so far as the handler is concerned.

=============  =====================================================================================
decision
=============  =====================================================================================
always         it is trapped
commands       it is trapped for some commands of fcntl
files          it is trapped if it maps a file
namespaces     it is trapped if it makes a namespace in which paths or users are others
unless-lent    it is trapped but as recuse has a thread make it, to lend its descriptor
unless-ours    it is trapped but as recuse has a thread make it
refused        the kernel says ENOSYS
passes         the kernel runs it, and that is right
differs        the kernel runs it, and with a device it does not do what Linux would
=============  =====================================================================================

The last three have a reason in the lines below, which are indented. Rows that pass may stand in a
group, a line ``= TITLE`` with the reason that those have which have none of their own; module and
decision ``passes`` are left out there.
"""

from __future__ import annotations

from typing import Final

from recuse.sandbox.table import used

MACHINES: Final = ("x86-64", "arm64", "i386", "arm")
"""In the order of a row's numbers."""

X86_64: Final = 0
ARM64: Final = 1
I386: Final = 2
ARM: Final = 3

UNTRAPPED: Final = frozenset({"refused", "passes", "differs"})

INJECTED: Final = (
    "close",
    "close_range",
    "fchdir",
    "io_submit",
    "madvise",
    "mlock",
    "mmap",
    "munmap",
    "open_tree",
    "sendmsg",
)
"""What `recuse.sandbox.trap.inject` has threads call."""


class Entry:
    """A call of one machine."""

    # Not a NamedTuple: to make one of those takes longer than all else here, at every start.
    __slots__ = ("alias", "decision", "family", "name", "number")

    def __init__(self, name: str, number: int, family: str, decision: str, alias: str) -> None:
        self.name = name
        self.number = number
        self.family = family
        """The module that handles it, or ``-``."""
        self.decision = decision
        """One of those above; ``passes`` also for a call that is trapped on other machines only."""
        self.alias = alias
        """The call that it is by another name, or its own."""

    @property
    def trapped(self) -> bool:
        """Whether it comes to the supervisor, at least for some arguments."""
        return self.decision not in UNTRAPPED


def entries(machine: int) -> tuple[Entry, ...]:
    """The calls of a machine that recuse traps, refuses or makes, in the filter's order."""
    found = []
    for name, *cells in _rows:
        number = cells[machine]
        if number == ".":
            continue
        family, decision, alias = cells[4], cells[5], cells[6] if len(cells) > 6 else name
        if number[-1] == "-":
            number, family, decision = number[:-1], "-", "passes"
        found.append(Entry(name, int(number), family, decision, alias))
    return tuple(found)


_rows: Final = [line.split() for line in used.ROWS.splitlines() if line and line[0] != " "]


def numbers(calls: tuple[Entry, ...]) -> dict[str, int]:
    """The numbers by name."""
    return {call.name: call.number for call in calls}
