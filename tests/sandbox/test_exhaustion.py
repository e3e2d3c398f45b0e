"""Without threads, ids, descriptors or memory nothing hangs: each program is answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ..patience import PATIENCE_S

SCENARIO = Path(__file__).with_name("exhausting.py")
DOINGS = ["ordinary", "read", "write", "ioctl", "async", "poll", "mmap", "many", "ordinary"]

DEVICES = """
import time
from recuse import Device, File
class Slow(Device):
    name = "slow"
    def open(self, request):
        return SlowFile()
class SlowFile(File):
    def read(self, size, offset):
        time.sleep(0.5)
        return b"x"
class Echo(Device):
    name = "echo"
    pending = b""
    def open(self, request):
        return EchoFile()
class EchoFile(File):
    def write(self, data, offset):
        self.device.pending += data
    def read(self, size, offset):
        oldest, rest = self.device.pending[:size], self.device.pending[size:]
        self.device.pending = rest
        return oldest
"""

READERS = """
i=0
while [ $i -lt 12 ]; do (head -c1 /dev/slow >/dev/null; echo $?) & i=$((i+1)); done
wait
"""


def outcomes(*arguments: str) -> list[tuple[str, str]]:
    """What the programs of the scenario came to: nothing if they could not be started."""
    done = subprocess.run(
        [sys.executable, str(SCENARIO), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if lines and lines[0].startswith("not started: "):
        assert len(lines) == 1
        return []
    found = []
    for line in lines:
        what, _, outcome = line.partition(" ")
        found.append((what, outcome))
    assert [what for what, _ in found] == DOINGS, done.stdout + done.stderr
    return found


def check_threads(found: list[tuple[str, str]]) -> None:
    for what, outcome in found:
        assert outcome == "ok" or (outcome == "EAGAIN" and what != "ordinary"), found


@pytest.mark.parametrize("number", [0, 5, 7, 9])
def test_without_threads_each_call_is_answered(number: int) -> None:
    found = outcomes("threads", str(number))
    assert bool(found) == (number >= 7)
    check_threads(found)


@pytest.mark.slow
@pytest.mark.parametrize("once", [[], ["once"]], ids=["none", "one"])
@pytest.mark.parametrize("number", range(16))
def test_whichever_thread_lacks(number: int, once: list[str]) -> None:
    check_threads(outcomes("threads", str(number), *once))


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", range(40_000, 100_000, 3000))
def test_however_little_memory_there_is(kibibytes: int) -> None:
    """The program has as little: it may end sooner, but nothing may wait for ever."""
    done = run([sys.executable, str(SCENARIO), "memory", str(kibibytes)])
    for line in done.stdout.splitlines():
        if not line.startswith("not started: "):
            assert line.split()[1] in {"ok", "EAGAIN", "ENFILE", "ENOMEM", "EIO"}, line


class PidsLimit:
    """A cgroup with a limit of processes and threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, limit: int, argv: Sequence[str]) -> list[str]:
        """What runs a command in it."""
        (self.directory / "pids.max").write_text(str(limit), encoding="ascii")
        script = f'echo $$ >{self.directory}/cgroup.procs && exec "$@"'
        return ["sh", "-c", script, "sh", *argv]


@pytest.fixture
def pids_limit() -> Iterator[PidsLimit]:
    """A cgroup of version 1 or 2, or a skip where none can be made."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    if "pids" in own:
        parent = Path("/sys/fs/cgroup/pids", own["pids"].lstrip("/"))
    else:
        parent = Path("/sys/fs/cgroup", own.get("", "/").lstrip("/"))
    directory = parent / f"recuse-test-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        if not (directory / "pids.max").exists():
            pytest.skip("no cgroup with a limit of processes can be made")
        yield PidsLimit(directory)
    finally:
        deadline = time.monotonic() + PATIENCE_S
        while (directory / "cgroup.procs").read_text(encoding="ascii"):
            assert time.monotonic() < deadline
        directory.rmdir()


@pytest.fixture
def recuse_run(tmp_path: Path) -> list[str]:
    """The beginning of a command that has the devices."""
    (tmp_path / "devices.py").write_text(DEVICES, encoding="ascii")
    devices = [f"{tmp_path}/devices.py:Slow", f"{tmp_path}/devices.py:Echo"]
    specs = [part for device in devices for part in ("-d", device)]
    return [sys.executable, "-m", "recuse.cli.main", "run", *specs, "--"]


def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_too_few_processes_for_a_start_is_one_line(
    pids_limit: PidsLimit, recuse_run: list[str]
) -> None:
    done = run(pids_limit.command(6, [*recuse_run, "true"]))
    assert done.returncode == 125
    (line,) = done.stderr.splitlines()
    assert line.startswith("recuse: no more processes or threads can be started: raise the limit")


@pytest.mark.parametrize("limit", range(7, 12))
def test_a_start_works_or_says_why_not(
    pids_limit: PidsLimit, recuse_run: list[str], limit: int
) -> None:
    done = run(pids_limit.command(limit, [*recuse_run, "cat", "/dev/echo"]))
    assert (done.returncode, len(done.stderr.splitlines())) in {(0, 0), (125, 1)}, done.stderr


def test_what_does_not_block_works_with_twelve_processes(
    pids_limit: PidsLimit, recuse_run: list[str]
) -> None:
    script = "echo hello >/dev/echo; read -r line </dev/echo; echo $line"
    done = run(pids_limit.command(12, [*recuse_run, "sh", "-c", script]))
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)


def test_what_blocks_fails_without_threads_and_the_rest_goes_on(
    pids_limit: PidsLimit, recuse_run: list[str]
) -> None:
    done = run(pids_limit.command(40, [*recuse_run, "sh", "-c", READERS]))
    statuses = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert len(statuses) == 12
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("no more threads can be started") <= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_threads(
    pids_limit: PidsLimit, recuse_run: list[str], number: signal.Signals
) -> None:
    script = "echo ready; " + "head -c1 /dev/slow & " * 8 + "exec cat /dev/slow"
    command = pids_limit.command(30, [*recuse_run, "sh", "-c", script])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 128 + number


def test_a_signal_ends_the_start(recuse_run: list[str]) -> None:
    """Calls are not received here, so the program's execve would wait for ever."""
    script = """
import select, sys
from recuse.sandbox.trap.listener import Listener
from recuse.cli.main import main
def receive(listener, make):
    poll = select.poll()
    poll.register(listener._descriptor, select.POLLIN)
    for _, events in poll.poll():
        print("waits", flush=True)
    poll.modify(listener._descriptor, 0)
    poll.poll()
Listener._receive = receive
sys.exit(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, *recuse_run[3:], "true"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_calls_that_cannot_be_received_end_the_programs(recuse_run: list[str]) -> None:
    script = """
import errno, sys
from recuse.channel import workers
from recuse.sandbox.trap.listener import Listener
from recuse.cli.main import main
workers._MOST_PAUSE_S = 0.01
receive, calls = Listener._receive, []
def fail(listener, make):
    calls.append(1)
    if len(calls) < 40:
        return receive(listener, make)
    raise OSError(errno.EPERM, "not permitted")
Listener._receive = fail
sys.exit(main())
"""
    endless = ["sh", "-c", "while read -r line </etc/passwd; do :; done"]
    done = run([sys.executable, "-c", script, *recuse_run[3:], *endless])
    assert done.returncode == 125
    assert done.stderr.count("the programs are ended") == 1


def check_descriptors(found: list[tuple[str, str]]) -> None:
    for what, outcome in found:
        assert outcome == "ok" or (outcome == "ENFILE" and what != "ordinary"), found


@pytest.mark.parametrize("number", [9, 16, 20])
def test_without_descriptors_each_call_is_answered(number: int) -> None:
    check_descriptors(outcomes("descriptors", str(number)))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(7, 40))
def test_however_few_descriptors_there_are(number: int) -> None:
    check_descriptors(outcomes("descriptors", str(number)))


@pytest.mark.parametrize("number", [12, 15, 17])
def test_too_few_descriptors_are_said_in_one_line(recuse_run: list[str], number: int) -> None:
    done = run(["prlimit", f"--nofile={number}", *recuse_run, "true"])
    assert done.returncode == 125
    line = done.stderr.splitlines()[-1]
    assert line.startswith("recuse: no more files can be opened: raise the limit (ulimit -n;")


@pytest.mark.right("pidfd_getfd")  # to have them lent takes a few more
def test_it_works_with_twenty_descriptors(recuse_run: list[str]) -> None:
    script = "echo hello >/dev/echo; read -r line </dev/echo; echo $line"
    done = run(["prlimit", "--nofile=20", *recuse_run, "sh", "-c", script])
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)
