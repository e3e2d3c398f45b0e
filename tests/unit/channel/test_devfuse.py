"""Devices on a FUSE mount of the real kernel, and programs that read, write and map them.

Programs are other processes: this one serves, and must not wait for itself.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from recuse import IOR, Area, Device, File, current_request, ioctl
from recuse.channel import devfuse
from recuse.channel.devcuse import Channel, KernelError
from recuse.channel.devfuse import DevFuse
from recuse.wire.filesystem import FUSE_DEV_IOC_BACKING_OPEN
from recuse.wire.fuse import (
    FUSE_INIT,
    FUSE_INIT_EXT,
    FUSE_PASSTHROUGH,
    fuse_in_header,
    fuse_init_in,
)

WAIT_S = 20
IN = fuse_in_header.SIZE


class Board(Device):
    """A text that all its files share, by read, write and mmap."""

    name = "board"

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.area = Area(65536)
        self.happened = queue.SimpleQueue()

    def open(self, request):
        return BoardFile()

    def take(self, count):
        return [self.happened.get(timeout=WAIT_S) for _ in range(count)]


class BoardFile(File):
    finished = False

    def read(self, size, offset):
        self.device.happened.put(("read", size, offset))
        if self.finished:
            return b""
        self.finished = True
        return bytes(self.device.area[:5])[:size]

    def write(self, data, offset):
        self.device.happened.put(("write", data, offset))
        self.device.area[: len(data)] = data

    def mmap(self, request):
        self.device.happened.put(("mmap", request.size, request.protection))
        return self.device.area

    def mapped(self, mapping):
        assert mapping.area is self.device.area
        self.device.happened.put(("mapped", current_request().operation))

    def unmapped(self, mapping):
        assert mapping.area is self.device.area
        self.device.happened.put(("unmapped", current_request().operation))

    def release(self):
        self.device.happened.put("release")

    @ioctl(IOR("b", 1, ctypes.c_int), ctypes.c_int)
    def answer(self):
        return 42


class Plain(Device):
    """Has no areas, and no poll."""

    name = "plain"

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.happened = queue.SimpleQueue()
        self.go_on = threading.Event()

    def open(self, request):
        self.happened.put(("open", request.flags & os.O_TRUNC))
        return PlainFile()


class PlainFile(File):
    def read(self, size, offset):
        self.device.happened.put("read")
        assert self.device.go_on.wait(WAIT_S)
        return b""

    def write(self, data, offset):
        self.device.happened.put(("write", len(data), offset))


@pytest.fixture
def directory():
    # Not in pytest's, which others may not enter.
    with tempfile.TemporaryDirectory(prefix="recuse-") as parent:
        os.chmod(parent, 0o755)
        made = Path(parent, "mount")
        made.mkdir()
        yield made


@pytest.fixture
def mount(needs, directory):
    """Serve devices at `directory` until the end of the test."""
    needs("/dev/fuse")
    if os.geteuid():
        pytest.skip("only root may mount")
    with contextlib.ExitStack() as stack:

        def serve(*devices):
            made = DevFuse(devices, str(directory))
            stack.callback(made.close)
            try:
                made.start()
            except KernelError as error:
                pytest.skip(str(error))
            return made

        yield serve
    for thread in threading.enumerate():
        if thread.name.startswith("recuse mount"):
            thread.join(WAIT_S)  # they refer to devices, and these to areas
    assert not os.path.ismount(directory)
    assert list(directory.iterdir()) == []


@pytest.fixture
def mapping(mount):
    """The same, for devices that are to be mapped."""

    def serve(*devices):
        made = mount(*devices)
        if not made.maps:
            pytest.skip("this kernel has no FUSE passthrough")
        return made

    return serve


PRELUDE = """
import errno, fcntl, mmap, os, select, signal, sys
def fails(number, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError("did not fail")
def say(what):
    print(what, flush=True)
"""


class Program:
    """A Python program in `directory`; it says something, and waits to be told to go on."""

    def __init__(self, directory, code, **options):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        self._alarm = threading.Timer(WAIT_S, self.process.kill)
        self._alarm.start()

    def line(self):
        return self.process.stdout.readline().decode().rstrip("\n")

    def go_on(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self):
        with self.process:
            output, _ = self.process.communicate()
            self._alarm.cancel()
        return output.decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.end()


def run(directory, code, **options):
    with Program(directory, code, **options) as program:
        output = program.end()
        assert program.process.returncode == 0
    return output


def shell(directory, command, **options):
    return subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
        **options,
    )


# Names.


def test_a_device_is_a_file_below_directories(mount, directory):
    mount(Board(name="snd/a/board", mode=0o640, uid=5, gid=6), Plain(name="snd/plain"))
    made = shell(directory, "find . -printf '%p %M %U %G %s %i\\n' | sort; stat -f -c %t .")
    assert made.stderr == b""
    assert made.stdout.decode().splitlines() == [
        ". drwxr-xr-x 0 0 0 1",
        "./snd drwxr-xr-x 0 0 0 2",
        "./snd/a drwxr-xr-x 0 0 0 3",
        "./snd/a/board -rw-r----- 5 6 0 4",
        "./snd/plain -rw-rw-rw- 0 0 0 5",
        "65735546",
    ]


def test_many_names_are_all_listed(mount, directory):
    mount(*(Plain(name=f"{number}{'x' * 60}") for number in range(300)))
    made = shell(directory, "ls | wc -l")
    assert made.stdout.strip() == b"300"


def test_names_cannot_be_changed(mount, directory):
    mount(Board())
    for command in ("touch other", "rm -f board", "mkdir d", "mv board other", "ln -s board s",
                    "chmod 600 board", "truncate -s 1 board"):  # fmt: skip
        made = shell(directory, command)
        assert made.returncode != 0
        assert b"not permitted" in made.stderr, command
    assert shell(directory, "cat other").stderr.endswith(b"No such file or directory\n")


@pytest.mark.parametrize("names", [("one", "one"), ("one", "one/two"), ("one/two", "one")])
def test_two_devices_that_cannot_both_have_their_names(names, directory):
    with pytest.raises(ValueError, match="taken twice"):
        DevFuse([Plain(name=name) for name in names], str(directory))


def test_permissions(mount, directory):
    mount(Board(name="mine", mode=0o600), Board(name="all"))
    made = shell(directory, "cat all mine", user=65534, group=65534)
    assert made.stderr == b"cat: mine: Permission denied\n"


# Reading, writing, ioctl.


def test_programs_read_and_write(mount, directory):
    board = Board()
    mount(board)
    made = shell(directory, "printf hello > board && cat board && dd if=board bs=2 count=1")
    assert made.stdout == b"hellohe"
    assert ("write", b"hello", 0) in board.take(5)


def test_what_is_not_seekable_has_no_positions(mapping, directory):
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


def test_what_is_seekable_has_positions(mapping, directory):
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


def test_without_an_area_one_thread_reads_while_another_writes(mount, directory):
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


def test_truncating_is_nothing_to_a_device(mount, directory):
    plain = Plain()
    mount(plain)
    assert shell(directory, "printf x > plain; printf yy >> plain").stderr == b""
    assert [plain.happened.get(timeout=WAIT_S) for _ in range(4)] == [
        ("open", 0),
        ("write", 1, 0),
        ("open", 0),
        ("write", 2, 0),
    ]


def test_ioctl(mount, directory):
    mount(Board())
    code = f"""
file = os.open("board", os.O_RDWR)
room = bytearray(4)
assert fcntl.ioctl(file, {IOR("b", 1, ctypes.c_int)}, room) == 0
assert int.from_bytes(room, sys.byteorder) == 42
fails(errno.ENOTTY, fcntl.ioctl, file, {IOR("b", 2, ctypes.c_int)}, room)
"""
    run(directory, code)


def test_poll(mount, directory):
    class Bell(Device):
        name = "bell"
        file = None

        def open(self, request):
            self.file = BellFile()
            return self.file

    class BellFile(File):
        rung = False

        def poll(self, events):
            asked.put(events)
            return select.POLLIN if self.rung else 0

    asked = queue.SimpleQueue()
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
        bell.file.rung = True
        bell.file.wake_pollers()
        program.end()
        assert program.process.returncode == 0


def test_a_signal_interrupts(mount, directory):
    class Slow(Device):
        name = "slow"

        def open(self, request):
            return SlowFile()

    class SlowFile(File):
        async def read(self, size, offset):
            reading.set()
            await asyncio.Event().wait()

    reading = threading.Event()
    mount(Plain(), Slow())
    code = """
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
os.read(os.open("slow", os.O_RDWR), 1)
"""
    with Program(directory, code) as program:
        assert reading.wait(WAIT_S)
        program.process.send_signal(signal.SIGUSR1)
        program.end()
        assert program.process.returncode == 7


# Mapping.


def test_a_program_and_the_device_share_memory(mapping, directory):
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
        ("mapped", "mmap_commit"),
        ("read", 5, 0),
        ("write", b"finis", 0),
        ("unmapped", "munmap"),
        "release",
    ]


def test_programs_share_memory(mapping, directory):
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
"""
    with Program(directory, writer) as program:
        assert program.line() == "written"
        run(directory, reader)
        program.go_on()
        assert program.end() == "then\n"


def test_a_mapping_outlives_its_file_and_the_mount(mapping, directory):
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
fails(errno.ENOTCONN, os.fstat, file)
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


def test_the_device_resizes_what_is_mapped(mapping, directory):
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


class Pads(Device):
    """Each file has an area of its own, or none."""

    name = "pads"
    refuses = False

    def open(self, request):
        return PadFile()


class PadFile(File):
    def mmap(self, request):
        if self.device.refuses:
            raise OSError(errno.EACCES, "not now")
        return Area(request.size)

    def mapped(self, mapping):
        mapping.area[:3] = b"new"


def test_an_area_for_each_file_is_for_one_at_a_time(mapping, directory, caplog):
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


def test_a_file_without_an_area(mapping, directory, caplog):
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


def test_a_device_that_refuses_the_mapping(mapping, directory):
    class Refusing(PadFile):
        def mapped(self, mapping):
            raise OSError(errno.EACCES, "no")

        def unmapped(self, mapping):
            happened.put("unmapped")

        def release(self):
            happened.put("release")

    happened = queue.SimpleQueue()
    pads = Pads()
    pads.open = lambda _: Refusing()
    mapping(pads)
    run(directory, 'os.open("pads", os.O_RDWR)')
    assert [happened.get(timeout=WAIT_S) for _ in range(2)] == ["unmapped", "release"]


def test_async_methods(mapping, directory):
    class Async(File):
        async def mmap(self, request):
            return area

        async def mapped(self, mapping):
            area[0] = 1

        async def unmapped(self, mapping):
            happened.put("unmapped")

        async def release(self):
            happened.put("release")

    class Slow(Device):
        name = "async"

        async def open(self, request):
            return Async()

    area = Area(4096)
    happened = queue.SimpleQueue()
    mapping(Slow())
    run(directory, 'assert mmap.mmap(os.open("async", os.O_RDWR), 4096)[0] == 1')
    assert [happened.get(timeout=WAIT_S) for _ in range(2)] == ["unmapped", "release"]


def test_a_thousand_opens_leak_nothing(mapping, directory):
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
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# What cannot be had.


class Channels:
    """Makes channels that change what they read, and refuse ioctls."""

    def __init__(self, monkeypatch, minor=None, without=0, refuse=None):
        class Changed(Channel):
            def read(self, size):
                message = super().read(size)
                if message is not None and fuse_in_header.unpack(message).opcode == FUSE_INIT:
                    offer = fuse_init_in.unpack(message, IN)
                    offer.minor = minor or offer.minor
                    offer.flags &= ~without & 0xFFFFFFFF
                    offer.flags2 &= ~(without >> 32)
                    message = message[:IN] + offer.pack()
                return message

            def ioctl(self, command, argument):
                if refuse is not None and command == FUSE_DEV_IOC_BACKING_OPEN:
                    raise OSError(refuse, os.strerror(refuse))
                return super().ioctl(command, argument)

        monkeypatch.setattr(devfuse, "Channel", Changed)


@pytest.mark.parametrize("flag", [FUSE_PASSTHROUGH, FUSE_INIT_EXT])
def test_a_kernel_without_passthrough(mount, directory, monkeypatch, flag):
    Channels(monkeypatch, minor=38, without=flag)
    served = mount(Board())
    assert not served.maps
    [limit] = served.limits()
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


def test_a_kernel_that_does_not_take_the_memory(mapping, directory, monkeypatch, caplog):
    Channels(monkeypatch, refuse=errno.EPERM)
    board = Board()
    mapping(board)
    for _ in range(2):
        run(directory, 'assert os.read(os.open("board", os.O_RDWR), 1)')
    assert board.take(5) == [
        ("mmap", 4096, 3),
        ("unmapped", "mmap_commit"),
        ("read", 1, 0),
        "release",
        ("mmap", 4096, 3),
    ]
    [record] = caplog.records
    assert record.getMessage().startswith("board: the kernel does not take the device's memory")


def test_a_kernel_that_is_too_old(mount, directory, monkeypatch):
    Channels(monkeypatch, minor=30)
    made = DevFuse([Board()], str(directory))
    try:
        with pytest.raises(KernelError, match=r"it speaks 7\.30, this is for 7\.31 and later"):
            made.start()
    finally:
        made.close()
    assert not os.path.ismount(directory)


def test_directories_that_will_not_do(needs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name, message in (
        ("full", "not empty; a mount would hide what is there"),
        ("full/file", "not a directory"),
        ("none", "No such file or directory"),
    ):
        made = DevFuse([Board()], str(tmp_path / name))
        with pytest.raises(KernelError, match=message):
            made.start()
        made.close()


# The end.


def test_unmounted_by_somebody_else(mount, directory, needs):
    ended = threading.Event()
    mount(Board())  # skips where it cannot be
    path = Path(f"{directory}-two")
    path.mkdir()
    made = DevFuse([Board()], str(path), ended.set)
    made.start()
    try:
        subprocess.run([needs("umount"), path], check=True, timeout=WAIT_S)
        assert ended.wait(WAIT_S)
        assert made.join(WAIT_S)
        # What is mounted there next is not ours.
        subprocess.run([needs("mount"), "-t", "tmpfs", "none", path], check=True, timeout=WAIT_S)
    finally:
        made.close()
        assert os.path.ismount(path)
        subprocess.run([needs("umount"), path], check=True, timeout=WAIT_S)


def test_programs_that_wait_at_the_end(mount, directory):
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
