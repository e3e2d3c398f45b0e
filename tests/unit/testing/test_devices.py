"""Devices as nodes of a filesystem in a test, and files without places to go to."""

import ctypes
import os
import select
import stat
import threading
from typing import Any

from recuse import (
    IOR,
    Attributes,
    Device,
    DeviceNode,
    Directory,
    File,
    Filesystem,
    InodeEntry,
    Inodes,
    Opened,
    OpenRequest,
    ioctl,
)
from recuse.testing import TestMount

from .support import error_of

LENGTH = IOR("e", 1, ctypes.c_uint32)


class Echo(Device):
    name = "echo"
    pending = b""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.offsets: list[int] = []
        self.files: list[EchoFile] = []

    def open(self, request: OpenRequest) -> File:
        self.files.append(EchoFile())
        return self.files[-1]


class EchoFile(File):
    device: Echo

    def write(self, data: bytes, offset: int) -> None:
        self.device.offsets.append(offset)
        self.device.pending += data

    def read(self, size: int, offset: int) -> bytes:
        self.device.offsets.append(offset)
        data, self.device.pending = self.device.pending[:size], self.device.pending[size:]
        return data

    def poll(self, events: int) -> int:
        return select.POLLIN if self.device.pending else 0

    @ioctl(LENGTH, ctypes.c_uint32)
    def length(self) -> int:
        return len(self.device.pending)


def tree(echo: Echo) -> Filesystem:
    return Filesystem(Directory({"dev": Directory({"echo": DeviceNode(echo)})}))


def test_a_device_without_positions() -> None:
    echo = Echo()
    with TestMount(tree(echo)) as mount, mount.open("dev/echo", os.O_RDWR) as file:
        assert (file.write(b"hello"), file.write(b"there")) == (5, 5)
        assert file.ioctl(LENGTH, bytes(4)) == (10).to_bytes(4, "little")
        assert (file.read(5), file.read(5), file.read(5)) == (b"hello", b"there", b"")
        for call in (file.pread, file.seek):
            assert error_of(call, 1, 0) == "ESPIPE"
        assert error_of(file.pwrite, b"x", 0) == "ESPIPE"
    assert echo.offsets == [0] * 5


def test_a_device_with_positions() -> None:
    echo = Echo(seekable=True)
    with TestMount(tree(echo)) as mount, mount.open("dev/echo", os.O_RDWR) as file:
        file.write(b"hello")
        file.write(b"there")
        file.seek(100)
        assert file.read(5) == b"hello"
        assert file.pread(5, 7) == b"there"
    assert echo.offsets == [0, 5, 100, 7]


def test_a_device_that_becomes_ready() -> None:
    echo = Echo()

    def write() -> None:
        echo.pending += b"x"
        echo.files[0].wake_pollers()

    with TestMount(tree(echo)) as mount, mount.open("dev/echo", os.O_RDWR) as file:
        assert file.poll(select.POLLIN) == 0
        writer = threading.Thread(target=write)
        writer.start()
        assert file.poll(select.POLLIN, 20) == select.POLLIN
        writer.join()


class Tape(Inodes):
    """A file that cannot be wound."""

    def lookup(self, parent: int, name: str) -> InodeEntry:
        return InodeEntry(2, self.getattr(2, None))

    def getattr(self, ino: int, fh: Any) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o755 if ino == 1 else stat.S_IFREG | 0o644, size=8)

    def open(self, ino: int, flags: int) -> Opened:
        return Opened(direct=True, nonseekable=True)

    def read(self, ino: int, fh: Any, size: int, offset: int) -> bytes:
        return b"one two "[offset : offset + size]


def test_a_file_of_inodes_that_has_only_a_position() -> None:
    with TestMount(Tape()) as mount, mount.open("tape") as file:
        assert (file.read(4), file.read(4)) == (b"one ", b"two ")
        assert error_of(file.pread, 4, 0) == error_of(file.seek, 0) == "ESPIPE"
