"""Signals for programs that wait for a device's answer: the server hears of them and decides."""

import asyncio
import errno
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from recuse import Device, File, Memory, OpenRequest, current_request
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.sandbox import Sandbox

from ..patience import PATIENCE_S
from .conftest import Fifo, Piped, Shells, Start

Started = Callable[..., AbstractContextManager[Piped]]


class WaiterFile(File):
    device: "Waiter"

    """Its methods wait, unless the device has something to say."""

    def read(self, size: int, offset: int) -> bytes:
        return self.device.wait("read")

    def write(self, data: bytes, offset: int) -> None:
        self.device.wait("write")

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        self.device.wait("ioctl")
        return 7

    def release(self) -> None:
        self.device.released.release()


class AsyncWaiterFile(File):
    device: "AsyncWaiter"

    async def read(self, size: int, offset: int) -> bytes:
        return await self.device.wait_later("read")

    async def write(self, data: bytes, offset: int) -> None:
        await self.device.wait_later("write")

    async def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        await self.device.wait_later("ioctl")
        return 7

    async def release(self) -> None:
        await asyncio.sleep(0)
        self.device.released.release()


class Waiter(Device):
    """Waits in its methods until the test lets it answer; its opens do so if they are to.

    deaf
        The plain methods do not look whether they are interrupted.
    generous
        Interrupted methods answer all the same.
    """

    name = "waiter"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrived = threading.Semaphore(0)
        self.answers = threading.Semaphore(0)
        self.interrupted = threading.Semaphore(0)
        self.released = threading.Semaphore(0)
        self.opens_wait = self.deaf = self.generous = False

    def open(self, request: OpenRequest) -> File:
        if self.opens_wait:
            self.wait("open")
        return WaiterFile()

    def wait(self, what: str) -> bytes:
        self.arrived.release()
        while not self.answers.acquire(timeout=0.005):
            if current_request().interrupted and not self.deaf:
                self.interrupted.release()
                if self.generous:
                    break
                raise InterruptedError(errno.EINTR, what)
        return b"answer"

    def come(self, semaphore: threading.Semaphore, count: int = 1) -> None:
        for _ in range(count):
            assert semaphore.acquire(timeout=PATIENCE_S)

    def wait_for(self, count: int = 1) -> None:
        """Until so many methods (more) wait."""
        self.come(self.arrived, count)


class AsyncWaiter(Waiter):
    async def open(self, request: OpenRequest) -> File:  # type: ignore[override]  # plain there
        if self.opens_wait:
            await self.wait_later("open")
        return AsyncWaiterFile()

    async def wait_later(self, what: str) -> bytes:
        self.arrived.release()
        while not self.answers.acquire(blocking=False):
            try:
                await asyncio.sleep(0.002)
            except asyncio.CancelledError:
                if self.deaf:
                    continue
                self.interrupted.release()
                if self.generous:
                    break
                raise
        return b"answer"


@pytest.fixture(params=[Waiter, AsyncWaiter], ids=["plain", "async"])
def waiter(request: pytest.FixtureRequest) -> Iterator[Waiter]:
    waiter = request.param()
    yield waiter
    waiter.deaf = False
    waiter.answers.release(1000)


@pytest.fixture(params=["direct"])
def box(
    request: pytest.FixtureRequest, waiter: Waiter, echo: Fifo, tmp_path: Path
) -> Iterator[Sandbox]:
    """A sandbox with the device, whose server is in this process; "socket": at a socket."""
    if request.param == "direct":
        with Sandbox(waiter, echo) as sandbox:
            yield sandbox
            waiter.answers.release(1000)
        return
    path = str(tmp_path / "socket")
    with closing(DeviceServer(waiter, path)), Sandbox(Remote(path), echo) as sandbox:
        yield sandbox
        waiter.answers.release(1000)


either_way = pytest.mark.parametrize("box", ["direct", "socket"], indirect=True)


@pytest.fixture
def start(start: Start) -> Started:
    """As everywhere, but a test that fails does not wait for its programs."""

    @contextmanager
    def start_and_kill(sandbox: Sandbox, *args: object, **options: Any) -> Iterator[Piped]:
        with start(sandbox, *args, **options) as program:
            try:
                yield program
            except BaseException:
                sandbox.kill()
                raise

    return start_and_kill


# ctypes rather than os: Python's own functions call again after EINTR.
LIBC = """
import functools
print = functools.partial(print, flush=True)
fd = os.open('/dev/waiter', os.O_RDWR) if args[:1] != ['open'] else None
buffer = ctypes.create_string_buffer(16)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 9)
def read(): return call('read', fd, buffer, 16)
"""

OPERATIONS = {
    "open": "call('open', b'/dev/waiter', os.O_RDWR)",
    "read": "read()",
    "readv": "call('readv', fd, vector, 1)",
    "write": "call('write', fd, b'x', 1)",
    "ioctl": "call('ioctl', fd, 1, 0)",
}


@either_way
@pytest.mark.parametrize("restart", [False, True], ids=["", "SA_RESTART"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_caught_signal(
    waiter: Waiter, box: Sandbox, start: Start, operation: str, restart: bool
) -> None:
    # As with CUSE on Linux, SA_RESTART does not matter: the server's EINTR is what it is.
    waiter.opens_wait = operation == "open"
    script = f"""
signal.signal(signal.SIGUSR1, lambda *_: print('handled'))
signal.siginterrupt(signal.SIGUSR1, {not restart})
print({OPERATIONS[operation]})
print({OPERATIONS[operation]})
"""
    with start(box, LIBC + script, operation) as program:
        waiter.wait_for()
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.readline() == b"handled\n"
        assert program.stdout.readline() == b"EINTR\n"
        waiter.come(waiter.interrupted)
        waiter.wait_for()  # once more: nothing is left of the signal
        waiter.answers.release()
        assert program.stdout.read().strip() in {b"3", b"4", b"6", b"1", b"7"}
    waiter.come(waiter.released)
    assert not waiter.released.acquire(blocking=False)
    assert not waiter.interrupted.acquire(blocking=False)


def test_what_an_interrupted_method_answers_is_not_lost(
    waiter: Waiter, box: Sandbox, start: Start
) -> None:
    waiter.generous = True
    script = """
signal.signal(signal.SIGUSR1, lambda *_: None)
print(read(), buffer.value)
"""
    with start(box, LIBC + script) as program:
        waiter.wait_for()
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.read() == b"6 b'answer'\n"
    waiter.come(waiter.interrupted)


def test_a_second_request_of_a_call_is_interrupted_and_the_first_ones_data_stay(
    waiter: Waiter, box: Sandbox, start: Start
) -> None:
    # A write of two requests: the first is answered, the second interrupted.
    script = """
signal.signal(signal.SIGUSR1, lambda *_: None)
data = mmap.mmap(-1, 200000) # at the beginning of a page
print(call('write', fd, ctypes.byref(ctypes.c_char.from_buffer(data)), len(data)))
os._exit(0)
"""
    with start(box, LIBC + script) as program:
        waiter.wait_for()
        waiter.answers.release()
        waiter.wait_for()
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.read() == b"131072\n"


def interrupt_another(waiter: Waiter, box: Sandbox, start: Start) -> None:
    """After this, every call that waited has been looked at since."""
    for _ in range(2):
        script = "signal.signal(signal.SIGUSR1, lambda *_: None)\nprint(read())"
        with start(box, LIBC + script) as other:
            waiter.wait_for()
            other.send_signal(signal.SIGUSR1)
            assert other.stdout.read() == b"EINTR\n"
        waiter.come(waiter.interrupted)
        waiter.come(waiter.released)


def test_signals_that_do_not_interrupt(waiter: Waiter, box: Sandbox, start: Start) -> None:
    script = """
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, lambda *_: print('blocked'))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
print(read())
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
"""
    with start(box, LIBC + script) as program:
        waiter.wait_for()
        for name in ("USR1", "USR2", "CHLD", "WINCH", "URG", "CONT"):
            program.send_signal(signal.Signals[f"SIG{name}"])
        interrupt_another(waiter, box, start)
        assert not waiter.interrupted.acquire(blocking=False)
        waiter.answers.release()
        assert program.stdout.read() == b"6\nblocked\n"


THREADS = """
signal.signal(signal.SIGUSR1, lambda *_: print('handled'))
thread = threading.Thread(target=lambda: print(read()))
"""


def test_a_signal_that_another_thread_takes(waiter: Waiter, box: Sandbox, start: Start) -> None:
    script = """
thread.start()
while True:
    line = sys.stdin.readline()
    if not line: break
thread.join()
"""
    with start(box, LIBC + THREADS + script) as program:
        waiter.wait_for()
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.readline() == b"handled\n"
        interrupt_another(waiter, box, start)
        assert not waiter.interrupted.acquire(blocking=False)
        waiter.answers.release()
        program.stdin.close()
        assert program.stdout.read() == b"6\n"


@pytest.mark.parametrize("case", ["for the thread", "blocked elsewhere", "main thread"])
def test_a_signal_that_the_thread_takes(
    waiter: Waiter, box: Sandbox, start: Start, case: str
) -> None:
    script = {
        "for the thread": """
thread.start()
os.read(0, 1)
signal.pthread_kill(thread.ident, signal.SIGUSR1)
thread.join()
""",
        "blocked elsewhere": """
thread.start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.read(0, 1)
os.kill(os.getpid(), signal.SIGUSR1)
thread.join()
""",
        "main thread": """
def send():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGUSR1)
thread = threading.Thread(target=send)
thread.start()
print(read())
thread.join()
""",
    }[case]
    with start(box, LIBC + THREADS + script) as program:
        waiter.wait_for()
        program.stdin.write(b"1")
        assert sorted(program.stdout.read().split()) == [b"EINTR", b"handled"]


SERVER = """
import os, struct
channel = os.open("/dev/cuse", os.O_RDWR)
def reply(unique, body=b"", error=0):
    os.write(channel, struct.pack("=IiQ", 16 + len(body), error, unique) + body)
while True:
    message = os.read(channel, 1 << 17)
    opcode, unique = struct.unpack_from("=4xIQ", message)
    if opcode == 4096:
        init = struct.pack("=8I40x", 7, 31, 0, 1, 65536, 65536, 0, 0)
        reply(unique, init + b"DEVNAME=waiter\\0")
        print("ready", flush=True)
    elif opcode == 14:
        reply(unique, struct.pack("=QIi", 7, 0, 0))
    elif opcode == 36:
        (interrupted,) = struct.unpack_from("=Q", message, 40)
        print("interrupted", unique == interrupted + 1, flush=True)
        reply(interrupted, error=-4)
    elif opcode == 18:
        reply(unique)
        break
    else:
        print("waits", flush=True)
"""


@pytest.mark.parametrize("operation", ["read", "write", "ioctl"])
def test_a_server_in_the_sandbox(start: Start, operation: str) -> None:
    argv = [sys.executable, "-I", "-S", "-c", SERVER]
    script = f"""
signal.signal(signal.SIGUSR1, lambda *_: print('handled'))
print({OPERATIONS[operation]})
"""
    with (
        Sandbox() as sandbox,
        sandbox.popen(argv, stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        with start(sandbox, LIBC + script) as program:
            assert server.stdout.readline() == b"waits\n"
            program.send_signal(signal.SIGUSR1)
            assert sorted(program.stdout.read().split()) == [b"EINTR", b"handled"]
        assert server.stdout.read() == b"interrupted True\n"


# ---- the caller's end


ENDS = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGQUIT": signal.SIGQUIT,
    "SIGSEGV": signal.SIGSEGV,
}


@pytest.mark.slow
@either_way
@pytest.mark.parametrize("operation", ["open", "read", "write", "ioctl"])
@pytest.mark.parametrize("end", [*ENDS, "exit", "exec"])
def test_the_end_of_a_caller_interrupts(
    waiter: Waiter, box: Sandbox, start: Start, end: str, operation: str
) -> None:
    waiter.opens_wait = operation == "open"
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
thread = threading.Thread(target=lambda: {OPERATIONS[operation]}, daemon=True)
thread.start()
os.read(0, 1)
os.set_blocking(0, True)
if args[1] == 'exec': os.execv('/bin/true', ['true'])
if args[1] == 'exit': os._exit(0)
os.kill(os.getpid(), signal.Signals[args[1]])
signal.pause()
"""
    with start(box, LIBC + script, operation, end) as program:
        waiter.wait_for()
        program.stdin.write(b"1")
        assert program.wait(PATIENCE_S) == -ENDS.get(end, 0)
        waiter.come(waiter.interrupted)
    if operation != "open":
        waiter.come(waiter.released)
    assert not waiter.released.acquire(blocking=False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
def test_a_device_that_does_not_listen_cannot_keep_a_program_from_dying(
    waiter: Waiter, box: Sandbox, start: Start, shells: Shells, number: signal.Signals
) -> None:
    waiter.deaf = True
    script = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGINT, signal.SIG_DFL)
read()
"""
    with start(box, LIBC + script) as program:
        waiter.wait_for()
        program.send_signal(number)
        assert program.wait(PATIENCE_S) == -number
    assert shells(box)("echo x > /dev/echo; cat /dev/echo") == "x\n"
    assert not waiter.released.acquire(blocking=False)  # the request has not ended
    waiter.answers.release()
    waiter.come(waiter.released)


# ---- job control


STOP = """
def child():
    print(read(), buffer.value)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)  # in a group without a parent outside (an orphaned one) SIGTSTP does nothing
    if args[1] == 'thread':
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()
    else:
        child()
    os._exit(0)
os.read(0, 1)
os.kill(pid, signal.Signals[args[0]])
print(os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]))
os.read(0, 1)
os.kill(pid, signal.SIGCONT)
print(wait(pid))
"""


@pytest.mark.parametrize("waits", ["main thread", "thread"])
@pytest.mark.parametrize("number", ["SIGSTOP", "SIGTSTP"])
def test_a_stopped_program_goes_on_where_it_was(
    waiter: Waiter, box: Sandbox, start: Start, number: str, waits: str
) -> None:
    # Unlike with CUSE on Linux, whose read fails with EINTR then, and `cat` with it.
    with start(box, LIBC + STOP, number, waits) as program:
        waiter.wait_for()
        program.stdin.write(b"1")
        assert program.stdout.readline() == b"True\n"
        waiter.come(waiter.interrupted)
        program.stdin.write(b"2")
        waiter.wait_for()
        waiter.answers.release()
        assert program.stdout.read() == b"6 b'answer'\n0\n"
