"""The table of threads in docs/threads.md has those that the source starts."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from .lock_watch import SOURCE, written_order

TABLE = Path(__file__).parent.parent / "docs" / "threads.md"


def written() -> Iterator[list[str]]:
    """The table's rows."""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def name_of(call: ast.Call) -> str:
    """The name that is given to a thread, or the beginning of several ones' names."""
    (name,) = (keyword.value for keyword in call.keywords if keyword.arg == "name")
    if isinstance(name, ast.Constant):
        return str(name.value)
    assert isinstance(name, ast.JoinedStr)
    parts = []
    for part in name.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            assert isinstance(part, ast.FormattedValue)
            parts.append({"device.name": "DEVICE", "name": "NAME"}[ast.unparse(part.value)])
    return "".join(parts)


def started() -> Iterator[str]:
    """The names of the threads that the source starts."""
    for file in Path(SOURCE).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            if function == "Workers":
                yield f"{name_of(node)}-N"
            elif function == "threads.start" and file.name != "workers.py":
                yield name_of(node)


def test_the_table_has_the_threads_that_are_started() -> None:
    names = [row[0].strip("`") for row in written()]
    assert len(names) > 10
    assert sorted(names) == sorted(started())


def test_they_hold_locks_that_there_are() -> None:
    order = written_order()
    held = {name for row in written() for name in re.findall("`([^`]+)`", row[3])}
    assert len(held) > 5
    assert held <= set(order.may_hold)
    waited_with = {
        name for row in written() for name in re.findall("`([^`]+)` while it waits", row[3])
    }
    assert waited_with
    assert waited_with <= order.may_wait
