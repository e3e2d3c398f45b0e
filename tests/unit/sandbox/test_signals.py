"""Looking for signals that are pending for a thread that waits."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest

from recuse.sandbox.errands import Errands
from recuse.sandbox.listener import Notification
from recuse.sandbox.signals import SignalWatch, pending_signals

WAIT_S = 20


class Gone:
    """A listener whose calls have all been withdrawn."""

    def alive(self, call_id):
        return False


def call(number):
    return Notification(number, threading.get_native_id(), *[0] * 10)


def test_an_interrupt_that_blocks_keeps_no_other_from_being_told():
    go_on, told = threading.Event(), threading.Event()

    def block(fatal):
        assert fatal
        go_on.wait(WAIT_S)

    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        watch.watch(call(1), Gone(), block)
        watch.watch(call(2), Gone(), lambda fatal: told.set())
        assert told.wait(WAIT_S)
        watch.watch(call(3), Gone(), lambda fatal: go_on.set())
        assert go_on.wait(WAIT_S)
        assert watch.waiting == {}


def test_what_is_forgotten_is_not_told():
    told = threading.Event()
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        for number in range(1, 100):
            wrong: list[bool] = []
            watch.watch(call(number), Gone(), wrong.append)
            forgotten = watch.forget(call(number))
            if forgotten is not None:  # or it was looked at before, on a machine that is that busy
                break
        assert forgotten.call.id == number
        assert watch.forget(call(number)) is None
        watch.watch(call(100), Gone(), lambda fatal: told.set())
        assert told.wait(WAIT_S)
        assert not wrong


@pytest.mark.parametrize("late", [False, True])
def test_any_watch_wakes_who_looks(late):
    told = threading.Event()
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        watch.watch(call(1), Gone(), lambda fatal: told.set(), late=late)
        assert told.wait(WAIT_S)
        told.clear()
        parked = threading.Event()
        wait = watch._unpark.wait
        watch._unpark.wait = lambda: (parked.set(), wait())
        assert parked.wait(WAIT_S)  # for want of anything to look at
        watch.watch(call(2), Gone(), lambda fatal: told.set(), late=late)
        assert told.wait(WAIT_S)


def test_who_is_attended_is_looked_at_until_forgotten():
    looks = threading.Semaphore(0)
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        watch.attend(call(1), Gone(), looks.release)
        watch.watch(call(1), Gone(), lambda fatal: pytest.fail("told"), late=True)
        for _ in range(3):
            assert looks.acquire(timeout=WAIT_S)
        assert watch.forget(call(1)) is not None


def test_who_is_attended_while_he_is_found_gone_is_attended():
    """His call is answered, and so not alive, as soon as he makes calls for us."""
    looks = threading.Semaphore(0)
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:

        class GoneMeanwhile:
            def alive(self, call_id):
                watch.attend(call(1), Gone(), looks.release)
                return False

        watch.watch(call(1), GoneMeanwhile(), lambda fatal: pytest.fail("told"))
        for _ in range(3):
            assert looks.acquire(timeout=WAIT_S)
        assert watch.forget(call(1)) is not None


def test_a_late_watch_does_not_replace_one():
    told = threading.Event()
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        watch.watch(call(1), Gone(), lambda fatal: told.set())
        watch.watch(call(1), Gone(), lambda fatal: pytest.fail("told"), late=True)
        assert told.wait(WAIT_S)


SCRIPT = """
import os, signal, sys
{prepare}
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def stopped(prepare):
    """A process that takes no signals, since it is stopped."""
    argv = [sys.executable, "-I", "-S", "-c", SCRIPT.format(prepare=prepare)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            yield process
        finally:
            process.kill()


CASES = [
    ("", [], None),
    ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", ["SIGUSR1", "SIGCHLD", "SIGURG"], None),
    ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", ["SIGUSR1"], None),
    ("signal.signal(signal.SIGUSR1, lambda *_: None)", ["SIGUSR1"], (True, False)),
    ("", ["SIGTSTP"], (False, False)),
    ("", ["SIGQUIT"], (False, True)),
    ("signal.signal(signal.SIGQUIT, lambda *_: None)", ["SIGQUIT"], (True, False)),
]


@pytest.mark.parametrize(("prepare", "numbers", "expected"), CASES)
def test_what_is_pending(prepare, numbers, expected):
    with stopped(prepare) as process:
        for number in numbers:
            process.send_signal(signal.Signals[number])
        found = pending_signals(process.pid)
        if expected is None:
            assert found is None
        else:
            assert (found.caught, found.deadly) == expected
            assert found.for_thread
            assert found.sure


def test_a_thread_that_is_gone_has_no_signals():
    assert pending_signals(2**22 + 1) is None
