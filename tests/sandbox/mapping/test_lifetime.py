"""When a mapping begins and ends, what fails in between, and what is left of it."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recuse import Area, Mapping, MmapRequest
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.sandbox import Sandbox

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
    Shared,
    SharedFile,
    run,
)

Run = Callable[..., str]


def log(device: Shared) -> list[str]:
    """What the device was told, without the numbers."""
    with device.changed:
        return [what for what, _ in device.log]


LIFE = ["mmap", "mapped", "unmapped", "release"]


class Talk:
    """The C client, one command at a time; what has ended by then was told to the device."""

    def __init__(self, sandbox: Sandbox, client: str) -> None:
        argv = [client, "/dev/area", str(os.O_RDWR), "16"]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.sandbox = sandbox
        self.program = sandbox.popen(argv, **pipes)

    def __call__(self, command: str) -> str:
        assert self.program.stdin is not None
        self.program.stdin.write(f"{command}\nsay\n")
        self.program.stdin.flush()
        lines: list[str] = []
        while not lines or lines[-1] != "said\n":
            assert self.program.stdout is not None
            lines.append(self.program.stdout.readline())
            assert lines[-1]
        self.sandbox._machine.memory_maps.settle()  # type: ignore[union-attr]
        return "".join(lines[:-1])

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.communicate(timeout=PATIENCE_S)


KEEPING = {
    "protect the middle": f"protect 0 {READ} 1 1",
    "protect all": f"protect 0 {READ}",
    "allow all again": f"protect 0 {RW}",
    "move it": "move 0 1",
    "a child": "look 0",
    "another program": "vfork",
    "forget": "advise 0 4",
    "unmap the middle": "unmap 0 2 1",
    "unmap the beginning": "unmap 0 0 1",
    "unmap the end": "unmap 0 4 1",
}


def test_what_does_not_end_a_mapping(device: Shared, client: str) -> None:
    with Sandbox(device) as sandbox, Talk(sandbox, client) as talk:
        assert talk("reserve 1 5") == ""
        assert talk(f"map 0 5 {RW} {SHARED} 2\nclose") == "map ok\n"
        for what, command in KEEPING.items():
            answer = talk(command)
            assert answer.endswith(" ok\n") or command in ("look 0", "vfork"), what
            assert log(device) == ["mmap", "mapped"], what
        assert talk("unmap 0 1 1") == "unmap ok\n"
        assert log(device) == ["mmap", "mapped"]
        assert talk("unmap 0 3 1") == "unmap ok\n"
        device.wait("release", 1)
        assert log(device) == LIFE


def test_a_mapping_ends_when_another_takes_its_place(device: Shared, client: str) -> None:
    with Sandbox(device) as sandbox, Talk(sandbox, client) as talk:
        talk(f"map 0 3 {RW} {SHARED} 0")
        assert talk(f"map 0 3 {RW} {SHARED | FIXED} 1") == "map ok\n"
        # The first one ends before the program goes on; the device may hear of it after COMMIT.
        device.wait("unmapped", 1)
        assert sorted(log(device)) == ["mapped", "mapped", "mmap", "mmap", "unmapped"]
        assert talk("reserve 1 3\nmove 0 1") == "move ok\n"
        assert device.count("unmapped") == 1
        talk("drop")
        device.wait("unmapped", 2)


def test_children_of_children_keep_a_mapping(device: Shared, start: Callable[..., Any]) -> None:
    script = """
fd = os.open("/dev/area", os.O_RDWR)
memory = mmap.mmap(fd, 4096)
os.close(fd)
def generation(left):
    if not os.fork():
        if left:
            generation(left - 1)
        os.read(0, 1)
        memory[left] = 1
        os._exit(0)
generation(2)
memory.close()
print("closed", flush=True)
for _ in range(3):
    attempt(os.wait)
    print("ended", flush=True)
"""
    with Sandbox(device) as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"closed\n"
        maps = sandbox._machine.memory_maps  # type: ignore[union-attr]
        maps.settle()
        assert log(device) == ["mmap", "mapped"]
        program.stdin.write(b"xx")
        maps.settle()
        assert log(device) == ["mmap", "mapped"]
        program.stdin.write(b"x")
        device.wait("release", 1)
        program.communicate(timeout=PATIENCE_S)
    assert log(device) == LIFE


class FittingFile(SharedFile):
    """Makes its area fit when it is mapped."""

    def mapped(self, mapping: Mapping) -> None:
        mapping.area.resize(mapping.offset + mapping.length)
        mapping.area[-PAGE:] = b"Z" * PAGE
        super().mapped(mapping)


def test_the_device_resizes_the_area_before_the_program_sees_it(client: str) -> None:
    commands = f"map 0 4 {RW} {SHARED} 1\nlook 0"
    for file, seen in (
        (SharedFile, f"!{signal.SIGBUS:d} " * 3 + f"!{signal.SIGBUS:d}"),
        (FittingFile, "0 0 0 90"),
    ):
        with Area(PAGE) as area:
            device = Shared(area)
            device.file = file
            with Sandbox(device) as sandbox:
                assert run(sandbox, client, commands) == f"map ok\nlook {seen}\n"
            device.mappings.clear()


class OwnFile(SharedFile):
    """Each mapping gets an area of its own, of the size that it needs."""

    sizes: list[int]

    def mmap(self, request: MmapRequest) -> Area:
        self.sizes.append(request.size)
        area = Area(request.size)
        area[request.offset] = 66
        return area


def test_an_area_has_what_is_before_the_offset_too(device: Shared, client: str) -> None:
    device.file = type("Own", (OwnFile,), {"sizes": []})
    commands = f"map 0 2 {RW} {SHARED} 3\nlook 0\nfill 0 7\nmap 1 2 {RW} {SHARED} 0\nlook 1"
    with Sandbox(device) as sandbox:
        output = run(sandbox, client, commands)
    assert output == "map ok\nlook 66 0\nmap ok\nlook 66 0\n"
    assert device.file.sizes == [5 * PAGE, 2 * PAGE]  # type: ignore[attr-defined]


class SlowFile(SharedFile):
    """Does not let a mapping be before it is told."""

    reached: threading.Event
    go_on: threading.Event

    def mapped(self, mapping: Mapping) -> None:
        self.reached.set()
        assert self.go_on.wait(PATIENCE_S)
        mapping.area[:1] = b"F"
        super().mapped(mapping)


@pytest.fixture
def slow(device: Shared) -> type[SlowFile]:
    """The class of the device's files, here."""

    class Slow(SlowFile):
        reached = threading.Event()
        go_on = threading.Event()

    device.file = Slow
    return Slow


def test_the_program_does_not_go_on_before_the_device_knows(
    device: Shared, slow: type[SlowFile], start: Callable[..., Any]
) -> None:
    script = """
seen = []
libc.mmap.restype = ctypes.c_void_p
def work():  # in a call that lets other threads run, unlike mmap.mmap
    seen.append(ctypes.string_at(libc.mmap(None, 4096, 3, mmap.MAP_SHARED, fd, 0), 1))
fd = os.open("/dev/area", os.O_RDWR)
thread = threading.Thread(target=work)
thread.start()
os.read(0, 1)
print(seen, flush=True)
thread.join()
print(seen, flush=True)
"""
    with Sandbox(device) as sandbox, start(sandbox, script) as program:
        assert slow.reached.wait(PATIENCE_S)
        program.stdin.write(b"x")
        assert program.stdout.readline() == b"[]\n"
        slow.go_on.set()
        assert program.communicate(timeout=PATIENCE_S)[0] == b"[b'F']\n"


def test_another_thread_executes_a_program_meanwhile(
    device: Shared, slow: type[SlowFile], start: Callable[..., Any]
) -> None:
    """Which ends the one that maps, before the device has answered."""
    script = """
fd = os.open("/dev/area", os.O_RDWR)
libc.mmap.restype = ctypes.c_void_p
threading.Thread(target=libc.mmap, args=(None, 4096, 3, mmap.MAP_SHARED, fd, 0)).start()
os.read(0, 1)
os.execv("/bin/echo", ["echo", "executed"])
"""
    with Sandbox(device) as sandbox, start(sandbox, script) as program:
        assert slow.reached.wait(PATIENCE_S)
        program.stdin.write(b"x")
        assert program.stdout.readline() == b"executed\n"
        slow.go_on.set()
        program.communicate(timeout=PATIENCE_S)
        device.wait("release", 1)
    assert log(device) == LIFE


def test_signals_wait_for_the_mapping(
    device: Shared, slow: type[SlowFile], start: Callable[..., Any]
) -> None:
    """They come when it is made, also a stop; and the thread's mask is as it was."""
    script = """
def handle(number, _):
    print("handled", flush=True)
def mask():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])
signal.signal(signal.SIGUSR1, handle)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
before = mask()
print(os.getpid(), flush=True)
fd = os.open("/dev/area", os.O_RDWR)
memory = mmap.mmap(fd, 4096)
print(memory[:1], mask() == before, flush=True)
"""
    with Sandbox(device) as sandbox, start(sandbox, script) as program:
        program.stdout.readline()
        assert slow.reached.wait(PATIENCE_S)
        (child,) = (
            Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text("ascii").split()
        )
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGSTOP):
            os.kill(int(child), number)
        slow.go_on.set()
        stat = Path(f"/proc/{child}/stat")
        poll = select.poll()
        for _ in range(PATIENCE_S * 100):
            if stat.read_text("ascii").rpartition(")")[2].split()[0] == "T":
                break
            poll.poll(10)
        assert device.count("mapped") == 1
        os.kill(int(child), signal.SIGCONT)
        output, _ = program.communicate(timeout=PATIENCE_S)
        assert output == b"handled\nb'F' True\n"


FAILING = """
import resource
PAGES, SHARED = 8192, mmap.MAP_SHARED
libc.mmap.restype = ctypes.c_void_p
def map(address, flags, length=PAGES, protection=3):
    address = libc.mmap(ctypes.c_void_p(address), length, protection, flags, fd, 0)
    return errno.errorcode[ctypes.get_errno()] if address == 2**64 - 1 else address
def state():
    return os.listdir("/proc/self/fd"), open("/proc/self/maps").read().count("memfd:")
def limited(name, limit, *args):
    old = resource.getrlimit(name)
    resource.setrlimit(name, (limit, old[1]))
    result = map(*args)
    resource.setrlimit(name, old)
    return result
if args[0] == "memfd":
    fd = os.memfd_create("recuse")
    os.truncate(fd, 65536)
else:
    fd = os.open(args[0], os.O_RDWR)
"""

FAILURES = """
taken = map(0, SHARED)
before = state()
print()
print(map(taken, SHARED | 0x100000))  # MAP_FIXED_NOREPLACE
print(map(2**47 - 4096, SHARED | mmap.MAP_SHARED | 0x10))
print(limited(resource.RLIMIT_AS, 1, 0, SHARED))
print(state() == before)
"""


def test_commit_tells_of_mappings_that_fail(device: Shared, clients: Callable[..., Run]) -> None:
    """What Linux refuses after the device was asked is unmapped, and was never mapped."""
    with Sandbox(device) as sandbox:
        ours = clients(sandbox)(FAILING + FAILURES, "/dev/area")
        assert not sandbox._machine.memory_maps._by_inode  # type: ignore[union-attr]
    native = clients(None)(FAILING + FAILURES, "memfd")
    assert ours == native
    assert ours == "\nEEXIST\nENOMEM\nENOMEM\nTrue\n"
    failed = ["mmap", "unmapped"] * ours.count("\nE")
    assert log(device) == ["mmap", "mapped", *failed, "unmapped", "release"]


def test_a_program_without_a_free_descriptor(device: Shared, clients: Callable[..., Run]) -> None:
    script = FAILING + (
        "before = state()\n"
        "print(limited(resource.RLIMIT_NOFILE, len(before[0]) - 1, 0, SHARED), state() == before)\n"
        "print(map(0, SHARED) > 0)"
    )
    with Sandbox(device) as sandbox:
        assert clients(sandbox)(script, "/dev/area") == "EMFILE True\nTrue\n"
    assert log(device) == ["mmap", "unmapped", *LIFE]


class WrongArea(Area):
    """Gives away another descriptor than that of its memory."""

    other = -1

    def fileno(self) -> int:
        return self.other if self.other >= 0 else super().fileno()


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("what", ["file", "pipe", "socket"])
def test_a_descriptor_that_is_no_area(
    clients: Callable[..., Run], tmp_path: Path, remote: bool, what: str
) -> None:
    """EINVAL, and nothing is left of it in any process."""
    area = WrongArea(16 * PAGE)
    (tmp_path / "file").write_bytes(bytes(16 * PAGE))
    if what == "file":
        ends = [os.open(tmp_path / "file", os.O_RDWR)]
    elif what == "pipe":
        ends = list(os.pipe())
    else:
        end, other = socket.socketpair()
        other.close()
        ends = [end.detach()]
    area.other = ends[0]
    device = Shared(area)
    path = str(tmp_path / "socket")
    script = FAILING + "before = state()\nprint(map(0, SHARED), map(0, 2), state() == before)"
    try:
        link = os.readlink(f"/proc/self/fd/{ends[0]}")
        with (
            closing(DeviceServer(device, path)),
            Sandbox(Remote(path) if remote else device) as sandbox,
        ):
            assert clients(sandbox)(script, "/dev/area") == "EINVAL EINVAL True\n"
            device.wait("release", 1)
            assert not sandbox._machine.memory_maps._by_inode  # type: ignore[union-attr]
            links = [
                os.readlink(f"/proc/self/fd/{name}")
                for name in os.listdir("/proc/self/fd")
                if os.path.lexists(f"/proc/self/fd/{name}")
            ]
            assert links.count(link) == len(ends)
        assert log(device) == ["mmap", "unmapped"] * 2 + ["release"]
    finally:
        area.other = -1
        area.close()
        for number in ends:
            os.close(number)


def test_a_hint_is_followed_where_there_is_room(
    device: Shared, clients: Callable[..., Run]
) -> None:
    script = (
        FAILING
        + """
free = libc.mmap(None, 65536, 0, 0x22, -1, 0)
libc.munmap(ctypes.c_void_p(free), 65536)
first = map(free + 8192, SHARED)
print(first - free, map(free + 100, 2) - free, map(free + 8192, SHARED) == first)
libc.munmap(ctypes.c_void_p(first), 4096)
print(map(free + 8192, SHARED, 4096) - free)
print(map(first, SHARED | 0x10) - first, map(first, SHARED | 0x100000))
"""
    )
    with Sandbox(device) as sandbox:
        ours = clients(sandbox)(script, "/dev/area")
    assert ours == clients(None)(script, "memfd")
    assert ours.startswith("8192 ")
    assert device.mappings[0].address % PAGE == 0


@pytest.mark.parametrize("how", [0, POPULATE, LOCKED])
@pytest.mark.parametrize("kind", [SHARED, PRIVATE])
@pytest.mark.parametrize("protection", [READ, RW])
def test_what_is_to_be_there_at_once_is_there(
    device: Shared, clients: Callable[..., Run], how: int, kind: int, protection: int
) -> None:
    """MAP_POPULATE and MAP_LOCKED, as smaps tells."""
    script = (
        FAILING
        + f"""
where = map(0, {kind | how}, 4 * 4096, {protection})
on = False
for line in open("/proc/self/smaps"):
    if "-" in line.split(" ")[0]:
        on = line.startswith(f"{{where:x}}-")
    name = line.split(":")[0]
    if on and name in ("Size", "Rss", "Locked"):
        print(line.split()[:2])
    if on and name == "VmFlags":
        print("lo" in line.split())
"""
    )
    with Sandbox(device) as sandbox:
        ours = clients(sandbox)(script, "/dev/area")
    assert ours == clients(None)(script, "memfd")
    assert ("['Rss:', '16']" in ours) is bool(how)
    assert ours.endswith("True\n") is (how == LOCKED)


ADVICE = {
    "NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": 4, "FREE": 8, "REMOVE": 9,
    "DONTFORK": 10, "DOFORK": 11, "MERGEABLE": 12, "HUGEPAGE": 14, "DONTDUMP": 16,
    "WIPEONFORK": 18, "COLD": 20, "PAGEOUT": 21, "POPULATE_READ": 22, "POPULATE_WRITE": 23,
}  # fmt: skip


@pytest.mark.parametrize("kind", [SHARED, PRIVATE])
def test_advice_as_on_a_memfd(device: Shared, client: str, kind: int) -> None:
    lines = []
    for number in ADVICE.values():
        lines += [f"map 0 3 {RW} {kind} 1", "fill 0 9", f"advise 0 {number}", "look 0"]
        if number == ADVICE["DONTFORK"]:
            lines += [f"advise 0 {ADVICE['DOFORK']}", "look 0"]
        lines += ["sync 0", "drop", f"map 0 3 {RW} {SHARED} 1", "look 0", "drop"]
    with Sandbox(device) as sandbox:
        ours = run(sandbox, client, "\n".join(lines))
    native = run(None, client, "\n".join(lines))
    assert ours.splitlines() == native.splitlines()
    assert "look !11 !11 !11" in ours


def test_moved_as_on_a_memfd(device: Shared, client: str) -> None:
    lines = []
    for kind in (SHARED, PRIVATE):
        lines += ["reserve 1 4", f"map 0 3 {RW} {kind} 1", "fill 0 9", "move 0 1", "look 0"]
        lines += [f"remap 0 5 {MAYMOVE}", "look 0", "fork 0 30", "look 0", "unmap 0 1 2", "look 0"]
        lines += [f"remap 0 20 {MAYMOVE}", "look 0", "remap 0 1 0", "remap 0 2 8", "drop"]
        lines += [f"map 0 17 {RW} {kind} 0", "look 0", f"remap 0 2 {MAYMOVE | 4}", "drop"]
    with Sandbox(device) as sandbox:
        ours = run(sandbox, client, "\n".join(lines))
    native = run(None, client, "\n".join(lines))
    assert ours.splitlines() == native.splitlines()
    assert "!7" in ours


class CyclingFile(SharedFile):
    """Counts, and keeps nothing else."""

    device: Cycling

    def mmap(self, request: MmapRequest) -> Area:
        return self.device.area or Area(request.size)

    def mapped(self, mapping: Mapping) -> None:
        self.device.made += 1

    def unmapped(self, mapping: Mapping) -> None:
        with self.device.changed:
            self.device.ended += 1
            self.device.changed.notify_all()


class Cycling(Shared):
    """Is mapped and unmapped again and again."""

    file = CyclingFile
    made = ended = 0


def descriptors(pid: int) -> Counter[str]:
    """Of each kind how many a process has."""
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[os.readlink(f"/proc/{pid}/fd/{name}").split(":")[0]] += 1
        except OSError:
            continue  # that of the listing itself
    return found


def resident(pid: int) -> int:
    """How many pages of a process are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_thousand_cycles_take_no_memory(
    client: str, tmp_path: Path, remote: bool, own: bool
) -> None:
    """Neither in the program nor here, where supervisor and server are; and no descriptors."""
    device = Cycling(None if own else Area(16 * PAGE))
    path = str(tmp_path / "socket")
    with (
        closing(DeviceServer(device, path)),
        Sandbox(Remote(path) if remote else device) as sandbox,
        Talk(sandbox, client) as talk,
    ):
        maps = sandbox._machine.memory_maps  # type: ignore[union-attr]
        (child,) = (
            Path(f"/proc/{talk.program.pid}/task/{talk.program.pid}/children")
            .read_text("ascii")
            .split()
        )

        def state(cycles: int) -> tuple[object, int, int]:
            """What is held, how many objects there are here, how large the program is."""
            assert talk(f"cycles 0 {cycles} 3") == f"cycles {cycles}\n"
            with device.changed:
                assert device.changed.wait_for(lambda: device.ended == device.made, PATIENCE_S)
            poll = select.poll()
            for _ in range(PATIENCE_S * 100):
                if not maps._by_inode and len(maps._by_watch) == (not own):
                    break
                poll.poll(10)  # events of memory that is gone
            gc.collect()
            held = (
                descriptors(os.getpid()),
                descriptors(int(child)),
                len(maps._by_inode),
                len(maps._by_watch),
                len(maps._doubtful),
            )
            return held, sys.getallocatedblocks(), resident(int(child))

        state(200)
        held, blocks, pages = state(200)
        held_after, blocks_after, pages_after = state(1000)
        assert held_after == held
        assert blocks_after - blocks < 300
        assert pages_after - pages < 30
    assert device.made == device.ended == 1400
    if device.area is not None:
        device.area.close()
