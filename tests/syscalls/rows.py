"""The whole table of system calls, with the reasons, which the package itself does not read."""

from __future__ import annotations

from typing import Final, NamedTuple

from recuse.sandbox.arch import MACHINE
from recuse.sandbox.table import ARM64, MACHINES, X86_64, passing, used

TRAPPED: Final = (
    "always",
    "commands",
    "files",
    "namespaces",
    "unless-lent",
    "unless-ours",
    "mounts",
    "mounts-unless-ours",
    "mounts-closes",
)
DECISIONS: Final = (*TRAPPED, "refused", "passes", "differs")


class Row(NamedTuple):
    """One of the table's rows."""

    name: str
    numbers: tuple[int | None, ...]
    """In the order of MACHINES."""
    untrapped: frozenset[str]
    """The machines on which it passes although it is trapped on others."""
    family: str
    decision: str
    alias: str
    group: str
    reason: str


def read() -> list[Row]:
    """All rows, in their order."""
    return [*_parse(used.ROWS), *_parse(passing.ROWS)]


def _parse(text: str) -> list[Row]:
    rows: list[Row] = []
    group = common = ""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if not line or line.startswith(" "):
            continue
        reason = _reason(lines[index + 1 :])
        if line.startswith("= "):
            group, common = line[2:], reason
            continue
        name, *cells = line.split()
        numbers, rest = cells[: len(MACHINES)], cells[len(MACHINES) :]
        if group:
            rest = ["-", *(rest or ["passes"])]
        family, decision, alias = [*rest, ""][:3]
        untrapped = [m for m, n in zip(MACHINES, numbers, strict=True) if n.endswith("-")]
        rows.append(
            Row(
                name,
                tuple(None if n == "." else int(n.rstrip("-")) for n in numbers),
                frozenset(untrapped),
                family,
                decision,
                alias,
                group,
                reason or common,
            )
        )
    return rows


def _reason(lines: list[str]) -> str:
    words: list[str] = []
    for line in lines:
        if not line.startswith(" "):
            break
        words += line.split()
    return " ".join(words)


def numbers(machine: int) -> dict[str, int]:
    """All calls of a machine, by name."""
    found = ((row.name, row.numbers[machine]) for row in read())
    return {name: number for name, number in found if number is not None}


def native() -> dict[str, int]:
    """All calls of the machine that this runs on, by name."""
    return numbers(ARM64 if MACHINE == "aarch64" else X86_64)
