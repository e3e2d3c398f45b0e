"""Reading requests from an open /dev/cuse; this process is the server's, too."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import DeviceTable
from recuse.kernel.char.files import open_file
from recuse.kernel.connection.operation import run
from recuse.sandbox.files.cuse_file import CuseFile
from recuse.sandbox.vfs.dentry import lone
from recuse.sandbox.vfs.nodes import Identity, Node
from recuse.wire import ioctl
from recuse.wire.cuse import CUSE_INIT, cuse_init_out
from recuse.wire.fuse import (
    FUSE_RELEASE,
    fuse_in_header,
    fuse_open_out,
    fuse_out_header,
)
from tests.unit.kernel.support import FakeMemory

PAGE = 4096


class Server:
    """Reads and writes as a program does, and answers nothing by itself."""

    def __init__(self) -> None:
        self.table = DeviceTable()
        location = lone(Node(Identity(1, 0, 0, 0), 0o20600), b"/dev/cuse")
        flags = os.O_RDWR | os.O_NONBLOCK
        self.file = CuseFile(location, flags, self.table, Caller(1, 0, 0, FakeMemory()))
        self._room = ctypes.create_string_buffer(1 << 17)
        self._call: Any = SimpleNamespace(tid=os.getpid())

    def _segments(self, size: int) -> list[tuple[int, int]]:
        return [(ctypes.addressof(self._room), size)]

    def read(self, size: int = 1 << 17) -> fuse_in_header:
        """Read a request, and return its header."""
        length = self.file.read(self._call, self._segments(size), None)
        return fuse_in_header.unpack(self._room.raw[:length])

    def answer(self, request: fuse_in_header, payload: bytes = b"") -> None:
        header = fuse_out_header(len=fuse_out_header.SIZE + len(payload), unique=request.unique)
        message = header.pack() + payload
        ctypes.memmove(self._room, message, len(message))
        self.file.write(self._call, self._segments(len(message)))


@pytest.fixture
def server() -> Iterator[Server]:
    """One whose device is there, and takes writes of a page."""
    made = Server()
    init = made.read()
    assert init.opcode == CUSE_INIT
    out = cuse_init_out(major=7, minor=31, max_read=PAGE, max_write=PAGE)
    made.answer(init, out.pack() + b"DEVNAME=small\0")
    yield made
    made.file.end.close()


def begin(server: Server, operation: Any) -> list[Any]:
    """Begin an operation; return what will hold its result, or its errno."""
    outcome: list[Any] = []
    (device,) = server.table

    def done(result: Any, error: OSError | None) -> None:
        outcome.append(result if error is None else error.errno)

    run(device.connection, operation, done)
    return outcome


def test_what_follows_a_request_that_does_not_fit(server: Server) -> None:
    """The server's read ends the last call on a file, and RELEASE goes to this very server."""
    (device,) = server.table
    caller = Caller(1, 0, 0, FakeMemory())
    opened = begin(server, open_file(device, os.O_RDWR, caller))
    server.answer(server.read(), fuse_open_out(fh=7).pack())
    (file,) = opened
    called = begin(server, file.ioctl(caller, ioctl.IOW("x", 1, 3 * PAGE), 0))
    begin(server, file.release())
    with pytest.raises(BlockingIOError):
        server.read(2 * PAGE)
    release = server.read(2 * PAGE)
    assert release.opcode == FUSE_RELEASE
    server.answer(release)
    assert called == [errno.EIO]
