"""Looking at the stack of a thread at the end of a signal handler."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from recuse.sandbox.syscalls.sigreturn import _stack_pointer

WAIT_S = 20


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs all the time."""
    argv = [sys.executable, "-I", "-S", "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.kill()


def test_a_thread_that_still_runs_is_waited_for(busy: subprocess.Popen[bytes]) -> None:
    """Its call is received before it is asleep: seen at each handler's end on Linux 6.12."""
    asked = threading.Event()

    def waits() -> bool:
        if not asked.is_set():
            asked.set()
            busy.send_signal(signal.SIGSTOP)
        return True

    assert _stack_pointer(busy.pid, waits) > 0
    assert asked.is_set()


def test_a_thread_that_waits_no_more_has_none(busy: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ProcessLookupError):
        _stack_pointer(busy.pid, lambda: False)
