"""RELEASE: once, after the last copy is gone, and before whatever the program does next."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from recuse import Area, Device, File, MmapRequest, OpenRequest
from recuse.sandbox import Sandbox

from ..patience import PATIENCE_S
from .conftest import Clients, Fifo, Shell, Shells, Start

ENDS = {
    "close": "os.close(fd)",
    "close of the last copy": "a = os.dup(fd); os.close(fd); os.close(a)",
    "dup2 over it": "os.dup2(0, fd)",
    "dup3 over it": "os.dup2(0, fd, inheritable=False)",
    "close_range": "os.closerange(3, 100)",
    "close_range(2)": "assert call(436, fd, fd, 0) == 0",
    "exec": "os.execv('/bin/true', ['true'])",
    "exit": "pass",
    "_exit": "os._exit(0)",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "segmentation fault": "ctypes.string_at(0)",
    "fork": "wait(pid) if (pid := os.fork()) else os._exit(0)",
    "SCM_RIGHTS": "a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [fd])",
    "SCM_RIGHTS to itself": (
        "a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [fd, a.fileno(), b.fileno()])"
    ),
    "end of a thread's own table": (
        "def other():\n"
        "    call('unshare', 0x400); e.set(); f.wait()\n"
        "e, f = threading.Event(), threading.Event()\n"
        "t = threading.Thread(target=other); t.start(); e.wait(); os.close(fd); f.set(); t.join()"
    ),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_each_end_releases_once(echo: Fifo, sandbox: Sandbox, client: Shell, end: str) -> None:
    script = "fd = os.open('/dev/echo', os.O_RDWR); assert os.read(fd, 9) == b''\n"
    assert "Error" not in client(script + end)
    echo.wait_released(1)
    assert client(script) == ""
    echo.wait_released(2)
    assert (echo.opened, echo.released) == (2, 2)


LIVING = """
def released():
    os.write(1, b'?')
    return os.read(0, 1) == b'1'
fd = os.open('/dev/echo', os.O_RDWR)
print(released(), file=sys.stderr)
copy = os.dup(fd)
os.close(fd)
print(released(), file=sys.stderr)
a, b = socket.socketpair()
socket.send_fds(a, [b'x'], [copy])
os.close(copy)
print(released(), file=sys.stderr)
(again,) = socket.recv_fds(b, 1, 1)[1]
print(released(), file=sys.stderr)
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(w)
    os.read(r, 1)
    os.close(again)
    os._exit(0)
os.close(again)
print(released(), file=sys.stderr)
os.close(w)
wait(pid)
os.close(os.open('/dev/echo', os.O_RDWR))  # whatever is opened next: it waits for releases
print(released(), file=sys.stderr)
"""


def test_no_release_while_there_is_a_copy(echo: Fifo, sandbox: Sandbox, start: Start) -> None:
    with start(sandbox, LIVING, stderr=subprocess.PIPE) as program:
        while program.stdout.read(1):
            program.stdin.write(b"%d" % bool(echo.released))
        assert program.stderr is not None
        assert program.stderr.read().split() == [b"False"] * 5 + [b"True"]


class Exclusive(Fifo):
    """One file at a time."""

    def open(self, request: OpenRequest) -> File:
        if self.left_open:
            raise BlockingIOError(16, "busy")  # EBUSY
        return super().open(request)


@pytest.fixture
def exclusive() -> Exclusive:
    """A device that answers EBUSY to a second open."""
    return Exclusive()


@pytest.fixture
def exclusive_sandbox(exclusive: Exclusive) -> Iterator[Sandbox]:
    with Sandbox(exclusive) as sandbox:
        yield sandbox


def test_an_exclusive_device_is_busy_while_it_is_open(
    exclusive: Exclusive, exclusive_sandbox: Sandbox, shells: Shells
) -> None:
    shell = shells(exclusive_sandbox)
    assert shell("exec 5<>/dev/echo; echo x >/dev/echo").startswith("sh: 1: cannot create")
    assert shell("exec 5<>/dev/echo; exec 5>&-; echo hello >/dev/echo; cat /dev/echo") == "hello\n"
    assert exclusive.most_open == 1


def test_an_open_after_a_close_finds_the_device_released(
    exclusive: Exclusive, exclusive_sandbox: Sandbox, clients: Clients
) -> None:
    script = """
for turn in range(1000):
    fd = os.open('/dev/echo', os.O_RDWR)
    if turn % 5 == 0: os.dup2(0, fd)
    os.close(fd)
print('ok')
"""
    assert clients(exclusive_sandbox)(script) == "ok\n"
    exclusive.wait_released(1000)
    assert (exclusive.opened, exclusive.most_open) == (1000, 1)


def test_an_open_after_a_process_ended_finds_the_device_released(
    exclusive: Exclusive, exclusive_sandbox: Sandbox, shells: Shells, clients: Clients
) -> None:
    script = "for i in $(seq 100); do cat /dev/echo || exit 3; done; cat /dev/echo; cat /dev/echo"
    assert shells(exclusive_sandbox)(script) == ""
    script = """
for turn in range(300):
    pid = os.fork()
    if pid == 0:
        os.open('/dev/echo', os.O_RDWR)
        os._exit(0)
    assert wait(pid) == 0, turn
print('ok')
"""
    assert clients(exclusive_sandbox)(script) == "ok\n"
    assert exclusive.most_open == 1


def test_an_open_after_a_program_ended_finds_the_device_released(
    exclusive: Exclusive, exclusive_sandbox: Sandbox
) -> None:
    for _ in range(20):
        exclusive_sandbox.run(["sh", "-c", ": < /dev/echo"], check=True)
    assert exclusive.most_open == 1


@pytest.mark.parametrize("start", ["os.fork()", "0"], ids=["processes", "threads"])
def test_many_open_and_close_at_once(echo: Fifo, client: Shell, start: str) -> None:
    # A descriptor that one closes must not be taken for one that another just opened.
    script = f"""
def work():
    for turn in range(500):
        fd = os.open('/dev/echo', os.O_RDWR)
        assert os.write(fd, b'hello') == 5, turn
        assert stat.S_ISCHR(os.fstat(fd).st_mode)
        os.close(fd)
use_processes = {start != "0"}
if use_processes:
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            work(); os._exit(0)
        pids.append(pid)
    print([wait(pid) for pid in pids])
else:
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print([0] * 4)
"""
    assert client(script) == "[0, 0, 0, 0]\n"
    echo.wait_released(2000)
    assert len(echo.writes) == echo.opened == 2000
    assert echo.most_open <= 4


def test_a_release_that_takes_long_stops_nobody_else(make_echo: type[Fifo], shells: Shells) -> None:
    slow, other = make_echo(name="slow"), make_echo(name="other")
    releasing, go_on = threading.Event(), threading.Event()
    open_slow = slow.open

    def open_file(request: OpenRequest) -> File:
        file = open_slow(request)
        release = file.release

        def wait_and_release() -> None:
            releasing.set()
            assert go_on.wait(30)
            release()

        file.release = wait_and_release  # type: ignore[method-assign]  # of this file only
        return file

    slow.open = open_file  # type: ignore[method-assign]  # of this device only
    with Sandbox(slow, other) as sandbox:
        try:
            program = sandbox.popen(["sh", "-c", ": < /dev/slow"])
            assert releasing.wait(20)
            assert shells(sandbox)("echo x > /dev/other; cat /dev/other", timeout=10) == "x\n"
            other.wait_released(2)
        finally:
            go_on.set()
        program.wait()
        slow.wait_released(1)


def test_an_open_after_an_async_release_may_block(clients: Clients) -> None:
    """It is no business of the event loop's, which other devices' methods need."""
    blocked, served = threading.Event(), threading.Event()

    class Blocks(Device):
        name = "blocks"
        opened = 0

        def open(self, request: OpenRequest) -> File:
            self.opened += 1
            if self.opened == 2:
                blocked.set()
                assert served.wait(PATIENCE_S)
            return Releases()

    class Releases(File):
        device: Blocks

        async def release(self) -> None:
            # Until the next open waits for this.
            deadline = time.monotonic() + PATIENCE_S
            assert sandbox._machine is not None
            while self.device.opened == 1 and not sandbox._machine.files.pending.waiting:
                assert time.monotonic() < deadline
                await asyncio.sleep(0)

    class Serves(Device):
        name = "serves"

        def open(self, request: OpenRequest) -> File:
            return Reads()

    class Reads(File):
        async def read(self, size: int, offset: int) -> bytes:
            if blocked.is_set():
                served.set()
                return b""
            return b"again"

    script = """
other, fd = os.open("/dev/serves", os.O_RDONLY), os.open("/dev/blocks", os.O_RDONLY)
os.close(fd)
thread = threading.Thread(target=os.open, args=("/dev/blocks", os.O_RDONLY))
thread.start()
while os.read(other, 9): pass
thread.join()
print("served")
"""
    with Sandbox(Blocks(), Serves()) as sandbox:
        assert clients(sandbox)(script) == "served\n"


@pytest.mark.parametrize("mapped", [False, True])
def test_the_device_ends_after_releases_that_take_long(mapped: bool) -> None:
    """Also when nobody has let go before the last program's end, and the sandbox's."""
    done = []

    class Slow(File):
        def mmap(self, request: MmapRequest) -> Area:
            return Area(request.size)

        def release(self) -> None:
            threading.Event().wait(0.3)
            done.append("released")

    class SlowDevice(Device):
        name = "slow"

        def open(self, request: OpenRequest) -> File:
            return Slow()

        def close(self) -> None:
            done.append("closed")

    script = "import mmap; f = open('/dev/slow', 'r+b', 0); "
    script += "m = mmap.mmap(f.fileno(), 4096)" if mapped else ""
    with Sandbox(SlowDevice()) as sandbox:
        assert sandbox.popen([sys.executable, "-c", script]).wait(20) == 0
    assert done == ["released", "closed"]


def test_a_release_that_fails_is_a_release(
    sandbox: Sandbox, echo: Fifo, client: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    open_echo = echo.open

    def open_file(request: OpenRequest) -> File:
        file = open_echo(request)

        def release() -> None:
            echo.count("released")
            raise ZeroDivisionError

        file.release = release  # type: ignore[method-assign]  # of this file only
        return file

    echo.open = open_file  # type: ignore[method-assign]  # of this device only
    script = "for i in range(3): os.close(os.open('/dev/echo', 0))\nprint('ok')"
    assert client(script) == "ok\n"
    echo.wait_released(3)
    assert "ZeroDivisionError" in caplog.text


def test_o_path_is_no_open_file(echo: Fifo, client: Shell) -> None:
    script = """
fd = os.open('/dev/echo', 0o10000000)
again = os.open(f'/proc/self/fd/{fd}', os.O_RDWR)
os.write(again, b'x')
print(os.read(again, 2), stat.S_ISCHR(os.fstat(fd).st_mode), attempt(os.read, fd, 1))
os.close(fd)
"""
    assert client(script) == "b'x' True EBADF\n"
    assert (echo.opened, echo.released) == (1, 1)
