"""A run ends when the last program under the filter has ended, on every kernel."""

import functools
import os
import signal
import subprocess
import threading

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.launch import parent
from recuse.sandbox.launch.parent import Launch
from recuse.sandbox.trap.listener import POLLS_FIRST, Listener

from ..patience import PATIENCE_S
from .conftest import Fifo

# What the running kernel needs, and what one does that sleeps on in RECV (before Linux 6.11).
either_way = pytest.mark.parametrize("polls_first", [False, True], ids=["as needed", "polling"])


def use(polls_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs' listeners poll first, or as needed."""
    made = functools.partial(Listener, polls_first=POLLS_FIRST or polls_first)
    monkeypatch.setattr(parent, "Listener", made)


def serve(listener: Listener, received: list[int], returned: threading.Semaphore) -> None:
    """Let all calls go on, as one of several threads, until the end."""
    while (call := listener.receive(tuple)) is not None:
        received.append(call[0])
        listener.proceed(call[0])
    returned.release()


@either_way
@pytest.mark.parametrize("threads", [1, 4])
def test_all_that_receive_find_the_end(
    threads: int, polls_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(polls_first, monkeypatch)
    launch = Launch(["sh", "-c", "(: </dev/null) & : </dev/null; wait"])
    listener = launch.listener
    received: list[int] = []
    returned = threading.Semaphore(0)
    serving = [
        threading.Thread(target=serve, args=(listener, received, returned), daemon=True)
        for _ in range(threads)
    ]
    for thread in serving:
        thread.start()
    launch.execute()
    for _ in serving:
        assert returned.acquire(timeout=PATIENCE_S)
    assert launch.program.wait(PATIENCE_S) == 0
    assert len(received) == len(set(received)) >= 2
    listener.close()
    launch.close()


@either_way
def test_it_is_found_later_too(polls_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(polls_first, monkeypatch)
    launch = Launch(["true"])
    launch.abandon()
    assert launch.listener.receive(tuple) is None
    assert launch.listener.receive(tuple) is None
    launch.listener.close()
    assert launch.listener.receive(tuple) is None


def test_a_daemon_is_served_until_it_ends(sandbox: Sandbox, echo: Fifo) -> None:
    script = "exec 3<&0; (setsid sh -c 'read x <&3; echo $x >/dev/echo' &); exit 3"
    with sandbox.popen(["bash", "-c", script], stdin=subprocess.PIPE) as program:
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.1)
        assert program.stdin is not None
        program.stdin.write(b"late\n")
        program.stdin.close()
        assert program.wait(PATIENCE_S) == 3
    assert echo.writes == [b"late\n"]


def test_kill_ends_all_of_it(sandbox: Sandbox) -> None:
    with sandbox.popen(
        ["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo ready; cat /dev/echo; sleep 1000"],
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        sandbox.kill()
        assert program.wait(PATIENCE_S) == -9
    assert sandbox.run(["true"], timeout=PATIENCE_S).returncode == 0


def test_what_outlives_the_first_process_is_not_waited_for(make_echo: type[Fifo]) -> None:
    with Sandbox(make_echo()) as sandbox:
        script = "echo ready; read x; : </dev/echo; echo $?"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        program = sandbox.popen(["sh", "-c", script], bufsize=0, **pipes)
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        os.kill(program.pid, signal.SIGKILL)
    assert program.returncode == -signal.SIGKILL
    assert program.stdin is not None
    program.stdin.write(b"go\n")  # its calls fail
    assert program.stdout.read() in (b"", b"2\n")
    program.stdin.close()
    program.stdout.close()


def test_no_thread_is_left(make_echo: type[Fifo]) -> None:
    before = set(threading.enumerate())
    with Sandbox(make_echo()) as sandbox:
        for _ in range(3):
            sandbox.run(["sh", "-c", "echo x >/dev/echo & wait"], check=True)
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread
