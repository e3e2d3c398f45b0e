"""docs/filesystems.md: its snippets run, and do what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from recuse import Directory, Filesystem, Mount

from .conftest import ROOT
from .shell import shell

Guide = dict[str, Any]

PAGE = ROOT / "docs" / "filesystems.md"


@pytest.fixture
def guide() -> Guide:
    """Return what the snippets define, one after the other, as in one module."""
    names: Guide = {"__name__": "guide"}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 8
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    return names


def in_c(directory: Path, script: str) -> str:
    return shell(directory, script, errexit=False, LC_ALL="C")


@pytest.mark.usefixtures("mounts")
def test_hello(guide: Guide, directory: Path) -> None:
    with Mount(guide["Hello"](), directory):
        output = in_c(directory, 'cat hello; date -d "$(cat clock)" >/dev/null; wc -c <clock')
    assert output == "Hello, world!\n24\n"


@pytest.mark.usefixtures("mounts")
def test_a_device(guide: Guide, directory: Path) -> None:
    with Mount(guide["Machine"](), directory):
        script = "cat counter; echo 5 >counter; echo 7 >>counter; cat counter; head -c 1 counter"
        assert shell(directory / "dev", script).splitlines() == ["0", "12", "1"]


@pytest.mark.usefixtures("mounts")
def test_notes(guide: Guide, directory: Path) -> None:
    with Mount(guide["NotesFilesystem"](), directory):
        script = (
            "mkdir d; echo one >d/a; echo two >>d/a; cat d/a; rmdir d 2>&1 || true; mv d/a b;"
            "rmdir d; echo new >b; truncate -s 6 b; od -c b | head -1; "
            "exec 3<b; rm b; cat <&3 | wc -c"
        )
        assert in_c(directory, script).splitlines() == [
            "one",
            "two",
            "rmdir: failed to remove 'd': Directory not empty",
            "0000000   n   e   w  \\n  \\0  \\0",
            "6",
        ]


@pytest.mark.usefixtures("mounts")
def test_squares(guide: Guide, directory: Path) -> None:
    with Mount(Filesystem(guide["Squares"]()), directory):
        assert in_c(directory, "cat 12; ls | wc -l; cat x") == (
            "144\n1000\ncat: x: No such file or directory\n"
        )


@pytest.mark.usefixtures("mounts")
def test_open_files_and_waiting(guide: Guide, directory: Path) -> None:
    root = Directory({"log": guide["Log"](), "slow": guide["Slow"]()})
    with Mount(Filesystem(root), directory):
        assert in_c(directory, "cat log log slow") == "one\ntwo\none\ntwo\nat last\n"


@pytest.mark.usefixtures("root")
def test_the_test(guide: Guide) -> None:
    guide["test_notes"]()
