"""What the documents say is so: the README's device works, commands and packages are described."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from recuse.cli.commands import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(name), re.MULTILINE | re.DOTALL)


def test_the_readmes_device(tmp_path: Path) -> None:
    device, _, _ = code_blocks("README.md")
    (tmp_path / "echo.py").write_text(device, encoding="utf-8")
    (line,) = re.findall(r"^    \.venv/bin/recuse (run .*echo\.py.*)$", text_of("README.md"), re.M)
    done = subprocess.run(
        [sys.executable, "-m", "recuse.cli.main", *shlex.split(line)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)


def test_the_readmes_test() -> None:
    device, test, _ = code_blocks("README.md")
    done = subprocess.run(
        [sys.executable, "-c", device + test], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_readmes_filesystem(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(code_blocks("README.md")[2], encoding="utf-8")
    (tmp_path / "files").mkdir()
    (line,) = re.findall(r"^    \.venv/bin/recuse (run -m .*)$", text_of("README.md"), re.M)
    done = subprocess.run(
        [sys.executable, "-m", "recuse.cli.main", *shlex.split(line)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("Hello, world!\n", "", 0)


def test_the_readmes_two_commands() -> None:
    targets = re.findall(r"^    make (\S+)$", text_of("README.md"), re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = text_of("Makefile")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_modules_that_documents_name_are_there() -> None:
    missing = [
        f"{document.name}: {name}"
        for document in DOCUMENTS
        for name in re.findall(
            r"`((?:kernel|sandbox|server|channel|wire|trace|runtime)/[\w/]+(?:\.py)?)`",
            document.read_text(encoding="utf-8"),
        )
        if not (ROOT / "src/recuse" / name).exists()
    ]
    assert missing == []


def test_every_command_and_option_is_described() -> None:
    described = text_of("docs/commands.md")
    for command in cli.commands.values():
        assert f"## recuse {command.name}" in described
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(name in described for name in parameter.opts), parameter.opts


def table_of_packages() -> list[list[str]]:
    table = text_of(".ci/packages").partition("<<'END'\n")[2].partition("\nEND\n")[0]
    return [line.split(maxsplit=2) for line in table.splitlines()]


def test_every_package_has_its_reason() -> None:
    rows = table_of_packages()
    assert {group for group, _, _ in rows} == {"demo", "test", "vm", "arm64", "bench"}
    described = text_of("docs/dependencies.md")
    for _, package, reason in rows:
        assert reason
        assert re.search(rf"^\|.*\b{re.escape(package)}\b.*\|.*\|$", described, re.MULTILINE)


def test_what_tests_need_is_installed_for_them() -> None:
    """In continuous integration the lack of a package is a failure: .ci/packages must have it."""
    asked = set()
    for file in ROOT.glob("tests/**/*.py"):
        if file.name != "test_conftest.py":
            asked |= set(
                re.findall(
                    r"""\bneeds\(\s*[^()]*?,\s*(?:package=)?["']([\w.+-]+)["']\s*,?\s*\)""",
                    file.read_text(encoding="utf-8"),
                )
            )
    assert asked <= {package for group, package, _ in table_of_packages() if group == "test"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def headings(document: Path) -> set[str]:
    """The headings of a document, as links name them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_headings_find_them(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if "://" not in target:
            there = document.parent / target if target else document
            assert heading in headings(there), f"{target}#{heading}"
