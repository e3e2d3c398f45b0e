"""docs/interoperability.md: each row has a test, and each test is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/interoperability.md").read_text(encoding="utf-8")
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith("| ---") and not line.endswith("| test |")
]
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", PAGE)))


def test_every_row_has_a_test() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        last = row.rstrip("| ").rpartition("| ")[2]
        assert "`tests/" in last or last == "the same", row


@pytest.mark.parametrize("name", TESTS)
def test_every_test_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    if function:
        assert re.search(rf"^def {function}\(", source, re.MULTILINE)


def test_every_example_is_there() -> None:
    for name in re.findall(r"(?<!tests/)\bexamples/\w+\.py", PAGE):
        assert (ROOT / name).is_file(), name
