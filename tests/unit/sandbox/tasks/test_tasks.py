"""What is remembered of threads, and for how long."""

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.sandbox.tasks.tasks import Tasks
from recuse.wire.ids import Tgid, Tid

OURS = Tgid(Tid(os.getpid()))


@pytest.fixture
def known() -> Iterator[Tasks]:
    tasks = Tasks()
    yield tasks
    tasks.close()


@pytest.fixture
def end() -> threading.Event:
    """Ends the thread of the fixture `tid`."""
    return threading.Event()


@pytest.fixture
def tid(end: threading.Event) -> Iterator[Tid]:
    """The id of a thread that is not its process's first."""
    ready = threading.Event()
    ids = []

    def live() -> None:
        ids.append(Tid(threading.get_native_id()))
        ready.set()
        end.wait(10)

    thread = threading.Thread(target=live)
    thread.start()
    assert ready.wait(10)
    yield ids[0]
    end.set()
    thread.join()


def test_a_record_is_kept_until_its_thread_ends(
    known: Tasks, tid: Tid, end: threading.Event
) -> None:
    first, leader = known.get(tid), known.get(OURS)
    assert known.get(tid) is first
    end.set()
    while Path(f"/proc/self/task/{tid}").exists():
        pass
    with pytest.raises(ProcessLookupError):
        known.get(tid)
    assert known.get(OURS) is leader


def test_a_record_is_not_kept_of_whom_nobody_watches(
    known: Tasks, tid: Tid, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before Linux 6.9, other threads than the first.
    def first_only(tid: int, flags: int = 0, real: Callable[[int], int] = os.pidfd_open) -> int:
        if flags:
            raise OSError(errno.EINVAL, "flags")
        return real(tid)

    monkeypatch.setattr(os, "pidfd_open", first_only)
    leader = known.get(OURS)
    assert known.get(tid) is not known.get(tid)
    assert known.get(OURS) is leader


def test_exec_of_a_thread_that_was_never_seen_forgets_its_process(known: Tasks, tid: Tid) -> None:
    leader = known.get(OURS)
    known.forget_process(tid)
    assert known.get(OURS) is not leader


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
@pytest.mark.parametrize(("uid", "alike"), [(0, True), (1000, False)])
def test_a_program_that_is_started_as_another_user(known: Tasks, uid: int, alike: bool) -> None:
    with subprocess.Popen(["sleep", "60"], user=uid) as process:
        try:
            known.begins(Tgid(Tid(process.pid)))
            assert known.alike is alike
            assert (known.get(Tgid(Tid(process.pid))).acting is None) is alike
        finally:
            process.kill()
    if alike:
        known.change(OURS)
        assert not known.alike


def test_who_may_be_restricted(known: Tasks) -> None:
    known.check_confinement(OURS)
    known.restrict(Tgid(Tid(os.getppid())))
    with pytest.raises(PermissionError):
        known.check_confinement(OURS)
    known.begins(OURS)
    known.check_confinement(OURS)
