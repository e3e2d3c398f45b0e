"""What the examples' docstrings and the two pages about them show, is so."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCSTRINGS = sorted(
    path for path in (ROOT / "examples").glob("*.py") if "    $ " in path.read_text()
)
SECTIONS = [
    section
    for name in ("examples.md", "example-filesystems.md")
    for section in re.split(r"^(?=## )", (ROOT / "docs" / name).read_text(), flags=re.MULTILINE)[1:]
]

PROGRAMS = {
    "gcc": "gcc",
    "i2cdetect": "i2c-tools",
    "gpiodetect": "gpiod",
    "fbset": "fbset",
    "fbcat": "fbcat",
    "v4l2-ctl": "v4l-utils",
    "ffmpeg": "ffmpeg",
    "busybox": "busybox-static",
    "picocom": "picocom",
    "zip": "zip",
    "/usr/include/linux": "linux-libc-dev",
    "/usr/share/doc/libfuse3-dev/examples/cuse_client.c": "libfuse3-dev",
}

MARK = "\x1e"

Step = tuple[str, list[str]]


def comparable(line: str) -> str:
    """A line without the white space at its end, and without how long pytest took."""
    return re.sub(r" in \d+\.\d+s$", "", line.rstrip())


def mounts_if_needed(text: str) -> None:
    """Skip the test if filesystems are mounted in it, and cannot be here."""
    if "recuse mount" in text and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing, or may not be opened")


def steps(session: str) -> list[Step]:
    """A session's commands with the lines that each prints."""
    found: list[Step] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.rstrip() or found[-1][1]:
            found[-1][1].append(comparable(line))
    return found


def outputs(text: str, commands: int) -> list[list[str]]:
    pieces = text.split(MARK)
    assert len(pieces) == commands + 1, text
    return [[comparable(line) for line in piece.splitlines()] for piece in pieces[:-1]]


def play(session: str, directory: Path) -> None:
    """Run a session's commands, and compare.

    If the first one starts a shell in a sandbox, the others are typed there.
    """
    expected = steps(session)
    shell = "bash"
    if re.fullmatch(r"recuse (run|mount --private) .* -- (ba)?sh", expected[0][0]):
        (shell, nothing), *expected = expected
        assert not nothing
    script = "".join(f"{{ {command}\n}} 2>&1; printf '\\036'\n" for command, _ in expected)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    outcome = subprocess.run(
        ["sh", "-c", f'{shell} -c "$SCRIPT"'],
        check=False,
        capture_output=True,
        cwd=directory,
        env={**os.environ, "PATH": path, "LC_ALL": "C", "SCRIPT": script},
        text=True,
        timeout=100,
    )
    assert outcome.stderr == ""
    printed = outputs(outcome.stdout, len(expected))
    found = [(command, lines) for (command, _), lines in zip(expected, printed, strict=True)]
    assert found == expected


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a user is: the checkout, but nothing that a session makes stays in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "files").mkdir()
    return tmp_path


def test_the_files_that_show_how_to_try_them() -> None:
    assert [path.name for path in DOCSTRINGS] == [
        *[
            "archive.py",
            "camera.py",
            "echo.py",
            "eeprom.py",
            "framebuffer.py",
            "fsspecfs.py",
            "gpiochip.py",
            "hellofs.py",
            "keyboard.py",
            "loopbackfs.py",
            "memory.py",
            "memoryfs.py",
            "mirrorfs.py",
            "serial.py",
        ],
    ]


@pytest.mark.parametrize("path", DOCSTRINGS, ids=lambda path: path.name)
def test_docstrings(path: Path, directory: Path, needs: Callable[..., Path]) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    mounts_if_needed(docstring)
    for program, package in PROGRAMS.items():
        if program in docstring:
            needs(program, package)
    blocks = re.findall(r"^    \$ (?:.*\n    )*.*$", docstring, flags=re.MULTILINE)
    assert blocks
    for block in blocks:
        play(textwrap.dedent(block), directory)


@pytest.mark.parametrize("text", SECTIONS, ids=lambda text: text.split("\n")[0][3:])
def test_docs(text: str, directory: Path, needs: Callable[..., Path]) -> None:
    """Sessions are played; what is shown of Python is a file that begins with its name."""
    mounts_if_needed(text)
    for program, package in PROGRAMS.items():
        if program in text:
            needs(program, package)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for language, content in blocks:
        if language == "console":
            play(content, directory)
        else:
            assert language == "python"
            name = content.splitlines()[0].removeprefix("# ")
            (directory / name).write_text(content)
