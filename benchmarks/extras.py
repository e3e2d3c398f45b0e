"""What is not a time per operation: how long `recuse run` takes to start, and whether it grows."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import recuse_prefix
from benchmarks.processes import UnavailableError, last_line, note, output, started
from benchmarks.samples import Summary, summarise
from benchmarks.tools import Tools
from recuse import Sandbox

PROGRAM = "/bin/true"
MEMORY_OPERATIONS = 1_000_000
MEMORY_SECONDS = 300.0
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Startup:
    """Seconds from start to end of /bin/true: by itself, by `recuse run`, by `Sandbox.run`."""

    outside: Summary
    inside: Summary
    another: Summary
    """In a sandbox that is there already, as a test suite starts hundreds."""


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    output(command, 60)
    return time.perf_counter() - start


def startup(tools: Tools, repetitions: int) -> Startup:
    """Raises UnavailableError if `recuse run` cannot run."""
    inside_command = [*recuse_prefix(tools, "Plain"), PROGRAM]
    note("start-up")
    # The first one reads the interpreter and its modules from the disk.
    _seconds(inside_command)
    outside, inside = [], []
    for _ in range(repetitions):
        outside.append(_seconds([PROGRAM]))
        inside.append(_seconds(inside_command))
    another = []
    with Sandbox() as sandbox:
        sandbox.run([PROGRAM])
        for _ in range(4 * repetitions):
            start = time.perf_counter()
            sandbox.run([PROGRAM])
            another.append(time.perf_counter() - start)
    return Startup(summarise(outside), summarise(inside), summarise(another))


@dataclass(frozen=True)
class Memory:
    """The supervisor's resident memory in bytes, sampled while the client reads 16 B many times.

    `early` is the median of the samples from the second tenth of the run (in the first one the
    interpreter still warms up), `late` that of the last tenth.
    """

    operations: int
    early: float
    late: float
    highest: float


def resident(pid: int) -> int:
    """A process's resident memory in bytes; 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def flatness(operations: int, samples: Sequence[float]) -> Memory:
    """Raises ValueError for fewer than 10 samples."""
    if len(samples) < 10:
        raise ValueError(f"only {len(samples)} samples")
    tenth = len(samples) // 10
    return Memory(
        operations,
        early=summarise(samples[tenth : 2 * tenth]).median,
        late=summarise(samples[-tenth:]).median,
        highest=max(samples),
    )


def memory(tools: Tools) -> Memory:
    """A million 16 B reads. Raises UnavailableError if `recuse run` cannot run."""
    note(f"memory over {MEMORY_OPERATIONS} operations")
    command = [*recuse_prefix(tools, "Plain"), tools.client(), "-n", str(MEMORY_OPERATIONS)]
    samples: list[float] = []
    with (
        tempfile.TemporaryFile() as errors,
        started([*command, "/dev/bench", "read:16"], subprocess.DEVNULL, errors) as process,
    ):
        deadline = time.monotonic() + MEMORY_SECONDS
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise UnavailableError(f"no end within {MEMORY_SECONDS:.0f} s: {last_line(errors)}")
            if size := resident(process.pid):
                samples.append(size)
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            raise UnavailableError(f"ended with {process.returncode}: {last_line(errors)}")
    return flatness(MEMORY_OPERATIONS, samples)
