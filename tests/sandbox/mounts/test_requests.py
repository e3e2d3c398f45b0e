"""The same calls of a program in the sandbox and on Linux's FUSE: the same requests and results.

They are compared field by field, on examples/memoryfs.py.
"""

from __future__ import annotations

import ast
import os
import platform
import stat
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from recuse.sandbox import Sandbox
from recuse.server.filesystem.session import FilesystemSession

from ...filesystem.conftest import mounts as can_mount
from ...filesystem.recording_server import record
from ...filesystem.test_requests import CALLS, RELEASE, Made, Request, make, on_linux
from ..conftest import Piped
from .conftest import example

__all__ = ["can_mount"]  # a fixture

_ROOT = Path(__file__).resolve().parents[3]

MORE: list[tuple[Any, ...]] = [
    ("stat", ".", True), ("mkdir", "deep", 0o755), ("mkdir", "deep/er", 0o700),
    ("create", "deep/er/file", 0o644), ("stat", "deep/er/file", True), ("readdir", "deep/er"),
    ("readdir", "deep"), ("stat", "deep/./er/../er/file", True), ("stat", "deep/er/file/", True),
    ("stat", "deep/no/file", True), ("stat", "deep/er/file/x", True), ("readdir", "deep/er/file"),
    ("stat", "n" * 255, True), ("stat", "n" * 256, True), ("mkdir", "n" * 256, 0o700),
    ("stat", "n" * 1025, True), ("stat", "n" * 3900, True), ("rename", "n" * 1025, "n" * 3900, 0),
    ("create", "deep/er/file", 0o644), ("mkdir", "deep/er", 0o700), ("rmdir", "deep"),
    ("unlink", "deep"), ("rmdir", "deep/er/file"), ("rmdir", "deep/er/."), ("rmdir", "deep/er/.."),
    ("symlink", "loop", "loop"), ("stat", "loop", True), ("stat", "loop", False),
    ("open", "loop", os.O_RDONLY), ("create", "loop", 0o644), ("write", "loop", b"x", 0),
    ("symlink", "deep/er/new", "dangling"), ("write", "dangling", b"made", 0),
    ("stat", "deep/er/new", True), ("symlink", "", "empty"), ("symlink", "t" * 4095, "long"),
    ("readlink", "long"), ("readlink", "deep"), ("unlink", "dangling"), ("unlink", "loop"),
    ("write", "f", b"0123456789", 0), ("open", "f", os.O_RDONLY), ("on_file", 0, "write", b"x", 0),
    ("on_file", 0, "truncate", b"", 3), ("open", "f", os.O_WRONLY), ("on_file", 1, "read", b"", 0),
    ("on_file", 1, "write", b"ab", 3), ("on_file", 0, "read", b"", 0),
    ("on_file", 1, "chmod", b"", 0o640), ("on_file", 0, "stat", b"", 0),
    ("rename", "f", "g", 0), ("on_file", 0, "read", b"", 2), ("on_file", 1, "write", b"cd", 9),
    ("stat", "g", True), ("unlink", "g"), ("on_file", 0, "stat", b"", 0),
    ("on_file", 0, "close", b"", 0), ("on_file", 0, "close", b"", 0), ("stat", "g", True),
    ("open", "deep", os.O_RDWR), ("open", "deep", os.O_RDONLY | os.O_DIRECTORY),
    ("open", "deep/er/file", os.O_RDONLY | os.O_DIRECTORY), ("on_file", 0, "close", b"", 0),
    ("open", "x", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("on_file", 0, "close", b"", 0),
    ("open", "x", os.O_RDWR | os.O_CREAT | os.O_EXCL), ("open", "x", os.O_RDONLY | os.O_NOFOLLOW),
    ("on_file", 0, "close", b"", 0), ("open", "x", os.O_WRONLY | os.O_APPEND),
    ("on_file", 0, "write", b"end", 0), ("on_file", 0, "close", b"", 0),
    ("allocate", "x", 0, 0, 5000), ("allocate", "x", 1, 5000, 5000), ("stat", "x", True),
    ("allocate", "x", 3, 0, 4096), ("seek", "x", 0, os.SEEK_DATA), ("seek", "x", 0, os.SEEK_HOLE),
    ("seek", "x", 0, os.SEEK_END), ("seek", "x", 9999999, os.SEEK_DATA),
    ("utimens", "x", 1_500_000_001, 2_500_000_002, True), ("stat", "x", True),
    ("symlink", "x", "to-x"), ("utimens", "to-x", 7, 8, False), ("stat", "to-x", True),
    ("chmod", "to-x", 0o444), ("stat", "x", True), ("chmod", "no", 0o444),
    ("xattr", "x", "user.one", b"1", 0), ("xattr", "x", "user.one", b"2", os.XATTR_CREATE),
    ("xattr", "x", "user.two", b"2", os.XATTR_REPLACE), ("remove_xattr", "x", "user.two"),
    ("xattr", "x", "trusted.t", b"", 0), ("xattr", "x", "user." + "n" * 251, b"", 0),
    ("rename", "x", "deep/er/x", 0), ("rename", "deep/er/x", "deep/er/x", 0),
    ("rename", "deep/er", "deep/er/er", 0), ("rename", "deep", "deep/er", 0),
    ("rename", "deep/er", "moved", 0), ("rename", "moved", "deep", 0), ("rename", "moved", "m", 1),
    ("rename", "m", "deep", 1), ("rename", "m", "deep", 2), ("rename", "deep/x", "m", 2),
    ("rename", "no", "m", 0), ("rename", "deep/", "to/", 0), ("rename", ".", "y", 0),
    ("link", "m", "m2"), ("link", "to-x", "to-x2"), ("link", "to/x", "to/l"), ("link", "no", "l"),
    ("mknod", "fifo", stat.S_IFIFO | 0o600), ("mknod", "file", stat.S_IFREG | 0o640),
    ("stat", "fifo", True), ("stat", "file", True), ("write", "file", b"k" * 140_000, 0),
    ("read", "file", 140_000, 0), ("read", "file", 10, 139_995), ("read", "file", 10, 200_000),
    ("write", "file", b"z", 1 << 20), ("stat", "file", True), ("truncate", "file", 5),
    ("read", "file", 100, 0), ("append", "file", b"more"), ("read", "file", 100, 0), ("tree",),
]  # fmt: skip

PROGRAM = """
import ast, sys
from pathlib import Path
from tests.filesystem.test_differential import Caller
caller = Caller(Path(sys.argv[1]))
print(None, flush=True)
for line in sys.stdin:
    call = ast.literal_eval(line)
    print(repr(caller.call(*call) if call else caller.close()), flush=True)
"""


class Program:
    """Makes calls in a sandbox, like a `Caller`."""

    def __init__(self, program: Piped) -> None:
        self._program = program
        self._answer()

    def call(self, name: str, *arguments: Any) -> Any:
        return self._ask((name, *arguments))

    def close(self) -> None:
        self._ask(())

    def _ask(self, call: tuple[Any, ...]) -> Any:
        self._program.stdin.write(f"{call!r}\n".encode())
        return self._answer()

    def _answer(self) -> Any:
        return ast.literal_eval(self._program.stdout.readline().decode())


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What is asked."""
    found: list[Request] = []
    monkeypatch.setattr(FilesystemSession, "handle", FilesystemSession.handle)
    record(found.append)
    return found


def in_the_sandbox(here: Path, requests: list[Request], calls: list[tuple[Any, ...]]) -> Made:
    """What becomes of the calls there."""

    def taken() -> list[Request]:
        found = requests[:]
        requests.clear()
        return found

    filesystem = example("memoryfs").MemoryFilesystem()
    with Sandbox(mounts={here / "mnt": filesystem}) as sandbox:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        argv = [sys.executable, "-c", PROGRAM, f"{here}/mnt"]
        running: Any = sandbox.popen(argv, cwd=_ROOT, **pipes)
        with running.stdout:
            made = make(Program(running), taken, calls)
            running.stdin.close()
            assert running.wait(20) == 0
    made.releases.extend(repr(request) for request in taken() if "RELEASE" in request[0])
    return made


def _lines(made: tuple[Any, Any, list[Request]]) -> list[str]:
    return [f"{line!r:.300}" for line in (made[1], *made[2])]


@pytest.mark.usefixtures("can_mount")
@pytest.mark.parametrize("calls", [CALLS, MORE], ids=["calls", "more"])
def test_they_are_those_of_linux(
    here: Path, requests: list[Request], calls: list[tuple[Any, ...]]
) -> None:
    if not platform.release().startswith(RELEASE):
        pytest.skip(f"requests are compared with those of Linux {RELEASE}")
    ours, linux = in_the_sandbox(here, requests, calls), on_linux(calls)
    different = {
        one[0]: f"{one[0]!r:.90}:\n" + "\n".join(unified_diff(_lines(one), _lines(other), n=1))
        for one, other in zip(ours.calls[1:], linux.calls[1:], strict=True)
        if one != other
    }
    assert not different, "\n".join(different.values())
    assert sorted(ours.releases) == sorted(linux.releases)
