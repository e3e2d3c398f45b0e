"""Two places, a mount and an ordinary directory, and programs that have to do the same in both."""

from __future__ import annotations

import os
import subprocess
from difflib import unified_diff
from pathlib import Path
from typing import NamedTuple

_PATIENCE_S = 60


class Place(NamedTuple):
    """A mount that is served, and an ordinary directory."""

    kind: str
    mounted: Path
    ordinary: Path


def run(directory: Path, argv: list[str]) -> tuple[int, str]:
    """Return a program's exit status and what it prints."""
    done = subprocess.run(
        argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=_PATIENCE_S,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", "HOME": "/nonexistent"},
    )
    return done.returncode, done.stdout.decode(errors="replace").replace(str(directory), "HERE")


_ordinary: dict[tuple[str, ...], tuple[int, str]] = {}
"""What a program did in an ordinary directory. It does the same for each kind of mount."""


def same_program(place: Place, argv: list[str]) -> str:
    """Run a program in both; return what it prints, which has to be the same.

    It finds both empty, so a test can do that once.
    """
    assert os.listdir(place.mounted) == os.listdir(place.ordinary) == []
    here = run(place.mounted, argv)
    key = tuple(argv)
    if key not in _ordinary:
        _ordinary[key] = run(place.ordinary, argv)
    there = _ordinary[key]
    lines = unified_diff(there[1].splitlines(), here[1].splitlines(), n=1, lineterm="")
    assert here == there, "\n".join(lines)
    assert here[0] == 0, here[1]
    return here[1]


def same(place: Place, script: str) -> str:
    """The same for a script of the shell."""
    return same_program(place, ["bash", "-ec", script])


PYTHON = """
import ctypes, errno, fcntl, mmap, os, stat, sys, threading
def fails(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "succeeds"
"""


def same_python(place: Place, code: str) -> str:
    """The same for Python code, which may use `fails`."""
    return same_program(place, ["python3", "-c", PYTHON + code])
