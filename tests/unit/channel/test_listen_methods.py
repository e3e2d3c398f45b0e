"""Methods of a device that several sandboxes share: async ones, and such that block."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from recuse import Device, File, OpenRequest
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote

from .support import WAIT_S, Program, Table


class Bell(Device):
    """Reads wait for a write, from whichever sandbox."""

    name = "bell"

    def __init__(self) -> None:
        self.rung = asyncio.Condition()
        self.waiting = threading.Semaphore(0)

    def open(self, request: OpenRequest) -> File:
        return BellFile()


class BellFile(File):
    device: Bell

    async def read(self, size: int, offset: int) -> bytes:
        async with self.device.rung:
            self.device.waiting.release()
            await self.device.rung.wait()
        return b"ding"

    async def write(self, data: bytes, offset: int) -> None:
        async with self.device.rung:
            self.device.rung.notify_all()


@pytest.fixture
def bell(path: str) -> Iterator[Bell]:
    device = Bell()
    server = DeviceServer(device, path)
    yield device
    server.close()


def test_async_methods_meet_across_sandboxes_and_outlive_them(bell: Bell, path: str) -> None:
    """What belongs to asyncio belongs to one event loop: it stays when nobody is there."""
    for _ in range(3):
        channels = [Remote(path).connect(Table()) for _ in range(2)]
        one, other = (Program(channel.device).open() for channel in channels)
        wait = one.begin_read(4)
        assert bell.waiting.acquire(timeout=WAIT_S)
        other.put(b"x")
        assert wait() == 4
        for channel in channels:
            channel.close()


def test_a_sandbox_that_leaves_cancels_what_it_waits_for(bell: Bell, path: str) -> None:
    one, other = (Remote(path).connect(Table()) for _ in range(2))
    waits = []
    for channel in (one, other):
        waits.append(Program(channel.device).open().begin_read(4))
        assert bell.waiting.acquire(timeout=WAIT_S)
    one.close()
    with pytest.raises(ConnectionAbortedError):
        waits[0]()
    third = Remote(path).connect(Table())
    Program(third.device).open().put(b"x")
    assert waits[1]() == 4
    other.close()
    third.close()


# ---- methods that block


class Gate(Device):
    """Reads block their thread until it is opened."""

    name = "gate"

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.opened = threading.Event()

    def open(self, request: OpenRequest) -> File:
        return GateFile()


class GateFile(File):
    device: Gate

    def read(self, size: int, offset: int) -> bytes:
        self.device.waiting.release()
        assert self.device.opened.wait(WAIT_S)
        return b"open"

    def write(self, data: bytes, offset: int) -> None:
        self.device.opened.set()


def test_methods_that_block_do_so_for_themselves(path: str) -> None:
    device = Gate()
    server = DeviceServer(device, path)
    channel = Remote(path).connect(Table())
    programs = [Program(channel.device).open() for _ in range(4)]
    waits = [program.begin_read(4) for program in programs[1:]]
    for _ in waits:
        assert device.waiting.acquire(timeout=WAIT_S)
    programs[0].put(b"x")
    assert [wait() for wait in waits] == [4, 4, 4]
    channel.close()
    server.close()


def test_the_server_ends_although_a_method_blocks(path: str) -> None:
    device = Gate()
    server = DeviceServer(device, path)
    channel = Remote(path).connect(Table())
    wait = Program(channel.device).open().begin_read(4)
    assert device.waiting.acquire(timeout=WAIT_S)
    server.close()
    with pytest.raises(ConnectionAbortedError):
        wait()
    device.opened.set()
    channel.close()
