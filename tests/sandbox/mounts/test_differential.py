"""Random calls of a program on a mount in the sandbox and on Linux's tmpfs: they do the same."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse.sandbox import Sandbox

from ...filesystem.test_differential import CALLS, STARTED, Caller
from ..conftest import Piped
from .conftest import example

_ROOT = Path(__file__).resolve().parents[3]
LONG_S = 600

PROGRAM = """
import ast, os, sys
from tests.filesystem.test_differential import Caller
print(None, flush=True)
for line in sys.stdin:
    name, *arguments = ast.literal_eval(line)
    if name == "begin":
        os.mkdir(arguments[0])
        caller = Caller(arguments[0])
        done = None
    elif name == "end":
        done = caller.close()
    else:
        done = caller.call(name, *arguments)
    print(repr(done), flush=True)
"""


class Program:
    """Makes calls in a sandbox, like a `Caller`."""

    def __init__(self, program: Piped) -> None:
        self._program = program
        self._answer()

    def call(self, *call: Any) -> Any:
        self._program.stdin.write(f"{call!r}\n".encode())
        return self._answer()

    def _answer(self) -> Any:
        return ast.literal_eval(self._program.stdout.readline().decode())


@pytest.fixture(params=["memory", "loopback"])
def kind(request: pytest.FixtureRequest) -> str:
    """The example that is served."""
    return str(request.param)


@pytest.fixture
def program(kind: str) -> Iterator[tuple[Program, str, str]]:
    """The program, the directory where its filesystem is, and one of a tmpfs."""
    if " /dev/shm tmpfs " not in Path("/proc/self/mounts").read_text(encoding="utf-8"):
        pytest.skip("/dev/shm is no tmpfs")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        mounted = enter(tempfile.TemporaryDirectory(prefix="mounted-"))
        tmpfs = enter(tempfile.TemporaryDirectory(prefix="tmpfs-", dir="/dev/shm"))
        if kind == "memory":
            filesystem = example("memoryfs").MemoryFilesystem()
        else:
            source = enter(tempfile.TemporaryDirectory(prefix="source-", dir="/dev/shm"))
            filesystem = example("loopbackfs").Loopback(source)
        sandbox = enter(Sandbox(mounts={mounted: filesystem}))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        command = [sys.executable, "-c", PROGRAM]
        running: Any = enter(sandbox.popen(command, cwd=_ROOT, **pipes))
        yield Program(running), mounted, tmpfs
        running.stdin.close()
        assert running.wait(20) == 0


def compare(program: tuple[Program, str, str], calls: list[tuple[Any, ...]]) -> None:
    """Make the calls in both, in new directories."""
    ours, mounted, tmpfs = program
    top = f"{tmpfs}/here"
    os.mkdir(top)
    name = f"{mounted}/{os.urandom(4).hex()}"
    ours.call("begin", name)
    native = Caller(Path(top))
    try:
        for call in calls:
            if call[0] == "mknod" and stat.S_ISFIFO(call[2]):
                continue  # the kernel opens what it makes by itself
            assert (call, ours.call(*call)) == (call, native.call(*call))
        assert ours.call("tree") == native.tree()
    finally:
        native.close()
        ours.call("end")
        shutil.rmtree(top)


@settings(max_examples=30, suppress_health_check=[*HealthCheck], deadline=None)
@given(st.lists(CALLS, min_size=5, max_size=40))
def test_as_tmpfs_does(program: tuple[Program, str, str], calls: list[tuple[Any, ...]]) -> None:
    compare(program, STARTED + calls)


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=[*HealthCheck], deadline=None)
@given(st.lists(CALLS, min_size=20, max_size=80))
@pytest.mark.timeout(LONG_S)
def test_as_tmpfs_does_for_long(
    program: tuple[Program, str, str], calls: list[tuple[Any, ...]]
) -> None:
    compare(program, STARTED + calls)
