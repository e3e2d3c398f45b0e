"""Devices among the files of a filesystem, and the programs that use them there."""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import sys
import threading
from pathlib import Path

import pytest

from recuse import (
    IOR,
    Area,
    Device,
    DeviceNode,
    Directory,
    File,
    Filesystem,
    MmapRequest,
    Mount,
    OpenRequest,
    RegularFile,
    ioctl,
)
from tests.conftest import Needs

from .conftest import PATIENCE_S, Somebody
from .shell import shell


class Disk(Device):
    """Its files have one memory, by reading, writing and mapping."""

    name = "disk"
    seekable = True

    def __init__(self) -> None:
        self.area = Area(65536)
        self.released = threading.Semaphore(0)

    def open(self, request: OpenRequest) -> File:
        return DiskFile()


class DiskFile(File):
    device: Disk

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.device.area[offset : offset + size])

    def write(self, data: bytes, offset: int) -> None:
        self.device.area[offset : offset + len(data)] = data

    def mmap(self, request: MmapRequest) -> Area:
        return self.device.area

    def poll(self, events: int) -> int:
        return select.POLLIN

    def release(self) -> None:
        self.device.released.release()

    @ioctl(IOR("d", 1, ctypes.c_int), ctypes.c_int)
    def size(self) -> int:
        return self.device.area.size


class Machine(Filesystem):
    """Devices and other files; its devices can be mapped."""

    name = "machine"
    passthrough = True
    direct_mmap = False

    def __init__(self) -> None:
        self.disk = Disk()
        self.node = DeviceNode(self.disk)
        self.dev = Directory({"disk": self.node, "none": RegularFile(b"text\n")})
        super().__init__(Directory({"dev": self.dev, "same": self.node}))

    def close(self) -> None:
        self.disk.area.close()


def python(code: str, directory: Path) -> str:
    prelude = "import errno, fcntl, mmap, os, select, struct\n"
    return shell(directory, shlex.join([sys.executable, "-c", prelude + code]))


@pytest.mark.usefixtures("mounts")
def test_programs_use_a_device(directory: Path) -> None:
    machine = Machine()
    with Mount(machine, directory):
        script = """
cat dev/none
echo text | dd of=dev/disk bs=5 seek=2 conv=notrunc status=none
dd if=dev/disk bs=5 skip=2 count=1 status=none
cat dev/disk | wc -c
cmp dev/disk same
stat -c '%F %a' dev/disk
"""
        assert shell(directory, script).splitlines() == [
            *("text", "text", "65536", "regular empty file 666"),
        ]
        assert bytes(machine.disk.area[8:16]) == b"\0\0text\n\0"
        # dd twice, cat, cmp twice.
        for _ in range(5):
            assert machine.disk.released.acquire(timeout=PATIENCE_S)
        code = f"""
file = os.open("disk", os.O_RDWR)
print(struct.unpack("i", fcntl.ioctl(file, {IOR("d", 1, ctypes.c_int)}, bytes(4))))
poll = select.poll()
poll.register(file)
print(poll.poll(0)[0][1] == select.POLLIN)
"""
        assert python(code, directory / "dev") == "(65536,)\nTrue\n"


@pytest.mark.usefixtures("root")
def test_programs_map_a_device(directory: Path) -> None:
    """By two names, and with what others read and write."""
    machine = Machine()
    with Mount(machine, directory) as mount:
        if not mount.has_backing:
            pytest.skip("this kernel has no FUSE passthrough")
        code = """
file = os.open("dev/disk", os.O_RDWR)
memory = mmap.mmap(file, 65536)
other = mmap.mmap(os.open("same", os.O_RDWR), 4096)
memory[100:105] = b"hello"
print(other[100:105] == os.pread(file, 5, 100) == b"hello")
os.pwrite(file, b"there", 100)
print(other[100:105] == b"there", os.fstat(file).st_size)
text = os.open("dev/none", os.O_RDONLY)
print(mmap.mmap(text, 5, prot=mmap.PROT_READ)[:])
"""
        assert python(code, directory).splitlines() == [*("True", "True 65536", r"b'text\n'")]
        assert bytes(machine.disk.area[100:105]) == b"there"


@pytest.mark.usefixtures("root")
def test_without_passthrough_nothing_is_mapped(directory: Path) -> None:
    machine = Machine()
    machine.passthrough = False
    code = """
import ctypes
file = os.open("dev/disk", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mmap(0, 4096, 3, mmap.MAP_SHARED, file, 0) == -1
print(errno.errorcode[ctypes.get_errno()])
"""
    with Mount(machine, directory):
        assert python(code, directory) == "ENODEV\n"


@pytest.mark.usefixtures("mounts")
def test_an_ordinary_user_serves_for_itself(somebody: Somebody, needs: Needs) -> None:
    helper = needs("fusermount3", package="fuse3")
    serve = shlex.join(
        somebody.command(
            "serve", "--mount", f"{somebody.directory}", f"{somebody.home}/examples/echo.py"
        )
    )
    script = f"""
{serve} 2>&1 | {{
    read path
    echo hello >"$path"
    cat "$path"
    stat -c '%n %u' "$path"
    {helper} -u {somebody.directory}
    cat
}}
"""
    done = somebody.run("sh", "-ec", script)
    uid = os.geteuid() or 65534
    assert done.stdout.splitlines() == [
        "hello",
        f"{somebody.directory}/echo {uid}",
        f"recuse: {somebody.directory}: it was unmounted, or the connection aborted",
    ]
