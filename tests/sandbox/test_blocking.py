"""Handlers that block: others go on; and what becomes of a request whose program is killed."""

import asyncio
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from recuse import Device, File, Memory, OpenRequest
from recuse.sandbox import Sandbox

from ..patience import PATIENCE_S
from .conftest import Clients, Fifo, Shells, Start


class GateFile(File):
    device: "Gate"

    def read(self, size: int, offset: int) -> bytes:
        return self.device.pass_through()

    def write(self, data: bytes, offset: int) -> None:
        self.device.pass_through()

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        self.device.pass_through()
        return 7

    def release(self) -> None:
        self.device.released.release()


class AsyncGateFile(GateFile):
    async def read(self, size: int, offset: int) -> bytes:  # type: ignore[override]  # plain there
        return await asyncio.to_thread(self.device.pass_through)


class Gate(Device):
    """Its operations wait until the test opens the gate."""

    name = "gate"
    file = GateFile

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrived = threading.Semaphore(0)
        self.open_gate = threading.Event()
        self.released = threading.Semaphore(0)
        self.answer = b"answer"
        self.blocks_open = False

    def open(self, request: OpenRequest) -> File:
        if self.blocks_open:
            self.pass_through()
        return self.file()

    def pass_through(self) -> bytes:
        self.arrived.release()
        assert self.open_gate.wait(60)
        return self.answer

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=PATIENCE_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open_gate.set()


@pytest.fixture
def box(gate: Gate, echo: Fifo) -> Iterator[Sandbox]:
    with Sandbox(gate, echo) as sandbox:
        yield sandbox
        gate.open_gate.set()


OPERATIONS = {
    "read": "os.read(fd, 10)",
    "write": "os.write(fd, b'x')",
    "readv": "os.readv(fd, [bytearray(3), bytearray(3)])",
    "ioctl": "fcntl.ioctl(fd, 1)",
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_others_go_on_while_one_blocks(
    gate: Gate, box: Sandbox, start: Start, shells: Shells, operation: str
) -> None:
    script = f"fd = os.open('/dev/gate', os.O_RDWR)\nprint({operation})"
    with start(box, script) as program:
        gate.wait_for()
        # Another device, another program; and another file of the same device.
        assert shells(box)("echo x > /dev/echo; cat /dev/echo; ls /dev/gate") == "x\n/dev/gate\n"
        assert shells(box)("exec 5<>/dev/gate && echo ok") == "ok\n"
        assert program.poll() is None
        gate.open_gate.set()
        assert program.stdout.read() != b""
    assert program.returncode == 0


def test_other_threads_of_the_program_go_on(gate: Gate, box: Sandbox, start: Start) -> None:
    script = """
fd = os.open('/dev/gate', os.O_RDWR)
thread = threading.Thread(target=lambda: print(os.read(fd, 9)))
thread.start()
os.read(0, 1)
echo = os.open('/dev/echo', os.O_RDWR)
print(os.write(echo, b'hello'), os.read(echo, 9), 'gate' in os.listdir('/dev'), flush=True)
thread.join()
"""
    with start(box, script) as program:
        gate.wait_for()
        program.stdin.write(b"1")
        assert program.stdout.readline() == b"5 b'hello' True\n"
        gate.open_gate.set()
        assert program.stdout.read() == b"b'answer'\n"


def test_many_programs_block_at_once(gate: Gate, box: Sandbox, shells: Shells) -> None:
    count = 20
    programs = [
        box.popen(["head", "-c6", "/dev/gate"], stdout=subprocess.PIPE) for _ in range(count)
    ]
    gate.wait_for(count)
    assert shells(box)("echo x > /dev/echo; cat /dev/echo") == "x\n"
    gate.open_gate.set()
    for program in programs:
        with program:
            assert program.stdout is not None
            assert program.stdout.read() == b"answer"


def test_many_threads_block_at_once(gate: Gate, box: Sandbox, clients: Clients) -> None:
    script = """
fd = os.open('/dev/gate', os.O_RDWR)
results = []
threads = [threading.Thread(target=lambda: results.append(os.read(fd, 9))) for _ in range(50)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(results), set(results))
"""

    def open_when_all_wait() -> None:
        gate.wait_for(50)
        gate.open_gate.set()

    opener = threading.Thread(target=open_when_all_wait)
    opener.start()
    assert clients(box)(script) == "50 {b'answer'}\n"
    opener.join()


KILLED = [
    (["head", "-c6", "/dev/gate"], False),
    (["dd", "if=/dev/zero", "of=/dev/gate", "bs=4", "count=1"], False),
    (["sh", "-c", ": < /dev/gate"], True),
]


@pytest.mark.parametrize("case", KILLED, ids=["read", "write", "open"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_killed_in_a_request(
    gate: Gate, box: Sandbox, shells: Shells, case: tuple[list[str], bool], number: signal.Signals
) -> None:
    argv, gate.blocks_open = case
    with box.popen(argv, stderr=subprocess.DEVNULL) as program:
        gate.wait_for()
        program.send_signal(number)
        assert program.wait(PATIENCE_S) == -number  # while the handler still blocks
        gate.blocks_open = False
        assert shells(box)("echo x > /dev/echo; cat /dev/echo; exec 5<>/dev/gate && echo ok") == (
            "x\nok\n"
        )
        gate.open_gate.set()
    # What was opened is released, even if the answer to OPEN came too late.
    for _ in range(2):
        assert gate.released.acquire(timeout=PATIENCE_S)
    assert not gate.released.acquire(blocking=False)


def test_a_late_answer_writes_nowhere(gate: Gate, box: Sandbox, start: Start) -> None:
    # The killed thread's process lives on, with its memory at the same addresses.
    script = """
fd = os.open('/dev/gate', os.O_RDWR)
buffer = mmap.mmap(-1, 4096)
pid = os.fork()
if pid == 0:
    os.readv(fd, [buffer]); os._exit(0)
os.read(0, 1)
os.kill(pid, 9)
print(wait(pid), flush=True)
os.read(0, 1)
print(buffer[:6])
"""
    with start(box, script) as program:
        gate.wait_for()
        program.stdin.write(b"1")
        assert program.stdout.readline() == b"-9\n"
        gate.open_gate.set()
        # The read has been answered by the time that its file can be released.
        program.stdin.write(b"2")
        assert program.stdout.read() == b"b'\\x00\\x00\\x00\\x00\\x00\\x00'\n"
    assert gate.released.acquire(timeout=PATIENCE_S)


def test_a_descriptor_closed_by_another_thread_during_a_read(
    gate: Gate, box: Sandbox, start: Start
) -> None:
    # The kernel's read holds the file: it ends well, and RELEASE comes after it.
    script = """
fd = os.open('/dev/gate', os.O_RDWR)
thread = threading.Thread(target=lambda: print(os.read(fd, 9)))
thread.start()
os.read(0, 1)
os.close(fd)
null = os.open('/dev/null', os.O_RDWR)
print(null == fd, os.write(null, b'x'), flush=True)
thread.join()
"""
    with start(box, script) as program:
        gate.wait_for()
        program.stdin.write(b"1")
        assert program.stdout.readline() == b"True 1\n"
        assert not gate.released.acquire(blocking=False)
        gate.open_gate.set()
        assert program.stdout.read() == b"b'answer'\n"
    assert gate.released.acquire(timeout=PATIENCE_S)


def test_the_sandbox_ends_while_a_handler_blocks(gate: Gate, echo: Fifo) -> None:
    with Sandbox(gate, echo) as sandbox:
        program = sandbox.popen(["head", "-c6", "/dev/gate"])
        gate.wait_for()
    # The end of the with statement has not waited for the gate.
    assert program.returncode == -signal.SIGKILL
    gate.open_gate.set()


def test_an_async_handler_blocks_nobody(
    gate: Gate, echo: Fifo, shells: Shells, clients: Clients
) -> None:
    gate.file = AsyncGateFile
    with Sandbox(gate, echo) as sandbox:
        programs = [
            sandbox.popen(["head", "-c6", "/dev/gate"], stdout=subprocess.PIPE) for _ in range(3)
        ]
        gate.wait_for(3)
        assert shells(sandbox)("echo x > /dev/echo; cat /dev/echo") == "x\n"
        with programs[0] as killed:
            killed.kill()
            assert killed.wait(PATIENCE_S) == -signal.SIGKILL
        gate.open_gate.set()
        for program in programs[1:]:
            with program:
                assert program.stdout is not None
                assert program.stdout.read() == b"answer"


def test_a_caught_signal_does_not_end_a_read(gate: Gate, box: Sandbox, start: Start) -> None:
    # As with FUSE in the kernel, unless the server answers EINTR to the interrupt.
    script = """
fd = os.open('/dev/gate', os.O_RDWR)
signal.signal(signal.SIGUSR1, lambda *_: print('caught', flush=True))
print(os.read(fd, 9))
"""
    with start(box, script) as program:
        gate.wait_for()
        program.send_signal(signal.SIGUSR1)
        gate.open_gate.set()
        assert sorted(program.stdout.read().splitlines()) == [b"b'answer'", b"caught"]
    assert program.returncode == 0
