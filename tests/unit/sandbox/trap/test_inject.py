"""Calls that a thread makes for us: what happens to threads that are not ours to use."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox.trap.inject import GoneError, Injection

from ..support import made_call


class Nobody:
    """A listener for which no call waits."""

    def alive(self, call_id: int) -> bool:
        return False

    def answer(self, call_id: int, value: int) -> bool:
        return False

    def fail(self, call_id: int, number: int) -> bool:
        return False

    def add_descriptor(self, call_id: int, descriptor: int, *, cloexec: bool) -> int | None:
        return None


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        ["cat"], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


def injection(tid: int) -> Injection:
    return Injection(made_call(Nobody(), pid=tid))


def echo(cat: subprocess.Popen[bytes]) -> bytes:
    assert cat.stdin is not None
    cat.stdin.write(b"x\n")
    assert cat.stdout is not None
    return cat.stdout.read(2)


@pytest.mark.parametrize("what", ["nothing", "give", "call"])
def test_a_call_that_somebody_else_has_answered(cat: subprocess.Popen[bytes], what: str) -> None:
    """As when its device has gone: the thread has gone on, and must not notice anything."""
    assert echo(cat) == b"x\n"
    with injection(cat.pid) as thread:
        if what == "give":
            with pytest.raises(GoneError):
                thread.give(0)
        if what == "call":
            for _ in range(2):
                with pytest.raises(GoneError):
                    thread.call("munmap", 0, 4096)
    assert echo(cat) == b"x\n"
    assert "\nTracerPid:\t0\n" in Path(f"/proc/{cat.pid}/status").read_text("ascii")


def test_a_signal_for_such_a_thread_is_not_lost(cat: subprocess.Popen[bytes]) -> None:
    assert echo(cat) == b"x\n"
    with injection(cat.pid):
        os.kill(cat.pid, signal.SIGTERM)
    assert cat.wait(20) == -signal.SIGTERM


def test_a_thread_that_there_is_not() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait(20)
    with pytest.raises(GoneError), injection(process.pid):
        pass


def test_a_thread_that_has_a_debugger(cat: subprocess.Popen[bytes]) -> None:
    assert echo(cat) == b"x\n"
    with (
        injection(cat.pid),
        pytest.raises(OSError, match="Operation not permitted") as caught,
        injection(cat.pid),
    ):
        pass
    assert caught.value.errno == errno.EPERM
    assert echo(cat) == b"x\n"


def test_a_thread_that_is_killed_meanwhile(cat: subprocess.Popen[bytes]) -> None:
    with injection(cat.pid) as thread:
        cat.kill()
        with pytest.raises(GoneError):
            thread.call("munmap", 0, 4096)
