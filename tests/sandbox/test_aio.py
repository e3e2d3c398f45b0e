"""io_submit: the kernel's asynchronous I/O, as libaio has it, of devices and of other files."""

import errno
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from recuse import Device, File, OpenRequest, current_request
from recuse.sandbox import Program, Sandbox

from ..patience import PATIENCE_S
from .conftest import Fifo, client_in
from .polling.polled import Box

Needs = Callable[..., str]

TRANSFERS = """\
writev: 1
  0: 5
read: 1
  0: 5
hello...........
read of nothing: 1
  0: 0
three: 3
  0: 3
  1: 3
  2: 6
one two............
eventfd: 8 1
nothing first: 1 2
  0: 0
  1: 5
  2: 5
mixed: 1 2 1
  0: 8
  1: 4
  2: 6
  3: 4
dinary four
big: 1
  0: 1048581
big: 1
  0: 1048581
bb
"""

ERRORS = f"""\
not for reading: {-errno.EBADF}
O_PATH: {-errno.EBADF}
unknown flags: {-errno.EOPNOTSUPP}
negative: {-errno.EINVAL}
reserved: {-errno.EINVAL}
fsync: {-errno.EINVAL}
unknown: {-errno.EINVAL}
no block: {-errno.EFAULT}
no array: {-errno.EFAULT}
none: 0 {-errno.EINVAL}
a good one first: 1
  0: 1
no context: {-errno.EINVAL}
still there: 1
next descriptor: 1
"""

WIDTHS = pytest.mark.parametrize("flags", [(), ("-m32",)], ids=["64", "32"])


def run(sandbox: Sandbox, *argv: str) -> str:
    """What a program prints."""
    done = sandbox.run(argv, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    output: str = done.stdout
    return output


@pytest.fixture
def program(compiled: Callable[..., str], needs: Needs) -> Callable[..., str]:
    """The client's path, for compiler flags."""

    def program(flags: tuple[str, ...] = ()) -> str:
        needs("gcc", package="gcc-multilib" if flags else "gcc")
        return compiled("aio", *flags)

    return program


@WIDTHS
def test_transfers(sandbox: Sandbox, program: Callable[..., str], flags: tuple[str, ...]) -> None:
    assert run(sandbox, program(flags), "transfers") == TRANSFERS


@WIDTHS
def test_errors(sandbox: Sandbox, program: Callable[..., str], flags: tuple[str, ...]) -> None:
    assert run(sandbox, program(flags), "errors") == ERRORS


def test_a_control_block_is_its_owners_as_soon_as_it_has_ended(
    sandbox: Sandbox, program: Callable[..., str]
) -> None:
    """Another thread takes note of the end, and uses the memory for something else."""
    assert run(sandbox, program(), "100") == "0 bad\n"


@WIDTHS
def test_polls(program: Callable[..., str], flags: tuple[str, ...]) -> None:
    box = Box(name="echo")
    with Sandbox(box) as sandbox:
        output = run(sandbox, program(flags), "polls")
    assert output == "room: 1\n  0: 4\n2\nended: 0\n1\nended: 7\nread: 4\npoll: 0\n"


def test_fio(needs: Needs, make_echo: type[Fifo]) -> None:
    needs("fio", package="fio")
    device = Memory()
    with Sandbox(device) as sandbox:
        output = run(
            sandbox,
            "fio", "--name=test", "--ioengine=libaio", "--filename=/dev/memory", "--rw=randwrite",
            "--verify=crc32c", "--verify_state_save=0", "--bs=1k", "--size=16k", "--iodepth=4",
            "--thread", "--minimal",
        )  # fmt: skip
    assert output.split(";")[4] == "0"  # no error
    assert all(any(device.content[at : at + 1024]) for at in range(0, 16384, 1024))


class MemoryFile(File):
    device: "Memory"

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.device.content[offset : offset + size])

    def write(self, data: bytes, offset: int) -> int:
        self.device.content[offset : offset + len(data)] = data
        return len(data)


class Memory(Device):
    """16 KiB."""

    name = "memory"
    seekable = True

    def __init__(self) -> None:
        super().__init__()
        self.content = bytearray(16384)

    def open(self, request: OpenRequest) -> File:
        return MemoryFile()


class SlowFile(File):
    """A read waits for a signal, or for good."""

    device: "Slow"

    def read(self, size: int, offset: int) -> bytes:
        device = self.device
        device.reading.set()
        request = current_request()
        while not request.interrupted:
            if device.over.wait(0.01):
                return b"over"
        device.interrupted.set()
        raise InterruptedError(errno.EINTR, "a signal has come")


class Slow(Device):
    name = "slow"

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.over, self.interrupted = (threading.Event() for _ in range(3))

    def open(self, request: OpenRequest) -> File:
        return SlowFile()


SUBMITS = """
IOCB = "=QIIHhIQQqQII"
context = ctypes.c_ulong(0)
call(206, 8, ctypes.byref(context))
buffer = ctypes.create_string_buffer(16)
def submit(fd, opcode=0, size=16):
    address = ctypes.addressof(buffer)
    content = struct.pack(IOCB, 7, 0, 0, opcode, 0, fd, address, size, 0, 0, 0, 0)
    block = ctypes.create_string_buffer(content, 64)
    return call(209, context, 1, (ctypes.c_void_p * 1)(ctypes.addressof(block)))
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
"""


@pytest.fixture
def slow() -> Iterator[Slow]:
    device = Slow()
    yield device
    device.over.set()


Start = Callable[..., Program]


def test_a_signal_interrupts_a_read(start: Start, slow: Slow) -> None:
    script = SUBMITS + "print(submit(os.open('/dev/slow', os.O_RDONLY)), flush=True)"
    with Sandbox(slow) as sandbox, start(sandbox, script) as program:
        assert slow.reading.wait(PATIENCE_S)
        program.send_signal(signal.SIGALRM)
        assert program.stdout is not None
        assert program.stdout.readline() == b"EINTR\n"


def test_a_program_that_is_killed_in_a_read(start: Start, slow: Slow) -> None:
    script = SUBMITS + "submit(os.open('/dev/slow', os.O_RDONLY))"
    with Sandbox(slow) as sandbox, start(sandbox, script) as program:
        assert slow.reading.wait(PATIENCE_S)
        program.send_signal(signal.SIGTERM)
        assert program.wait(PATIENCE_S) == -signal.SIGTERM
        assert slow.interrupted.wait(PATIENCE_S)


def test_a_poll_that_was_submitted_outlives_others_of_its_thread() -> None:
    script = """
import select
IOCB_CMD_POLL = 5
fd = os.open('/dev/echo', os.O_RDWR)
content = struct.pack(IOCB, 7, 0, 0, IOCB_CMD_POLL, 0, fd, select.POLLIN, 0, 0, 0, 0, 0)
block = ctypes.create_string_buffer(content, 64)
print(call(SYS['io_submit'], context, 1, (ctypes.c_void_p * 1)(ctypes.addressof(block))))
poll = select.poll()
poll.register(fd, select.POLLIN)
print(poll.poll(1), poll.poll(1))
os.write(fd, b'data')
event = ctypes.create_string_buffer(32)
print(call(SYS['io_getevents'], context, 1, 1, event, struct.pack('=qq', 20, 0)))
"""
    with Sandbox(Box(name="echo")) as sandbox:
        assert client_in(sandbox)(SUBMITS + script) == "1\n[] []\n1\n"


def test_nothing_is_read_for_a_program_with_a_debugger(sandbox: Sandbox, client: Any) -> None:
    """Which cannot be made to submit anything: the call fails before the device hears of it."""
    script = (
        SUBMITS
        + """
fd = os.open("/dev/echo", os.O_RDWR)
os.write(fd, b"data")
go, gone = os.pipe()
child = os.fork()
if not child:
    os.read(go, 1)
    print(submit(fd), flush=True)
    os._exit(0)
PTRACE_SEIZE, PTRACE_CONT = 0x4206, 7
print(call("ptrace", PTRACE_SEIZE, child, 0, 0), flush=True)
os.write(gone, b"x")
while True:
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        break
    call("ptrace", PTRACE_CONT, child, 0, 0)
print(os.read(fd, 9))
"""
    )
    assert client(script) == "0\nEINVAL\nb'data'\n"


def test_contexts_of_programs_that_have_no_device_are_the_kernels(client: Any) -> None:
    script = (
        SUBMITS
        + """
fd = os.memfd_create("ordinary")
os.write(fd, b"data")
print(submit(fd), bytes(buffer[:4]))
device = os.open("/dev/echo", os.O_RDWR)
print(submit(fd), submit(77), bytes(buffer[:4]))
"""
    )
    assert client(script) == "1 b'data'\n1 EBADF b'data'\n"


def test_what_is_submitted_beyond_a_context_is_not_done(client: Any, echo: Fifo) -> None:
    """As its end could not be told."""
    script = (
        SUBMITS
        + """
fd = os.open("/dev/echo", os.O_RDWR)
written = 0
while submit(fd, 1, 1) == 1:
    written += 1
print(submit(fd, 1, 1), written >= 8, written)
"""
    )
    *first, written = client(script).split()
    assert first == ["EAGAIN", "True"]
    assert len(echo.data) == int(written)
