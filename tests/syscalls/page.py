"""The documentation's page of all system calls, made from the table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from recuse.sandbox.syscalls.families import FAMILIES
from recuse.sandbox.table.passing import ELSEWHERE, ON_ARM
from recuse.sandbox.trap.filter import MOST_CLOSED

from . import rows
from .rows import Row

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "syscalls.md"
BEGIN: Final = "<!-- made by python -m tests.syscalls --write -->\n"
END: Final = "<!-- end -->\n"

SOMETIMES: Final = {
    "commands": "for F_GETFL and F_SETFL; in sandboxes with filesystems for locks too",
    "files": "for files, except those that the C library's loader maps",
    "namespaces": "for new namespaces of mounts and users",
    "unless-lent": "except with the flags by which recuse makes a thread lend it a descriptor",
    "unless-ours": "except with a fourth argument, by which recuse makes a thread call it",
    "mounts": "in sandboxes with filesystems",
    "mounts-unless-ours": "in sandboxes with filesystems, "
    "except with a fourth argument, by which recuse makes a thread call it",
    "mounts-closes": f"the same, for descriptors below {MOST_CLOSED}",
}


def render() -> str:
    """The generated part of the page, between its two marks."""
    every = rows.read()
    lines = ["## Trapped calls", ""]
    lines += _table(("calls", "module of `sandbox/syscalls`"), _trapped(every))
    lines += ["", "Some are trapped only in some cases:", ""]
    lines += _table(
        ("call", "when"),
        [
            (_names(row for row in every if row.decision == decision), when)
            for decision, when in SOMETIMES.items()
        ],
    )
    lines += ["", "Some are not trapped on every machine:", ""]
    lines += _table(
        ("call", "on", "why"),
        [
            *((f"`{name}`", m, why) for (name, m), (_, why) in ELSEWHERE.items()),
            (f"{sum('arm' in row.untrapped for row in every)} others", "32-bit ARM", ON_ARM),
        ],
    )
    for title, decision in (
        ("Calls refused with ENOSYS", "refused"),
        ("Calls that pass and differ", "differs"),
    ):
        chosen = [row for row in every if row.decision == decision]
        lines += ["", f"## {title}", "", *_table(("call", "why"), _reasons(chosen))]
    lines += ["", "## Calls that pass", ""]
    lines += _table(("calls", "why"), _reasons(row for row in every if row.decision == "passes"))
    return "\n".join(lines) + "\n"


def _trapped(every: list[Row]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for family, module in FAMILIES.items():
        title = (module.__doc__ or "").splitlines()[0].rstrip(".").partition(" (")[0]
        calls = _names(row for row in every if row.family == family)
        found.append((calls, f"{family}: {title}"))
    return found


def _reasons(chosen: Iterable[Row]) -> list[tuple[str, ...]]:
    """Each reason with the calls that have it."""
    found: dict[str, list[Row]] = {}
    for row in chosen:
        found.setdefault(row.reason, []).append(row)
    return [(_names(some), reason) for reason, some in found.items()]


def _names(some: Iterable[Row]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(row.name for row in some))


def _table(head: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *body]
    return [f"| {' | '.join(row)} |" for row in cells]


def write() -> None:
    """Replace the generated part of the page."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + BEGIN + render() + END + rest.partition(END)[2])
