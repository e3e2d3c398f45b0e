"""Threads that poll the same files: what one of them takes must not leave another asleep for ever.

A call that finds something ready is left to the kernel, which may find that it is not any more.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.abilities import may_fetch
from recuse.sandbox.syscalls.poll import _Polling

from ...patience import PATIENCE_S
from ..conftest import Piped, Shell, Start
from .polled import POLL, PRELUDE, Box, BoxFile, program_pid, wait_asleep

RESTART_SYSCALL = 219

FILES = """
os.set_blocking(fd, False)
other = os.open("/dev/other", os.O_RDWR)
in_, out = os.pipe()
def says(what):
    os.write(1, f"{what}\\n".encode())
"""


@pytest.fixture
def other() -> Box:
    return Box(name="other")


@pytest.fixture
def sandbox(box: Box, other: Box) -> Iterator[Sandbox]:
    with Sandbox(box, other) as sandbox:
        yield sandbox


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """``(decided, go_on)``: the first poll's result is held back until ``go_on`` is set."""
    if not may_fetch():
        pytest.skip("a thread that lends its descriptor polls again, and is not held back then")
    decided, go_on = threading.Event(), threading.Event()
    decide = _Polling._decide

    def hold(polling: _Polling) -> int:
        result = decide(polling)
        if not decided.is_set():
            decided.set()
            assert go_on.wait(PATIENCE_S)
        return result

    monkeypatch.setattr(_Polling, "_decide", hold)
    yield decided, go_on
    go_on.set()


WAITS = """
if os.fork() == 0:
    says(WAIT)
    os._exit(0)
sys.stdin.readline()
says(TAKE)
sys.stdin.readline()
"""


def run_to_the_end(program: Piped) -> None:
    program.stdin.close()
    assert program.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(("waker", "number"), [("box", 3), ("other", 4)])
def test_what_another_takes_between_answer_and_wait(  # noqa: PLR0917
    box: Box,
    other: Box,
    sandbox: Sandbox,
    start: Start,
    held: tuple[threading.Event, threading.Event],
    waker: str,
    number: int,
) -> None:
    """The device that was ready wakes the sleeper, and so does one that was asked after it."""
    decided, go_on = held
    script = WAITS.replace("WAIT", "poll(-1, (fd, IN), (other, IN), (in_, IN))")
    script = script.replace("TAKE", "(os.read(fd, 9), poll(5, (fd, IN)))")
    boxes = {each.name: each for each in (box, other)}
    box.data = b"data"
    with start(sandbox, PRELUDE + FILES + script) as program:
        assert decided.wait(PATIENCE_S)
        sleeper = program_pid(box)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"(b'data', [])\n"
        go_on.set()
        wait_asleep(sleeper, *POLL)
        boxes[waker].put(b"more")
        assert program.stdout.readline() == b"[(%d, 1)]\n" % number
        run_to_the_end(program)


def test_another_file_that_is_emptied_between_answer_and_wait(
    sandbox: Sandbox, box: Box, start: Start, held: tuple[threading.Event, threading.Event]
) -> None:
    """It was ready, so the device was not told that anybody waits."""
    decided, go_on = held
    script = "os.write(out, b'x')\n" + WAITS.replace("WAIT", "poll(-1, (in_, IN), (fd, IN))")
    with start(sandbox, PRELUDE + FILES + script.replace("TAKE", "os.read(in_, 9)")) as program:
        assert decided.wait(PATIENCE_S)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"b'x'\n"
        go_on.set()
        assert program.stdout.readline() == b"[(5, 1)]\n"
        run_to_the_end(program)


def wait_stopped(tid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        os.sched_yield()


def test_what_another_takes_before_a_sleeper_that_was_woken_looks(
    sandbox: Sandbox, box: Box, start: Start
) -> None:
    script = WAITS.replace("WAIT", "poll(-1, (fd, IN))")
    script = script.replace("TAKE", "(poll(-1, (fd, IN)), os.read(fd, 9), poll(5, (fd, IN)))")
    with start(sandbox, PRELUDE + FILES + script) as program:
        box.wait_asked(1)
        sleeper = program_pid(box)
        wait_asleep(sleeper, *POLL)
        os.kill(sleeper, signal.SIGSTOP)
        wait_stopped(sleeper)
        box.put(b"data")
        box.wait_asked(2)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"([(3, 1)], b'data', [])\n"
        os.kill(sleeper, signal.SIGCONT)
        wait_asleep(sleeper, *POLL, RESTART_SYSCALL)
        box.put(b"more")
        assert program.stdout.readline() == b"[(3, 1)]\n"
        run_to_the_end(program)


def test_a_signalfd_among_the_files(client: Shell) -> None:
    """It is ready for the program only: the kernel has to look at it, though others are ready."""
    script = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
mask = ctypes.create_string_buffer(struct.pack("=Q", 1 << signal.SIGUSR1 - 1))
signals = libc.signalfd(-1, mask, 0)
os.kill(os.getpid(), signal.SIGUSR1)
os.write(out, b"x")
says(poll(-1, (in_, IN), (fd, IN), (signals, IN)))
"""
    assert client(PRELUDE + FILES + script) == "[(5, 1), (7, 1)]\n"


def test_select_of_a_number_that_is_none(client: Shell) -> None:
    """It fails (fs/select.c, max_select_fd), whatever else is ready; poll tells of it."""
    script = """
os.write(out, b"x")
box = os.dup2(fd, 50)
says(attempt(select.select, [fd, in_, 40, 50], [], []))
says(attempt(select.select, [fd, 2, 40], [other], []))
says(poll(5, (in_, IN), (40, IN), (fd, IN)))
"""
    assert client(PRELUDE + FILES + script) == "EBADF\nEBADF\n[(5, 1), (40, 32)]\n"


class LateFile(BoxFile):
    """Its answer to who wakes sleepers takes long, if it is to."""

    device: "LateBox"

    def poll(self, events: int) -> int:
        ready = super().poll(events)
        if ready & select.POLLIN and not self.device.late.is_set():
            self.device.late.set()
            assert self.device.go_on.wait(PATIENCE_S)
        return ready


class LateBox(Box):
    kind = LateFile

    def __init__(self) -> None:
        super().__init__()
        self.late, self.go_on = threading.Event(), threading.Event()


def test_what_was_so_before_another_took_it_wakes_nobody(start: Start) -> None:
    script = """
if os.fork() == 0:
    says((poll(-1, (fd, IN)), os.read(fd, 9)))
    os._exit(0)
sys.stdin.readline()
says((os.read(fd, 9), poll(5, (fd, IN))))
sys.stdin.readline()
"""
    box = LateBox()
    files = FILES.replace('other = os.open("/dev/other", os.O_RDWR)\n', "")
    with Sandbox(box) as sandbox, start(sandbox, PRELUDE + files + script) as program:
        # A thread that lends its descriptor polls again.
        box.wait_asked(1 if may_fetch() else 2)
        wait_asleep(program_pid(box), *POLL)
        box.put(b"data")
        assert box.late.wait(PATIENCE_S)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"(b'data', [])\n"
        with box.changed:
            asked = len(box.asked)
        box.go_on.set()
        with box.changed:
            assert box.changed.wait_for(lambda: len(box.asked) > asked, PATIENCE_S)
        box.put(b"more")
        assert program.stdout.readline() == b"([(3, 1)], b'more')\n"
        run_to_the_end(program)
