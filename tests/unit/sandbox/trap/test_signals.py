"""Looking for signals that are pending for a thread that waits."""

import ctypes
import errno
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from recuse.sandbox.errands import Errands
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.trap.pending import Signals, pending_signals
from recuse.sandbox.trap.signals import _MOST_ENDED, SignalWatch
from recuse.wire.ids import Tgid, Tid

from ..support import made_call

WAIT_S = 20


class Gone:
    """A listener whose calls have all been withdrawn."""

    def alive(self, call_id: int) -> bool:
        return False

    def fail(self, call_id: int, number: int) -> bool:
        return False


def call(number: int, watch: SignalWatch, listener: Gone | None = None) -> TrappedCall:
    """A call of this thread's that has been withdrawn."""
    return made_call(listener or Gone(), watch, id=number, pid=threading.get_native_id())


@pytest.fixture
def watch() -> Iterator[SignalWatch]:
    with closing(Errands()) as errands, closing(SignalWatch(errands)) as watch:
        yield watch


def test_an_interrupt_that_blocks_keeps_no_other_from_being_told(watch: SignalWatch) -> None:
    go_on, told = threading.Event(), threading.Event()
    calls = [call(number, watch) for number in range(3)]

    def block(one: TrappedCall, fatal: bool) -> None:
        assert one is calls[0]
        assert fatal
        go_on.wait(WAIT_S)

    watch.watch(calls[0], block)
    watch.watch(calls[1], lambda call, fatal: told.set())
    assert told.wait(WAIT_S)
    watch.watch(calls[2], lambda call, fatal: go_on.set())
    assert go_on.wait(WAIT_S)
    assert watch.waiting == {}


def test_what_is_answered_is_not_told(watch: SignalWatch) -> None:
    told = threading.Event()
    for number in range(1, 100):
        wrong: list[TrappedCall] = []
        answered = call(number, watch)

        def tell(call: TrappedCall, fatal: bool, wrong: list[TrappedCall] = wrong) -> None:
            wrong.append(call)

        watch.watch(answered, tell)
        waited = number in watch.waiting
        answered.fail(errno.EIO)
        assert number not in watch.waiting
        if waited:  # or it was looked at before, on a machine that is that busy
            break
    last = call(100, watch)
    watch.watch(last, lambda call, fatal: told.set())
    assert told.wait(WAIT_S)
    assert not wrong


def test_what_was_answered_before_is_not_watched(watch: SignalWatch) -> None:
    """As by another thread, to which it was left."""
    for late in (False, True):
        answered = call(1, watch)
        answered.fail(errno.EIO)
        watch.watch(answered, lambda call, fatal: pytest.fail("told"), late=late)
        assert watch.waiting == {}


def test_a_watch_does_not_keep_a_call(watch: SignalWatch) -> None:
    told = threading.Event()
    watch.watch(call(1, watch), lambda call, fatal: pytest.fail("told"))
    kept = call(2, watch)
    watch.watch(kept, lambda call, fatal: told.set())
    assert told.wait(WAIT_S)
    assert watch.waiting == {}


@pytest.mark.parametrize("late", [False, True])
def test_any_watch_wakes_who_looks(watch: SignalWatch, late: bool) -> None:
    told = threading.Event()
    calls = call(1, watch), call(2, watch)
    watch.watch(calls[0], lambda call, fatal: told.set(), late=late)
    assert told.wait(WAIT_S)
    told.clear()
    parked = threading.Event()
    wait = watch._unpark.wait

    def tell_and_wait(timeout: float | None = None) -> bool:
        parked.set()
        return wait(timeout)

    watch._unpark.wait = tell_and_wait  # type: ignore[method-assign]  # of this watch only
    assert parked.wait(WAIT_S)  # for want of anything to look at
    watch.watch(calls[1], lambda call, fatal: told.set(), late=late)
    assert told.wait(WAIT_S)


def test_who_is_attended_is_looked_at_until_the_end(watch: SignalWatch) -> None:
    looks = threading.Semaphore(0)
    attended = call(1, watch)
    watch.attend(attended, looks.release)
    watch.watch(attended, lambda call, fatal: pytest.fail("told"), late=True)
    for _ in range(3):
        assert looks.acquire(timeout=WAIT_S)
    attended.fail(errno.EIO)
    assert watch.waiting == {}


def test_who_is_attended_while_he_is_found_gone_is_attended(watch: SignalWatch) -> None:
    """His call is answered, and so not alive, as soon as he makes calls for us."""
    looks = threading.Semaphore(0)

    class GoneMeanwhile(Gone):
        def alive(self, call_id: int) -> bool:
            watch.attend(attended, looks.release)
            return False

    attended = call(1, watch, GoneMeanwhile())
    watch.watch(attended, lambda call, fatal: pytest.fail("told"))
    for _ in range(3):
        assert looks.acquire(timeout=WAIT_S)
    assert 1 in watch.waiting


def test_who_holds_a_thread_may_attend_it(watch: SignalWatch) -> None:
    class Waits(Gone):
        def answer(self, call_id: int, value: int) -> bool:
            return True

    attended, other = call(1, watch, Waits()), call(2, watch, Waits())
    watch.watch(attended, lambda call, fatal: pytest.fail("told"))
    attended.attend(lambda: None)
    for one in (attended, other):
        assert one.hold()
        watch.watch(one, lambda call, fatal: pytest.fail("told"), late=True)
    assert list(watch.waiting) == [1]
    assert watch.waiting[1].attend is not None
    for one in (attended, other):
        one.let_go(0)
        one.leave()
    assert watch.waiting == {}


def test_a_late_watch_does_not_replace_one(watch: SignalWatch) -> None:
    told = threading.Event()
    watched = call(1, watch)
    watch.watch(watched, lambda call, fatal: told.set())
    watch.watch(watched, lambda call, fatal: pytest.fail("told"), late=True)
    assert told.wait(WAIT_S)


@pytest.mark.parametrize(("further", "first"), [(0, False), (2, True)])
def test_a_call_that_is_made_once_more_is_interrupted_as_it_was_before(
    watch: SignalWatch, further: int, first: bool
) -> None:
    """Not another one of the thread's, of which only the end is told."""
    told: queue.SimpleQueue[tuple[TrappedCall, bool]] = queue.SimpleQueue()
    again = call(1, watch)
    watch.owed[again.tid] = again.instruction + further
    watch.received(again)
    assert watch.owed == {}
    watch.watch(again, lambda *what: told.put(what))
    assert told.get(timeout=WAIT_S) == (again, first)


def test_what_is_to_come_is_known_once_and_of_so_many_threads(watch: SignalWatch) -> None:
    for tid in (1, 2):
        watch.will_come_again(Tid(tid), 50 + tid)
    assert not watch.comes_again(Tid(1), 52)
    assert not watch.comes_again(Tid(3), 51)
    assert watch.comes_again(Tid(1), 51)
    assert not watch.comes_again(Tid(1), 51)
    for tid in range(3, _MOST_ENDED + 2):
        watch.will_come_again(Tid(tid), 50)
    assert watch.comes_again(Tid(2), 52)  # there is room for it, now
    for tid in (2, 3):
        watch.will_come_again(Tid(tid), 50)
    assert not watch.comes_again(Tid(4), 50)  # of those that were too many
    assert watch.comes_again(Tid(3), 50)


SCRIPT = """
import os, signal, sys
{prepare}
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def stopped(prepare: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes no signals, since it is stopped."""
    argv = [sys.executable, "-I", "-S", "-c", SCRIPT.format(prepare=prepare)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
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
def test_what_is_pending(
    prepare: str, numbers: list[str], expected: tuple[bool, bool] | None
) -> None:
    with stopped(prepare) as process:
        for number in numbers:
            process.send_signal(signal.Signals[number])
        found = pending_signals(Tid(process.pid))
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert (found.caught, found.deadly) == expected
            assert found.for_thread
            assert found.sure


THREADED = """
import threading
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGCHLD, lambda *_: None)
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [{blocked}])
"""

_EXIT = {"x86_64": 60, "aarch64": 93}

NOT_STOPPING = False
"""Of the process: so that what is said is about the signals."""

Found = tuple[bool, bool] | None
"""``for_thread`` and ``sure``."""


@pytest.mark.parametrize(
    ("blocked", "number", "of_first", "of_second"),
    [
        ("", "SIGUSR1", (False, True), None),
        ("", "SIGCHLD", (False, False), None),
        ("signal.SIGUSR1", "SIGUSR1", None, (False, False)),
        ("signal.SIGUSR2", "SIGUSR1", (False, True), None),
    ],
)
def test_a_signal_for_a_process_of_several_threads_is_for_the_first_if_it_can_be(
    blocked: str, number: str, of_first: Found, of_second: Found
) -> None:
    with stopped(THREADED.format(blocked=blocked)) as process:
        process.send_signal(signal.Signals[number])
        assert pending_of_both(process.pid) == [of_first, of_second]


def test_a_signal_for_one_thread_is_for_no_other() -> None:
    libc = ctypes.CDLL(None)
    with stopped(THREADED.format(blocked="")) as process:
        _, second = threads_of(process.pid)
        assert libc.tgkill(process.pid, second, signal.SIGUSR1) == 0
        assert pending_of_both(process.pid) == [None, (True, True)]


def test_a_thread_of_a_process_that_is_being_stopped_is_to_stop() -> None:
    """Whatever is pending: the kernel wakes it for that."""
    with stopped(THREADED.format(blocked="")) as process:
        known: dict[Tgid, bool] = {}
        for tid in threads_of(process.pid):
            found = pending_signals(tid, known)
            assert found == Signals(for_thread=True, sure=True, caught=False, deadly=False)
        assert known == {process.pid: True}


def test_a_thread_of_several_for_which_nothing_is_pending() -> None:
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        assert pending_signals(Tid(threading.get_native_id())) is None
    finally:
        end.set()
        other.join()


LEADERLESS = """
import ctypes, threading
signal.signal(signal.SIGUSR1, lambda *_: None)
def live():
    while b") Z" not in open("/proc/%d/stat" % os.getpid(), "rb").read():
        pass
    print("ready", flush=True)
    sys.stdin.read()
threading.Thread(target=live).start()
ctypes.CDLL(None).syscall({exit}, 0)  # of this thread only
"""


def test_a_signal_for_a_process_whose_first_thread_has_ended_is_for_another() -> None:
    with stopped(LEADERLESS.format(exit=_EXIT[os.uname().machine])) as process:
        process.send_signal(signal.SIGUSR1)
        assert pending_of_both(process.pid)[1] == (False, False)


def threads_of(process: int) -> list[Tid]:
    """The first, and the other one."""
    first, other = sorted(map(int, os.listdir(f"/proc/{process}/task")), key=process.__ne__)
    return [Tid(first), Tid(other)]


def pending_of_both(process: int) -> list[Found]:
    found = []
    for tid in threads_of(process):
        signals = pending_signals(tid, {Tgid(Tid(process)): NOT_STOPPING})
        found.append(None if signals is None else (signals.for_thread, signals.sure))
    return found


def test_a_thread_that_is_gone_has_no_signals() -> None:
    assert pending_signals(Tid(2**22 + 1)) is None
