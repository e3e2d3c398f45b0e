"""Small filesystems for the tests of FUSE over io_uring, and the programs that use them."""

from __future__ import annotations

import os
import subprocess
import sys

from recuse import Directory, Filesystem, Mount, RegularFile

from .conftest import PATIENCE_S

CPUS = sorted(os.sched_getaffinity(0))

STAT = "import os; print(os.stat('hello').st_size)"


def tree(**files: RegularFile) -> Filesystem:
    return Filesystem(Directory({"hello": RegularFile(b"Hello, world!\n"), **files}))


def python(code: str, mount: Mount, *args: str, cpu: int | None = None) -> subprocess.Popen[str]:
    """A program in the root directory of a mount, on one CPU."""
    pin = "" if cpu is None else f"import os; os.sched_setaffinity(0, {{{cpu}}})\n"
    return subprocess.Popen(
        [sys.executable, "-c", pin + code, *args],
        cwd=mount.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(program: subprocess.Popen[str]) -> str:
    """What a program has printed, if it has succeeded."""
    output, errors = program.communicate(timeout=PATIENCE_S)
    assert not program.returncode, errors
    return output
