"""Programs that map devices on a FUSE mount of the real kernel, and where that cannot be had."""

import contextlib
import errno
import os
import queue
from pathlib import Path

import pytest

from recuse import Area, Device, File, Mapping, MmapRequest, OpenRequest
from recuse.channel import mount as mount_module
from recuse.channel.devcuse import Channel
from recuse.server.filesystem.device_tree import DeviceTree
from recuse.wire.filesystem import FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN
from recuse.wire.fuse import (
    FUSE_INIT,
    FUSE_INIT_EXT,
    FUSE_PASSTHROUGH,
    fuse_in_header,
    fuse_init_in,
)

from .conftest import Serve
from .mounted import WAIT_S, Board, Program, run

IN = fuse_in_header.SIZE


def test_a_program_and_the_device_share_memory(mapping: Serve, directory: Path) -> None:
    board = Board()
    mapping(board)
    board.area[:5] = b"hello"
    code = """
file = os.open("board", os.O_RDWR)
assert os.fstat(file).st_size == 65536
memory = mmap.mmap(file, 65536)
assert memory[:5] == os.read(file, 5) == b"hello"
memory[:5] = b"there"
memory[65535] = 7
say("written")
sys.stdin.readline()
assert memory[:5] == b"again"
os.write(file, b"finis")
assert memory[:5] == b"finis"
os.close(file)
"""
    with Program(directory, code) as program:
        assert program.line() == "written"
        assert bytes(board.area[:5]) == b"there"
        assert board.area[65535] == 7
        board.area[:5] = b"again"
        program.go_on()
        program.end()
        assert program.process.returncode == 0
    assert board.take(6) == [
        ("mmap", 4096, 3),
        ("mapped", "open"),
        ("read", 5, 0),
        ("write", b"finis", 0),
        ("unmapped", "release"),
        "release",
    ]


def test_programs_share_memory(mapping: Serve, directory: Path) -> None:
    mapping(Board())
    writer = """
memory = mmap.mmap(os.open("board", os.O_RDWR), 4096)
memory[:4] = b"word"
say("written")
sys.stdin.readline()
say(memory[:4].decode())
"""
    reader = """
file = os.open("board", os.O_RDONLY)
fails(errno.EACCES, mmap.mmap, file, 4096)
memory = mmap.mmap(file, 8192, prot=mmap.PROT_READ, offset=0)
assert memory[:4] == b"word"
private = mmap.mmap(os.open("board", os.O_RDONLY), 4096, access=mmap.ACCESS_COPY)
private[:4] = b"mine"
assert memory[:4] == b"word"
other = mmap.mmap(os.open("board", os.O_RDWR), 4096)
other[:4] = b"then"
fails(errno.EACCES, mmap.mmap, os.open("board", os.O_WRONLY), 4096)
fails(errno.EPERM, lambda: mmap.mmap(file, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
"""
    with Program(directory, writer) as program:
        assert program.line() == "written"
        run(directory, reader)
        program.go_on()
        assert program.end() == "then\n"


def test_a_mapping_outlives_its_file_and_the_mount(mapping: Serve, directory: Path) -> None:
    board = Board()
    served = mapping(board)
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
file = os.open("board", os.O_RDWR)
address = libc.mmap(None, 4096, 3, mmap.MAP_SHARED, file, 0)
assert address != ctypes.c_void_p(-1).value
os.close(file)
file = os.open(".", os.O_RDONLY)
say("closed")
sys.stdin.readline()
fails(errno.ENOTCONN, os.listdir, file)
ctypes.memmove(address, b"after", 5)
"""
    with Program(directory, code) as program:
        assert program.line() == "closed"
        # close(2) does not wait for it.
        assert board.take(4)[-1] == "release"
        served.close()
        assert not os.path.ismount(directory)
        program.go_on()
        program.end()
        assert program.process.returncode == 0
    assert bytes(board.area[:5]) == b"after"


def test_the_device_resizes_what_is_mapped(mapping: Serve, directory: Path) -> None:
    board = Board()
    mapping(board)
    code = """
file = os.open("board", os.O_RDWR)
say("open")
sys.stdin.readline()
assert os.fstat(file).st_size == 1 << 20
memory = mmap.mmap(file, 1 << 20)
memory[-1] = 1
"""
    with Program(directory, code) as program:
        assert program.line() == "open"
        board.area.resize(1 << 20)
        program.go_on()
        program.end()
        assert program.process.returncode == 0
    assert board.area[-1] == 1


def test_what_an_area_is_asked_for(mapping: Serve, directory: Path) -> None:
    board = Board(map_length=5000)
    mapping(board)
    for flags in ("O_RDONLY", "O_WRONLY", "O_RDWR"):
        run(directory, f'os.open("board", os.{flags})')
    asked = [happened for happened in board.take(12) if happened[0] == "mmap"]
    assert asked == [("mmap", 8192, 1), ("mmap", 8192, 2), ("mmap", 8192, 3)]


class Pads(Device):
    """Each file has an area of its own, or none."""

    name = "pads"
    refuses = False

    def open(self, request: OpenRequest) -> File:
        return PadFile()


class PadFile(File):
    device: Pads

    def mmap(self, request: MmapRequest) -> Area:
        if self.device.refuses:
            raise OSError(errno.EACCES, "not now")
        return Area(request.size)

    def mapped(self, mapping: Mapping) -> None:
        mapping.area[:3] = b"new"


def test_an_area_for_each_file_is_for_one_at_a_time(
    mapping: Serve,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = []
    monkeypatch.setattr(PadFile, "release", lambda _: released.append(1))
    mapping(Pads())
    code = """
file = os.open("pads", os.O_RDWR)
memory = mmap.mmap(file, 4096)
assert memory[:3] == b"new"
memory[:3] = b"old"
for flags in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY):
    fails(errno.EBUSY, os.open, "pads", flags)
memory.close()
os.close(file)
memory = mmap.mmap(os.open("pads", os.O_RDWR), 4096)
assert memory[:3] == b"new"
"""
    for _ in range(3):
        run(directory, code)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "pads: the kernel has one area for all files that are open: a file that has another one "
        "cannot be opened meanwhile (EBUSY)"
    ]
    assert len(released) >= 3 * 3  # those that were refused, at once


def test_a_file_without_an_area(
    mapping: Serve, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pads = Pads()
    mapping(pads)
    code = """
file = os.open("pads", os.O_RDWR)
if mode != "no":
    mmap.mmap(file, 4096)
else:
    # Python itself asks for the size first.
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mmap(0, 4096, 3, mmap.MAP_SHARED, file, 0) == -1
    assert ctypes.get_errno() == errno.ENODEV
say("open")
sys.stdin.readline()
"""
    pads.refuses = True
    with Program(directory, 'mode = "no"' + code) as first:
        assert first.line() == "open"
        pads.refuses = False
        # The other way round it is no harm.
        with Program(directory, 'mode = "yes"' + code) as second:
            assert second.line() == "open"
            pads.refuses = True
            run(directory, 'fails(errno.EBUSY, os.open, "pads", os.O_RDWR)')
            for program in (first, second):
                program.go_on()
                program.end()
                assert program.process.returncode == 0
    assert "a file that has none cannot be opened meanwhile" in caplog.text


def test_a_device_that_refuses_the_mapping(mapping: Serve, directory: Path) -> None:
    class Refusing(PadFile):
        def mapped(self, mapping: Mapping) -> None:
            raise OSError(errno.EACCES, "no")

        def unmapped(self, mapping: Mapping) -> None:
            happened.put("unmapped")

        def release(self) -> None:
            happened.put("release")

    happened: queue.SimpleQueue[str] = queue.SimpleQueue()
    pads = Pads()
    pads.open = lambda request: Refusing()  # type: ignore[method-assign]  # of this device only
    mapping(pads)
    run(directory, 'os.open("pads", os.O_RDWR)')
    assert [happened.get(timeout=WAIT_S) for _ in range(2)] == ["unmapped", "release"]


def test_async_methods(mapping: Serve, directory: Path) -> None:
    class Async(File):
        async def mmap(self, request: MmapRequest) -> Area:
            return area

        async def mapped(self, mapping: Mapping) -> None:
            area[0] = 1

        async def unmapped(self, mapping: Mapping) -> None:
            happened.put("unmapped")

        async def release(self) -> None:
            happened.put("release")

    class Slow(Device):
        name = "async"

        async def open(self, request: OpenRequest) -> File:
            return Async()

    area = Area(4096)
    happened: queue.SimpleQueue[str] = queue.SimpleQueue()
    mapping(Slow())
    run(directory, 'assert mmap.mmap(os.open("async", os.O_RDWR), 4096)[0] == 1')
    assert [happened.get(timeout=WAIT_S) for _ in range(2)] == ["unmapped", "release"]


def test_a_thousand_opens_leak_nothing(mapping: Serve, directory: Path) -> None:
    pads = Pads()
    mapping(pads)
    before = len(os.listdir("/proc/self/fd"))
    run(
        directory,
        """
for _ in range(1000):
    while True:
        try:
            file = os.open("pads", os.O_RDWR)
            break
        except OSError as error:  # the last RELEASE is on its way
            assert error.errno == errno.EBUSY
    memory = mmap.mmap(file, 4096)
    memory.close()
    os.close(file)
os.close(os.open("pads", os.O_RDONLY))
""",
    )
    # The last ones may be on their way.
    assert len(os.listdir("/proc/self/fd")) <= before + 10


def test_backing_files_are_given_back(
    mapping: Serve, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = Channels(monkeypatch)
    board = Board()
    mapping(board)
    for _ in range(3):
        run(directory, 'files = [os.open("board", os.O_RDWR) for _ in range(2)]')
        assert board.take(8).count("release") == 2
    commands = [command for command, _ in channels.ioctls]
    assert commands == [FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE] * 3
    assert all(result > 0 for _, result in channels.ioctls[::2])
    assert all(result == 0 for _, result in channels.ioctls[1::2])


def test_many_programs_open_and_close_at_once(mapping: Serve, directory: Path) -> None:
    board = Board()
    mapping(board)
    code = """
for number in range(300):
    file = os.open("board", (os.O_RDWR, os.O_RDONLY, os.O_WRONLY)[number % 3])
    if number % 3 == 0:
        mmap.mmap(file, 4096).close()
    os.close(file)
"""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(directory, code)) for _ in range(4)]
        for program in programs:
            program.end()
            assert program.process.returncode == 0
    happened = board.take(4 * 300 * 4)
    for what in (("mapped", "open"), ("unmapped", "release"), "release"):
        assert happened.count(what) == 4 * 300


# What cannot be had.


class Channels:
    """Makes channels that change what they read, and refuse ioctls."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        minor: int | None = None,
        without: int = 0,
        refuse: int | None = None,
    ) -> None:
        ioctls: list[tuple[int, int]] = []
        self.ioctls = ioctls

        class Changed(Channel):
            def read(self, size: int) -> bytes | None:
                message = super().read(size)
                if message is not None and fuse_in_header.unpack(message).opcode == FUSE_INIT:
                    offer = fuse_init_in.unpack(message, IN)
                    offer.minor = minor or offer.minor
                    offer.flags &= ~without & 0xFFFFFFFF
                    offer.flags2 &= ~(without >> 32)
                    message = message[:IN] + offer.pack()
                return message

            def ioctl(self, command: int, argument: bytearray) -> int:
                if refuse is not None and command == FUSE_DEV_IOC_BACKING_OPEN:
                    raise OSError(refuse, os.strerror(refuse))
                ioctls.append((command, result := super().ioctl(command, argument)))
                return result

        monkeypatch.setattr(mount_module, "Channel", Changed)


@pytest.mark.parametrize("flag", [FUSE_PASSTHROUGH, FUSE_INIT_EXT])
def test_a_kernel_without_passthrough(
    mount: Serve, directory: Path, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    Channels(monkeypatch, minor=38, without=flag)
    board = Board()
    served = mount(board)
    assert not served.has_backing
    [limit] = DeviceTree([board]).limits("/there", served.has_backing)
    assert "cannot map these files (ENODEV): this kernel has no FUSE passthrough" in limit
    run(
        directory,
        """
import ctypes
file = os.open("board", os.O_RDWR)
os.write(file, b"hello")
assert os.read(file, 5) == b"hello"
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mmap(0, 4096, 3, mmap.MAP_SHARED, file, 0) == -1
assert ctypes.get_errno() == errno.ENODEV
""",
    )
    # It is not asked for memory that nobody can have.
    assert [what[0] for what in board.take(2)] == ["write", "read"]


def test_a_kernel_that_does_not_take_the_memory(
    mapping: Serve,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Channels(monkeypatch, refuse=errno.EPERM)
    board = Board()
    mapping(board)
    for _ in range(2):
        run(directory, 'assert os.read(os.open("board", os.O_RDWR), 1)')
    # It is not asked again for memory that nobody can have.
    assert board.take(6) == [
        ("mmap", 4096, 3),
        ("unmapped", "open"),
        *[("read", 1, 0), "release"] * 2,
    ]
    [record] = caplog.records
    assert record.getMessage().startswith("board: the kernel does not take the device's memory")
