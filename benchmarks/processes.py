"""Starting and stopping the processes of a benchmark, so that none outlives it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

READY_SECONDS = 20.0
STOP_SECONDS = 5.0


class UnavailableError(Exception):
    """A peer cannot be measured; the text is one line that says why."""


def note(text: str) -> None:
    """Progress goes to stderr, as the table goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def last_line(stream: IO[bytes]) -> str:
    """What a program said last on the file that was its stderr."""
    # By pread, since a program that still writes shares this file's position.
    size = os.fstat(stream.fileno()).st_size
    lines = os.pread(stream.fileno(), size, 0).decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "nothing on stderr"


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that `started` began, and what it started, by SIGTERM and then SIGKILL."""
    if process.poll() is not None:
        return
    # The leader first: it can unmount and end its own children in order.
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def started(
    command: Sequence[str],
    stdout: int | None,
    stderr: IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own (a Ctrl-C is ours to pass on), stopped on the way out."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop(process)
        if process.stdout:
            process.stdout.close()


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """The process ID of a server that has said "ready" on its stdout.

    Raises UnavailableError if it ends or stays silent.
    """
    with (
        tempfile.TemporaryFile() as errors,
        started(command, subprocess.PIPE, errors, environment) as process,
    ):
        assert process.stdout
        readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
        if not readable:
            raise UnavailableError(f"not ready within {READY_SECONDS:.0f} s")
        if process.stdout.readline() != b"ready\n":
            # What it says on stderr may come last of all.
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            raise UnavailableError(f"its server ended: {last_line(errors)}")
        yield process.pid


def output(command: Sequence[str], seconds: float) -> str:
    """What a program printed. Raises UnavailableError if it fails or takes longer than that."""
    with tempfile.TemporaryFile() as errors, started(command, subprocess.PIPE, errors) as process:
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"no end within {seconds:.0f} s: {last_line(errors)}") from None
        if process.returncode:
            raise UnavailableError(f"ended with {process.returncode}: {last_line(errors)}")
        return text.decode()
