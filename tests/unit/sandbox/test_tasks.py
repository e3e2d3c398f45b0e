"""What is remembered of threads, and for how long."""

import os
import threading

import pytest

from recuse.sandbox import tasks
from recuse.sandbox.tasks import Tasks


@pytest.fixture
def known():
    tasks = Tasks()
    yield tasks
    tasks.close()


@pytest.fixture
def tid():
    """The id of a thread that is not its process's first."""
    ready, end = threading.Event(), threading.Event()
    ids = []

    def live():
        ids.append(threading.get_native_id())
        ready.set()
        end.wait(10)

    thread = threading.Thread(target=live)
    thread.start()
    assert ready.wait(10)
    yield ids[0]
    end.set()
    thread.join()


def test_a_thread_is_looked_at_anew_now_and_then_since_it_ends_unseen(known, tid, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(tasks, "monotonic", lambda: now)
    first, leader = known.get(tid), known.get(os.getpid())
    now += 0.01
    assert known.get(tid) is first
    now += 1
    assert known.get(tid) is not first
    assert known.get(os.getpid()) is leader


def test_of_a_process_that_cannot_be_watched_nothing_is_kept(known, monkeypatch):
    def ended(tgid):
        raise ProcessLookupError

    monkeypatch.setattr(tasks.os, "pidfd_open", ended)
    with pytest.raises(ProcessLookupError):
        known.get(os.getpid())
    monkeypatch.undo()
    read = []
    monkeypatch.setattr(
        tasks, "read_task", lambda tid, real=tasks.read_task: read.append(tid) or real(tid)
    )
    known.get(os.getpid())
    assert read


def test_exec_of_a_thread_that_was_never_seen_forgets_its_process(known, tid):
    leader = known.get(os.getpid())
    known.forget_process(tid)
    assert known.get(os.getpid()) is not leader
