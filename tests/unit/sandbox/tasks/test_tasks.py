"""What is remembered of threads, and for how long."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.sandbox.tasks import thread_ends
from recuse.sandbox.tasks.tasks import Tasks
from recuse.sandbox.tasks.thread_ends import ThreadEnds
from recuse.wire.ids import Tgid, Tid
from tests.patience import PATIENCE_S

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


def _is_known(known: Tasks, tid: Tid) -> bool:
    try:
        known.get(tid)
    except ProcessLookupError:
        return False
    return True


def test_a_record_is_kept_until_its_thread_ends(
    known: Tasks, tid: Tid, end: threading.Event
) -> None:
    first, leader = known.get(tid), known.get(OURS)
    assert known.get(tid) is first
    end.set()
    while Path(f"/proc/self/task/{tid}").exists():
        pass
    # Noticed soon enough, as the ID does not come again at once (`thread_ends.SAME_ID_S`).
    late = time.monotonic() + PATIENCE_S
    while _is_known(known, tid):
        assert time.monotonic() < late
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


_ASK = "from recuse.sandbox.tasks.thread_ends import ids_come_in_turn as f; print(f())"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who can have the capabilities or not")
@pytest.mark.parametrize(
    "capability",
    [
        pytest.param(name, marks=pytest.mark.right(f"CAP_{name.upper()}"))
        for name in ("sys_admin", "checkpoint_restore")
    ],
)
def test_whoever_may_choose_ids_is_asked_about_each_time(capability: str) -> None:
    for kept, in_turn in ((f"-all,+{capability}", "False"), ("-all,+sys_ptrace", "True")):
        ask = ["setpriv", f"--bounding-set={kept}", sys.executable, "-c", _ASK]
        assert (
            subprocess.run(ask, check=True, capture_output=True, text=True).stdout == in_turn + "\n"
        )


def test_where_ids_come_in_turn_the_kernel_is_asked_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread_ends, "ids_come_in_turn", lambda: True)
    monkeypatch.setattr(thread_ends, "monotonic", lambda: 5.0)
    ends = ThreadEnds()
    assert not ends.some()
    assert ends.known_until == 5.0 + thread_ends.SAME_ID_S
    ends.close()
    monkeypatch.setattr(thread_ends, "ids_come_in_turn", lambda: False)
    ends = ThreadEnds()
    assert not ends.some()
    assert ends.known_until == 0.0
    ends.close()
