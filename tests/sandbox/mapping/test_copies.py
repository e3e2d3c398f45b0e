"""Private mappings of devices that share no memory: copies of what is read of them."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recuse import Area, Device, File, MmapRequest, OpenRequest, current_request
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.sandbox import Sandbox
from recuse.sandbox.mapping import snapshots as copies
from recuse.sandbox.mapping.memory_maps import MemoryMaps

from ...patience import PATIENCE_S
from .mapped import (
    FIXED,
    LOCKED,
    MAYMOVE,
    PAGE,
    POPULATE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    run_client,
)

CONTENT = bytes(i * 7 % 251 for i in range(4 * PAGE + 100))

Run = Callable[..., str]


class StoreFile(File):
    """Reads and writes the device's bytes."""

    device: Store

    def read(self, size: int, offset: int) -> bytes:
        self.device.reads.append((offset, size))
        return self.device.data[offset : offset + size]

    def write(self, data: bytes, offset: int) -> None:
        store = self.device
        store.data = store.data[:offset] + data + store.data[offset + len(data) :]

    def release(self) -> None:
        with self.device.changed:
            self.device.released += 1
            self.device.changed.notify_all()


class Store(Device):
    """Has some bytes, at positions, and no memory to share."""

    name = "store"
    seekable = True
    file: type[File] = StoreFile

    def __init__(self, data: bytes = CONTENT, **options: Any) -> None:
        super().__init__(**options)
        self.data = data
        self.reads: list[tuple[int, int]] = []
        self.released = 0
        self.changed = threading.Condition()

    def open(self, request: OpenRequest) -> File:
        return self.file()

    def wait_released(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.released >= number, PATIENCE_S)


@pytest.fixture
def store() -> Store:
    """A device of four pages and a bit."""
    return Store()


def left(sandbox: Sandbox) -> int:
    """How many bytes of copies a sandbox still has."""
    return sandbox._machine.memory_maps.snapshots.size  # type: ignore[union-attr]


def run(sandbox: Sandbox | None, program: str, path: str, commands: str, flags: int = 0) -> str:
    """Run the C client's commands; return what it prints."""
    return run_client(sandbox, [program, path, str(flags), "0"], commands)


COMMANDS = f"""
map 0 7 {RW} {PRIVATE} 0
look 0
fill 3 9
map 1 3 {RW} {PRIVATE} 2
look 1
reserve 2 3
map 2 2 {RW} {PRIVATE | FIXED} 1
look 2
fill 2 50
look 2
look 0
fork 2 90
look 2
protect 1 {READ}
look 1
remap 1 1 {MAYMOVE}
look 1
unmap 0 0 1
advise 0 9
advise 2 4
look 2
vfork
map 3 2 {READ} {PRIVATE | POPULATE} 4
look 3
map 3 2 {READ} {PRIVATE | LOCKED} 5
look 3
raw 0 0 0 {READ} {PRIVATE}
raw 0 1 100 {READ} {PRIVATE}
raw 0 100 4096 {READ} {PRIVATE | FIXED}
raw 0 0 9000 {READ} {PRIVATE | 0x4000}
raw 0 0 4096 0 {PRIVATE}
drop
"""


@pytest.fixture(params=["dynamic", "static", "32-bit"])
def program(request: pytest.FixtureRequest, needs: Any, compiled: Callable[..., str]) -> str:
    """The C client, in three ways."""
    needs("gcc")
    if request.param == "32-bit":
        needs("/usr/include/asm", package="gcc-multilib")
        return compiled("mapping", "-m32", "-D_FILE_OFFSET_BITS=64")
    return compiled("mapping", *(["-static"] if request.param == "static" else []))


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_as_a_regular_file(store: Store, program: str, tmp_path: Path, flags: int) -> None:
    """What is there, what is not, and what becomes of it: the same as natively."""
    regular = tmp_path / "regular"
    regular.write_bytes(CONTENT)
    with Sandbox(store) as sandbox:
        ours = run(sandbox, program, "/dev/store", COMMANDS, flags)
        store.wait_released(1)
        assert not left(sandbox)
    native = run(None, program, str(regular), COMMANDS, flags)
    assert ours.splitlines() == native.splitlines()
    assert "!7" in ours
    assert store.data == CONTENT


def test_every_byte_and_the_rest_of_the_last_page(
    store: Store, clients: Callable[..., Run]
) -> None:
    script = """
import hashlib
fd = os.open("/dev/store", os.O_RDONLY)
before = os.listdir("/proc/self/fd")
os.lseek(fd, 33, 0)
for size, offset in (5 * 4096, 0), (2 * 4096, 3 * 4096), (100, 4096):
    memory = mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=offset)
    print(hashlib.sha256(memory).hexdigest())
    memory.close()
print(os.lseek(fd, 0, 1), os.listdir("/proc/self/fd") == before)
"""
    padded = CONTENT + bytes(PAGE - 100)
    parts = (padded, padded[3 * PAGE : 5 * PAGE], padded[PAGE : PAGE + 100])
    with Sandbox(store) as sandbox:
        output = clients(sandbox)(script).splitlines()
    assert output == [*(hashlib.sha256(part).hexdigest() for part in parts), "33 True"]
    # Whole pages, and nothing after the end.
    assert store.reads == [(0, 5 * PAGE), (3 * PAGE, 2 * PAGE), (PAGE, PAGE)]


def test_long_ones_are_read_in_pieces(clients: Callable[..., Run]) -> None:
    data = os.urandom(1 << 20)
    store = Store(data, max_read=100000)
    script = """
import hashlib
fd = os.open("/dev/store", os.O_RDWR)
print(hashlib.sha256(mmap.mmap(fd, 1 << 20, mmap.MAP_PRIVATE)).hexdigest())
"""
    with Sandbox(store) as sandbox:
        assert clients(sandbox)(script) == hashlib.sha256(data).hexdigest() + "\n"
    assert [size for _, size in store.reads] == [100000] * 10 + [(1 << 20) - 1000000]


def test_it_is_a_copy(store: Store, clients: Callable[..., Run]) -> None:
    """Of that moment: neither side hears of what the other one writes."""
    script = """
fd = os.open("/dev/store", os.O_RDWR)
old = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE)
os.pwrite(fd, b"new", 0)
old[3] = 99
new = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE)
print(old[:4], new[:4])
"""
    with Sandbox(store) as sandbox:
        assert clients(sandbox)(script) == f"{CONTENT[:3] + b'c'!r} {b'new' + CONTENT[3:4]!r}\n"
    assert store.data == b"new" + CONTENT[3:]


class NoMemoryFile(StoreFile):
    """Says by itself that it has no memory."""

    number = errno.ENOSYS

    def mmap(self, request: MmapRequest) -> Area:
        raise OSError(self.number, "no memory")


def test_only_what_has_positions_and_no_memory_is_copied(
    store: Store, client: str, make_echo: type[Device]
) -> None:
    """Reading a stream would take from it; and a device's own refusal stands."""
    echo = make_echo()
    echo.data += b"precious"  # type: ignore[attr-defined]
    commands = f"raw 0 0 4096 {READ} {SHARED}\nraw 0 0 4096 {READ} {PRIVATE}"
    refusing = Store(name="refusing")
    refusing.file = type("Refusing", (NoMemoryFile,), {"number": errno.ENODEV})
    knowing = Store(name="knowing")
    knowing.file = NoMemoryFile
    with Sandbox(store, echo, refusing, knowing) as sandbox:
        for name, second in (
            ("echo", "ENODEV"), ("store", "ok"), ("refusing", "ENODEV"), ("knowing", "ok"),
        ):  # fmt: skip
            output = run(sandbox, client, f"/dev/{name}", commands, os.O_RDWR)
            assert output == f"raw ENODEV\nraw {second}\n", name
    assert echo.data == b"precious"  # type: ignore[attr-defined]
    assert not refusing.reads


def test_what_the_file_does_not_allow(store: Store, client: str) -> None:
    commands = f"raw 0 0 4096 {READ} {PRIVATE}"
    code = f"raw 0 0 4096 {READ | mmap.PROT_EXEC} {PRIVATE}"
    with Sandbox(store) as sandbox:
        assert run(sandbox, client, "/dev/store", commands, os.O_WRONLY) == "raw EACCES\n"
        assert run(sandbox, client, "/dev/store", code, os.O_RDWR) == "raw EPERM\n"
    assert not store.reads


class FailingFile(StoreFile):
    """Fails from the second page on."""

    def read(self, size: int, offset: int) -> bytes:
        if offset >= PAGE:
            raise OSError(errno.ENOMEDIUM, "no more")
        return super().read(size, offset)


def test_what_cannot_be_read_cannot_be_mapped(client: str) -> None:
    store = Store(max_read=PAGE)
    store.file = FailingFile
    commands = f"raw 0 0 {PAGE} {READ} {PRIVATE}\nraw 0 0 {2 * PAGE} {READ} {PRIVATE}"
    with Sandbox(store) as sandbox:
        assert run(sandbox, client, "/dev/store", commands) == "raw ok\nraw ENOMEDIUM\n"
        store.wait_released(1)
        assert not left(sandbox)


class EndlessFile(File):
    """Zeros, as from /dev/zero."""

    def read(self, size: int, offset: int) -> bytes:
        return bytes(size)


@pytest.mark.parametrize("noticing", [True, False])
def test_an_endless_device(client: str, monkeypatch: pytest.MonkeyPatch, noticing: bool) -> None:
    """All copies of a sandbox together have a limit; each gives back what it took.

    Also if the end of a mapping is not noticed before there is need.
    """
    ended = threading.Event()
    if not noticing:
        monkeypatch.setattr(
            MemoryMaps, "_wait_for_end", lambda self: ended.wait(PATIENCE_S) and None
        )
    monkeypatch.setattr(copies, "COPIES_MAX", 300 * PAGE)
    zeros = Store(name="zeros")
    zeros.file = EndlessFile
    lines = [f"raw 0 0 {1 << 30} {RW} {PRIVATE}"]
    lines += [f"raw 0 0 {200 * PAGE} {RW} {PRIVATE}"] * 3
    lines += [f"map 0 200 {RW} {PRIVATE} 0", f"raw 0 0 {200 * PAGE} {RW} {PRIVATE}", "drop"]
    lines += [f"map 0 200 {RW} {PRIVATE} 0", f"raw 0 0 {100 * PAGE} {RW} {PRIVATE}"]
    with Sandbox(zeros) as sandbox:
        made = sandbox._machine.memory_maps.snapshots  # type: ignore[union-attr]
        output = run(sandbox, client, "/dev/zeros", "\n".join(lines))
        assert output.split("\n") == [
            "raw ENOMEM", "raw ok", "raw ok", "raw ok", "map ok", "raw ENOMEM", "map ok", "raw ok",
            "",
        ]  # fmt: skip
        ended.set()
    assert not made.size


SURVIVOR = """
fd = os.open("/dev/store", os.O_RDONLY)
memory = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.close(fd)
"""


def test_a_copy_keeps_the_file(store: Store, start: Callable[..., Any]) -> None:
    """As in the kernel: RELEASE comes after the last part, in whatever process, is gone."""
    script = SURVIVOR + (
        "if not os.fork():\n"
        "    os.read(0, 1); print(memory[1], flush=True); os._exit(0)\n"
        "memory.close(); print('closed', flush=True); os._exit(0)"
    )
    with Sandbox(store) as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"closed\n"
        assert not store.released
        assert left(sandbox) == PAGE
        program.stdin.write(b"x")
        assert program.stdout.readline() == b"%d\n" % CONTENT[1]
        store.wait_released(1)
        assert not left(sandbox)
        program.communicate(timeout=PATIENCE_S)


class SlowFile(File):
    """The second piece does not come before the program is interrupted."""

    device: Slow

    async def read(self, size: int, offset: int) -> bytes:
        if offset:
            self.device.reached.set()
            try:
                await asyncio.wait_for(self.device.later.wait(), PATIENCE_S)
            finally:
                self.device.interrupted = current_request().interrupted
        return bytes(size)

    def release(self) -> None:
        self.device.released.set()


class Slow(Device):
    """Is slow, and told when to go on."""

    name = "store"
    seekable = True
    max_read = PAGE

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.released = threading.Event()
        self.later = asyncio.Event()
        self.interrupted = False

    def open(self, request: OpenRequest) -> File:
        return SlowFile()


@pytest.mark.parametrize("remote", [False, True])
def test_signals_interrupt_the_reading(
    start: Callable[..., Any], tmp_path: Path, remote: bool
) -> None:
    slow = Slow()
    script = """
def note(*_): os.write(1, b"signal ")
signal.signal(signal.SIGUSR1, note)
fd = os.open("/dev/store", os.O_RDONLY)
print(os.getpid(), flush=True)
before = len(os.listdir("/proc/self/fd"))
print(attempt(mmap.mmap, fd, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ))
print(len(os.listdir("/proc/self/fd")) - before, "memfd" in open("/proc/self/maps").read())
"""
    path = str(tmp_path / "socket")
    with (
        closing(DeviceServer(slow, path)),
        Sandbox(Remote(path) if remote else slow) as sandbox,
        start(sandbox, script) as program,
    ):
        program.stdout.readline()
        assert slow.reached.wait(PATIENCE_S)
        (child,) = (
            Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text("ascii").split()
        )
        os.kill(int(child), 10)
        output, _ = program.communicate(timeout=PATIENCE_S)
        assert output == b"signal EINTR\n0 False\n"
        assert slow.interrupted
        assert slow.released.wait(PATIENCE_S)
        assert not left(sandbox)


@pytest.mark.parametrize("remote", [False, True])
def test_a_program_is_killed_meanwhile(
    start: Callable[..., Any], tmp_path: Path, remote: bool
) -> None:
    slow = Slow()
    path = str(tmp_path / "socket")
    with (
        closing(DeviceServer(slow, path)),
        Sandbox(Remote(path) if remote else slow) as sandbox,
        start(sandbox, SURVIVOR.replace("4096", "8192")) as program,
    ):
        assert slow.reached.wait(PATIENCE_S)
        sandbox.kill()
        program.wait(timeout=PATIENCE_S)
        assert slow.released.wait(PATIENCE_S)
        assert slow.interrupted


def test_nothing_more_is_read_for_a_program_that_was_killed(start: Callable[..., Any]) -> None:
    """Though the device does not care about interrupts."""

    class Deaf(StoreFile):
        reached = threading.Event()
        go_on = threading.Event()

        def read(self, size: int, offset: int) -> bytes:
            self.reached.set()
            assert self.go_on.wait(PATIENCE_S)
            self.device.reads.append((offset, size))
            return bytes(size)

    store = Store(max_read=PAGE)
    store.file = Deaf
    with Sandbox(store) as sandbox:
        with start(sandbox, SURVIVOR.replace("4096", "1 << 30")) as program:
            assert Deaf.reached.wait(PATIENCE_S)
            sandbox.kill()
            program.wait(timeout=PATIENCE_S)
            Deaf.go_on.set()
            store.wait_released(1)
        assert store.reads == [(0, PAGE)]


def test_the_server_goes_meanwhile(start: Callable[..., Any], tmp_path: Path) -> None:
    slow = Slow()
    path = str(tmp_path / "socket")
    server = DeviceServer(slow, path)
    script = """
fd = os.open("/dev/store", os.O_RDONLY)
print(attempt(mmap.mmap, fd, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ))
"""
    with closing(server), Sandbox(Remote(path)) as sandbox, start(sandbox, script) as program:
        assert slow.reached.wait(PATIENCE_S)
        server.close()
        assert program.communicate(timeout=PATIENCE_S)[0] == b"ECONNABORTED\n"


def test_a_copy_outlives_its_server(
    store: Store, start: Callable[..., Any], tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    script = SURVIVOR + "print('mapped', flush=True); os.read(0, 1); print(memory[2])"
    server = DeviceServer(store, path)
    with closing(server), Sandbox(Remote(path)) as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"mapped\n"
        server.close()
        output = program.communicate(b"x", timeout=PATIENCE_S)[0]
        assert output == b"%d\n" % CONTENT[2]
        assert store.released == 1


def memory_descriptors() -> int:
    """How many memfds this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("/memfd")
        except OSError:
            continue
    return found


def test_many_leave_nothing(store: Store, clients: Callable[..., Run]) -> None:
    script = """
fd = os.open("/dev/store", os.O_RDONLY)
before = os.listdir("/proc/self/fd")
def work():
    for turn in range(40):
        memory = mmap.mmap(fd, 3 * 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
        assert memory[4096] == memory[:4097][4096]
        memory.close()
threads = [threading.Thread(target=work) for number in range(5)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(os.listdir("/proc/self/fd") == before, open("/proc/self/maps").read().count("memfd"))
"""
    gc.collect()
    before = memory_descriptors()
    with Sandbox(store) as sandbox:
        assert clients(sandbox)(script, timeout=2 * PATIENCE_S) == "True 0\n"
        store.wait_released(1)
        assert not left(sandbox)
        assert not sandbox._machine.memory_maps._by_inode  # type: ignore[union-attr]
        assert memory_descriptors() == before
    assert len(store.reads) == 200
