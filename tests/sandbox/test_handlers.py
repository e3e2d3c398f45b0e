"""Devices whose methods do what they should not."""

import errno
import os
from collections.abc import Callable
from typing import Any, cast

import pytest

from recuse import Device, File, Memory, OpenRequest
from recuse.sandbox import Sandbox

from .conftest import Clients, Fifo, Shell


class OddFile(File):
    device: "Odd"

    def read(self, size: int, offset: int) -> bytes:
        return cast(bytes, self.device.result("read", size))

    def write(self, data: bytes, offset: int) -> int:
        return cast(int, self.device.result("write", len(data)))

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        return cast(int, self.device.result("ioctl", argument))

    def release(self) -> None:
        self.device.releases += 1


class Odd(Device):
    """Each method does what the test says, once; then it is good again."""

    name = "odd"

    def __init__(self, method: str, what: Callable[[Any], object]) -> None:
        super().__init__()
        self.method, self.what = method, what
        self.releases = 0

    def result(self, method: str, argument: object) -> object:
        if method == self.method:
            self.method = ""
            return self.what(argument)
        return {"open": OddFile(), "read": b"good", "write": argument, "ioctl": 5}[method]

    def open(self, request: OpenRequest) -> File:
        return cast(File, self.result("open", None))


def fail(error: BaseException) -> Callable[[object], None]:
    def method(argument: object) -> None:
        raise error

    return method


CASES = {
    "open raises": ("open", fail(ValueError("odd")), "EIO"),
    "open gives nothing": ("open", lambda _: None, "EIO"),
    "open gives a number": ("open", lambda _: 3, "EIO"),
    "open raises an OSError without errno": ("open", fail(OSError("odd")), "EIO"),
    "open raises a negative errno": ("open", fail(OSError(-5, "odd")), "EIO"),
    "open raises errno 0": ("open", fail(OSError(0, "odd")), "EIO"),
    "open raises errno 512": ("open", fail(OSError(512, "odd")), "EIO"),
    "open raises an uncommon errno": (
        "open",
        fail(OSError(errno.EKEYREVOKED, "odd")),
        "EKEYREVOKED",
    ),
    "read raises": ("read", fail(KeyError("odd")), "EIO"),
    "read exits": ("read", fail(SystemExit(3)), "EIO"),
    "read is interrupted": ("read", fail(KeyboardInterrupt()), "EIO"),
    "read gives nothing": ("read", lambda _: None, "EIO"),
    "read gives text": ("read", lambda _: "text", "EIO"),
    "read gives a number": ("read", lambda _: 7, "EIO"),
    "read gives too much": ("read", lambda size: bytes(size + 1), "EIO"),
    "read gives far too much": ("read", lambda size: bytes(1 << 24), "EIO"),
    "read raises EAGAIN": ("read", fail(BlockingIOError(errno.EAGAIN, "odd")), "EAGAIN"),
    "read raises ENOSYS": ("read", fail(OSError(errno.ENOSYS, "odd")), "ENOSYS"),
    "read raises EINTR": ("read", fail(InterruptedError(errno.EINTR, "odd")), "EINTR"),
    "write raises": ("write", fail(RuntimeError("odd")), "EIO"),
    "write gives too much": ("write", lambda count: count + 1, "EIO"),
    "write gives a negative number": ("write", lambda _: -1, "EIO"),
    "write gives text": ("write", lambda _: "text", "EIO"),
    "write gives a huge number": ("write", lambda _: 1 << 70, "EIO"),
    "write gives a float": ("write", float, "EIO"),
    "write raises ENOSPC": ("write", fail(OSError(errno.ENOSPC, "odd")), "ENOSPC"),
    "ioctl raises": ("ioctl", fail(TypeError("odd")), "EIO"),
    "ioctl gives a negative number": ("ioctl", lambda _: -5, "EIO"),
    "ioctl gives a huge number": ("ioctl", lambda _: 1 << 31, "EIO"),
    "ioctl gives text": ("ioctl", lambda _: "text", "EIO"),
    "ioctl raises ENOTTY": ("ioctl", fail(OSError(errno.ENOTTY, "odd")), "ENOTTY"),
}

SCRIPT = """
steps = {
    'open': lambda: os.open('/dev/odd', os.O_RDWR),
    'read': lambda: os.read(fd, 10),
    'write': lambda: os.write(fd, b'12345'),
    'ioctl': lambda: fcntl.ioctl(fd, 0x4321),
}
if args[0] != 'open':
    fd = os.open('/dev/odd', os.O_RDWR)
# EINTR would be tried again by os.read.
if args[1] == 'EINTR':
    print(call('read', fd, bytes(10), 10))
else:
    print(attempt(steps[args[0]]))
fd = os.open('/dev/odd', os.O_RDWR)
print(os.read(fd, 10), os.write(fd, b'12345'), fcntl.ioctl(fd, 0x4321))
"""


@pytest.mark.parametrize("case", CASES)
def test_a_method_that_does_wrong_harms_one_call_only(
    clients: Clients, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, what, expected = CASES[case]
    device = Odd(method, what)
    with Sandbox(device) as sandbox:
        output = clients(sandbox)(SCRIPT, method, expected)
    assert output == f"{expected}\nb'good' 5 5\n"
    assert device.releases == (1 if method == "open" else 2)
    if expected == "EIO":
        assert method in caplog.text, caplog.text
    elif expected != "EKEYREVOKED":
        assert not caplog.records


def test_short_answers_are_short(clients: Clients) -> None:
    for method, what, expected in (
        ("read", lambda size: b"", "b''"),
        ("read", lambda size: memoryview(b"view"), "b'view'"),
        ("read", lambda size: bytearray(b"array"), "b'array'"),
        ("read", lambda size: b"x" * size, "b'xxxxxxxxxx'"),
        ("write", lambda count: 0, "0"),
        ("write", lambda count: None, "5"),
        ("write", lambda count: 2, "2"),
        ("ioctl", lambda _: None, "0"),
        ("ioctl", lambda _: (1 << 31) - 1, "2147483647"),
    ):
        with Sandbox(Odd(method, what)) as sandbox:
            output = clients(sandbox)(SCRIPT, method, expected)
        assert output == f"{expected}\nb'good' 5 5\n", method


def test_an_error_after_part_of_a_transfer_gives_the_part(clients: Clients) -> None:
    class Part(File):
        done = 0

        def read(self, size: int, offset: int) -> bytes:
            self.done += 1
            if self.done == 2:
                raise OSError(errno.EIO, "no more")
            return bytes(size)

        def write(self, data: bytes, offset: int) -> None:
            self.read(len(data), 0)

    class Parts(Device):
        name = "parts"
        max_read = max_write = 4096

        def open(self, request: OpenRequest) -> File:
            return Part()

    script = """
fd, other = os.open('/dev/parts', os.O_RDWR), os.open('/dev/parts', os.O_RDWR)
print(len(os.read(fd, 10000)), os.write(other, bytes(10000)))
"""
    with Sandbox(Parts()) as sandbox:
        assert clients(sandbox)(script) == "4096 4096\n"


def test_a_file_without_methods(clients: Clients) -> None:
    class Nothing(Device):
        name = "nothing"

        def open(self, request: OpenRequest) -> File:
            return File()

    script = """
fd = os.open('/dev/nothing', os.O_RDWR)
print(attempt(os.read, fd, 1), attempt(os.write, fd, b'x'), attempt(fcntl.ioctl, fd, 1))
"""
    with Sandbox(Nothing()) as sandbox:
        assert clients(sandbox)(script) == "EINVAL EINVAL ENOTTY\n"


def test_who_asks(echo: Fifo, sandbox: Sandbox, client: Shell) -> None:
    seen = []
    open_echo = echo.open

    def open_file(request: OpenRequest) -> File:
        seen.append((request.uid, request.gid, request.pid, request.operation))
        return open_echo(request)

    echo.open = open_file  # type: ignore[method-assign]  # of this device only
    output = client(
        "os.open('/dev/echo', 0); print(os.getpid())\n"
        "def other(): print(threading.get_native_id(), os.open('/dev/echo', 0))\n"
        "t = threading.Thread(target=other); t.start(); t.join()"
    )
    pids = [int(line.split()[0]) for line in output.splitlines()]
    assert seen == [(os.geteuid(), os.getegid(), pid, "open") for pid in pids]
