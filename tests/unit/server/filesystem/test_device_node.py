"""Devices as nodes of a filesystem: how they are opened, what they may map, and their end."""

import asyncio
import ctypes
import errno
import mmap
import os
import queue
import re
import select
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from recuse import (
    IOR,
    Area,
    Device,
    DeviceNode,
    Directory,
    File,
    Filesystem,
    Mapping,
    MmapRequest,
    OpenRequest,
    current_request,
    ioctl,
)
from recuse.server.filesystem.device_tree import DeviceTree
from recuse.wire.filesystem import fuse_lseek_in, fuse_lseek_out, fuse_setattr_in
from recuse.wire.fuse import (
    FATTR_MODE,
    FOPEN_DIRECT_IO,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    FOPEN_STREAM,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_LSEEK,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_SETATTR,
    FUSE_WRITE,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_poll_in,
    fuse_poll_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
)

from ..conftest import WAIT_S, Failure, Told
from .backing import Backing
from .conftest import FilesystemPeer

ALWAYS_READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
DIRECT = FOPEN_DIRECT_IO | FOPEN_NOFLUSH
MAPPED = DIRECT | FOPEN_PASSTHROUGH


class Probe(Device):
    """Writes down what happens to it; its files have the area that it has, if any."""

    name = "probe"

    def __init__(self, area: Area | None = None, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.area = area
        self.happened: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.make: Callable[[], File] = ProbeFile

    def open(self, request: OpenRequest) -> File:
        self.happened.put(("open", request.flags))
        return self.make()

    def take(self, count: int) -> list[Any]:
        """Return what has happened, so many things; there must be no more."""
        taken = [self.happened.get(timeout=WAIT_S) for _ in range(count)]
        assert self.happened.empty()
        return taken

    def close(self) -> None:
        self.happened.put("close")


class ProbeFile(File):
    device: Probe

    def tell(self, *what: object) -> None:
        self.device.happened.put(what)

    def read(self, size: int, offset: int) -> bytes:
        self.tell("read", size, offset)
        return b""

    def write(self, data: bytes, offset: int) -> None:
        self.tell("write", data, offset)

    def mmap(self, request: MmapRequest) -> Area | Awaitable[Area]:
        assert request.at_open
        self.tell("mmap", request.length, request.protection, request.operation)
        if self.device.area is None:
            raise OSError(errno.ENODEV, "none")
        return self.device.area

    def mapped(self, mapping: Mapping) -> Awaitable[None] | None:
        assert mapping.area is self.device.area
        assert mapping.unique == current_request().unique
        self.tell("mapped", *mapping[1:6])
        return None

    def unmapped(self, mapping: Mapping) -> Awaitable[None] | None:
        self.tell("unmapped")
        return None

    def release(self) -> Awaitable[None] | None:
        self.tell("release")
        return None


class AsyncFile(ProbeFile):
    async def mmap(self, request: MmapRequest) -> Area:
        area = super().mmap(request)
        assert isinstance(area, Area)
        return area

    async def mapped(self, mapping: Mapping) -> None:
        super().mapped(mapping)

    async def unmapped(self, mapping: Mapping) -> None:
        super().unmapped(mapping)

    async def release(self) -> None:
        super().release()


Serve = Callable[..., FilesystemPeer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves devices as the nodes of one directory, to a kernel half with backing files or not."""
    peers: list[FilesystemPeer] = []
    areas: list[Area] = []

    def make(*devices: Probe, backing: Backing | None = None) -> FilesystemPeer:
        areas.extend(device.area for device in devices if device.area is not None)
        peer = FilesystemPeer(DeviceTree(devices))
        peer.session._backing = backing
        peers.append(peer)
        peer.init_filesystem()
        return peer

    yield make
    while peers:  # which refer to devices, and these to areas
        peers.pop().session.close()
    while areas:  # to which tracebacks in the log refer
        areas.pop().close()


@pytest.fixture(params=[ProbeFile, AsyncFile])
def kind(request: pytest.FixtureRequest) -> Callable[[], File]:
    """Plain methods, or ``async def`` ones."""
    made: Callable[[], File] = request.param
    return made


def release(peer: FilesystemPeer, number: int, fh: int) -> None:
    assert peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=fh)) == b""


def test_what_programs_see(serve: Serve) -> None:
    peer = serve(Probe(name="a/b/probe", mode=0o640, uid=5, gid=6))
    above = peer.lookup("b", peer.lookup("a").nodeid)
    entry = peer.lookup("probe", above.nodeid)
    attr = entry.attr
    assert (attr.mode, attr.uid, attr.gid, attr.size) == (0o100640, 5, 6, 0)
    # What it maps may change its size. Its name is believed.
    assert (entry.attr_valid, entry.entry_valid) == (0, 1)
    assert (above.attr.mode, above.attr.nlink) == (0o40755, 2)
    assert peer.getattr(1).attr.nlink == 3


def test_nothing_of_it_can_be_changed(serve: Serve) -> None:
    peer = serve(Probe())
    body = fuse_setattr_in(valid=FATTR_MODE, mode=0o600)
    for number in (1, peer.lookup("probe").nodeid):
        assert peer.refuses(FUSE_SETATTR, number, body) == errno.EPERM


def test_devices_that_are_not_well_described() -> None:
    class Nothing(Device):
        name = "nothing"

    with pytest.raises(TypeError, match="Nothing has no open method"):
        DeviceNode(Nothing())
    wrong = Probe()
    wrong.mode = 0o10000
    with pytest.raises(ValueError, match="mode"):
        DeviceNode(wrong)


@pytest.mark.parametrize(("seekable", "flags"), [(False, DIRECT | FOPEN_STREAM), (True, DIRECT)])
def test_without_an_area(serve: Serve, seekable: bool, flags: int) -> None:
    """Offsets are what the kernel says: with FOPEN_STREAM they begin with each call."""
    probe = Probe(seekable=seekable)
    peer = serve(probe)
    number = peer.lookup("probe").nodeid
    opened = peer.open_node(number, os.O_RDWR | os.O_TRUNC)
    assert (opened.open_flags, opened.backing_id) == (flags, 0)
    peer.read_node(number, opened.fh, 10, 4096)
    peer.write_node(number, opened.fh, b"text", 4096)
    appended = fuse_write_in(fh=opened.fh, offset=77, size=1, flags=os.O_RDWR | os.O_APPEND)
    peer.ask(FUSE_WRITE, number, appended, b"x")
    release(peer, number, opened.fh)
    assert probe.take(5) == [
        # There is nothing to truncate, and nobody is asked for memory that nobody can have.
        ("open", os.O_RDWR),
        ("read", 10, 4096),
        ("write", b"text", 4096),
        ("write", b"x", 77 if seekable else 0),
        ("release",),
    ]
    assert not any(vars(peer.session._level.state)[kept] for kept in ("files", "unpositioned"))


@pytest.mark.parametrize("seekable", [False, True])
def test_with_an_area(serve: Serve, kind: Callable[[], File], seekable: bool) -> None:
    probe, backing = Probe(Area(10000), seekable=seekable, map_length=5000), Backing()
    probe.make = kind
    peer = serve(probe, backing=backing)
    number = peer.lookup("probe").nodeid
    first, second = peer.open_node(number), peer.open_node(number, os.O_RDONLY)
    assert first.open_flags == second.open_flags == MAPPED
    assert first.backing_id == second.backing_id == 1
    assert probe.area is not None
    assert os.path.sameopenfile(backing.open[1], probe.area.fileno())
    assert peer.getattr(number).attr.size == 10000
    probe.area.resize(20000)
    assert peer.getattr(number).attr.size == 20000
    peer.read_node(number, first.fh, 10, 4096)
    release(peer, number, first.fh)
    assert peer.getattr(number).attr.size == 20000
    release(peer, number, second.fh)
    assert (backing.open, peer.getattr(number).attr.size) == ({}, 0)
    assert probe.take(11) == [
        ("open", os.O_RDWR),
        ("mmap", 8192, mmap.PROT_READ | mmap.PROT_WRITE, "open"),
        ("mapped", 0, 8192, 0, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED),
        ("open", os.O_RDONLY),
        ("mmap", 8192, mmap.PROT_READ, "open"),
        ("mapped", 0, 8192, 0, mmap.PROT_READ, mmap.MAP_SHARED),
        ("read", 10, 4096 if seekable else 0),
        *[("unmapped",), ("release",)] * 2,
    ]


@pytest.mark.parametrize(
    ("flags", "protection"), [(os.O_WRONLY, mmap.PROT_WRITE), (os.O_ACCMODE, 0)]
)
def test_the_access_mode_is_the_protection(serve: Serve, flags: int, protection: int) -> None:
    """Linux lets a file with O_ACCMODE neither read nor write."""
    probe = Probe(Area(4096))
    peer = serve(probe, backing=Backing())
    peer.open_node(peer.lookup("probe").nodeid, flags)
    assert probe.take(3)[1] == ("mmap", 4096, protection, "open")


def test_the_area_outlives_what_the_device_does_with_it(serve: Serve) -> None:
    probe = Probe(Area(10000))
    peer = serve(probe, backing=Backing())
    number = peer.lookup("probe").nodeid
    opened = peer.open_node(number)
    assert probe.area is not None
    probe.area.close()
    assert peer.getattr(number).attr.size == 10000
    release(peer, number, opened.fh)


def test_another_area_meanwhile(serve: Serve, kind: Callable[[], File], told: Told) -> None:
    probe, backing = Probe(Area(4096)), Backing()
    probe.make = kind
    peer = serve(probe, backing=backing)
    number = peer.lookup("probe").nodeid
    peer.open_node(number)
    probe.take(3)
    for area, why in ((Area(4096), "has another one"), (None, "has none")):
        probe.area = area
        for _ in range(2):
            assert peer.refuses(FUSE_OPEN, number, fuse_open_in(flags=2)) == errno.EBUSY
            ended = [("unmapped",), ("release",)] if area else [("release",)]
            assert probe.take(2 + len(ended))[2:] == ended
        assert f"a file that {why} cannot be opened meanwhile (EBUSY)" in told.line()
    assert list(backing.open) == [1]


def test_another_area_later(serve: Serve) -> None:
    probe, backing = Probe(Area(4096)), Backing()
    peer = serve(probe, backing=backing)
    number = peer.lookup("probe").nodeid
    release(peer, number, peer.open_node(number).fh)
    probe.area = Area(8192)
    assert peer.open_node(number).backing_id == 2
    assert peer.getattr(number).attr.size == 8192
    assert list(backing.open) == [2]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM])
def test_a_kernel_that_does_not_take_the_memory(
    serve: Serve, kind: Callable[[], File], told: Told, number: int
) -> None:
    probe, backing = Probe(Area(4096)), Backing(number)
    probe.make = kind
    peer = serve(probe, backing=backing)
    node = peer.lookup("probe").nodeid
    opened = peer.open_node(node)
    assert (opened.open_flags, opened.backing_id) == (DIRECT | FOPEN_STREAM, 0)
    assert [what[0] for what in probe.take(3)] == ["open", "mmap", "unmapped"]
    assert told.line() == (
        f"probe: the kernel does not take the device's memory ({os.strerror(number)}; "
        "the server has to be root of the machine itself): programs cannot map it"
    )
    assert peer.getattr(node).attr.size == 0
    peer.open_node(node)
    # It is not asked again for memory that nobody can have.
    assert backing.asked == (1 if number == errno.EPERM else 2)


class Closed(ProbeFile):
    def mmap(self, request: MmapRequest) -> Area:
        area = Area(4096)
        area.close()
        return area


class Wrong(ProbeFile):
    def mmap(self, request: MmapRequest) -> Area:
        return "memory"  # type: ignore[return-value]


class Broken(ProbeFile):
    def mmap(self, request: MmapRequest) -> Area:
        raise ZeroDivisionError


class BrokenLater(ProbeFile):
    async def mmap(self, request: MmapRequest) -> Area:
        raise ZeroDivisionError


class Refusing(ProbeFile):
    def mapped(self, mapping: Mapping) -> None:
        raise OSError(errno.EACCES, "no")


class RefusingLater(ProbeFile):
    async def mapped(self, mapping: Mapping) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("broken", "line", "happened"),
    [
        (Closed, r"Closed.mmap returned <Area \d+, closed>: EIO", []),
        (Wrong, "Wrong.mmap returned 'memory', not an Area: EIO", []),
        (Broken, "Broken.mmap raised ZeroDivisionError", []),
        (BrokenLater, "BrokenLater.mmap raised ZeroDivisionError", []),
        (Refusing, "", ["mmap", "unmapped"]),
        (RefusingLater, "RefusingLater.mapped raised ZeroDivisionError", ["mmap", "unmapped"]),
    ],
)
def test_a_device_that_gives_no_memory(
    serve: Serve, told: Told, broken: type[File], line: str, happened: list[str]
) -> None:
    """It is opened all the same."""
    probe, backing = Probe(Area(4096)), Backing()
    probe.make = broken
    peer = serve(probe, backing=backing)
    number = peer.lookup("probe").nodeid
    opened = peer.open_node(number)
    assert (opened.open_flags, opened.backing_id) == (DIRECT | FOPEN_STREAM, 0)
    assert [what[0] for what in probe.take(1 + len(happened))] == ["open", *happened]
    lines = told.lines()
    assert len(lines) == bool(line)
    assert all(re.match(line, one) for one in lines)
    assert (backing.open, peer.getattr(number).attr.size) == ({}, 0)


class Failing(ProbeFile):
    def unmapped(self, mapping: Mapping) -> None:
        super().unmapped(mapping)
        raise OSError(errno.EACCES, "no")


class FailingLater(ProbeFile):
    async def unmapped(self, mapping: Mapping) -> None:
        super().unmapped(mapping)
        raise OSError(errno.EACCES, "no")


@pytest.mark.parametrize("failing", [Failing, FailingLater])
@pytest.mark.parametrize("end", ["release", "session", "nobody"])
def test_the_end_of_a_mapping_that_fails(
    serve: Serve, told: Told, failing: type[File], end: str
) -> None:
    """It is logged, and the file is released after it."""
    probe = Probe(Area(4096))
    probe.make = failing
    peer = serve(probe, backing=Backing())
    number = peer.lookup("probe").nodeid
    if end == "nobody":
        # The program was killed in its open: no RELEASE follows.
        peer.refuse = OSError(errno.ENOENT, "nobody waits")
        peer.send(FUSE_OPEN, number, fuse_open_in(flags=2))
        peer.refuse = None
        assert probe.take(5)[3:] == [("unmapped",), ("release",)]
    else:
        opened = peer.open_node(number)
        probe.take(3)
        if end == "release":
            release(peer, number, opened.fh)
            assert probe.take(2) == [("unmapped",), ("release",)]
        else:
            peer.session.close()
            assert probe.take(3) == [("unmapped",), ("release",), "close"]
    line, error = told.traceback()
    assert line == f"{failing.__name__}.unmapped raised PermissionError"
    assert isinstance(error, PermissionError)


def test_an_open_that_is_interrupted(serve: Serve) -> None:
    class Waiting(ProbeFile):
        async def mmap(self, request: MmapRequest) -> Area:
            waits.set()
            await asyncio.Event().wait()
            raise AssertionError

    waits = threading.Event()
    probe = Probe(Area(4096))
    probe.make = Waiting
    peer = serve(probe, backing=Backing())
    number = peer.lookup("probe").nodeid
    unique = peer.send(FUSE_OPEN, number, fuse_open_in(flags=2))
    assert waits.wait(WAIT_S)
    peer.send(FUSE_INTERRUPT, 0, fuse_interrupt_in(unique=unique))
    with pytest.raises(Failure) as caught:
        peer.answer(unique)
    assert caught.value.number == errno.EINTR
    assert [what[0] for what in probe.take(2)] == ["open", "release"]


def test_a_mapping_that_is_interrupted(serve: Serve) -> None:
    class Waiting(ProbeFile):
        async def mapped(self, mapping: Mapping) -> None:
            waits.set()
            await asyncio.Event().wait()

    waits = threading.Event()
    probe, backing = Probe(Area(4096)), Backing()
    probe.make = Waiting
    peer = serve(probe, backing=backing)
    number = peer.lookup("probe").nodeid
    unique = peer.send(FUSE_OPEN, number, fuse_open_in(flags=2))
    assert waits.wait(WAIT_S)
    peer.send(FUSE_INTERRUPT, 0, fuse_interrupt_in(unique=unique))
    with pytest.raises(Failure):
        peer.answer(unique)
    assert [what[0] for what in probe.take(4)] == ["open", "mmap", "unmapped", "release"]
    assert (backing.open, peer.getattr(number).attr.size) == ({}, 0)


def test_what_is_opened_as_the_session_ends(serve: Serve) -> None:
    class Ending(ProbeFile):
        def mapped(self, mapping: Mapping) -> None:
            peer.session.close()

    probe = Probe(Area(4096))
    probe.make = Ending
    peer = serve(probe, backing=Backing())
    number = peer.lookup("probe").nodeid
    assert peer.refuses(FUSE_OPEN, number, fuse_open_in(flags=2)) == errno.ENODEV
    happened = [what if what == "close" else what[0] for what in probe.take(5)]
    assert happened == ["open", "mmap", "close", "unmapped", "release"]


def test_what_is_no_file(serve: Serve, told: Told) -> None:
    probe = Probe()
    probe.make = lambda: None  # type: ignore[assignment, return-value]
    peer = serve(probe)
    number = peer.lookup("probe").nodeid
    assert peer.refuses(FUSE_OPEN, number, fuse_open_in(flags=2)) == errno.EIO
    assert told.line() == "Probe.open returned None, not a File: EIO for the program"


class Made(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int32),)


class Sounds(ProbeFile):
    @ioctl(IOR("s", 1, ctypes.c_int), ctypes.c_int)
    def answer(self) -> int:
        return 42

    @ioctl(IOR("s", 2, Made), Made, descriptor="fd")
    def another(self, made: Made) -> File:
        raise AssertionError

    def poll(self, events: int) -> int:
        raise OSError(errno.ENOSYS, "no")

    def read(self, size: int, offset: int) -> bytes:
        raise OSError(errno.ENOSYS, "no")


def test_ioctl_poll_and_errors(serve: Serve, told: Told) -> None:
    probe = Probe()
    probe.make = Sounds
    peer = serve(probe)
    number = peer.lookup("probe").nodeid
    fh = peer.open_node(number).fh
    call = fuse_ioctl_in(fh=fh, cmd=IOR("s", 1, ctypes.c_int), out_size=4)
    assert peer.ask(FUSE_IOCTL, number, call)[-4:] == (42).to_bytes(4, sys.byteorder)
    call.cmd = IOR("s", 2, Made)
    for _ in range(2):
        assert peer.refuses(FUSE_IOCTL, number, call) == errno.EOPNOTSUPP
    assert told.line() == (
        "Sounds.another makes a file, which Linux's FUSE does not take: EOPNOTSUPP for the program"
    )
    # The kernel would not poll any node any more.
    polled = fuse_poll_out.unpack(peer.ask(FUSE_POLL, number, fuse_poll_in(fh=fh)))
    assert polled.revents == ALWAYS_READY
    assert peer.refuses(FUSE_READ, number, fuse_read_in(fh=fh, size=1)) == errno.ENOSYS


def test_seeking_for_data(serve: Serve) -> None:
    """All that programs can map is data."""
    probe = Probe(Area(4096), seekable=True)
    peer = serve(probe, backing=Backing())
    number = peer.lookup("probe").nodeid
    fh = peer.open_node(number).fh
    peer.getattr(number)
    asked = fuse_lseek_in(fh=fh, offset=100, whence=os.SEEK_DATA)
    assert fuse_lseek_out.unpack(peer.ask(FUSE_LSEEK, number, asked)).offset == 100
    asked.offset = 4096
    assert peer.refuses(FUSE_LSEEK, number, asked) == errno.ENXIO


def test_what_is_asked_of_the_kernel(serve: Serve) -> None:
    small, large = Probe(name="small", max_read=4096, max_write=8192), Probe(max_read=8192)
    peer = serve(small, large, backing=Backing())
    assert (peer.filesystem.max_read, peer.filesystem.max_write) == (4096, 8192)
    # An ioctl may bring 16 KiB.
    assert peer.session.request_size >= 1 << 15
    assert peer.session.has_backing
    out = FilesystemPeer(DeviceTree([Probe()])).init_filesystem()
    assert not out.flags2 << 32 & FUSE_DIRECT_IO_ALLOW_MMAP
    assert FilesystemPeer(Filesystem(Directory())).init_filesystem().flags2 << 32 & (
        FUSE_DIRECT_IO_ALLOW_MMAP
    )


def test_the_end_of_all_devices(serve: Serve, told: Told) -> None:
    class Broken(Probe):
        def close(self) -> None:
            raise ZeroDivisionError

    last = Probe()
    peer = serve(Broken(name="first"), last)
    peer.session.close()
    assert last.take(1) == ["close"]
    assert told.traceback()[0] == "Broken.close raised ZeroDivisionError"


def test_a_device_is_not_made_by_opening_it(told: Told) -> None:
    class Making(Directory):
        def create(self, name: str, mode: int) -> Any:
            return DeviceNode(Probe())

    peer = FilesystemPeer(Filesystem(Making()))
    peer.init_filesystem()
    with pytest.raises(Failure):
        peer.create("new")
    assert "not a RegularFile" in told.line()
    peer.session.close()
