"""Devices on the real kernel's CUSE, for tests that `make test-vm` runs in a virtual machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from recuse import Device
from recuse.channel.devcuse import DevCuse
from recuse.cli.spec import load, parse

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# boot.py sets it.
INSIDE = "RECUSE_INSIDE_VM" in os.environ

WAIT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, visibly, what is in this directory, unless this is the virtual machine."""
    for item in items:
        if not INSIDE and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="for the virtual machine: make test-vm"))


class Server:
    """A process that serves devices."""

    def __init__(self, *specs: str) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recuse.cli.main", "serve", "--kernel", *specs],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
        )

    def ready(self, *nodes: str) -> None:
        """Wait until it says that these devices are there, in this order."""
        assert self.process.stdout is not None
        for node in nodes:
            line = self.process.stdout.readline().decode()
            assert node in line, line + self.errors()

    def errors(self) -> str:
        """What it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal; return its status."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """End it by force, if it has not ended."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


Start = Callable[..., Server]
Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*specs)`: a server that has just been started."""
    servers: list[Server] = []

    def start(*specs: str) -> Server:
        servers.append(Server(*specs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def serve(start: Start) -> Serve:
    """A context, `serve(SPEC, NODE)`: the device is there; afterwards it is gone again."""

    @contextmanager
    def serve(spec: str, node: str) -> Iterator[Server]:
        server = start(spec)
        server.ready(node)
        yield server
        assert server.end() == 0, server.errors()
        assert not os.path.exists(node)
        assert "Traceback" not in server.errors()

    return serve


@pytest.fixture
def kernel() -> Iterator[Callable[[Device], DevCuse]]:
    """`kernel(device)`: served by this process, on the real kernel, until the test has ended."""
    with ExitStack() as stack:

        def kernel(device: Device) -> DevCuse:
            served = DevCuse(device)
            stack.callback(served.close)
            served.start()
            return served

        yield kernel


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`run(spec, program, *arguments)`: as for the tests of the examples, on the real kernel."""

    def run(
        spec: str, *argv: str, cwd: Path = ROOT, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        served = DevCuse(load(parse(str(ROOT / "examples" / spec))))
        with closing(served):
            served.start()
            outcome = subprocess.run(
                argv,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C"},
                input=stdin,
                capture_output=True,
                check=False,
                timeout=WAIT_S,
            )
        assert not os.path.exists(served.node)
        return outcome

    return run


@pytest.fixture
def shell(run: Callable[..., subprocess.CompletedProcess[bytes]]) -> Callable[..., bytes]:
    """`shell(spec, script)`: what a script of sh prints, errors too; it must not fail."""

    def shell(spec: str, script: str, **options: Any) -> bytes:
        outcome = run(spec, "sh", "-e", "-c", f"exec 2>&1\n{script}", **options)
        assert outcome.returncode == 0, outcome.stdout.decode(errors="replace")
        return outcome.stdout

    return shell
