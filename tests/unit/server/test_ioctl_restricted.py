"""Ioctls of restricted devices, whose argument the kernel half copies."""

import ctypes
import errno
from ctypes import c_uint32, c_uint64

import pytest

from recuse import IOR, IOW, IOWR, File, Memory, ioctl
from recuse.wire.fuse import FUSE_IOCTL, fuse_ioctl_in

from .conftest import Serve, Told


class Pair(ctypes.Structure):
    _fields_ = [("a", c_uint32), ("b", c_uint32)]


def test_restricted_devices_have_the_argument_in_memory(serve: Serve) -> None:
    class Probe(File):
        @ioctl(IOWR("E", 1, Pair))
        def one(self, argument: int, memory: Memory) -> None:
            pair = memory.read_struct(argument, Pair)
            memory.write(argument + 4, bytes(c_uint32(pair.a)))

        @ioctl(IOR("E", 2, Pair))
        def two(self, argument: int, memory: Memory) -> None:
            memory.write(argument, b"12")
            memory.write(argument + 2, b"345")

    peer = serve(Probe)
    fh = peer.open()
    command = IOWR("E", 1, Pair)
    assert peer.restricted_ioctl(fh, command, 5000, bytes(Pair(1, 2)), 8) == (0, bytes(Pair(1, 1)))
    assert peer.restricted_ioctl(fh, IOR("E", 2, Pair), 5000, b"", 8) == (0, b"12345")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (IOWR("E", 1, 8), "reads 8 bytes at 0x123"),
        (IOWR("E", 2, 8), "writes 1 bytes at 0x123"),
        (IOWR("E", 3, 8), "reads 1 bytes at 0x1390"),
        (IOW("E", 4, 8), "writes 1 bytes at 0x1388"),
        (0x4605, "reads 8 bytes at 0x1388"),
        (0x4606, "writes 8 bytes at 0x1388"),
    ],
)
def test_restricted_devices_have_no_other_memory(
    serve: Serve, told: Told, command: int, line: str
) -> None:
    class Probe(File):
        @ioctl(IOWR("E", 1, 8))
        def one(self, argument: int, memory: Memory) -> None:
            memory.read_struct(0x123, c_uint64)

        @ioctl(IOWR("E", 2, 8))
        def two(self, argument: int, memory: Memory) -> None:
            memory.write(0x123, b"x")

        @ioctl(IOWR("E", 3, 8))
        def three(self, argument: int, memory: Memory) -> None:
            memory.read(argument, 9)

        @ioctl(IOW("E", 4, 8))
        def four(self, argument: int, memory: Memory) -> None:
            memory.write(argument, b"x")

        @ioctl(0x4605, Pair, direction="w")
        def five(self, pair: Pair) -> None:
            pass

        @ioctl(0x4606, Pair, direction="r")
        def six(self, pair: Pair) -> None:
            pass

    peer = serve(Probe)
    in_size = 8 if command >> 30 & 1 else 0
    out_size = 8 if command >> 30 & 2 else 0
    fh = peer.open()
    body = fuse_ioctl_in(fh=fh, cmd=command, arg=5000, in_size=in_size, out_size=out_size)
    assert peer.fails(FUSE_IOCTL, body, bytes(in_size)) == errno.EIO
    name = ["", "one", "two", "three", "four", "five", "six"][command & 0xF]
    assert told.line() == (
        f"Probe.{name} {line}, outside what the command's number says, "
        "and the device is restricted or on a FUSE mount: EIO for the program"
    )


def test_a_restricted_device_cannot_write_behind_a_hole(serve: Serve, told: Told) -> None:
    class Probe(File):
        @ioctl(IOR("E", 1, 8))
        def one(self, argument: int, memory: Memory) -> None:
            memory.write(argument + 4, b"x")

    peer = serve(Probe)
    body = fuse_ioctl_in(fh=peer.open(), cmd=IOR("E", 1, 8), arg=5000, out_size=8)
    assert peer.fails(FUSE_IOCTL, body) == errno.EIO
    assert "Probe.one wrote only a part" in told.line()
