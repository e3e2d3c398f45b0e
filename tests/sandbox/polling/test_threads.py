"""Threads whose descriptors are not those of their process's first thread."""

import subprocess

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.abilities import may_hold_threads
from recuse.sandbox.tasks import fetch
from tests.conftest import Needs

from ...patience import PATIENCE_S
from ..conftest import Compiled
from .polled import POLL, Box, program_pid, wait_asleep

NEW, OLD, REFUSED = "a pidfd of the thread", "before Linux 6.9", "where fetching is refused"


@pytest.fixture(params=[NEW, OLD, REFUSED])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the supervisor can do."""
    if request.param == OLD:
        monkeypatch.setattr(fetch, "may_hold_threads", lambda: False)
    elif request.param == REFUSED:
        monkeypatch.setattr(fetch, "may_fetch", lambda: False)
    elif not may_hold_threads():
        pytest.skip("this kernel is older")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "how", ["leaderless", pytest.param("unshared", marks=pytest.mark.right("namespaces"))]
)
def test_nothing_is_ready(
    sandbox: Sandbox, box: Box, compiled: Compiled, needs: Needs, how: str
) -> None:
    needs("gcc", package="gcc")
    argv = [compiled("threadfiles"), how]
    with sandbox.popen(argv, stdout=subprocess.PIPE, bufsize=0) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(4)]
        assert lines == [b"poll 0 0\n", b"select 0\n", b"epoll 0\n", b"ready 1\n"]
        wait_asleep(program_pid(box), *POLL)
        box.put(b"data")
        assert program.stdout.readline() == b"woken 1\n"
        assert program.wait(PATIENCE_S) == 0
