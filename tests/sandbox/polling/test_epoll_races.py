"""What is said late to an epoll: nothing that its waiter has had, and that is gone again."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.files.readiness import Readiness
from recuse.sandbox.files.refresher import ReadinessRefresher, Sleeper
from recuse.sandbox.machine import Machine
from recuse.sandbox.syscalls import epoll
from recuse.sandbox.syscalls.poll_query import PolledFile
from recuse.sandbox.trap.call import TrappedCall

from ...patience import PATIENCE_S
from ..conftest import Start
from .polled import EPOLL, PRELUDE, Box, BoxFile, program_pid, wait_asleep

Asks = tuple[threading.Event, threading.Event, threading.Event]
Looks = tuple[threading.Event, list[threading.Event], threading.Event]


class LateFile(BoxFile):
    """Its answer takes long, if it is to."""

    device: "LateBox"

    def poll(self, events: int) -> int:
        ready = super().poll(events)
        if self.device.hold.is_set():
            self.device.hold.clear()
            self.device.held.set()
            assert self.device.go_on.wait(PATIENCE_S)
        return ready


class LateBox(Box):
    kind = LateFile

    def __init__(self) -> None:
        super().__init__()
        self.hold, self.held, self.go_on = (threading.Event() for _ in range(3))


@pytest.fixture
def box() -> Iterator[LateBox]:
    box = LateBox()
    yield box
    box.go_on.set()


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asks]:
    """``(begins, go_on, told)``: who asks on behalf of sleepers begins, may go on, has told."""
    begins, go_on, told = (threading.Event() for _ in range(3))
    ask, tell = Readiness._ask, Readiness._told

    def hold(
        readiness: Readiness,
        sleepers: list[Sleeper],
        watchers: list[Sleeper],
        woken: dict[int, Sleeper],
    ) -> None:
        begins.set()
        assert go_on.wait(PATIENCE_S)
        ask(readiness, sleepers, watchers, woken)

    def note(readiness: Readiness, bits: int, watchers: list[Sleeper]) -> None:
        tell(readiness, bits, watchers)
        told.set()

    monkeypatch.setattr(Readiness, "_ask", hold)
    monkeypatch.setattr(Readiness, "_told", note)
    yield begins, go_on, told
    go_on.set()


@pytest.fixture
def sandbox(box: Box) -> Iterator[Sandbox]:
    with Sandbox(box) as sandbox:
        yield sandbox


def test_an_edge_that_its_waiter_has_had_by_another_call(
    sandbox: Sandbox,
    box: LateBox,
    start: Start,
    asks: Asks,
) -> None:
    """It slept in one call when the device changed, and was told by the next."""
    script = """
class Over(Exception):
    pass
def over(*_):
    raise Over
def says(what):
    os.write(1, f"{what}\\n".encode())
signal.signal(signal.SIGUSR1, over)
epoll = select.epoll()
epoll.register(fd, select.EPOLLIN | select.EPOLLET)
says(os.getpid())
try:
    epoll.poll(20)
except Over:
    pass
says(epoll.poll(20))
sys.stdin.readline()
says(os.read(fd, 9))
sys.stdin.readline()
says(epoll.poll(0))
says(epoll.poll(20))
"""
    begins, go_on, told = asks

    def go() -> None:
        program.stdin.write(b"\n")
        program.stdin.flush()

    with start(sandbox, PRELUDE + script) as program:
        program.stdout.readline()
        wait_asleep(program_pid(box), *EPOLL)
        box.put(b"data")
        assert begins.wait(PATIENCE_S)
        os.kill(program_pid(box), signal.SIGUSR1)
        assert program.stdout.readline() == b"[(3, 1)]\n"
        box.hold.set()
        go_on.set()
        assert box.held.wait(PATIENCE_S)
        go()
        assert program.stdout.readline() == b"b'data'\n"
        told.clear()
        box.go_on.set()
        assert told.wait(PATIENCE_S)
        go()
        assert program.stdout.readline() == b"[]\n"
        # But of the next change it is told.
        wait_asleep(program_pid(box), *EPOLL)
        box.put(b"more")
        assert program.stdout.readline() == b"[(3, 1)]\n"
        assert program.wait(PATIENCE_S) == 0


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """``(looked, turns, refreshed)``: who has seen who sleeps waits for his turn, the first two."""
    looked, refreshed = threading.Event(), threading.Event()
    turns = [threading.Event(), threading.Event()]
    left = list(turns)
    of_epolls, refresh = ReadinessRefresher.of_epolls, Readiness.refresh

    def hold(
        refresher: ReadinessRefresher, sleepers: dict[int, Sleeper], inode: str
    ) -> list[Sleeper]:
        found = of_epolls(refresher, sleepers, inode)
        turn = left.pop(0) if left else None
        looked.set()
        assert turn is None or turn.wait(PATIENCE_S)
        return found

    def note(readiness: Readiness) -> None:
        refresh(readiness)
        refreshed.set()

    monkeypatch.setattr(ReadinessRefresher, "of_epolls", hold)
    monkeypatch.setattr(Readiness, "refresh", note)
    yield looked, turns, refreshed
    for turn in turns:
        turn.set()


@pytest.mark.parametrize("how", [*itertools.product(["0", "select.EPOLLET"], [False, True])])
def test_nobody_waited_when_it_changed(
    sandbox: Sandbox, box: Box, start: Start, looks: Looks, how: tuple[str, bool]
) -> None:
    """That is found late, when somebody waits: to him it is no news, but the next change is."""
    mode, twice = how
    script = f"""
def says(what):
    os.write(1, f"{{what}}\\n".encode())
epoll = select.epoll()
epoll.register(fd, IN | OUT | {mode})
unwatched = select.epoll()
unwatched.register(fd, IN)
says(os.getpid())
sys.stdin.readline()
says(epoll.poll(20))
says(epoll.poll(0))
"""
    looked, turns, refreshed = looks
    box.room = 0
    with start(sandbox, PRELUDE + script) as program:
        tid = int(program.stdout.readline())
        box.put()
        assert looked.wait(PATIENCE_S)
        program.stdin.write(b"\n")
        program.stdin.flush()
        wait_asleep(tid, *EPOLL)
        if twice:
            looked.clear()
            box.put(room=1)
            assert looked.wait(PATIENCE_S)
        else:
            turns[1].set()
        turns[0].set()
        assert refreshed.wait(PATIENCE_S)
        turns[1].set()
        if not twice:
            box.put(room=1)
        assert program.stdout.readline() == b"[(3, 4)]\n"
        assert program.stdout.readline() == (b"[(3, 4)]\n" if mode == "0" else b"[]\n")
        assert program.wait(PATIENCE_S) == 0


def test_an_edge_on_the_way_into_a_wait(
    sandbox: Sandbox, box: Box, start: Start, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after it was looked for, and before it is known that somebody waits."""
    script = """
def says(what):
    os.write(1, f"{what}\\n".encode())
epoll = select.epoll()
epoll.register(fd, IN | select.EPOLLET)
unwatched = select.epoll()
unwatched.register(fd, OUT)
says(epoll.poll(20))
sys.stdin.readline()
says(epoll.poll(20))
"""
    looked, turns, _ = looks
    listed = epoll._listed

    def late(
        call: TrappedCall, machine: Machine, watched: tuple[int, int]
    ) -> tuple[list[PolledFile], list[PolledFile]]:
        found = listed(call, machine, watched)
        box.put(b"more")
        return found

    box.data = b"data"
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.readline() == b"[(3, 1)]\n"
        monkeypatch.setattr(epoll, "_listed", late)
        program.stdin.write(b"\n")
        program.stdin.flush()
        wait_asleep(program_pid(box), *EPOLL)
        monkeypatch.setattr(epoll, "_listed", listed)
        assert looked.wait(PATIENCE_S)
        assert sandbox._machine is not None
        readiness = next(iter(sandbox._machine.files.refresher.watched))
        assert isinstance(readiness, Readiness)
        readiness._moves += 1  # as if another thread had asked meanwhile
        turns[1].set()
        turns[0].set()
        assert program.stdout.readline() == b"[(3, 1)]\n"
        assert program.wait(PATIENCE_S) == 0
