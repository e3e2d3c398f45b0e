"""Devices of all sorts on the real kernel, served by this process, which is often their client."""

import asyncio
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import queue
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import c_int, c_uint32, c_uint64
from logging.handlers import QueueHandler
from typing import Any

import pytest

from recuse import (
    IO,
    IOR,
    IOW,
    IOWR,
    Device,
    File,
    Memory,
    OpenRequest,
    current_request,
    ioctl,
)
from recuse.channel.devcuse import DevCuse

WAIT_S = 30

Kernel = Callable[[Device], DevCuse]


def device_of(file: Callable[[], File], **attributes: Any) -> Device:
    """A device whose open files are made by `file`."""

    class Tested(Device):
        name = "tested"

        def open(self, request: OpenRequest) -> File:
            return file()

    return Tested(**attributes)


@contextmanager
def opened(path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    number = os.open(path, flags)
    try:
        yield number
    finally:
        os.close(number)


def errno_of(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(OSError, match="Errno") as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno or 0]


# ---- reading and writing


class Pieces(File):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def read(self, size: int, offset: int) -> bytes:
        self.asked.append(("read", size, offset))
        return bytes(size)

    def write(self, data: bytes, offset: int) -> None:
        self.asked.append(("write", len(data), offset))


def test_long_transfers_come_in_pieces(kernel: Kernel) -> None:
    pieces = Pieces()
    with opened(kernel(device_of(lambda: pieces)).node) as file:
        assert os.write(file, bytes(300_000)) == 300_000
        assert os.read(file, 300_000) == bytes(300_000)
        assert os.pread(file, 10, 5000) == bytes(10)
        os.lseek(file, 100, os.SEEK_SET)
        assert os.read(file, 10) == bytes(10)
    for kind in ("write", "read"):
        sizes = [size for what, size, _ in pieces.asked[:-2] if what == kind]
        assert sum(sizes) == 300_000
        assert max(sizes) <= 131072
    assert pieces.asked[-2:] == [("read", 10, 0), ("read", 10, 0)]


def test_smaller_pieces(kernel: Kernel) -> None:
    pieces = Pieces()
    with opened(kernel(device_of(lambda: pieces, max_read=4096, max_write=8192)).node) as file:
        assert os.write(file, bytes(20_000)) == 20_000
        assert os.read(file, 10_000) == bytes(10_000)
    assert max(size for what, size, _ in pieces.asked if what == "write") == 8192
    assert max(size for what, size, _ in pieces.asked if what == "read") == 4096


class Failing(File):
    def read(self, size: int, offset: int) -> bytes:
        raise OSError(errno.ENODATA, "nothing")

    def write(self, data: bytes, offset: int) -> None:
        raise RuntimeError(data)

    @ioctl(IO("t", 1))
    def fail(self, argument: int) -> None:
        raise OSError(argument, "as you like")


@pytest.fixture
def logged() -> Iterator["queue.SimpleQueue[logging.LogRecord]"]:
    """What the server half logs, which may be after its answer."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = QueueHandler(records)
    logging.getLogger("recuse.server").addHandler(handler)
    yield records
    logging.getLogger("recuse.server").removeHandler(handler)


def test_errors(kernel: Kernel, logged: "queue.SimpleQueue[logging.LogRecord]") -> None:
    path = kernel(device_of(Failing)).node
    with opened(path) as file:
        assert errno_of(os.read, file, 10) == "ENODATA"
        assert errno_of(os.write, file, b"what was written") == "EIO"
        for number in ("EPERM", "EXDEV", "ERFKILL"):
            argument = getattr(errno, number)
            assert errno_of(fcntl.ioctl, file, IO("t", 1), argument) == number
        assert errno_of(fcntl.ioctl, file, IO("t", 2)) == "ENOTTY"
        assert errno_of(mmap.mmap, file, 4096) == "ENODEV"
    assert "what was written" in logged.get(timeout=WAIT_S).getMessage()


def test_an_open_that_fails(kernel: Kernel) -> None:
    def refuse() -> File:
        raise OSError(errno.EBUSY, "one at a time")

    assert errno_of(os.open, kernel(device_of(refuse)).node, os.O_RDWR) == "EBUSY"


def test_who_opens_it(kernel: Kernel) -> None:
    seen: list[tuple[int, int | None, int | None, int]] = []

    def look() -> File:
        request = current_request()
        seen.append((request.pid, request.uid, request.gid, request.unique % 2))
        return File()

    with opened(kernel(device_of(look)).node):
        assert seen == [(threading.get_native_id(), 0, 0, 0)]


def test_it_is_always_ready(kernel: Kernel) -> None:
    """A device that says nothing about readiness: as with an ordinary file."""
    with opened(kernel(device_of(Pieces)).node) as file:
        for _ in range(2):
            poll = select.poll()
            poll.register(file, select.POLLIN | select.POLLOUT)
            assert poll.poll(WAIT_S * 1000) == [(file, select.POLLIN | select.POLLOUT)]


# ---- order


class Noting(File):
    """Puts into a queue what happens to it."""

    def __init__(self, happened: "queue.SimpleQueue[str]") -> None:
        self.happened = happened
        happened.put("open")

    def write(self, data: bytes, offset: int) -> None:
        self.happened.put(data.decode())

    def release(self) -> None:
        self.happened.put("release")


def test_things_happen_in_the_order_of_the_calls(kernel: Kernel) -> None:
    """Also a close: it has reached the device when it returns."""
    happened: queue.SimpleQueue[str] = queue.SimpleQueue()
    path = kernel(device_of(lambda: Noting(happened))).node
    for number in range(200):
        with opened(path) as file:
            os.write(file, b"%d" % number)
            os.write(file, b"again")
            assert happened.qsize() == 3
        seen = [happened.get_nowait() for _ in range(4)]
        assert seen == ["open", str(number), "again", "release"]
        assert happened.empty()


def test_release_comes_with_the_last_copy(kernel: Kernel) -> None:
    happened: queue.SimpleQueue[str] = queue.SimpleQueue()
    path = kernel(device_of(lambda: Noting(happened))).node
    script = 'exec 3>"$1"; printf a >&3; (printf b >&3); exec 4>&3 3>&-; printf c >&4'
    subprocess.run(["sh", "-ec", script, "sh", path], check=True, timeout=WAIT_S)
    assert "".join(happened.get(timeout=WAIT_S) for _ in range(5)) == "openabcrelease"


# ---- several at once


class Meeting(File):
    """Each read waits until four wait."""

    barrier = threading.Barrier(4, timeout=WAIT_S)

    def read(self, size: int, offset: int) -> bytes:
        return b"%d" % self.barrier.wait()


def test_methods_that_block_run_at_once(kernel: Kernel) -> None:
    path = kernel(device_of(Meeting)).node

    def read(_: int) -> bytes:
        with opened(path) as file:
            return os.read(file, 10)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert sorted(pool.map(read, range(4))) == [b"0", b"1", b"2", b"3"]


def test_many_clients(kernel: Kernel) -> None:
    class Adding(File):
        def write(self, data: bytes, offset: int) -> None:
            self.last = data

        def read(self, size: int, offset: int) -> bytes:
            return self.last

    path = kernel(device_of(Adding)).node

    def use(client: int) -> bool:
        with opened(path) as file:
            for number in range(100):
                data = b"%d %d" % (client, number)
                os.write(file, data)
                if os.read(file, 100) != data:
                    return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, range(6)))


# ---- async


class Later(File):
    def __init__(self) -> None:
        self.written = asyncio.Queue[bytes]()

    async def write(self, data: bytes, offset: int) -> None:
        await asyncio.sleep(0)
        await self.written.put(data)

    async def read(self, size: int, offset: int) -> bytes:
        return await self.written.get()

    @ioctl(IOWR("t", 2, c_int), c_int)
    async def double(self, number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number


def test_async_methods(kernel: Kernel) -> None:
    with opened(kernel(device_of(Later)).node) as file, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(os.read, file, 100)
        os.write(file, b"one")
        assert reading.result(WAIT_S) == b"one"
        number = bytearray(c_int(21))
        assert fcntl.ioctl(file, IOWR("t", 2, c_int), number) == 0
        assert number == bytearray(c_int(42))


# ---- programs that are killed


class Waiting(File):
    """A read waits until it is interrupted, with a method of either kind."""

    def __init__(self) -> None:
        self.happened: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read(self, size: int, offset: int) -> bytes:
        self.happened.put("read")
        request = current_request()
        while not request.interrupted:
            threading.Event().wait(0.01)
        self.happened.put("interrupted")
        raise InterruptedError(errno.EINTR, "interrupted")

    def release(self) -> None:
        self.happened.put("release")


class WaitingLater(Waiting):
    async def read(self, size: int, offset: int) -> bytes:  # type: ignore[override]
        self.happened.put("read")
        try:
            await asyncio.Event().wait()
        finally:
            self.happened.put("interrupted")
        return b""


@pytest.mark.parametrize("kind", [Waiting, WaitingLater])
@pytest.mark.parametrize("number", [2, 9])
def test_a_program_killed_while_it_waits(
    kernel: Kernel, kind: Callable[[], Waiting], number: int
) -> None:
    file = kind()
    path = kernel(device_of(lambda: file)).node
    with subprocess.Popen(["cat", path]) as program:
        assert file.happened.get(timeout=WAIT_S) == "read"
        program.send_signal(number)
        assert program.wait(WAIT_S) == -number
    assert file.happened.get(timeout=WAIT_S) == "interrupted"
    assert file.happened.get(timeout=WAIT_S) == "release"


def test_a_caught_signal(kernel: Kernel) -> None:
    """The call ends with EINTR, if that is what the device says."""
    file = Waiting()
    path = kernel(device_of(lambda: file)).node
    script = f"$SIG{{USR1}} = sub {{ print 'caught ' }}; $| = 1; open F, '<', '{path}'; "
    script += "print defined sysread(F, $x, 9) ? 'read' : $!{EINTR} ? 'EINTR' : $!"
    with subprocess.Popen(["perl", "-e", script], stdout=subprocess.PIPE) as program:
        assert file.happened.get(timeout=WAIT_S) == "read"
        program.send_signal(10)
        assert program.communicate(timeout=WAIT_S)[0] == b"caught EINTR"


# ---- ioctl


class Node(ctypes.Structure):
    _fields_ = [("next", c_uint64), ("value", c_uint32), ("square", c_uint32)]


class Walker(File):
    """Follows a list in the program's memory."""

    @ioctl(IO("t", 3))
    def walk(self, argument: int, memory: Memory) -> int:
        count = 0
        while argument:
            node = memory.read_struct(argument, Node)
            node.square = node.value**2
            memory.write_struct(argument, node)
            argument = node.next
            count += 1
        return count

    @ioctl(IO("t", 4))
    async def walk_later(self, argument: int, memory: Memory) -> int:
        return int(self.walk(argument, memory) or 0)

    @ioctl(IOR("t", 5, c_int), c_int)
    def give(self) -> int:
        return 1234567

    @ioctl(IOW("t", 6, Node), Node)
    def take(self, node: Node) -> int:
        return int(node.value)

    @ioctl(IOWR("t", 7, Node), Node)
    def change(self, node: Node) -> None:
        node.square = node.value**2


def call(file: int, command: int, argument: object) -> int:
    """ioctl(2) with an address; Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.ioctl(file, ctypes.c_ulong(command), argument)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


@pytest.mark.parametrize("command", [IO("t", 3), IO("t", 4)])
@pytest.mark.parametrize("length", [0, 1, 2, 20, 60])
def test_pointers_to_pointers(kernel: Kernel, command: int, length: int) -> None:
    nodes = (Node * length)()
    for number, node in enumerate(nodes):
        node.value = number + 3
        if number:
            node.next = ctypes.addressof(nodes[number - 1])
    with opened(kernel(device_of(Walker)).node) as file:
        first = ctypes.c_void_p(ctypes.addressof(nodes[-1])) if length else None
        assert call(file, command, first) == length
    assert [node.square for node in nodes] == [(number + 3) ** 2 for number in range(length)]


def test_a_pointer_to_nowhere(kernel: Kernel) -> None:
    node = Node(16, 3)
    with opened(kernel(device_of(Walker)).node) as file:
        assert errno_of(call, file, IO("t", 3), ctypes.byref(node)) == "EFAULT"
        assert errno_of(call, file, IO("t", 3), ctypes.c_void_p(16)) == "EFAULT"
    assert node.square == 0


@pytest.mark.parametrize("unrestricted", [True, False])
def test_structures_that_the_command_tells(kernel: Kernel, unrestricted: bool) -> None:
    node = Node(0, 12)
    number = c_int()
    with opened(kernel(device_of(Walker, unrestricted=unrestricted)).node) as file:
        assert call(file, IOR("t", 5, c_int), ctypes.byref(number)) == 0
        assert number.value == 1234567
        assert call(file, IOW("t", 6, Node), ctypes.byref(node)) == 12
        assert call(file, IOWR("t", 7, Node), ctypes.byref(node)) == 0
        assert (node.value, node.square) == (12, 144)


def test_what_a_restricted_device_cannot_reach(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(kernel(device_of(Walker, unrestricted=False)).node) as file:
        assert errno_of(call, file, IO("t", 3), ctypes.byref(Node(0, 1))) == "EIO"
    assert "the device is restricted" in caplog.text


@pytest.mark.parametrize("size", [4096, 100_000, 131072])
def test_large_arguments(kernel: Kernel, size: int) -> None:
    class Copying(File):
        @ioctl(IO("t", 8))
        def swap(self, argument: int, memory: Memory) -> int:
            data = memory.read(argument, size)
            memory.write(argument, data[::-1])
            return 7

    content = bytes(number % 251 for number in range(size))
    area = ctypes.create_string_buffer(content, size)
    with opened(kernel(device_of(Copying, max_write=4096)).node) as file:
        assert call(file, IO("t", 8), area) == 7
    assert area.raw == content[::-1]
