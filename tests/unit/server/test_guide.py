"""docs/devices.md: its snippets run, and do what it says."""

import os
import re
import select
from ctypes import c_int, c_size_t, sizeof
from pathlib import Path
from typing import Any

import pytest

from recuse import IO, IOR, IOW, IOWR, ioctl
from recuse.wire.cuse import CUSE_UNRESTRICTED_IOCTL, RECUSE_NEW_FILES, recuse_ioctl_file
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_READ,
    fuse_ioctl_in,
    fuse_ioctl_out,
    fuse_open_in,
    fuse_poll_in,
    fuse_poll_out,
    fuse_read_in,
)

from .conftest import Program, Serve, Told

Guide = dict[str, Any]


GUIDE = Path(__file__).parents[3] / "docs" / "devices.md"


@pytest.fixture
def guide() -> Guide:
    """Return what the snippets define, one after the other, as in one module."""
    names: Guide = {"__name__": "guide"}
    snippets = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 8
    for snippet in snippets:
        exec(compile(snippet, GUIDE.name, "exec"), names)
    return names


def test_echo(guide: Guide, serve: Serve) -> None:
    peer = serve(guide["Echo"]())
    fh = peer.open()
    assert peer.write(fh, b"hello") == 5
    assert peer.read(fh, 3) == b"hel"


def test_sensor(guide: Guide, serve: Serve) -> None:
    peer = serve(guide["Sensor"]())
    assert peer.fails(FUSE_OPEN, fuse_open_in(flags=1)) == 13
    assert peer.fails(FUSE_OPEN, fuse_open_in(flags=2)) == 13
    fh = peer.open(0)
    assert peer.fails(FUSE_OPEN, fuse_open_in(flags=0)) == 16
    assert peer.read(fh, flags=0) == b"21.5\n"
    peer.release(fh)
    assert peer.open(0)


def test_pipe(guide: Guide, serve: Serve) -> None:
    peer = serve(guide["Pipe"]())
    fh = peer.open()
    waiting = peer.post_read(fh)
    peer.write(fh, b"line\n")
    assert peer.answer(waiting) == b"line\n"
    waiting = peer.post_read(fh)
    peer.interrupt(waiting)
    with pytest.raises(Exception, match="EINTR"):
        peer.answer(waiting)


def test_mailbox(guide: Guide, serve: Serve) -> None:
    peer = serve(guide["Mailbox"]())
    first, second = peer.open(), peer.open()

    def ready(fh: int) -> int:
        return fuse_poll_out.unpack(peer.call(FUSE_POLL, fuse_poll_in(fh=fh))).revents

    assert ready(first) == select.POLLOUT
    nonblocking = fuse_read_in(fh=first, size=9, flags=os.O_RDWR | os.O_NONBLOCK)
    assert peer.fails(FUSE_READ, nonblocking) == 11
    waiting = [peer.post_read(first), peer.post_read(first)]
    peer.write(second, b"one")
    peer.write(second, b"two")
    assert sorted(peer.answer(one) for one in waiting) == [b"one", b"two"]
    assert peer.fails(FUSE_READ, nonblocking) == 11
    waiting = [peer.post_read(first)]
    peer.interrupt(waiting[0])
    with pytest.raises(Exception, match="EINTR"):
        peer.answer(waiting[0])
    peer.write(second, b"letter")
    assert ready(first) == ready(second) == select.POLLIN | select.POLLOUT
    assert peer.read(first) == b"letter"
    assert ready(first) == select.POLLOUT
    peer.release(first)
    device: Any = peer.session.device
    assert len(device.files) == 1


def test_camera(guide: Guide, serve: Serve, program: type[Program]) -> None:
    peer = serve(guide["Camera"]())
    fh = peer.open()
    caller = program(peer)
    window = guide["Window"]

    def do(command: int, content: bytes = b"") -> tuple[int, bytes]:
        address = caller.put(0x100, content.ljust(256, b"."))
        result = caller.ioctl(fh, command, address)
        return result, caller.get(address, command >> 16 & 0x3FFF)

    assert do(IOW("c", 2, c_size_t), bytes(c_size_t(320)))[0] == 0
    assert do(IOR("c", 1, c_size_t)) == (0, bytes(c_size_t(320)))
    assert do(IO("c", 0))[0] == 0
    assert do(IOR("c", 1, c_size_t)) == (0, bytes(c_size_t(640)))
    assert caller.ioctl(fh, 0x703, 0x51) == 1
    assert do(IOWR("c", 3, c_int), bytes(c_int(900))) == (0, bytes(c_int(640)))
    assert do(IOWR("c", 4, window), bytes(window(600, 100))) == (0, bytes(window(600, 40)))
    assert do(IOR("c", 5, window)) == (0, bytes(window(0, 640)))
    assert do(IOR("c", 6, 10)) == (7, b"camera\0...")
    assert do(IOR("c", 6, 3)) == (3, b"cam")


def test_chip(guide: Guide, serve: Serve, program: type[Program]) -> None:
    peer = serve(guide["Chip"]())
    peer.init(flags=CUSE_UNRESTRICTED_IOCTL | RECUSE_NEW_FILES)
    fh = peer.open()
    request = guide["LineRequest"]
    command = IOWR("L", 1, request)
    body = fuse_ioctl_in(fh=fh, cmd=command, in_size=8, out_size=8)
    payload = peer.call(FUSE_IOCTL, body, bytes(request(2)))
    made = recuse_ioctl_file.unpack(payload, fuse_ioctl_out.SIZE)
    assert (made.flags, made.offset) == (os.O_RDONLY | os.O_CLOEXEC, 4)
    assert peer.read(made.fh, flags=0) == b"1\n"
    assert peer.fails(FUSE_IOCTL, body, bytes(request(4))) == 22


def test_bus(guide: Guide, serve: Serve, program: type[Program]) -> None:
    peer = serve(guide["Bus"]())
    fh = peer.open()
    caller = program(peer)
    message, transfer = guide["Message"], guide["Transfer"]
    first, second = caller.put(0x100, b"\1\2"), caller.put(0x200, b"....")
    array = caller.put(
        0x300, bytes(message(0x50, 0, 2, first)) + bytes(message(0x50, 1, 3, second))
    )
    assert caller.ioctl(fh, 0x707, caller.put(0, bytes(transfer(array, 2)))) == 2
    file: Any = peer.session._files[fh]
    assert file.sent == [b"\1\2"]
    assert caller.get(second, 4) == b"UUU."
    assert sizeof(message) == 16


def test_what_it_says_of_mistakes(guide: Guide, serve: Serve, told: Told) -> None:
    echo_file: Any = guide["EchoFile"]

    class Wrong(echo_file):  # type: ignore[misc]  # what the guide has is not known
        def read(self, size: int, offset: int) -> None:
            return None

    Wrong.__name__ = "EchoFile"
    peer = serve(Wrong)
    assert peer.fails(FUSE_READ, fuse_read_in(fh=peer.open(), size=1)) == 5
    assert f"`{told.line()}`" in GUIDE.read_text()


def test_the_table_of_handlers_is_complete(guide: Guide) -> None:
    """Each form in the table is one that the decorator takes."""
    window = guide["Window"]
    for type_ in (c_int, window, bytes):
        for direction in ("r", "w", "rw"):
            assert callable(ioctl(0x703, type_, direction=direction))
