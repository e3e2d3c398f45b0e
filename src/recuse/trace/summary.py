"""A summary of a trace in JSON lines: counts, errors, bytes and latencies, as a table."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from recuse.trace.names import printable

COLUMNS = [
    "device",
    "operation",
    "count",
    "errors",
    "in",
    "out",
    "min",
    "median",
    "p90",
    "p99",
    "max",
]
"""Bytes in are those that programs sent, out those that they got. Latencies are microseconds."""

_LEFT = 2
"""This many columns are text, aligned to the left."""

_MOST = 1e15


class TraceError(ValueError):
    """A line that is not from a trace; the text says which line and why."""


@dataclass(slots=True)
class Row:
    """All exchanges of one operation on one device."""

    count: int = 0
    unanswered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    in_bytes: int = 0
    out_bytes: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    """In microseconds."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that ``percent`` of the values (at least one) do not exceed."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


class Summary:
    """Adds up a trace line by line."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.dropped = 0
        self.events: Counter[str] = Counter()

    def read(self, lines: Iterable[bytes]) -> None:
        """Add all lines. Raises TraceError with the number of the first bad one, counted from 1."""
        for number, line in enumerate(lines, 1):
            try:
                self.add(line)
            except TraceError as error:
                raise TraceError(f"line {number}: {error}") from None

    def add(self, line: bytes) -> None:
        """Add a line. Raises TraceError if it is malformed; unknown events are skipped."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise TraceError("not JSON; is it from --trace-format jsonl?") from None
        if not isinstance(found, dict):
            raise TraceError("not a JSON object")
        event = _get(found, "event", str)
        if event == "exchange":
            self._add(found)
        elif event == "dropped":
            self.dropped += _natural(found, "count")
        else:
            self.events[event] += 1

    def _add(self, found: dict[str, Any]) -> None:
        key = _get(found, "device", str), _get(found, "name", str)
        error = _get(found, "errno", str, type(None))
        sizes = _natural(found, "in_size"), _natural(found, "out_size")
        latency = _get(found, "latency_us", int, float, type(None))
        if latency is not None and not 0 <= latency < _MOST:
            raise TraceError(f"latency_us is {latency}")
        answered = _get(found, "answered", bool, type(None))
        row = self.rows.setdefault(key, Row())
        row.count += 1
        row.in_bytes += sizes[0]
        row.out_bytes += sizes[1]
        row.unanswered += answered is False
        if error is not None:
            row.errors[error] += 1
        if latency is not None:
            row.latencies.append(latency)

    def table(self) -> str:
        """Return the table, followed by the errors by name and everything else."""
        cells = [COLUMNS]
        for (device, name), row in sorted(self.rows.items()):
            values = [printable(device), printable(name), str(row.count)]
            values += [str(row.errors.total()), str(row.in_bytes), str(row.out_bytes)]
            ordered = sorted(row.latencies)
            if ordered:
                middle = [percentile(ordered, percent) for percent in (50, 90, 99)]
                values += [f"{value:.1f}" for value in (ordered[0], *middle, ordered[-1])]
            else:
                values += ["-"] * 5
            cells.append(values)
        blocks = [_aligned(cells, _LEFT)]
        errors = [
            [printable(device), printable(name), printable(error), str(count)]
            for (device, name), row in sorted(self.rows.items())
            for error, count in row.errors.most_common()
        ]
        if errors:
            blocks.append(_aligned([["device", "operation", "error", "count"], *errors], 3))
        notes = []
        unanswered = sum(row.unanswered for row in self.rows.values())
        if unanswered:
            notes.append(f"never answered: {unanswered}\n")
        if self.events["interrupt"]:
            notes.append(f"interrupts: {self.events['interrupt']}\n")
        if self.events["refused"]:
            notes.append(f"refused messages: {self.events['refused']}\n")
        if self.dropped:
            notes.append(f"missing messages, as they were too many at once: {self.dropped}\n")
        if notes:
            blocks.append("".join(notes))
        return "\n".join(blocks)


def _get(found: dict[str, Any], key: str, *types: type) -> Any:
    try:
        value = found[key]
    except KeyError:
        raise TraceError(f"{key} is missing") from None
    if type(value) not in types:
        raise TraceError(f"{key} is {json.dumps(value)[:40]}")
    return value


def _natural(found: dict[str, Any], key: str) -> int:
    value: int = _get(found, key, int)
    if not 0 <= value < _MOST:
        raise TraceError(f"{key} is {value}")
    return value


def _aligned(rows: list[list[str]], left: int) -> str:
    """Return lines with columns as wide as they need, the first ``left`` aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
