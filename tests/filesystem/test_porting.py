"""docs/porting.md: what it shows of recuse runs, and does what it says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import recuse
from recuse import Filesystem, Inodes, Mount

from .conftest import ROOT
from .shell import shell

PAGE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def page() -> dict[str, Any]:
    """Return what the page defines."""
    names: dict[str, Any] = {"__name__": "page"}
    assert len(blocks("python")) == 3
    for snippet in blocks("python"):
        exec(compile(snippet, "porting.md", "exec"), names)
    return names


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("name", ["HelloInodes", "HelloNodes"])
def test_the_same_filesystem(page: dict[str, Any], directory: Path, name: str) -> None:
    with Mount(page[name](), directory):
        script = "ls; cat hello; stat -c '%A %s %F' . hello; cat none; ls -A | wc -l; df . | wc -l"
        assert shell(directory, script, errexit=False) == (
            "hello\nHello, world!\n"
            f"drwxr-xr-x {0} directory\n-rw-r--r-- 14 regular file\n"
            "cat: none: No such file or directory\n1\n2\n"
        )
        assert "denied" in shell(directory, "echo x >hello", errexit=False) or name == "HelloNodes"


@pytest.mark.usefixtures("mounts")
def test_a_tree_by_paths(page: dict[str, Any], directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_text("text\n")
    with Mount(Filesystem(page["RemoteDirectory"](str(source))), directory):
        assert shell(directory, "find | sort; cat d/file; cat d/none", errexit=False) == (
            ".\n./d\n./d/file\ntext\ncat: d/none: No such file or directory\n"
        )


def test_what_is_shown_of_others_is_python() -> None:
    others = blocks("py")
    assert len(others) == 2
    for text in others:
        ast.parse(text)


def test_the_names_of_recuse_are_there() -> None:
    for owner, name in re.findall(r"\b(recuse|[A-Z]\w+)\.(\w+)", PAGE):
        kind = recuse if owner == "recuse" else getattr(recuse, owner, None)
        if kind is not None:
            assert hasattr(kind, name) or name in kind.__annotations__, f"{owner}.{name}"
    for name in ("read", "write", "setattr", "readdir", "forget"):
        parameters = ", ".join([*inspect.signature(getattr(Inodes, name)).parameters][1:])
        assert f"`{name}({parameters})`" in PAGE
