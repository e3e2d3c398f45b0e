"""Both halves in one process: what a system call does, down to the author's method and back."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from ctypes import Structure, c_uint32, c_uint64
from typing import Any, TypeVar

import pytest

import recuse
from recuse import IOWR, Device, File, OpenRequest, Session, current_request, ioctl
from recuse.channel.inprocess import InProcessChannel, connect
from recuse.kernel.caller import Caller
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import DeviceTable
from recuse.kernel.char.files import OpenFile, open_file
from recuse.kernel.connection.operation import Operation, Running, run
from recuse.kernel.connection.request import Reply, Request
from recuse.server import loop
from recuse.server.pending_reply import PendingReply
from recuse.wire.declare import Buffer
from recuse.wire.fuse import FUSE_INTERRUPT, FUSE_OPEN, fuse_open_in, fuse_open_out

from .support import Begun

T = TypeVar("T")

Connect = Callable[[Device], InProcessChannel]

WAIT_S = 20


class Memory:
    """Of a program: one area."""

    BASE = 0x10000

    def __init__(self) -> None:
        self.content = bytearray(1 << 18)

    def read(self, address: int, size: int) -> bytes:
        at = self._at(address)
        return bytes(self.content[at : at + size])

    def write(self, address: int, data: Buffer) -> int:
        at = self._at(address)
        self.content[at : at + len(data)] = data
        return len(data)

    def writable(self, address: int, size: int) -> int:
        return min(size, len(self.content) - self._at(address))

    def _at(self, address: int) -> int:
        if not 0 <= address - self.BASE < len(self.content):
            raise OSError(errno.EFAULT, "bad address")
        return address - self.BASE


class Program:
    """Makes system calls on a device, each of which waits for its end."""

    def __init__(self, channel: CuseChannel | InProcessChannel, pid: int = 1000) -> None:
        assert channel.device is not None
        self.device = channel.device
        self.memory = Memory()
        self.caller = Caller(pid, 1, 2, self.memory)

    def begin(self, operation: Operation[T]) -> tuple[Running | None, Begun[T]]:
        """Begin an operation; return how to interrupt it, and how to wait for its outcome."""
        begun = Begun[T]()
        return run(self.device.connection, operation, begun.done), begun

    def call(self, operation: Operation[T]) -> T:
        return self.begin(operation)[1]()

    def open(self, flags: int = os.O_RDWR) -> OpenFile:
        return self.call(open_file(self.device, flags, self.caller))

    def read(self, file: OpenFile, size: int, offset: int | None = None) -> bytes:
        count = self.call(file.read(self.caller, [(Memory.BASE, size)], offset))
        return self.memory.read(Memory.BASE, count)

    def write(self, file: OpenFile, data: bytes, offset: int | None = None) -> int:
        self.memory.write(Memory.BASE, data)
        return self.call(file.write(self.caller, [(Memory.BASE, len(data))], offset))


class Pair(Structure):
    _fields_ = [("pointer", c_uint64), ("size", c_uint32)]


class DiskFile(File):
    device: "Disk"

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.device.content[offset : offset + size])

    def write(self, data: bytes, offset: int) -> None:
        self.device.content[offset : offset + len(data)] = data

    @ioctl(IOWR("d", 1, Pair), Pair)
    def reverse(self, pair: Pair, memory: recuse.Memory) -> int:
        memory.write(pair.pointer, memory.read(pair.pointer, pair.size)[::-1])
        pair.size = 0
        return 5

    def release(self) -> None:
        self.device.released += 1


class Disk(Device):
    name = "disk"
    closed = 0
    released = 0

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.content = bytearray()

    def open(self, request: OpenRequest) -> File:
        return DiskFile()

    def close(self) -> None:
        self.closed += 1


class Bell(Device):
    """Reads wait until something is written."""

    name = "bell"

    def open(self, request: OpenRequest) -> File:
        return BellFile()


class BellFile(File):
    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.rung = asyncio.Event()

    async def read(self, size: int, offset: int) -> bytes:
        self.waiting.release()
        await self.rung.wait()
        return b"ding"

    async def write(self, data: bytes, offset: int) -> None:
        self.rung.set()


@pytest.fixture
def table() -> DeviceTable:
    return DeviceTable()


@pytest.fixture
def channel(table: DeviceTable) -> Iterator[Connect]:
    channels: list[InProcessChannel] = []

    def make(device: Device) -> InProcessChannel:
        channels.append(connect(table, device))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()
    assert not loop.shared.running


def test_the_device_is_there_as_described(table: DeviceTable, channel: Connect) -> None:
    made = channel(
        Disk(name="disk7", mode=0o640, uid=3, gid=4, major=200, minor=9, max_read=8192)
    ).device
    assert list(table) == [made]
    assert made is not None
    assert (made.name, made.major, made.minor) == ("disk7", 200, 9)
    assert (made.mode, made.uid, made.gid) == (0o640, 3, 4)
    assert (made.max_read, made.max_write) == (8192, 131072)
    assert (made.seekable, made.unrestricted) == (False, True)
    other = channel(Disk(name="disk8", seekable=True, unrestricted=False)).device
    assert other is not None
    assert (other.seekable, other.unrestricted, other.mode) == (True, False, 0o666)


def test_names_and_numbers_that_are_taken(table: DeviceTable, channel: Connect) -> None:
    channel(Disk(major=200))
    with pytest.raises(FileExistsError):
        connect(table, Disk())
    with pytest.raises(OSError, match="busy"):
        connect(table, Disk(name="other", major=200))
    assert len(list(table)) == 1
    with pytest.raises(ValueError, match=r"Disk\.name"):
        connect(table, Disk(name=""))


def test_a_refused_device_is_closed(table: DeviceTable, channel: Connect) -> None:
    channel(Disk())
    device = Disk()
    with pytest.raises(FileExistsError):
        connect(table, device)
    assert device.closed == 1


def test_reads_and_writes_with_positions(channel: Connect) -> None:
    program = Program(channel(Disk(seekable=True)))
    file = program.open()
    assert program.write(file, b"hello ") == 6
    assert program.write(file, b"world") == 5
    assert program.read(file, 5, 6) == b"world"
    assert file.seek(4, os.SEEK_SET) == 4
    assert program.read(file, 100) == b"o world"


def test_long_transfers_come_in_pieces(channel: Connect) -> None:
    device = Disk(max_write=4096, max_read=8192, seekable=True)
    program = Program(channel(device))
    file = program.open()
    data = bytes(range(256)) * 400
    assert program.write(file, data) == len(data)
    assert device.content == data
    assert program.read(file, len(data), 0) == data


def test_an_ioctl_in_rounds(channel: Connect) -> None:
    program = Program(channel(Disk()))
    file = program.open()
    program.memory.write(Memory.BASE + 100, b"reverse me")
    program.memory.write(Memory.BASE, bytes(Pair(Memory.BASE + 100, 10)))
    call = file.ioctl(program.caller, IOWR("d", 1, Pair), Memory.BASE)
    assert program.call(call) == 5
    assert program.memory.read(Memory.BASE + 100, 10) == b"em esrever"
    assert Pair.from_buffer_copy(program.memory.read(Memory.BASE, 16)).size == 0


def test_bad_memory_is_efault(channel: Connect) -> None:
    program = Program(channel(Disk()))
    file = program.open()
    end = Memory.BASE + (1 << 18)
    for argument, pointer in [(Memory.BASE, 5), (Memory.BASE, end - 4), (5, 0), (end - 4, 0)]:
        program.memory.write(Memory.BASE, bytes(Pair(pointer, 10)))
        with pytest.raises(OSError, match=r"(?i)bad address"):
            program.call(file.ioctl(program.caller, IOWR("d", 1, Pair), argument))


def test_who_asks(channel: Connect) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            assert (request.pid, request.uid, request.gid) == (77, 1, 2)
            assert request.flags & os.O_ACCMODE == os.O_RDONLY
            return ProbeFile()

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            return b"%d %d" % (current_request().pid, self.nonblocking)

    program = Program(channel(Probe()), pid=77)
    file = program.open(os.O_RDONLY)
    assert program.read(file, 100) == b"77 0"
    file.flags |= os.O_NONBLOCK
    assert program.read(file, 100) == b"77 1"


def test_release_once(channel: Connect) -> None:
    device = Disk()
    made = channel(device)
    program = Program(made)
    file, other = program.open(), program.open()
    program.call(file.release())
    assert device.released == 1
    made.close()
    assert device.released == 2
    del other


def test_async_methods_answer_later(channel: Connect) -> None:
    program = Program(channel(Bell()))
    file = program.open()
    _, wait = program.begin(file.read(program.caller, [(Memory.BASE, 10)], None))
    assert program.write(file, b"x") == 1
    assert wait() == 4
    assert program.memory.read(Memory.BASE, 4) == b"ding"


def bell_file(made: InProcessChannel) -> BellFile:
    (file,) = made.session._files.values()
    assert isinstance(file, BellFile)
    return file


def test_an_interrupted_call_ends_with_eintr(channel: Connect) -> None:
    made = channel(Bell())
    program = Program(made)
    file = program.open()
    running, wait = program.begin(file.read(program.caller, [(Memory.BASE, 10)], None))
    assert bell_file(made).waiting.acquire(timeout=WAIT_S)
    assert running is not None
    running.interrupt()
    with pytest.raises(InterruptedError):
        wait()
    assert program.write(file, b"still there") == 11


@pytest.mark.parametrize("how", ["channel", "connection"])
def test_the_end_finishes_what_waits(table: DeviceTable, channel: Connect, how: str) -> None:
    device = Bell()
    made = channel(device)
    program = Program(made)
    file = program.open()
    calls = []
    for _ in range(3):
        calls.append(program.begin(file.read(program.caller, [(Memory.BASE, 10)], None))[1])
        assert bell_file(made).waiting.acquire(timeout=WAIT_S)
    if how == "channel":
        made.close()
    else:
        program.device.connection.abort()
    for wait in calls:
        with pytest.raises(ConnectionAbortedError):
            wait()
    assert list(table) == []
    with pytest.raises(OSError, match="No such device"):
        program.open()


def test_close_again_does_nothing(channel: Connect) -> None:
    device = Disk()
    made = channel(device)
    made.close()
    made.close()
    assert device.closed == 1


def test_calls_at_once_from_many_threads(channel: Connect) -> None:
    device = Disk(seekable=True)
    device.content = bytearray(8000)
    made = channel(device)
    programs = [Program(made, pid=n + 1) for n in range(8)]
    start = threading.Barrier(len(programs), timeout=WAIT_S)
    wrong = []

    def work(program: Program) -> None:
        own = program.caller.pid * 16
        file = program.open()
        start.wait()
        for number in range(100):
            text = b"%4d %4d" % (program.caller.pid, number)
            program.write(file, text, own)
            if program.read(file, len(text), own) != text:
                wrong.append(text)
        program.call(file.release())

    threads = [threading.Thread(target=work, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert device.released == 8
    assert programs[0].device.connection.waiting == 0


def test_an_interrupt_that_overtakes_its_request(table: DeviceTable) -> None:
    reading, go_on = threading.Event(), threading.Event()
    came = threading.Semaphore(0)

    class Slow(Session):
        """One thread is late in handing in what it has got."""

        def transfer(self, pending: PendingReply, *parts: Any) -> None:
            reading.set()
            assert go_on.wait(WAIT_S)
            super().transfer(pending, *parts)

        def handle(self, message: bytes, reply: Callable[[bytes], object]) -> None:
            if message[4] == FUSE_INTERRUPT:
                came.release()
            super().handle(message, reply)

    cuse = CuseChannel(table)
    made = InProcessChannel(cuse, Slow(Bell()))
    program = Program(made)
    file = program.open()
    request: list[Request] = []
    connection = program.device.connection
    submit = connection.submit

    def note(asked: Request, on_reply: Callable[[Reply], None] | None = None) -> None:
        request.append(asked)
        submit(asked, on_reply)

    connection.submit = note  # type: ignore[assignment, method-assign]  # of this one only
    outcome = []

    def read() -> None:
        wait = program.begin(file.read(program.caller, [(Memory.BASE, 10)], None))[1]
        with pytest.raises(InterruptedError):
            wait()
        outcome.append("interrupted")

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(WAIT_S)
    other = threading.Thread(target=connection.interrupt, args=(request[0],))
    other.start()
    # It comes again and again, until it finds the request.
    for _ in range(3):
        assert came.acquire(timeout=WAIT_S)
    go_on.set()
    reader.join()
    other.join()
    assert outcome == ["interrupted"]
    made.close()


def test_requests_that_waited_for_init_are_served(table: DeviceTable) -> None:
    cuse = CuseChannel(table)
    replies: list[Reply] = []
    for _ in range(5):
        request = Request(FUSE_OPEN, fuse_open_in().pack(), fuse_open_out.SIZE, fuse_open_out.SIZE)
        cuse.connection.submit(request, replies.append)
    assert not replies
    made = InProcessChannel(cuse, Session(Disk()))
    assert [reply.error for reply in replies] == [0] * 5
    made.close()
