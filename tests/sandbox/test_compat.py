"""32-bit programs (i386 system calls)."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recuse import IO, Device, File, Memory, OpenRequest, current_request, ioctl
from recuse.sandbox import Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S
from .conftest import Compiled


class Inner(ctypes.Structure):
    """``struct { uint32_t length; char *text; }`` of a 32-bit program."""

    _fields_ = (("length", ctypes.c_uint32), ("text", ctypes.c_uint32))


class Bytes(File):
    """A disk without end, of which only what was written is remembered."""

    device: Disk

    def read(self, size: int, offset: int) -> bytes:
        self.device.seen.append(f"read {size} at {offset:#x}")
        return self.device.data[:size]

    def write(self, data: bytes, offset: int) -> None:
        self.device.seen.append(f"write {data.decode()} at {offset:#x}")
        self.device.data = bytes(data)

    @ioctl(IO(0x56, 1))
    def value(self, argument: int) -> int:
        self.device.seen.append(f"value {argument:#x} compat={current_request().compat}")
        return 77

    @ioctl(IO(0x56, 2))
    def nested(self, argument: int, memory: Memory) -> int:
        inner = memory.read_struct(argument, Inner)
        memory.write(inner.text, b"inner"[: inner.length])
        length: int = inner.length
        return length


class Disk(Device):
    """Has positions, so that they can be seen."""

    name = "echo"
    seekable = True
    uid = gid = 0

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.seen: list[str] = []

    def open(self, request: OpenRequest) -> File:
        return Bytes()


Run = Callable[..., list[str]]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture(params=["", "-D_FILE_OFFSET_BITS=64"], ids=["small", "large"])
def run(request: Any, disk: Disk, compiled: Callable[..., str], needs: Callable[..., Path]) -> Run:
    """Runs clients/compat.c, built with the smaller and with the larger structures."""
    needs("/usr/include/asm", package="gcc-multilib")
    flags = [request.param] if request.param else []
    program = compiled("compat", "-m32", "-static", *flags)

    def run(*acts: str) -> list[str]:
        with Sandbox(disk) as sandbox:
            done = sandbox.run([program, *acts], stdout=subprocess.PIPE, timeout=PATIENCE_S)
        lines: list[str] = done.stdout.decode().splitlines()
        assert (done.returncode, lines[0]) == (0, "open: 3")
        return lines[1:]

    return run


def test_vectors_of_half_the_size(run: Run, disk: Disk) -> None:
    assert run("writev", "readv", "bad writev") == [
        "writev: 11",
        "readv: 11 hel|lo world",
        "bad writev: -1 EINVAL",
    ]


def test_positions_in_two_registers(run: Run, disk: Disk) -> None:
    got = run("pwrite", "pread", "pwritev", "preadv", "preadv2", "pwritev far")
    assert got == [
        "pwrite: 6",
        "pread: 6 pwrite",
        "pwritev: 7",
        "preadv: 7 pwritev",
        "preadv2: 7 pwritev",
        "pwritev far: 3",
    ]
    assert disk.seen == [
        "write pwrite at 0x200000003",
        "read 20 at 0x200000005",
        "write pwritev at 0x1",
        "read 20 at 0x2",
        "read 20 at 0x0",
        "write far at 0x100000004",
    ]


def test_seeking(run: Run) -> None:
    assert run("lseek", "llseek") == [
        "lseek: 7",
        "lseek: 4",
        "lseek: -1 EINVAL",
        "llseek: 0 300000009",
        "lseek: -1 EOVERFLOW",
    ]


def test_every_kind_of_stat(run: Run) -> None:
    lines = run("times", "stat", "old stat")[-5:]
    numbers = lines[0].split(" ", 1)[1]
    # The number is one that is free on this machine.
    assert re.fullmatch(r"0 20666 0 0 [2-5]\d\d:0 5000", numbers)
    assert lines[:4] == [f"{name}: {numbers}" for name in ("stat", "lstat", "fstat", "fstatat")]
    assert lines[4] == "old stat: 0 20666"


def test_what_surrounds_the_device(run: Run) -> None:
    assert run("statfs", "old statfs", "sysfs") == [
        "statfs: 0 0 0 0",
        "old statfs: 0 0 0 0 0 77 77",
        "sysfs: echo 10",
        "sysfs: 31",
        "sysfs: 4096",
    ]


def test_owners_of_16_and_of_32_bits(run: Run) -> None:
    got = run("chown", "stat")
    assert got[:4] == ["chown: 0"] * 4
    assert " 56 70000 " in got[4] or " 56 4464 " in got[4]  # the small structure has 16 bits


def test_times_of_every_size(run: Run) -> None:
    assert run("times") == [
        *["utime: 0", "2000", "utimes: 0", "3000", "utimensat: 0", "4000"],
        *["old utimensat: 0", "5000", "futimesat: 0"],
    ]


def test_an_ioctl_is_marked_as_that_of_a_32_bit_program(run: Run, disk: Disk) -> None:
    assert run("value") == ["value: 77"]
    assert disk.seen == ["value 0xfffffff0 compat=True"]


def test_a_nested_pointer_of_32_bits(run: Run) -> None:
    assert run("nested", "nested bad") == ["nested: 5 inner", "nested bad: -1 EFAULT"]


def test_descriptors(run: Run, disk: Disk) -> None:
    assert run("fcntl", "dup", "fork", "pass") == [
        *["fcntl: 0", "fcntl: 2050"],
        *["dup: 100", "dup2: 50", "write: 3"],
        "fork: 5",
        *["sendmsg: 1", "recvmsg: 1", "write: 6"],
    ]
    assert disk.seen == [
        "write dup at 0x0",
        "write child at 0x3",
        "write passed at 0x8",
    ]


def test_a_device_is_no_socket_however_it_is_asked(run: Run) -> None:
    assert run("socket") == ["shutdown: -1 ENOTSOCK", "socketcall: -1 ENOTSOCK"]


def test_a_devices_name_is_in_use_however_a_socket_asks_for_it(run: Run) -> None:
    try:
        assert run("bind") == ["bind: -1 EADDRINUSE", "socketcall: -1 EADDRINUSE", "no name: 0"]
        assert not os.path.lexists("/dev/echo")
    finally:
        if Path("/dev/echo").is_socket():
            os.unlink("/dev/echo")


def test_names(run: Run) -> None:
    assert run("list", "names", "sendfile") == [
        "list: 1",
        *["mkdir: -1 EEXIST", "unlink: -1 EPERM", "rename: -1 EPERM", "truncate: -1 EINVAL"],
        *["access: 0", "excl: -1 EEXIST", "sendfile: -1 EINVAL"],
    ]


def test_a_64_bit_program_is_not_marked(disk: Disk) -> None:
    script = "import fcntl; print(fcntl.ioctl(open('/dev/echo'), 0x5601, 5))"
    with Sandbox(disk) as sandbox:
        done = sandbox.run(["python3", "-c", script], stdout=subprocess.PIPE, timeout=PATIENCE_S)
    assert done.stdout == b"77\n"
    assert disk.seen == ["value 0x5 compat=False"]


def test_32_and_64_bit_programs_start_each_other(
    disk: Disk, compiled: Compiled, needs: Needs
) -> None:
    needs("/usr/include/asm", package="gcc-multilib")
    program = compiled("compat", "-m32", "-static")
    with Sandbox(disk) as sandbox:
        done = sandbox.run(
            ["sh", "-c", f"{program} writev; cat /dev/echo | head -c 5; exec {program} value"],
            stdout=subprocess.PIPE,
            timeout=PATIENCE_S,
        )
    assert done.stdout == b"open: 3\nwritev: 11\nhelloopen: 3\nvalue: 77\n"
