"""poll and its wake-up over every channel, from system call to the author's method and back."""

import contextlib
import os
import queue
import select
import threading
from collections.abc import Iterator

import pytest

from recuse import Device, File, OpenRequest
from recuse.channel.devcuse import DevCuse
from recuse.channel.inprocess import connect
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.kernel.char.devices import CharDevice

from .support import WAIT_S, Program, Table
from .test_devcuse import FakeOs, fake  # noqa: F401  # a fixture

IN = select.POLLIN


class BoxFile(File):
    device: "Box"

    def poll(self, events: int) -> int:
        return select.POLLIN if self.device.full else 0


class Box(Device):
    name = "box"
    full = False

    def open(self, request: OpenRequest) -> File:
        self.file = BoxFile()
        return self.file

    def fill(self) -> None:
        self.full = True
        self.file.wake_pollers()


class Poller(Program):
    """A program whose ``woken`` has an entry for each wake-up."""

    def __init__(self, device: CharDevice | None) -> None:
        super().__init__(device)
        self.woken: queue.SimpleQueue[int] = queue.SimpleQueue()


@contextlib.contextmanager
def in_process(box: Box, request: pytest.FixtureRequest) -> Iterator[CharDevice | None]:
    channel = connect(Table(), box)
    yield channel.device
    channel.close()


@contextlib.contextmanager
def socket(box: Box, request: pytest.FixtureRequest) -> Iterator[CharDevice | None]:
    server = DeviceServer(box, str(request.getfixturevalue("tmp_path") / "s"))
    channel = Remote(server.path).connect(Table())
    yield channel.device
    channel.close()
    server.close()


@contextlib.contextmanager
def devcuse(box: Box, request: pytest.FixtureRequest) -> Iterator[CharDevice | None]:
    machine: FakeOs = request.getfixturevalue("fake")
    server = DevCuse(box)
    machine.nodes[server.node] = None
    machine.path.lexists = lambda path: False
    server.start()
    yield machine.table.by_name("box")
    server.close()


@pytest.fixture(params=[in_process, socket, devcuse])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Box, Poller]]:
    """A box, and a program that has it open; its ``woken`` has an entry for each wake-up."""
    box = Box()
    with request.param(box, request) as device:
        program = Poller(device).open(os.O_RDWR)
        program.file.wake_pollers = lambda: program.woken.put(1)
        yield box, program


def poll(program: Program, waiting: bool = True) -> int:
    return program.begin(program.file.poll(program.caller, IN, waiting))()


def test_a_program_that_waits_is_woken(opened: tuple[Box, Poller]) -> None:
    box, program = opened
    assert poll(program) == 0
    threading.Thread(target=box.fill, daemon=True).start()
    program.woken.get(timeout=WAIT_S)
    assert poll(program) == IN
    assert program.woken.empty()


def test_waking_after_release_and_after_the_end(opened: tuple[Box, Poller]) -> None:
    box, program = opened
    assert poll(program) == 0
    program.release()
    box.fill()
    program.open()
    program.file.wake_pollers = lambda: program.woken.put(2)
    assert poll(program) == IN
    program.device.connection.abort()
    assert program.woken.get(timeout=WAIT_S) == 2
    box.fill()
