"""Programs that map a device into their memory."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recuse import Area, Device, Mapping, MmapRequest
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.sandbox import Sandbox
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
    Shared,
    SharedFile,
    run,
)

Run = Callable[..., str]


@pytest.fixture(params=["dynamic", "static"])
def program(request: pytest.FixtureRequest, needs: Any, compiled: Callable[..., str]) -> str:
    """The client, linked in two ways."""
    needs("gcc")
    return compiled("mapping", *(["-static"] if request.param == "static" else []))


STEPS = {
    "map shared": f"map 0 3 {RW} {SHARED} 1",
    "map again": f"map 1 2 {RW} {SHARED} 2",
    "map private": f"map 2 3 {RW} {PRIVATE} 1",
    "fill": "fill 0 10",
    "fill private": "fill 2 90",
    "fork": "fork 0 40",
    "fork private": "fork 2 60",
    "grow": f"remap 0 5 {MAYMOVE}",
    "shrink": f"remap 0 1 {MAYMOVE}",
    "unmap the middle": "unmap 0 1 1",
    "unmap all": "unmap 0 0 3",
    "protect": f"protect 0 {READ}",
    "protect private": f"protect 2 {READ}",
    "forget": "advise 2 4",
    "exec": "vfork",
}


def orders(number: int) -> str:
    """Sequences of steps in all sorts of orders, each with a look at what there is after it."""
    choice = random.Random(number)
    lines = ["reserve 3 1", "fill 3 0"][:1]
    for _ in range(12):
        steps = ["map shared", "map again", "map private", *choice.sample(sorted(STEPS), 5)]
        choice.shuffle(steps)
        lines.append(f"map 0 3 {RW} {SHARED} 1")
        lines += [f"map 1 2 {RW} {SHARED} 2", f"map 2 3 {RW} {PRIVATE} 1"]
        lines += [STEPS[step] for step in steps if not step.startswith("fill")]
        lines += ["look 0", "look 1", "look 2", "drop"]
    return "\n".join(lines)


@pytest.mark.parametrize("number", range(4))
def test_in_all_sorts_of_orders_as_on_a_memfd(device: Shared, client: str, number: int) -> None:
    commands = orders(number)
    with Sandbox(device) as sandbox:
        ours = run(sandbox, client, commands)
    assert ours.splitlines() == run(None, client, commands).splitlines()
    assert device.count("mapped") >= 36


EVERY = ("grow", "unmap the middle", "fork", "protect")


def test_four_steps_in_every_order_as_on_a_memfd(device: Shared, program: str) -> None:
    lines = []
    for steps in itertools.permutations(EVERY):
        lines += [f"map 0 3 {RW} {SHARED} 1", "fill 0 7", *(STEPS[step] for step in steps)]
        lines += ["look 0", "drop"]
    commands = "\n".join(lines)
    with Sandbox(device) as sandbox:
        ours = run(sandbox, program, commands)
    assert ours.splitlines() == run(None, program, commands).splitlines()
    assert device.count("mapped") == device.count("unmapped") == 24


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_arguments_as_on_a_memfd(device: Shared, client: str, flags: int) -> None:
    lines = []
    for kind, protection in itertools.product([0, 1, 2, 3], [0, 1, 2, 3]):
        lines.append(f"raw 0 0 8192 {protection} {kind}")
        for more in (POPULATE, LOCKED, 0x10000, 0x20000, 0x4000, 0x100, 0x40000):
            lines.append(f"raw 0 0 8192 {protection} {kind | more}")
    lines += [f"raw 0 0 0 {READ} 1", f"raw 0 1 100 {READ} {SHARED}"]
    lines += [f"raw 0 100 4096 {READ} {SHARED | FIXED}", f"raw 0 0 1 {READ} {SHARED | 0x80000}"]
    lines += [f"raw 0 0x7fffffffffff000 4096 {READ} {SHARED}", f"raw 0 0 -4096 {READ} {SHARED}"]
    lines += [f"map 0 2 {READ} {SHARED} 0", f"protect 0 {RW}", "look 0"]
    lines += [f"map 1 2 {READ} {PRIVATE} 0", f"protect 1 {RW}", "look 1"]
    with Sandbox(device) as sandbox:
        ours = run(sandbox, client, "\n".join(lines), flags=flags)
    native = run(None, client, "\n".join(lines), flags=flags)
    assert ours.splitlines() == native.splitlines()


def test_a_place_of_the_program_s_choice(device: Shared, client: str) -> None:
    assert device.area is not None
    device.area[PAGE] = 33
    commands = f"reserve 0 6\nmap 0 2 {RW} {SHARED | FIXED} 1\nlook 0"
    with Sandbox(device) as sandbox:
        assert run(sandbox, client, commands).splitlines() == ["map ok", "look 33 0"]
    assert device.mappings[0].address % PAGE == 0
    assert device.mappings[0].flags & FIXED


def test_no_code_is_mapped(device: Shared, client: str) -> None:
    with Sandbox(device) as sandbox:
        output = run(sandbox, client, f"raw 0 0 4096 4 {SHARED}\nraw 0 0 4096 5 {PRIVATE}")
    assert output == "raw EPERM\nraw EPERM\n"
    assert device.log == [("release", 0)]


def test_any_descriptor_of_the_file(device: Shared, client: str) -> None:
    with Sandbox(device) as sandbox:
        output = run(sandbox, client, f"dup2 0 77\nmap 0 2 {RW} {SHARED} 0\nclose\nlook 0")
    assert output == "dup2 ok\nmap ok\nlook 0 0\n"


def test_what_the_device_fills_in_is_there(device: Shared, client: str) -> None:
    device.fill = b"A"
    commands = f"map 0 1 {RW} {PRIVATE | POPULATE} 0\nlook 0\nmap 1 1 {READ} {SHARED} 0\nlook 1"
    with Sandbox(device) as sandbox:
        assert run(sandbox, client, commands) == "map ok\nlook 65\nmap ok\nlook 65\n"


def test_what_the_device_refuses(device: Shared, client: str) -> None:
    device.refuse_mmap = errno.EBUSY
    with Sandbox(device) as sandbox:
        assert run(sandbox, client, f"map 0 1 {RW} {SHARED} 0") == "map EBUSY\n"
        device.refuse_mmap = 0
        device.refuse_commit = errno.ENOMEM
        output = run(sandbox, client, f"map 0 1 {RW} {SHARED} 0\ncycles 0 5 1\nlook 0")
    assert output == "map ENOMEM\ncycles 0\nlook\n"


def test_what_is_refused_leaves_nothing_mapped(device: Shared, clients: Callable[..., Run]) -> None:
    device.refuse_commit = errno.EDQUOT
    script = """
fd = os.open("/dev/area", os.O_RDWR)
print(attempt(mmap.mmap, fd, 8192))
print(open("/proc/self/maps").read().count("memfd"), len(os.listdir("/proc/self/fd")))
os.close(fd)
print(len(os.listdir("/proc/self/fd")))
"""
    with Sandbox(device) as sandbox:
        error, after, closed = clients(sandbox)(script).splitlines()
        assert error == "EDQUOT"
        assert after == f"0 {int(closed) + 1}"
        assert not sandbox._machine.memory_maps._by_inode  # type: ignore[union-attr]


def test_who_opens_it_next_finds_it_released(
    device: Shared, clients: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a mapping is noticed later than munmap returns, but before the next open.

    Here, at the next open only.
    """
    ended = threading.Event()
    monkeypatch.setattr(
        MemoryMaps, "_wait_for_end", lambda self: ended.wait(2 * PATIENCE_S) and None
    )
    script = """
for _ in range(100):
    fd = os.open("/dev/area", os.O_RDWR)
    memory = mmap.mmap(fd, 4096)
    os.close(fd)
    memory.close()
"""
    with Sandbox(device) as sandbox:
        try:
            assert clients(sandbox)(script) == ""
        finally:
            ended.set()  # or the sandbox does not close
    life = ["mmap", "mapped", "unmapped", "release"]
    assert [what for what, _ in device.log] == life * 100


def test_a_device_without_memory(echo: Device, client: str) -> None:
    commands = f"raw 0 0 4096 3 {SHARED}\nraw 0 0 4096 3 {PRIVATE}"
    with Sandbox(echo) as sandbox:
        output = run(sandbox, client, commands, path="/dev/echo")
    assert output == "raw ENODEV\nraw ENODEV\n"


def test_a_mapping_that_children_do_not_get(client: str) -> None:
    with Area(2 * PAGE, dont_copy=True) as area, Sandbox(Shared(area)) as sandbox:
        output = run(sandbox, client, f"map 0 1 {RW} {SHARED} 0\nfill 0 5\nlook 0\nfork 0 1")
        assert area[0] == 5
    assert output == f"map ok\nlook !{signal.SIGSEGV}\nfork {int(signal.SIGSEGV)}\n"


def test_a_mapping_that_does_not_grow(client: str) -> None:
    fixed = Shared(Area(8 * PAGE, dont_expand=True), name="fixed")
    free = Shared(Area(8 * PAGE))
    commands = (
        f"map 0 2 {RW} {SHARED} 0\nremap 0 4 {MAYMOVE}\nremap 0 1 {MAYMOVE}\nremap 0 2 {MAYMOVE}"
    )
    with Sandbox(fixed, free) as sandbox:
        output = run(sandbox, client, commands, path="/dev/fixed")
        assert output == "map ok\nremap EFAULT\nremap ok\nremap EFAULT\n"
        assert run(sandbox, client, commands).count("ok") == 4
    for device in (fixed, free):
        assert device.area is not None
        device.area.close()
        device.mappings.clear()


REMAP = """
def remap(file):
    mapped = mmap.mmap(file, 4 * mmap.PAGESIZE)
    mapped[0] = 1
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    size, page = ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_size_t(2)
    return call(SYS['remap_file_pages'], ctypes.c_void_p(address), size, 0, page, 0), mapped[0]

own = os.memfd_create('own')
os.ftruncate(own, 4 * mmap.PAGESIZE)
print(remap(os.open('/dev/area', os.O_RDWR)), remap(own))
"""


def test_a_mapping_does_not_come_to_show_other_pages(clients: Callable[..., Run]) -> None:
    """Which its device has not been asked for."""
    with Area(4 * PAGE) as area, Sandbox(Shared(area)) as sandbox:
        assert clients(sandbox)(REMAP) == "('EINVAL', 1) (0, 0)\n"


def test_two_programs_share_an_area(device: Shared, client: str) -> None:
    commands = f"map 0 2 {RW} {SHARED} 0\n"
    with Sandbox(device) as sandbox:
        options: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        argv = [client, "/dev/area", str(os.O_RDWR), "16"]
        with sandbox.popen(argv, **options) as one, sandbox.popen(argv, **options) as other:
            for program in (one, other):
                assert program.stdin is not None
                program.stdin.write(commands)
                program.stdin.flush()
                assert program.stdout is not None
                assert program.stdout.readline() == "map ok\n"
            assert one.stdin is not None
            one.stdin.write("fill 0 50\nsay\n")
            one.stdin.flush()
            assert one.stdout is not None
            assert one.stdout.readline() == "said\n"
            assert other.communicate("look 0\n", timeout=PATIENCE_S)[0] == "look 50 51\n"
            assert device.area is not None
            assert device.area[PAGE] == 51
            assert device.count("release") <= 1
            one.communicate(timeout=PATIENCE_S)


def open_descriptors() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        kind = link.split(":")[0]
        found[kind] = found.get(kind, 0) + 1
    return found


@pytest.mark.parametrize("area", [None, Area(16 * PAGE)])
def test_a_thousand_mappings_leave_nothing(area: Area | None, client: str) -> None:
    device = Shared(area)
    with Sandbox(device) as sandbox:
        argv = [client, "/dev/area", str(os.O_RDWR), "16"]
        options: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with sandbox.popen(argv, **options) as program:

            def cycles(number: int) -> tuple[int, int]:
                """The program's descriptors and the lines of its memory map after so many."""
                assert program.stdin is not None
                program.stdin.write(f"cycles 0 {number} 2\n")
                program.stdin.flush()
                assert program.stdout is not None
                assert program.stdout.readline() == f"cycles {number}\n"
                device.mappings.clear()
                (children,) = (
                    Path(f"/proc/{program.pid}/task/{program.pid}/children")
                    .read_text("ascii")
                    .split()[:1]
                )
                maps = Path(f"/proc/{children}/maps").read_text("utf-8").count("\n")
                return len(os.listdir(f"/proc/{children}/fd")), maps

            before = cycles(10)
            device.wait("unmapped", 10)
            descriptors = open_descriptors()
            assert cycles(1000) == before
            device.wait("unmapped", 1010)
            left = open_descriptors()
            assert left.get("/memfd", 0) <= descriptors.get("/memfd", 0)
            program.communicate(timeout=PATIENCE_S)
        assert not sandbox._machine.memory_maps._by_inode  # type: ignore[union-attr]
    assert device.count("mmap") == device.count("unmapped") == 1010
    assert device.log[-1] == ("release", 0)
    if area is not None:
        area.close()


def test_the_file_stays_open_while_it_is_mapped(device: Shared, client: str) -> None:
    with Sandbox(device) as sandbox:
        commands = f"map 0 2 {RW} {SHARED} 0\nclose\nlook 0\nunmap 0 0 1\nlook 1\nunmap 0 1 1"
        run(sandbox, client, commands)
        assert [what for what, _ in device.log] == ["mmap", "mapped", "unmapped", "release"]


SURVIVOR = """
fd = os.open("/dev/area", os.O_RDWR)
memory = mmap.mmap(fd, 4096)
os.close(fd)
"""


def test_children_keep_a_mapping(device: Shared, start: Callable[..., Any]) -> None:
    script = SURVIVOR + (
        "if not os.fork():\n"
        "    os.read(0, 1); memory[0] = 9; os._exit(0)\n"
        "memory.close(); print('closed', flush=True); os._exit(0)"
    )
    with Sandbox(device) as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"closed\n"
        assert device.count("unmapped") == 0
        program.stdin.write(b"x")
        program.communicate(timeout=PATIENCE_S)
        device.wait("release", 1)
        assert device.area is not None
        assert device.area[0] == 9
        assert [what for what, _ in device.log] == ["mmap", "mapped", "unmapped", "release"]


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "exec"])
def test_every_end_of_a_program_ends_its_mappings(
    device: Shared, start: Callable[..., Any], end: str
) -> None:
    if end == "exec":
        end = "os.execv('/bin/cat', ['cat'])"
    script = SURVIVOR + f"print('mapped', flush=True)\n{end}"
    with Sandbox(device) as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"mapped\n"
        device.wait("release", 1)  # for exec: while the program runs
        program.communicate(timeout=PATIENCE_S)
    assert [what for what, _ in device.log] == ["mmap", "mapped", "unmapped", "release"]


def test_threads_map_at_the_same_moment(device: Shared, clients: Callable[..., Run]) -> None:
    script = """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
fd = os.open("/dev/area", os.O_RDWR)
before = os.listdir("/proc/self/fd")
def work(number):
    for turn in range(50):
        memory = mmap.mmap(fd, 8192)
        memory[number] = turn
        memory.close()
threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
signal.setitimer(signal.ITIMER_REAL, 0)
print(os.listdir("/proc/self/fd") == before, open("/proc/self/maps").read().count("memfd"))
"""
    with Sandbox(device) as sandbox:
        assert clients(sandbox)(script, timeout=2 * PATIENCE_S) == "True 0\n"
    assert device.count("unmapped") == 300
    assert device.area is not None
    assert bytes(device.area[:6]) == bytes([49] * 6)


class LaterFile(SharedFile):
    """Takes its time, in coroutines."""

    async def mmap(self, request: MmapRequest) -> Area:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().mmap(request)

    async def mapped(self, mapping: Mapping) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().mapped(mapping)

    async def unmapped(self, mapping: Mapping) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().unmapped(mapping)


def test_methods_may_be_coroutines(device: Shared, client: str) -> None:
    device.file = LaterFile
    with Sandbox(device) as sandbox:
        assert run(sandbox, client, f"map 0 1 {RW} {SHARED} 0\nlook 0\ncycles 0 20 1").endswith(
            "cycles 20\n"
        )


class StuckFile(SharedFile):
    """Does not go on in a method until it is let."""

    where = "mmap"
    reached: threading.Event
    go_on: threading.Event

    def mmap(self, request: MmapRequest) -> Area:
        self._stick("mmap")
        return super().mmap(request)

    def mapped(self, mapping: Mapping) -> None:
        self._stick("mapped")
        super().mapped(mapping)

    def _stick(self, method: str) -> None:
        if method == self.where:
            self.reached.set()
            assert self.go_on.wait(PATIENCE_S)


@pytest.mark.parametrize("where", ["mmap", "mapped"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_program_is_killed_while_its_device_is_asked(
    device: Shared, start: Callable[..., Any], tmp_path: Path, where: str, remote: bool
) -> None:
    """It ends at once; the server hears the rest."""

    class Stuck(StuckFile):
        reached = threading.Event()
        go_on = threading.Event()

    Stuck.where = where
    device.file = Stuck
    path = str(tmp_path / "socket")
    with (
        closing(DeviceServer(device, path)),
        Sandbox(Remote(path) if remote else device) as sandbox,
        start(sandbox, SURVIVOR) as program,
    ):
        assert Stuck.reached.wait(PATIENCE_S)
        sandbox.kill()
        program.wait(timeout=PATIENCE_S)
        Stuck.go_on.set()
        device.wait("unmapped", 1)
    device.wait("release", 1)
    assert device.log[-2:] == [("unmapped", device.log[0][1]), ("release", 0)]
    assert device.count("unmapped") == 1
    device.log.clear()  # whether `mapped` was called as well, depends


def test_one_server_shares_an_area_between_sandboxes(
    device: Shared, client: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    with (
        closing(DeviceServer(device, path)),
        Sandbox(Remote(path)) as one,
        Sandbox(Remote(path)) as other,
    ):
        run(one, client, f"map 0 2 {RW} {SHARED} 1\nfill 0 70\ncycles 0 5 1")
        output = run(other, client, f"map 0 2 {RW} {SHARED} 1\nlook 0")
        assert output == "map ok\nlook 70 71\n"
        device.wait("release", 2)
    device.log.clear()  # numbers of two connections


def test_the_server_goes_while_it_is_mapped(
    device: Shared, start: Callable[..., Any], tmp_path: Path
) -> None:
    """The program keeps the memory; the server ends its side of it."""
    path = str(tmp_path / "socket")
    script = (
        SURVIVOR + "print('mapped', flush=True); os.read(0, 1); memory[0] = 3; print(memory[0])"
    )
    server = DeviceServer(device, path)
    with closing(server), Sandbox(Remote(path)) as sandbox, start(sandbox, script) as program:
        assert program.stdout.readline() == b"mapped\n"
        server.close()
        assert [what for what, _ in device.log] == ["mmap", "mapped", "unmapped", "release"]
        assert program.communicate(b"x", timeout=PATIENCE_S)[0] == b"3\n"


def test_programs_of_32_bits(device: Shared, needs: Any, compiled: Callable[..., str]) -> None:
    needs("/usr/include/asm", package="gcc-multilib")
    program = compiled("mapping", "-m32", "-D_FILE_OFFSET_BITS=64")
    commands = f"map 0 3 {RW} {SHARED} 2\nfill 0 4\nlook 0\nunmap 0 0 3\ncycles 0 3 1"
    with Sandbox(device) as sandbox:
        output = run(sandbox, program, commands)
    assert output == "map ok\nlook 4 5 6\nunmap ok\ncycles 3\n"
    assert device.mappings[0].offset == 2 * PAGE
    assert device.area is not None
    assert device.area[3 * PAGE] == 5


def test_a_program_with_a_debugger(device: Shared, clients: Callable[..., Run]) -> None:
    """Nobody else can make it map memory: EPERM, for the server a mapping that failed."""
    script = """
child = os.fork()
if not child:
    libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    fd = os.open("/dev/area", os.O_RDWR)
    print(attempt(mmap.mmap, fd, 4096), len(os.listdir("/proc/self/fd")), flush=True)
    os.close(fd)
    print(len(os.listdir("/proc/self/fd")), flush=True)
    os._exit(0)
print(wait(child))
"""
    with Sandbox(device) as sandbox:
        refused, left, status = clients(sandbox)(script).splitlines()
        assert refused == f"EPERM {int(left) + 1}"
        assert status == "0"
    assert [what for what, _ in device.log] == ["mmap", "unmapped", "release"]
    device.log.clear()


OWN_FILTER = """
# This program's filter refuses close(2).
code = b"".join(struct.pack("=HBBI", *instruction) for instruction in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 3), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(code, len(code))
fd = os.open("/dev/area", os.O_RDWR)
libc.prctl(38, 1, 0, 0, 0)
libc.prctl(22, 2, struct.pack("=H6xQ", 4, ctypes.addressof(buffer)))
print(attempt(os.close, fd), attempt(lambda: len(mmap.mmap(fd, 4096))), os.dup(fd) - fd)
"""


def test_a_program_whose_own_filter_refuses_close(
    device: Shared, clients: Callable[..., Run]
) -> None:
    with Sandbox(device) as sandbox:
        # One more is a copy of Python's own for the mapping.
        assert clients(sandbox)(OWN_FILTER) == "EPERM 4096 2\n"
