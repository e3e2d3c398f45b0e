"""The public API's types: authors who use mypy --strict are helped, not hindered."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("typed_device.py")


def test_mypy_accepts_a_device_and_finds_each_mistake(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    # Elsewhere, so that recuse is found as users have it: installed, by its py.typed.
    command = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context"]
    checked = subprocess.run(
        [*command, "--no-error-summary", f"--cache-dir={tmp_path}/cache", str(SAMPLE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not checked.stderr
    found = sorted(
        (int(line), text) for line, text in re.findall(r":(\d+): error: (.*)", checked.stdout)
    )
    expected = [
        (number, text.strip())
        for number, line in enumerate(SAMPLE.read_text().splitlines(), 1)
        for text in line.split("# E:")[1:]
    ]
    assert [line for line, _ in found] == [line for line, _ in expected], checked.stdout
    for (_, text), (_, part) in zip(found, expected, strict=True):
        assert part.lower() in text.lower()
