"""Where the cases run: in the sandbox, and on the real kernel's CUSE; with the same server."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from recuse.channel.devcuse import DevCuse
from recuse.channel.inprocess import InProcessChannel
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import DeviceTable
from recuse.sandbox import Sandbox

from .devices import ConformanceDevice, devices
from .recording import PATIENCE_S, Recorder, RecordingSession

CLIENT = Path(__file__).parent / "client"

COMPAT = "compat"
"""The group of cases that are made as 32-bit programs."""

DRIVER = "driver"

CASE_S = 30
"""How long a case may take; only a failure takes as long."""


def cases() -> dict[str, list[str]]:
    """The names of all cases, by the source file that has them."""
    return {
        source.stem: names
        for source in sorted(CLIENT.glob("*.c"))
        if (names := re.findall(r"^CASE\((\w+)\)", source.read_text(), re.MULTILINE))
    }


def compile_client(directory: Path, bits: int) -> Path:
    """Make the client program, with the cases of COMPAT if it is a 32-bit one, else the others."""
    program = directory / f"client{bits}"
    sources = sorted(
        str(source)
        for source in CLIENT.glob("*.c")
        if source.stem == DRIVER or (source.stem == COMPAT) == (bits == 32)
    )
    # What they pass to system calls is wrong on purpose.
    wrong = ["-Wno-nonnull", "-Wno-stringop-overflow"]
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", *wrong, "-pthread"]
    subprocess.run(["gcc", f"-m{bits}", *flags, "-o", program, *sources], check=True)
    return program


_TICK_S = 0.05


class Place:
    """Runs cases, by one process of the client's for all of them."""

    pause_s = 0.0

    def __init__(self, directory: Path) -> None:
        """Prepare.

        Args:
            directory: where to put the client programs, when they are needed.
        """
        self._directory = directory
        self._groups = {case: group for group, names in cases().items() for case in names}
        self._clients: dict[int, Path] = {}
        self._bits = 0
        self.recorder = Recorder(self.pause_s)
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        """Start the client."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until the server knows of what the client has let go."""

    def run(self, case: str) -> list[str]:
        """Return the record of one case."""
        self.recorder.begin()
        bits = 32 if self._groups[case] == COMPAT else 64
        if bits != self._bits:
            self.stop()
            self._bits = bits
        if self._process is None:
            if bits not in self._clients:
                self._clients[bits] = compile_client(self._directory, bits)
            self._process = self.start([str(self._clients[bits])])
        try:
            self._write(case)
            status = self._follow(time.monotonic() + CASE_S)
        except BaseException:
            self.stop()
            raise
        if status:
            how = signal.Signals(status).name if status < 128 else f"status {status >> 8}"
            self.recorder.note(f" the case ended: {how}")
        return self.recorder.end()

    def _follow(self, deadline: float) -> int:
        """Do what a case says until it has ended; return its wait status."""
        while True:
            line = self._read(deadline)
            rest = line[1:]
            if line[0] == ".":
                return int(rest)
            answer = ""
            if line[0] == "#":
                name, _, thread = rest.rpartition(" ")
                self.recorder.call(int(thread), name)
            else:
                self.settle()
                if line[0] == "!":
                    answer = self.recorder.tell(rest)
                else:
                    self.recorder.note(rest)
            self._write(answer)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _write(self, line: str) -> None:
        os.write(self._pipes()[0].fileno(), line.encode() + b"\n")

    def _read(self, deadline: float) -> str:
        number = self._pipes()[1].fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([number], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("\n".join(["the case hangs:", *self.recorder.lines]))
            got = os.read(number, 65536)
            if not got:
                raise EOFError("\n".join(["the client has ended:", *self.recorder.lines]))
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def stop(self) -> None:
        """End the client, and whatever is stuck."""
        process, self._process = self._process, None
        self._buffer = b""
        if process is not None:
            self.recorder.end()
            self.kill(process)
            process.wait(PATIENCE_S)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the client and what it started."""
        process.kill()


class Joined:
    """One device, to be joined to a sandbox."""

    def __init__(self, device: ConformanceDevice, recorder: Recorder) -> None:
        self._session = RecordingSession(device, recorder)

    def connect(self, table: DeviceTable) -> InProcessChannel:
        """Join it."""
        return InProcessChannel(CuseChannel(table), self._session)


class InSandbox(Place):
    """recuse's own kernel half."""

    pause_s = 0.05

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.sandbox = Sandbox(*(Joined(device, self.recorder) for device in devices()))

    def start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        return self.sandbox.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def settle(self) -> None:
        # A close returns before its RELEASE is sent.
        machine = self.sandbox._machine
        assert machine is not None
        deadline = time.monotonic() + PATIENCE_S
        while (began := time.monotonic()) < deadline:
            machine.files.settle(_TICK_S)
            if time.monotonic() - began < _TICK_S or self.recorder.holds_any:
                return

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        self.sandbox.kill()


class OnKernel(Place):
    """Linux."""

    pause_s = 0.2

    def start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def in_sandbox(directory: Path) -> Iterator[InSandbox]:
    """A sandbox with the devices."""
    place = InSandbox(directory)
    with place.sandbox:
        try:
            yield place
        finally:
            place.stop()


@contextlib.contextmanager
def on_kernel(directory: Path) -> Iterator[OnKernel]:
    """This machine's kernel with the devices."""
    place = OnKernel(directory)
    with contextlib.ExitStack() as stack:
        for device in devices():
            served = DevCuse(device)
            served._session = RecordingSession(device, place.recorder)
            stack.callback(served.close)
            served.start()
        stack.callback(place.stop)
        yield place
