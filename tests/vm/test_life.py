"""How a device on the real kernel comes, which names it may have, and how it goes."""

import errno
import fcntl
import os
import queue
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recuse import Device, File, OpenRequest
from recuse.channel.devcuse import DevCuse, KernelError

from .conftest import Serve, Server, Start

WAIT_S = 30

Kernel = Callable[[Device], DevCuse]


class Quiet(Device):
    """Its reads wait for the end of the test."""

    name = "quiet"

    def __init__(self, **attributes: object) -> None:
        super().__init__(**attributes)  # type: ignore[arg-type]
        self.happened: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.go_on = threading.Event()

    def open(self, request: OpenRequest) -> File:
        return QuietFile()

    def close(self) -> None:
        self.happened.put("close")


class QuietFile(File):
    device: Quiet

    def read(self, size: int, offset: int) -> bytes:
        self.device.happened.put("read")
        self.device.go_on.wait(WAIT_S)
        return b""

    def write(self, data: bytes, offset: int) -> None:
        self.device.happened.put(data.decode())

    def release(self) -> None:
        self.device.happened.put("release")


def names() -> set[str]:
    """The devices that CUSE has."""
    return set(os.listdir("/sys/class/cuse"))


# ---- names and numbers


def test_a_name_with_a_directory(kernel: Kernel) -> None:
    served = kernel(Quiet(name="recuse-test/one"))
    assert served.node == "/dev/recuse-test/one"
    assert stat.S_ISCHR(os.stat(served.node).st_mode)
    assert names() == {"recuse-test!one"}
    served.close()
    assert not os.path.exists(served.node)
    assert names() == set()


def test_a_number(kernel: Kernel) -> None:
    served = kernel(Quiet(major=240, minor=7))
    assert os.stat(served.node).st_rdev == os.makedev(240, 7)


def test_a_number_that_is_taken(kernel: Kernel) -> None:
    kernel(Quiet(major=240, minor=7))
    with pytest.raises(KernelError, match=r"refuses the device other: the number 240:7 may be"):
        kernel(Quiet(name="other", major=240, minor=7))
    assert names() == {"quiet"}


@pytest.mark.parametrize("name", ["null", "cuse", "shm"])
def test_a_name_that_other_devices_have(kernel: Kernel, name: str) -> None:
    with pytest.raises(KernelError, match=f"/dev/{name} is there already"):
        kernel(Quiet(name=name))
    assert names() == set()


def test_a_name_that_another_cuse_device_has(kernel: Kernel) -> None:
    first = kernel(Quiet())
    with pytest.raises(KernelError, match="/dev/quiet is there already"):
        kernel(Quiet())
    # Without the node, only the kernel can tell.
    os.unlink("/dev/quiet")
    with pytest.raises(KernelError, match="device quiet: another CUSE device has this name"):
        kernel(Quiet())
    first.close()
    kernel(Quiet())
    assert os.path.exists("/dev/quiet")


def test_many_devices(kernel: Kernel) -> None:
    served = [kernel(Quiet(name=f"quiet{number}")) for number in range(20)]
    for one in served:
        with open(one.node, "w") as file:
            file.write(one.node)
    for one in served:
        assert isinstance(one.device, Quiet)
        assert one.device.happened.get(timeout=WAIT_S) == one.node


# ---- who may


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_permission_for_dev_cuse(kernel: Kernel) -> None:
    with nobody(), pytest.raises(KernelError, match="/dev/cuse: permission denied"):
        kernel(Quiet())


def test_limits(kernel: Kernel) -> None:
    served = kernel(Quiet(seekable=True, mode=0o640, gid=12))
    assert [line.partition(" (")[0] for line in served.limits()] == [
        "/dev/quiet: positions are ignored: reads and writes have offset 0, as in CUSE",
        "/dev/quiet: mode is 0600, not 0640: udev's rules decide that",
        "/dev/quiet: gid is 0, not 12: udev's rules decide that",
    ]
    os.chmod("/dev/quiet", 0o666)
    assert list(kernel(Quiet(name="free", mode=0o600, uid=0, gid=0)).limits()) == []


# ---- the end


def test_close_ends_calls_that_wait(kernel: Kernel) -> None:
    device = Quiet()
    served = kernel(device)
    script = "$! = 0; open F, '<', '/dev/quiet'; defined sysread(F, $x, 9) or exit 0 + $!"
    with subprocess.Popen(["perl", "-e", script]) as program:
        assert device.happened.get(timeout=WAIT_S) == "read"
        served.close()
        assert program.wait(WAIT_S) in (errno.ECONNABORTED, errno.ENODEV)
    assert not os.path.exists("/dev/quiet")
    device.go_on.set()
    assert device.happened.get(timeout=WAIT_S) == "release"
    assert device.happened.get(timeout=WAIT_S) == "close"
    assert device.happened.empty()


def test_files_that_outlive_the_device(kernel: Kernel) -> None:
    device = Quiet()
    served = kernel(device)
    with open("/dev/quiet", "wb", buffering=0) as file:
        served.close()
        served.close()
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            file.write(b"late")
        assert caught.value.errno in (errno.ENOTCONN, errno.ENODEV, errno.ECONNABORTED)
        # A new one with the same name is another one.
        again = Quiet()
        kernel(again)
        with pytest.raises(OSError, match=r"\[Errno"):
            file.write(b"late")
    with open("/dev/quiet", "wb", buffering=0) as file:
        file.write(b"new")
    assert again.happened.get(timeout=WAIT_S) == "new"
    assert device.happened.get(timeout=WAIT_S) == "release"


def test_an_administrator_ends_it(serve: Serve) -> None:
    with serve("examples/echo.py", "/dev/echo") as server:
        Path("/sys/class/cuse/echo/abort").write_text("1")
        assert server.process.wait(WAIT_S) == 0
        assert "/dev/echo: the kernel has ended the connection" in server.errors()
        assert names() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signals(start: Start, number: signal.Signals) -> None:
    server = start("examples/echo.py")
    server.ready("/dev/echo")
    assert names() == {"echo"}
    with open("/dev/echo", "w") as file:
        file.write("something")
    assert server.end(number) == (-9 if number == signal.SIGKILL else 0), server.errors()
    assert not os.path.exists("/dev/echo")
    assert names() == set()


def test_a_trace_of_the_kernels_requests(start: Start) -> None:
    server = start("--trace", "examples/echo.py")
    server.ready("/dev/echo")
    subprocess.run(["sh", "-c", "echo hi >/dev/echo"], check=True, timeout=WAIT_S)
    number = os.stat("/dev/echo").st_rdev
    assert server.end() == 0
    trace = [line for line in server.errors().splitlines() if not line.startswith("recuse: ")]
    patterns = [
        r" echo \S+ CUSE_INIT\(major=7, minor=\d+, flags=CUSE_UNRESTRICTED_IOCTL\) = major=7, .*",
        rf" echo -- device added, {os.major(number)}:{os.minor(number)}",
        r" echo sh\[\d+\] OPEN\(flags=O_WRONLY\S*\) = fh=1 <.*>",
        r' echo sh\[\d+\] WRITE\(fh=1, .*size=3, .*"hi\\n"\) = 3 <.*>',
        r" echo - RELEASE\(fh=1, .*\) = 0 <.*>",
        r" echo -- device removed",
    ]
    assert len(trace) == len(patterns), trace
    for line, pattern in zip(trace, patterns, strict=True):
        assert re.fullmatch(r" *\d+\.\d{6}" + pattern, line), line


def test_it_says_what_is_not_as_the_device_says(start: Start) -> None:
    server = start("examples/memory.py")
    server.ready("/dev/memory")
    assert server.end() == 0
    said = server.errors()
    assert "mmap" in said
    assert "/dev/memory: positions are ignored" in said
    assert "/dev/memory: mode is 0600, not 0666" in said
    assert all(line.startswith("recuse: ") for line in said.splitlines())


def test_two_devices_of_one_server(start: Start) -> None:
    server = start("examples/echo.py", "examples/eeprom.py")
    server.ready("/dev/echo", "/dev/i2c-9")
    script = "echo hi >/dev/echo; i2cget -y 9 0x50 0; cat /dev/echo"
    outcome = subprocess.run(["sh", "-c", script], capture_output=True, timeout=WAIT_S, check=True)
    assert outcome.stdout == b"0xff\nhi\n"
    assert server.end() == 0
    assert names() == set()


def test_all_or_none(start: Start) -> None:
    server: Server = start("examples/echo.py", "examples/echo.py,name=zero")
    assert server.process.wait(WAIT_S) != 0
    assert server.errors().endswith(
        "recuse: /dev/zero is there already: the device needs another name\n"
    )
    assert not os.path.exists("/dev/echo")


def test_ioctls_that_make_files_fail_in_good_order(start: Start) -> None:
    server = start("examples/gpiochip.py")
    server.ready("/dev/gpiochip9")
    info = bytearray(68)
    with open("/dev/gpiochip9", "rb") as chip:
        fcntl.ioctl(chip, 0x8044B401, info)  # GPIO_GET_CHIPINFO_IOCTL
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
                fcntl.ioctl(chip, 0xC16CB403, bytearray(364))  # GPIO_GET_LINEHANDLE_IOCTL
    assert info.startswith(b"gpiochip9\0")
    assert server.end() == 0
    said = server.errors()
    assert "/dev/gpiochip9: ioctls that make a new descriptor fail (EOPNOTSUPP)" in said
    assert said.count("ChipFile.get_handle makes a file, which this kernel half does not take") == 1
