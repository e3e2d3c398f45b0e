"""Devices, sandboxes and client programs for the tests of the sandbox.

The devices live in the test's own process, so a test can watch and block their methods.
"""

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest

from recuse import Device, File, OpenRequest
from recuse.sandbox import Program, Sandbox

from ..patience import PATIENCE_S
from ..syscalls import rows

PRELUDE = """
import array, ctypes, errno, fcntl, mmap, os, signal, socket, stat, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
# Newer libffi keeps its own file open, so the next one would not be 3.
try:
    if "libffi" in os.readlink("/proc/self/fd/3"): os.close(3)
except OSError: pass
def attempt(function, *args, **options):
    try:
        return function(*args, **options)
    except OSError as error:
        return errno.errorcode[error.errno]
def call(name, *args):
    result = getattr(libc, name)(*args) if isinstance(name, str) else libc.syscall(name, *args)
    return result if result != -1 else errno.errorcode[ctypes.get_errno()]
def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
args = sys.argv[1:]
"""
PRELUDE += f"SYS = {rows.native()}\n"
"""What every client script begins with; SYS has the numbers of this machine's calls."""


class FifoFile(File):
    """Writes go to the end of the device's data, reads take from its beginning."""

    device: "Fifo"

    def read(self, size: int, offset: int) -> bytes:
        device = self.device
        with device.changed:
            data = bytes(device.data[:size])
            del device.data[:size]
        return data

    def write(self, data: bytes, offset: int) -> int:
        device = self.device
        with device.changed:
            device.data += data
            device.writes.append(bytes(data))
        return len(data)

    def release(self) -> None:
        self.device.count("released")


class Fifo(Device):
    """Remembers what is written; counts opens and releases. Reads never block."""

    name = "echo"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.data = bytearray()
        self.writes: list[bytes] = []
        self.changed = threading.Condition()
        self.opened = 0
        self.released = 0
        self.most_open = 0
        self.requests: list[OpenRequest] = []

    def open(self, request: OpenRequest) -> File:
        self.count("opened")
        self.requests.append(request)
        return FifoFile()

    def count(self, what: str) -> None:
        """Add one to a counter."""
        with self.changed:
            setattr(self, what, getattr(self, what) + 1)
            self.most_open = max(self.most_open, self.opened - self.released)
            self.changed.notify_all()

    def wait_released(self, number: int) -> None:
        """Wait until so many files are released."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.released >= number, PATIENCE_S)

    @property
    def left_open(self) -> int:
        """How many files are open."""
        return self.opened - self.released


@pytest.fixture
def make_echo() -> type[Fifo]:
    """The class of the device that most tests use, to be made with other attributes."""
    return Fifo


@pytest.fixture
def echo() -> Fifo:
    """A device that remembers what is written."""
    return Fifo()


@pytest.fixture
def sandbox(echo: Fifo) -> Iterator[Sandbox]:
    """A sandbox with nothing but /dev/echo; every file of it must be released in the end."""
    with Sandbox(echo) as sandbox:
        yield sandbox
    assert echo.left_open == 0


Shell = Callable[..., str]
Clients = Callable[[Sandbox | None], Shell]
Shells = Callable[[Sandbox], Shell]
Compiled = Callable[..., str]


class Piped(Program):
    """A program as ``start`` makes it: there are pipes to it."""

    stdin: IO[bytes]
    stdout: IO[bytes]


Start = Callable[..., Piped]


def shell_in(sandbox: Sandbox) -> Shell:
    """A function that runs a shell's command in the sandbox and returns what it prints."""

    def shell(command: str, *args: str, program: str = "sh", **options: Any) -> str:
        options = {"timeout": PATIENCE_S, "stdout": subprocess.PIPE, "text": True} | options
        done = sandbox.run(
            [program, "-c", command, program, *args], stderr=subprocess.STDOUT, **options
        )
        output: str = done.stdout
        return output if done.returncode == 0 else f"{output}[status {done.returncode}]"

    return shell


@pytest.fixture
def shell(sandbox: Sandbox) -> Shell:
    """Runs a shell's command in the sandbox; returns what it and its errors print."""
    return shell_in(sandbox)


def python_argv(script: str, *args: object) -> list[str]:
    """The command line of a client script."""
    # Some are about threads that fork, which Python warns of from 3.12 on.
    quiet = ["-W", "ignore::DeprecationWarning"]
    return [sys.executable, "-I", "-S", *quiet, "-c", PRELUDE + script, *map(str, args)]


def client_in(sandbox: Sandbox | None) -> Shell:
    """A function that runs a client script; without a sandbox, natively."""

    def client(script: str, *args: object, **options: Any) -> str:
        options = {"timeout": PATIENCE_S} | options
        run: Any = subprocess.run if sandbox is None else sandbox.run
        done = run(
            python_argv(script, *args),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        output: str = done.stdout
        return output if done.returncode == 0 else f"{output}[status {done.returncode}]"

    return client


@pytest.fixture
def client(sandbox: Sandbox) -> Shell:
    """Runs a Python script in the sandbox, after :data:`PRELUDE`; returns what it prints."""
    return client_in(sandbox)


@pytest.fixture
def clients() -> Clients:
    """``clients(sandbox)`` is like the fixture ``client`` for that sandbox; None: no sandbox."""
    return client_in


@pytest.fixture
def shells() -> Shells:
    """``shells(sandbox)`` is like the fixture ``shell`` for that sandbox."""
    return shell_in


@pytest.fixture
def start() -> Start:
    """``start(sandbox, script)`` starts a client script with unbuffered pipes to it."""

    def start(sandbox: Sandbox, script: str, *args: object, **options: Any) -> Piped:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        return cast(Piped, sandbox.popen(python_argv(script, *args), **(pipes | options)))

    return start


class NullFile(File):
    """As the kernel's /dev/null."""

    def read(self, size: int, offset: int) -> bytes:
        return b""

    def write(self, data: bytes, offset: int) -> int:
        return len(data)


class Null(Device):
    """As the kernel's /dev/null."""

    name = "recuse-null"

    def open(self, request: OpenRequest) -> File:
        return NullFile()


@pytest.fixture
def real_null() -> Iterator[str]:
    """A node of the kernel's null device, with mode 0666, that may be changed."""
    with tempfile.TemporaryDirectory() as directory:
        node = directory + "/recuse-null"
        try:
            os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.chmod(node, 0o666)
            os.chmod(directory, 0o755)
            os.close(os.open(node, os.O_RDWR))
        except PermissionError:
            pytest.skip("device nodes cannot be made or used here (no root, or nodev)")
        yield node


@pytest.fixture
def as_native(real_null: str) -> Shell:
    """``as_native(script)`` runs a client script, to which args[0] is a device's path, once on the
    kernel's null device and once on ours, and fails if the two print something different.
    """

    def compare(script: str, *args: object) -> str:
        native = client_in(None)(script, real_null, *args)
        with Sandbox(Null()) as sandbox:
            ours = client_in(sandbox)(script, "/dev/recuse-null", *args)
        assert ours.splitlines() == native.splitlines()
        assert "Traceback" not in ours
        return ours

    return compare


@pytest.fixture(scope="session")
def compiled() -> Iterator[Compiled]:
    """``compiled(name, *flags)``: the path of clients/NAME.c as a program, for everybody."""
    with tempfile.TemporaryDirectory(prefix="clients-") as directory:
        os.chmod(directory, 0o755)

        def build(name: str, *flags: str) -> str:
            program = os.path.join(directory, "".join([name, *flags]))
            if not os.path.exists(program):
                source = Path(__file__).parent / "clients" / f"{name}.c"
                subprocess.run(
                    ["gcc", "-O1", "-Wall", "-Werror", *flags, "-o", program, source, "-pthread"],
                    check=True,
                )
            return program

        yield build


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may search, of root."""
    with tempfile.TemporaryDirectory(prefix="rights-") as name:
        os.chmod(name, 0o755)
        yield Path(name)
