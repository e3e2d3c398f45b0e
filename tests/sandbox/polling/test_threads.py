"""Threads whose descriptors are not those of their process's first thread."""

import subprocess

import pytest

from recuse.sandbox import descriptors

from .polled import PATIENCE_S, POLL, program_pid, wait_asleep

NEW, OLD, REFUSED = "a pidfd of the thread", "before Linux 6.9", "where fetching is refused"


@pytest.fixture(params=[NEW, OLD, REFUSED])
def kernel(request, monkeypatch):
    """What the supervisor can do."""
    if request.param == OLD:
        monkeypatch.setattr(descriptors, "may_hold_threads", lambda: False)
    elif request.param == REFUSED:
        monkeypatch.setattr(descriptors, "may_fetch", lambda: False)
    elif not descriptors.may_hold_threads():
        pytest.skip("this kernel is older")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "how", ["leaderless", pytest.param("unshared", marks=pytest.mark.right("namespaces"))]
)
def test_nothing_is_ready(sandbox, box, compiled, needs, how):
    needs("gcc", package="gcc")
    argv = [compiled("threadfiles"), how]
    with sandbox.popen(argv, stdout=subprocess.PIPE, bufsize=0) as program:
        lines = [program.stdout.readline() for _ in range(4)]
        assert lines == [b"poll 0 0\n", b"select 0\n", b"epoll 0\n", b"ready 1\n"]
        wait_asleep(program_pid(box), *POLL)
        box.put(b"data")
        assert program.stdout.readline() == b"woken 1\n"
        assert program.wait(PATIENCE_S) == 0
