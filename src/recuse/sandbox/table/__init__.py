"""Every system call of Linux, once: its numbers, and whether it comes to recuse, or why not.

Everything else is made from this table: the filter, the numbers in :mod:`recuse.sandbox.arch`, the
choice of the module that handles a call, and docs/syscalls.md. What every start needs is in
:mod:`recuse.sandbox.table.used`, the rest in :mod:`recuse.sandbox.table.passing`. If a call of the
kernel's headers is in neither, a test fails: a new call needs a decision.

A row is a line with

- the name;
- the numbers on x86-64, on arm64, of 32-bit programs on x86-64 (i386) and of those on arm64 (arm).
  ``.`` means that there is none. A ``-`` after a number means that the call passes on that machine
  although it is trapped on others;
- the module of :mod:`recuse.sandbox.syscalls` that handles it, or ``-``;
- the decision;
- for some trapped calls, the name of the call that its handler takes it for.

=============  =====================================================================================
decision
=============  =====================================================================================
always         it is trapped
commands       it is trapped for some commands of fcntl
files          it is trapped if it maps a file
namespaces     it is trapped if it makes a namespace with other paths or users
unless-lent    it is trapped unless recuse has a thread make it, to lend its descriptor
unless-ours    it is trapped unless recuse has a thread make it
mounts         it is trapped in sandboxes with filesystems
mounts-unless-ours  the same, unless recuse has a thread make it
mounts-closes  the same, and only for descriptors with low numbers
refused        the kernel returns ENOSYS
passes         the kernel runs it, and that is right
differs        the kernel runs it, and with a device it does not do what Linux would
=============  =====================================================================================

The last three have a reason in the indented lines below. Rows that pass may stand in a group. It
starts with a line ``= TITLE`` and the reason for all rows without their own. Their module and the
decision ``passes`` are left out.
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
"""The calls that `recuse.sandbox.trap.inject` has threads make."""


class Entry:
    """A call of one machine."""

    # Not a NamedTuple: making one takes longer than everything else here, at every start.
    __slots__ = ("alias", "decision", "family", "name", "number")

    def __init__(self, name: str, number: int, family: str, decision: str, alias: str) -> None:
        self.name = name
        self.number = number
        self.family = family
        """The module that handles it, or ``-``."""
        self.decision = decision
        """A decision of the table; ``passes`` also if it is trapped only on other machines."""
        self.alias = alias
        """The call that its handler takes it for, or its own name."""

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
