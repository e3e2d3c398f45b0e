"""`recuse run -m`: filesystems for a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MEMORY = EXAMPLES / "memoryfs.py"


def run(*args: object) -> tuple[int, str, str]:
    """Run `recuse run` with these arguments; return its status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "recuse", "run", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_program_finds_a_filesystem(tmp_path: Path) -> None:
    script = f"echo hi >{tmp_path}/a; cat {tmp_path}/a; ls {tmp_path}"
    assert run("-m", f"{tmp_path}={MEMORY}", "--", "sh", "-c", script) == (0, "hi\na\n", "")
    assert list(tmp_path.iterdir()) == []


def test_it_finds_several_beside_devices(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    script = f"echo hi >{one}/a; cp {one}/a {two}/b; cat {two}/b >/dev/echo; cat /dev/echo"
    mounts = ["-m", f"{one}={MEMORY}", "--mount", f"{two}={MEMORY}"]
    devices = ["-d", EXAMPLES / "echo.py"]
    assert run(*mounts, *devices, "sh", "-c", script) == (0, "hi\n", "")


def test_its_requests_are_traced(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "mnt").mkdir()
    mount = f"{tmp_path}/mnt={MEMORY}"
    assert run("-m", mount, f"--trace={trace}", "mkdir", f"{tmp_path}/mnt/made")[0] == 0
    assert "mkdir[" in trace.read_text(encoding="utf-8")
    assert " MKDIR(" in trace.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("mounts", "message"),
    [
        (["mnt"], "-m mnt: write it as DIR=SPEC, as in -m /mnt=memoryfs.py"),
        (["{0}="], "-m {0}=: write it as DIR=SPEC, as in -m /mnt=memoryfs.py"),
        (["{0}/no={1}"], "-m {0}/no={1}: {0}/no is not a directory"),
        (["{0}={1}", "{0}/={1}"], "-m {0}/={1}: there is already a filesystem at {0}/"),
        (["{0}={1}", "{0}/in={1}"], "{0}/in: No such file or directory"),
        (["{0}={0}/no.py"], "{0}/no.py: no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, mounts: list[str], message: str) -> None:
    (tmp_path / "in").mkdir()
    options = [part for text in mounts for part in ("-m", text.format(tmp_path, MEMORY))]
    status, output, errors = run(*options, "true")
    assert (status, output) == (125, "")
    assert errors == f"recuse: {message.format(tmp_path, MEMORY)}\n"
