"""docs/testing-filesystems.md: its tests pass, and fail when the filesystem is wrong."""

import re
from pathlib import Path
from typing import Any

import pytest

from recuse.testing import PathCalls

PAGE = Path(__file__).parents[3] / "docs" / "testing-filesystems.md"


@pytest.fixture
def guide() -> dict[str, Any]:
    """What the snippets define, one after the other, as in one module."""
    names: dict[str, Any] = {"__name__": "guide"}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    return names


def its_tests(guide: dict[str, Any]) -> list[str]:
    return [name for name in guide if name.startswith("test_")]


def test_the_tests_pass(guide: dict[str, Any]) -> None:
    names = its_tests(guide)
    assert len(names) == 6
    for name in names:
        guide[name]()


def test_the_tests_fail_if_nothing_is_kept(guide: dict[str, Any]) -> None:
    guide["Note"].write = lambda self, data, offset: None
    failed = []
    for name in its_tests(guide):
        try:
            guide[name]()
        except AssertionError:
            failed.append(name)
    assert failed == its_tests(guide)


def test_all_calls_are_listed() -> None:
    text = PAGE.read_text()
    calls = [name for name in vars(PathCalls) if not name.startswith("_")]
    assert [name for name in calls if f"`{name}" not in text] == []
