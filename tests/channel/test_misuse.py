"""What a server of /dev/cuse hears when it does something wrong: in the sandbox as on Linux.

The program in misuse/ does all of it and prints a record; linux.txt is the record of Linux's own
CUSE. `make test-vm` checks that it still is, and `.venv/bin/python tests/vm/boot.py python3 -S -m
tests.channel.misuse` prints a new one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recuse import Sandbox

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORD = HERE / "linux.txt"
PATIENCE_S = 120

Sections = dict[str, list[str]]


def sections(record: str) -> Sections:
    """The lines of each section; a line that begins with # is no part of the record."""
    found: Sections = {}
    for line in record.splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = lines = []
        elif not line.startswith("#"):
            lines.append(line)
    return found


KEPT = sections(RECORD.read_text())


def differing(name: str) -> list[str]:
    """Linux's record of a section, with what is different in a sandbox on purpose.

    The numbers of devices that the kernel has are free for others, as a device of a sandbox may
    stand in for one of the kernel's.
    """
    lines = list(KEPT[name])
    if name == "inits":
        at = lines.index("number 1:3, of null: 108, no device")
        lines[at : at + 2] = [
            "number 1:3, of null: 108, crw------- 1:3 /dev/misuse-init",
            "    then: read EINVAL EINVAL EAGAIN EAGAIN write ENOENT ENOENT 24 poll: OUT|WRNORM",
        ]
    return lines


@pytest.fixture(scope="module")
def ours() -> Sections:
    """The record of a sandbox."""
    with Sandbox() as sandbox:
        done = sandbox.run(
            [sys.executable, "-S", "-m", "tests.channel.misuse"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
    return sections(done.stdout)


@pytest.mark.parametrize("name", KEPT)
def test_the_channel_answers_as_linux_does(ours: Sections, name: str) -> None:
    assert ours[name] == differing(name)


def test_all_sections_are_kept(ours: Sections) -> None:
    assert list(ours) == list(KEPT)
