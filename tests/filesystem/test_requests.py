"""The same calls on Linux's FUSE and on recuse's kernel half: the same requests, field by field."""

from __future__ import annotations

import ast
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from recuse.server.filesystem.session import FilesystemSession
from recuse.testing import TestMount

from .conftest import PATIENCE_S
from .recording_server import record
from .test_differential import Caller
from .test_differential_in_process import MAKERS, InProcess, umask

__all__ = ["umask"]  # a fixture

RELEASE = "6.18"
CALLS: list[tuple[Any, ...]] = [
    ("stat", ".", True), ("stat", "a", True), ("create", "b", 0o644), ("stat", "b", True),
    ("write", "b", b"hello", 0), ("stat", "b", True), ("read", "b", 10, 0), ("read", "b", 10, 0),
    ("append", "b", b"x" * 5000), ("read", "b", 100000, 0), ("truncate", "b", 100),
    ("stat", "b", True), ("chmod", "b", 0o600), ("utimens", "b", 5, 6, True),
    ("mkdir", "d", 0o755), ("create", "d/x", 0o600), ("rename", "d/x", "y", 0),
    ("rename", "y", "b", 0), ("link", "b", "d/z"), ("stat", "d/z", True), ("symlink", "b", "s"),
    ("readlink", "s"), ("read", "s", 5, 0), ("readdir", "."), ("unlink", "d/z"), ("rmdir", "d"),
    ("xattr", "b", "user.a", b"1", 0), ("xattr", "b", "user.b", bytes(150), os.XATTR_CREATE),
    ("remove_xattr", "b", "user.a"), ("open", "b", os.O_RDWR | os.O_TRUNC),
    ("on_file", 0, "write", b"yy", 5), ("on_file", 0, "read", b"", 0),
    ("on_file", 0, "stat", b"", 0), ("unlink", "b"), ("on_file", 0, "stat", b"", 0),
    ("on_file", 0, "truncate", b"", 3), ("on_file", 0, "close", b"", 0),
    ("mknod", "sock", stat.S_IFSOCK | 0o600), ("open", "nothing", os.O_RDWR),
    ("mkdir", "d", 0o755), ("mkdir", "e", 0o755), ("rename", "d", "e", 2), ("chmod", "e", 0o1777),
    ("create", "su", 0o4755), ("chmod", "su", 0o6777), ("write", "su", b"x", 0),
    ("truncate", "su", 0), ("rename", "d", "e", 0), ("mkdir", "e/f", 0o755), ("rmdir", "e/f"),
    ("stat", "e", False), ("symlink", "e", "l"), ("readdir", "l"), ("stat", "l/../su", True),
    ("link", "su", "e/su"), ("stat", "e/su", True), ("unlink", "su"),
    ("write", "e/su", b"q" * 5000, 4000), ("append", "e/su", b"w" * 5000),
    ("read", "e/su", 20000, 0), ("rename", "e/su", "su", 0), ("rename", "su", "e", 1),
    ("write", "holes", b"z" * 9000, 20000), ("truncate", "holes", 25000), ("truncate", "holes", 0),
    ("rmdir", "e"), ("unlink", "e"), ("mkdir", "holes/x", 0o700), ("readdir", "nothing"),
]  # fmt: skip

Request = tuple[Any, ...]


class Made(NamedTuple):
    """What became of the calls."""

    calls: list[tuple[Any, Any, list[Request]]]
    """Each with its result and its requests."""
    releases: list[str]
    """Linux does not wait for these, so they may come a little later."""


class Calling(Protocol):
    """A `Caller`, or what makes calls like one."""

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what a call returns, or the name of its error."""

    def close(self) -> None:
        """Close the files that it has open."""


def make(
    caller: Calling, taken: Callable[[], list[Request]], calls: list[tuple[Any, ...]] = CALLS
) -> Made:
    """Make all calls; ``taken`` returns the requests since it was last called."""
    made = Made([], [])
    for call in calls:
        result = caller.call(*call)
        requests = taken()
        made.releases.extend(map(repr, filter(is_release, requests)))
        requests = [request for request in requests if not is_release(request)]
        made.calls.append((call, result, requests))
    caller.close()
    made.releases.extend(map(repr, filter(is_release, taken())))
    return made


def is_release(request: Request) -> bool:
    return request[0] in ("RELEASE", "RELEASEDIR")


def on_linux(calls: list[tuple[Any, ...]] = CALLS) -> Made:
    """What becomes of the calls on Linux's FUSE."""
    with tempfile.TemporaryDirectory(prefix="requests-") as name:
        directory, recorded = Path(name) / "mount", Path(name) / "requests"
        directory.mkdir()
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.filesystem.recording_server", directory, recorded],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "mounted\n"
            with recorded.open("rb") as requests:

                def taken() -> list[Request]:
                    # The server writes a request down before it answers.
                    return [ast.literal_eval(line.decode()) for line in requests]

                made = make(Caller(directory), taken, calls)
                # Releases that the server has not read would be dropped by unmounting. It reads
                # them before this.
                os.statvfs(directory)
                server.communicate("", timeout=PATIENCE_S)
                made.releases.extend(map(repr, filter(is_release, taken())))
                return made
        finally:
            if server.poll() is None:
                server.communicate("", timeout=PATIENCE_S)


def in_process(monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(FilesystemSession, "handle", FilesystemSession.handle)
    requests: list[Request] = []
    record(requests.append)

    def taken() -> list[Request]:
        found = requests[:]
        requests.clear()
        return found

    with TestMount(MAKERS["memory"](Path())) as mount:
        requests.clear()
        return make(InProcess(mount), taken)


@pytest.mark.usefixtures("mounts")
def test_requests_are_those_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    if not platform.release().startswith(RELEASE):
        pytest.skip(f"requests are compared with those of Linux {RELEASE}")
    ours = in_process(monkeypatch)
    linux = on_linux()
    # Who mounts it there has looked at the root already.
    assert ours.calls[0][2] == [("GETATTR", 1, {}, b"")]
    assert ours.calls[1:] == linux.calls[1:]
    # There each call is made relative to a descriptor of the root.
    root = repr(("RELEASEDIR", 1, {"flags": os.O_DIRECTORY}, b""))
    assert sorted([root, *ours.releases]) == sorted(linux.releases)
