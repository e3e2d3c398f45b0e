"""The same calls on Linux's FUSE and on recuse's kernel half, of a filesystem with other settings.

As a program, `compared.py DIR FILE EXAMPLE SOURCE SETTINGS`, it mounts an example with settings
(JSON) and writes down each request, until its standard input ends.
"""

from __future__ import annotations

import ast
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from recuse import Mount
from recuse.server.filesystem.session import FilesystemSession
from recuse.testing import TestMount

from .recording_server import record
from .test_differential import Caller
from .test_differential_in_process import MAKERS, InProcess

PATIENCE_S = 60
RELEASE = "6.18"
_COARSE = 5
"""CLOCK_REALTIME_COARSE"""

Request = tuple[Any, ...]
Made = list[tuple[Any, Any, list[Request]]]
"""Each call with its result and its requests."""


def compare(
    monkeypatch: pytest.MonkeyPatch,
    calls: Sequence[tuple[Any, ...]],
    callers: tuple[type[Caller], type[InProcess]] = (Caller, InProcess),
    example: str = "memory",
    **settings: Any,
) -> None:
    """Check that the requests for each call are the same, except for RELEASE, which comes later."""
    if not platform.release().startswith(RELEASE):
        pytest.skip(f"requests are compared with those of Linux {RELEASE}")
    ours = _in_process(monkeypatch, calls, callers[1], example, settings)
    linux = _on_linux(calls, callers[0], example, settings)
    for mine, theirs in zip(ours, linux, strict=True):
        assert mine == theirs


def _make(
    caller: Caller, calls: Sequence[tuple[Any, ...]], taken: Callable[[], list[Request]]
) -> Made:
    caller.call("stat", ".", True)
    taken()
    made: Made = []
    for call in calls:
        tick()
        result = caller.call(*call)
        made.append((call, result, [one for one in taken() if "RELEASE" not in one[0]]))
    caller.close()
    return made


def tick() -> None:
    """Wait until the clock of files has gone on: Linux writes no time twice."""
    before = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == before:
        pass


def _on_linux(
    calls: Sequence[tuple[Any, ...]], kind: type[Caller], example: str, settings: dict[str, Any]
) -> Made:
    with tempfile.TemporaryDirectory(prefix="requests-") as name:
        directory, recorded = Path(name) / "mount", Path(name) / "requests"
        source = Path(name) / "source"
        directory.mkdir()
        source.mkdir()
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.filesystem.compared"),
                *(directory, recorded, example, source, json.dumps(settings)),
            ],
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

                return _make(kind(directory), calls, taken)
        finally:
            server.communicate("", timeout=PATIENCE_S)


def _in_process(
    monkeypatch: pytest.MonkeyPatch,
    calls: Sequence[tuple[Any, ...]],
    kind: type[InProcess],
    example: str,
    settings: dict[str, Any],
) -> Made:
    monkeypatch.setattr(FilesystemSession, "handle", FilesystemSession.handle)
    requests: list[Request] = []
    record(requests.append)

    def taken() -> list[Request]:
        found = requests[:]
        requests.clear()
        return found

    with (
        tempfile.TemporaryDirectory(prefix="source-") as source,
        TestMount(_set(MAKERS[example](Path(source)), settings)) as mount,
    ):
        return _make(kind(mount), calls, taken)


def _set(filesystem: Any, settings: dict[str, Any]) -> Any:
    for name, value in settings.items():
        setattr(filesystem, name, value)
    return filesystem


def main(directory: str, record_to: str, example: str, source: str, settings: str) -> None:
    """Mount it, until standard input ends."""
    with Path(record_to).open("wb", buffering=0) as output:
        record(lambda request: output.write(repr(request).encode() + b"\n"))
        filesystem = _set(MAKERS[example](Path(source)), json.loads(settings))
        with Mount(filesystem, directory):
            print("mounted", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
