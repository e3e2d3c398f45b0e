"""Devices on a FUSE mount of the real kernel, and programs that find, read and write them."""

import asyncio
import ctypes
import errno
import queue
import select
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from recuse import IO, IOR, Device, File, OpenRequest, ioctl
from recuse.channel import mount as mount_module
from recuse.channel.devcuse import Channel
from recuse.server.filesystem.device_tree import DeviceTree
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    fuse_in_header,
)
from tests.conftest import Needs

from .conftest import Serve
from .mounted import WAIT_S, Board, Plain, Program, run, shell


class Pair(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint32), ("place", ctypes.c_uint32))


# Names.


def test_a_device_is_a_file_below_directories(mount: Serve, directory: Path) -> None:
    mount(Board(name="snd/a/board", mode=0o640, uid=5, gid=6), Plain(name="snd/plain"))
    made = shell(directory, "find . -printf '%p %M %n %U %G %s\\n' | sort; stat -f -c %t .")
    assert made.stderr == b""
    assert made.stdout.decode().splitlines() == [
        ". drwxr-xr-x 3 0 0 0",
        "./snd drwxr-xr-x 3 0 0 0",
        "./snd/a drwxr-xr-x 2 0 0 0",
        "./snd/a/board -rw-r----- 1 5 6 0",
        "./snd/plain -rw-rw-rw- 1 0 0 0",
        "65735546",
    ]


def test_many_names_are_all_listed(mount: Serve, directory: Path) -> None:
    mount(*(Plain(name=f"{number}{'x' * 60}") for number in range(700)))
    made = shell(directory, "ls | wc -l")
    assert made.stdout.strip() == b"700"


def test_names_cannot_be_changed(mount: Serve, directory: Path) -> None:
    mount(Board())
    for command in ("touch other", "rm -f board", "mkdir d", "mv board other", "ln -s board s",
                    "chmod 600 board", "truncate -s 1 board"):  # fmt: skip
        made = shell(directory, command)
        assert made.returncode != 0
        assert b"not permitted" in made.stderr, command
    assert shell(directory, "cat other").stderr.endswith(b"No such file or directory\n")


@pytest.mark.parametrize("names", [("one", "one"), ("one", "one/two"), ("one/two", "one")])
def test_two_devices_that_cannot_both_have_their_names(
    names: tuple[str, str],
) -> None:
    with pytest.raises(ValueError, match="taken twice"):
        DeviceTree([Plain(name=name) for name in names])


def test_permissions(mount: Serve, directory: Path) -> None:
    mount(Board(name="mine", mode=0o600), Board(name="all"))
    made = shell(directory, "cat all mine", user=65534, group=65534)
    assert made.stderr == b"cat: mine: Permission denied\n"


# Reading, writing, ioctl.


def test_programs_read_and_write(mount: Serve, directory: Path) -> None:
    board = Board()
    mount(board)
    made = shell(directory, "printf hello > board && cat board && dd if=board bs=2 count=1")
    assert made.stdout == b"hellohe"
    assert ("write", b"hello", 0) in board.take(5)


def test_what_the_device_does_not_open(mount: Serve, directory: Path) -> None:
    class Refusing(Device):
        name = "refusing"

        def open(self, request: OpenRequest) -> File:
            raise OSError(errno.EBUSY, "one at a time")

    mount(Refusing())
    run(directory, 'fails(errno.EBUSY, os.open, "refusing", os.O_RDWR)')


def test_appending_is_writing(mount: Serve, directory: Path) -> None:
    """Without positions, whatever the kernel takes for the end."""
    plain = Plain()
    mount(plain)
    run(
        directory,
        """
file = os.open("plain", os.O_RDWR | os.O_APPEND)
os.write(file, b"one")
os.write(file, b"three")
""",
    )
    assert [plain.happened.get(timeout=WAIT_S)[1:] for _ in range(3)] == [(0,), (3, 0), (5, 0)]


def test_what_is_not_seekable_has_no_positions(mapping: Serve, directory: Path) -> None:
    board = Board(max_read=8192, max_write=4096)
    mapping(board)
    run(
        directory,
        """
file = os.open("board", os.O_RDWR)
os.read(file, 3)
os.pread(file, 3, 1 << 40)
os.read(file, 3)
os.lseek(file, 1000, os.SEEK_SET)
os.write(file, b"there")
os.close(file)
file = os.open("board", os.O_WRONLY | os.O_APPEND)
os.write(file, b"again")
os.write(file, bytes(5000))
""",
    )
    calls = [call for call in board.take(15) if call[0] in ("read", "write")]
    assert calls == [
        ("read", 3, 0),
        ("read", 3, 0),
        ("read", 3, 0),
        ("write", b"there", 0),
        ("write", b"again", 0),
        ("write", bytes(4096), 0),
        ("write", bytes(904), 0),
    ]


def test_what_is_seekable_has_positions(mapping: Serve, directory: Path) -> None:
    board = Board(seekable=True)
    mapping(board)
    run(
        directory,
        """
file = os.open("board", os.O_RDWR)
os.read(file, 3)
os.read(file, 3)
os.pwrite(file, b"there", 1000)
""",
    )
    calls = [call for call in board.take(7) if call[0] in ("read", "write")]
    assert calls == [("read", 3, 0), ("read", 3, 3), ("write", b"there", 1000)]


def test_without_an_area_one_thread_reads_while_another_writes(
    mount: Serve, directory: Path
) -> None:
    plain = Plain()
    mount(plain)
    code = """
import threading
file = os.open("plain", os.O_RDWR)
reader = threading.Thread(target=os.read, args=(file, 1))
reader.start()
sys.stdin.readline()
os.write(file, b"x")
reader.join()
"""
    with Program(directory, code) as program:
        assert plain.happened.get(timeout=WAIT_S) == ("open", 0)
        assert plain.happened.get(timeout=WAIT_S) == "read"
        program.go_on()
        assert plain.happened.get(timeout=WAIT_S) == ("write", 1, 0)
        plain.go_on.set()

        program.end()
        assert program.process.returncode == 0


def test_truncating_is_nothing_to_a_device(mount: Serve, directory: Path) -> None:
    plain = Plain()
    mount(plain)
    assert shell(directory, "printf x > plain; printf yy >> plain").stderr == b""
    assert [plain.happened.get(timeout=WAIT_S) for _ in range(4)] == [
        ("open", 0),
        ("write", 1, 0),
        ("open", 0),
        ("write", 2, 0),
    ]


def test_ioctl(mount: Serve, directory: Path) -> None:
    mount(Board())
    code = f"""
file = os.open("board", os.O_RDWR)
room = bytearray(4)
assert fcntl.ioctl(file, {IOR("b", 1, ctypes.c_int)}, room) == 0
assert int.from_bytes(room, sys.byteorder) == 42
fails(errno.ENOTTY, fcntl.ioctl, file, {IOR("b", 2, ctypes.c_int)}, room)
"""
    run(directory, code)


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (ioctl(IOR("t", 1, Pair), Pair)(lambda self, pair: None), False),
        (ioctl(IO("t", 2))(lambda self: 0), False),
        (ioctl(0x705, Pair, direction="r")(lambda self, pair: None), True),
        (ioctl(IOR("t", 1, Pair), Pair)(lambda self, pair, memory: None), True),
        (ioctl(IOR("t", 1, 0), bytes)(lambda self, memory: b""), True),
    ],
    ids=["told", "number", "untold", "memory", "bytes"],
)
def test_ioctls_that_use_other_memory_are_among_the_limits(
    request: pytest.FixtureRequest, handler: object, told: bool
) -> None:
    def limits(device: Device) -> list[str]:
        lines = DeviceTree([device]).limits("/there", True)
        return [line for line in lines if "(EIO)" in line]

    module = request.node.name
    files = type("Files", (File,), {"__module__": module, "handler": handler})
    Asked = type("Asked", (Plain,), {"__module__": module})  # noqa: N806
    lines = limits(Asked())
    assert bool(lines) == told
    del files  # of which the module would have kept hold
    if told:
        assert lines[0].startswith("/there/plain: ioctls that use memory")
    assert not limits(Plain())
    assert not limits(Asked(unrestricted=False))


def test_poll(mount: Serve, directory: Path) -> None:
    class Bell(Device):
        name = "bell"
        file = None

        def open(self, request: OpenRequest) -> File:
            self.file = BellFile()
            return self.file

    class BellFile(File):
        rung = False

        def poll(self, events: int) -> int:
            asked.put(events)
            return select.POLLIN if self.rung else 0

    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    bell = Bell()
    # One that has no poll must not end that of the others.
    mount(Plain(), bell)
    code = """
poll = select.poll()
poll.register(os.open("plain", os.O_RDWR))
assert poll.poll(0)[0][1] == select.POLLIN | select.POLLOUT
poll = select.poll()
poll.register(os.open("bell", os.O_RDWR), select.POLLIN)
assert poll.poll(0) == []
say("waiting")
[(_, events)] = poll.poll()
assert events == select.POLLIN
"""
    with Program(directory, code) as program:
        assert program.line() == "waiting"
        # That of poll(0), and that of the one that waits.
        for _ in range(2):
            asked.get(timeout=WAIT_S)
        assert bell.file is not None
        bell.file.rung = True
        bell.file.wake_pollers()
        program.end()
        assert program.process.returncode == 0


def test_a_signal_interrupts(
    mount: Serve, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Device):
        name = "slow"

        def open(self, request: OpenRequest) -> File:
            return SlowFile()

    class SlowFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            reading.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                loops.append(asyncio.get_running_loop())
                interrupted.set()
                await go_on.wait()
                raise
            return b""

    class Counting(Channel):
        def read(self, size: int) -> bytes | None:
            message = super().read(size)
            if message is not None:
                requests.append(fuse_in_header.unpack(message).opcode)
            return message

    monkeypatch.setattr(mount_module, "Channel", Counting)
    reading, interrupted = threading.Event(), threading.Event()
    go_on = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    requests: list[int] = []
    mount(Plain(), Slow())
    code = """
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
os.read(os.open("slow", os.O_RDWR), 1)
"""
    with Program(directory, code) as program:
        assert reading.wait(WAIT_S)
        program.process.send_signal(signal.SIGUSR1)
        assert interrupted.wait(WAIT_S)
        # That was all: it is not asked for again while others are served.
        for _ in range(3):
            assert shell(directory, "ls").stdout == b"plain\nslow\n"
        assert requests.count(FUSE_INTERRUPT) == 1
        loops[0].call_soon_threadsafe(go_on.set)
        program.end()
        assert program.process.returncode == 7


# The end.


def test_programs_that_wait_at_the_end(mount: Serve, directory: Path) -> None:
    plain = Plain()
    served = mount(plain)
    code = """
file = os.open("plain", os.O_RDWR)
try:
    os.read(file, 1)
except OSError as error:
    assert error.errno in (errno.ECONNABORTED, errno.ENOTCONN), error
else:
    raise AssertionError
fails(errno.ENOTCONN, os.read, file, 1)
"""
    with Program(directory, code) as program:
        assert plain.happened.get(timeout=WAIT_S)
        assert plain.happened.get(timeout=WAIT_S) == "read"
        served.close()
        program.end()
        assert program.process.returncode == 0
    plain.go_on.set()


def test_a_file_that_nobody_waits_for_is_released(
    mount: Serve, directory: Path, needs: Needs, caplog: pytest.LogCaptureFixture
) -> None:
    """Its open was under way when the connection ended."""

    class Slow(Device):
        name = "slow"

        def open(self, request: OpenRequest) -> File:
            happened.put("open")
            assert go_on.wait(WAIT_S)
            return Released()

    class Released(File):
        def release(self) -> None:
            happened.put("released")

    happened: queue.SimpleQueue[str] = queue.SimpleQueue()
    go_on = threading.Event()
    served = mount(Slow())
    code = """
try:
    os.open("slow", os.O_RDWR)
except OSError as error:
    assert error.errno in (errno.ECONNABORTED, errno.ENOTCONN), error
else:
    raise AssertionError
"""
    with Program(directory, code) as program:
        assert happened.get(timeout=WAIT_S) == "open"
        # Aborts the connection; the program keeps it mounted.
        subprocess.run(
            [needs("umount"), "-f", directory], check=False, capture_output=True, timeout=WAIT_S
        )
        program.end()
        assert program.process.returncode == 0
        go_on.set()
        assert happened.get(timeout=WAIT_S) == "released"
    assert served.join(WAIT_S)
    assert caplog.text == ""
