"""Threads that lend their descriptors in a call, where these cannot be fetched."""

import os
import signal
import threading

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.tasks import fetch
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.trap import borrowing

from ...patience import PATIENCE_S
from ..conftest import Start
from .polled import HUP, POLL, PRELUDE, Box, program_pid, wait_asleep

ROUNDS = """
def rounds(count):
    for _ in range(count):
        os.write(fd, b"x")
        # With another file, the kernel finds out who is ready: it has to be made readable, and then
        # unreadable.
        assert poll(-1, (0, IN), (fd, IN)) == [(fd, IN)]
        assert os.read(fd, 9) == b"x"
        assert poll(1, (0, IN), (fd, IN)) == []
open_files = os.listdir("/proc/self/fd")
maps = open("/proc/self/maps").read()
"""


@pytest.fixture(autouse=True)
def no_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "may_fetch", lambda: False)


@pytest.fixture
def box() -> Box:
    box = Box()
    box.room = 1 << 40
    return box


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the descriptors that were lent."""
    lent: list[int] = []
    lend = borrowing.Borrowing._lend

    def count(self: borrowing.Borrowing, numbers: list[int]) -> list[int]:
        lent.extend(numbers)
        return lend(self, numbers)

    monkeypatch.setattr(borrowing.Borrowing, "_lend", count)
    return lent


def test_nothing_is_left_in_the_thread(sandbox: Sandbox, start: Start, lent: list[int]) -> None:
    script = """
rounds(20)
def places(maps): return {line.split()[0] for line in maps.splitlines() if "r" in line.split()[1]}
assert os.listdir("/proc/self/fd") == open_files
print(len(places(open("/proc/self/maps").read()) - places(maps)) < 3)
"""
    with start(sandbox, PRELUDE + ROUNDS + script) as program:
        assert program.stdout.read() == b"True\n"
        assert program.wait(PATIENCE_S) == 0
    assert len(lent) >= 20


def test_signals_meanwhile(sandbox: Sandbox, start: Start, lent: list[int]) -> None:
    script = """
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
rounds(100)
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(ticks) > 20)
"""
    with start(sandbox, PRELUDE + ROUNDS + script) as program:
        assert program.stdout.read() == b"True\n"
        assert program.wait(PATIENCE_S) == 0
    # Not each time: a signal may end a call that has not lent anything yet.
    assert len(lent) >= 50


def test_death_meanwhile(sandbox: Sandbox, box: Box, start: Start, lent: list[int]) -> None:
    script = """
print("on", flush=True)
rounds(1 << 30)
"""
    for number in range(12):
        box.data = b""
        with start(sandbox, PRELUDE + ROUNDS + script) as program:
            program.stdout.readline()
            before = len(lent)
            while len(lent) < before + number:
                os.sched_yield()
            os.kill(program.program_pid, signal.SIGKILL)
            assert program.wait(PATIENCE_S) == -signal.SIGKILL


def test_all_in_one_call(start: Start, lent: list[int]) -> None:
    boxes = [Box(name=name) for name in ("box", "one", "two")]
    script = """
fds = [fd] + [os.open("/dev/" + name, os.O_RDWR) for name in ("one", "two")]
print(poll(-1, *((fd, IN) for fd in fds)))
"""
    with Sandbox(*boxes) as sandbox, start(sandbox, PRELUDE + script) as program:
        boxes[2].wait_asked(1)
        wait_asleep(program_pid(boxes[0]), *POLL)
        boxes[1].put(b"x")
        assert program.stdout.read() == b"[(4, 1)]\n"
        assert program.wait(PATIENCE_S) == 0
    assert lent == [3, 4, 5]


def test_others_beside_what_a_descriptor_cannot_show(
    sandbox: Sandbox, box: Box, start: Start, lent: list[int]
) -> None:
    box.extra = HUP
    script = """
in_, out = os.pipe()
print(poll(-1, (fd, IN), (in_, IN), (out, OUT), (77, IN)))
os.write(out, b"x")
print(poll(-1, (fd, IN), (in_, IN), (out, OUT)))
"""
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.readline() == b"[(3, 16), (5, 4), (77, 32)]\n"
        assert program.stdout.readline() == b"[(3, 16), (4, 1), (5, 4)]\n"
        assert program.wait(PATIENCE_S) == 0
    assert 77 in lent


def test_a_thread_with_a_debugger_cannot(sandbox: Sandbox, start: Start) -> None:
    script = """
if os.fork() == 0:
    libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    print(attempt(poll, -1, (fd, IN)), flush=True)
    os._exit(0)
print(os.wait()[1])
"""
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.read() == b"EPERM\n0\n"
        assert program.wait(PATIENCE_S) == 0


def test_death_of_two_that_lend(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread of a process has ended when the others have, which we hear of if we look."""
    boxes = [Box(name=name) for name in ("box", "one")]
    script = """
one = os.open("/dev/one", os.O_RDWR)
sys.stdin.readline()
threading.Thread(target=poll, args=(-1, (fd, IN), (one, IN))).start()
poll(-1, (one, IN))
"""
    write, lend = write_memory, borrowing.Borrowing._lend
    first, other = threading.Event(), threading.Event()

    def hold(tid: int, address: int, data: bytes) -> int:
        if tid == program.program_pid:
            # With the lock of what it lends, for which the other one will wait.
            first.set()
            assert other.wait(PATIENCE_S)
            os.kill(tid, signal.SIGKILL)
        return write(tid, address, data)

    def note(self: borrowing.Borrowing, numbers: list[int]) -> list[int]:
        if self.tid != program.program_pid:
            assert first.wait(PATIENCE_S)
        lent = lend(self, numbers)
        other.set()
        return lent

    monkeypatch.setattr(borrowing, "write_memory", hold)
    monkeypatch.setattr(borrowing.Borrowing, "_lend", note)
    with Sandbox(*boxes) as sandbox, start(sandbox, PRELUDE + script) as program:
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.wait(PATIENCE_S) == -signal.SIGKILL
