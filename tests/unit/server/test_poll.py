"""poll: the author's method, and how programs that wait are woken."""

import asyncio
import errno
import select
import threading
from typing import Any

import pytest

from recuse import File, current_request
from recuse.wire.fuse import (
    FUSE_NOTIFY_POLL,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    fuse_notify_poll_wakeup_out,
    fuse_out_header,
    fuse_poll_in,
    fuse_poll_out,
)

from .conftest import WAIT_S, Peer, Serve, Told

IN, OUT = select.POLLIN, select.POLLOUT


class Kernel:
    """A kernel half that polls, and keeps the notifications apart from the answers."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.notified: list[int] = []
        self.log: list[object] = []
        """Of answers and notifications, in their order."""
        take = peer.take

        def sort(message: bytes) -> None:
            header = fuse_out_header.unpack(message)
            self.log.append(header.unique)
            if header.unique:
                take(message)
                return
            if peer.refuse is not None:
                raise peer.refuse
            assert header == fuse_out_header(len=24, error=FUSE_NOTIFY_POLL, unique=0)
            assert len(message) == 24
            self.notified.append(fuse_notify_poll_wakeup_out.unpack(message, 16).kh)

        peer.take = sort  # type: ignore[method-assign]  # of this peer only

    def poll(self, fh: int, events: int = IN, *, kh: int = 1, waiting: bool = False) -> int:
        flags = FUSE_POLL_SCHEDULE_NOTIFY if waiting else 0
        body = fuse_poll_in(fh=fh, kh=kh, flags=flags, events=events)
        out = fuse_poll_out.unpack(self.peer.call(FUSE_POLL, body))
        assert out.padding == 0
        return out.revents


class Ready(File):
    revents = 0
    asked: tuple[int, ...] = ()
    last: "Ready"

    def __init__(self) -> None:
        Ready.last = self

    def poll(self, events: int) -> int:
        self.asked = (*self.asked, events)
        assert current_request().operation == "poll"
        return self.revents


@pytest.fixture
def kernel(serve: Serve) -> Kernel:
    return Kernel(serve(Ready))


def test_poll_is_given_the_events_and_returns_events(kernel: Kernel) -> None:
    fh = kernel.peer.open()
    Ready.last.revents = IN | select.POLLHUP
    assert kernel.poll(fh, IN | OUT) == IN | select.POLLHUP
    assert Ready.last.asked == (IN | OUT,)


def test_a_file_without_poll_has_none(serve: Serve) -> None:
    peer = serve(File)
    assert peer.fails(FUSE_POLL, fuse_poll_in(fh=peer.open())) == errno.ENOSYS


def test_an_unknown_file(kernel: Kernel) -> None:
    assert kernel.peer.fails(FUSE_POLL, fuse_poll_in(fh=99)) == errno.EBADF


def test_poll_may_raise(serve: Serve) -> None:
    class Fails(File):
        def poll(self, events: int) -> int:
            raise OSError(errno.ENODEV, "unplugged")

    peer = serve(Fails)
    assert peer.fails(FUSE_POLL, fuse_poll_in(fh=peer.open())) == errno.ENODEV


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, "returned None, not events such as select.POLLIN"),
        ("r", "returned 'r', not events such as select.POLLIN"),
        (-1, "returned -1, which is not a set of events"),
        (1 << 16, "returned 65536, which is not a set of events"),
    ],
)
def test_what_poll_must_not_return(kernel: Kernel, told: Told, returned: Any, line: str) -> None:
    fh = kernel.peer.open()
    Ready.last.revents = returned
    assert kernel.peer.fails(FUSE_POLL, fuse_poll_in(fh=fh)) == errno.EIO
    assert told.line() == f"Ready.poll {line}: EIO for the program"


def test_poll_may_be_async(serve: Serve) -> None:
    class Later(File):
        async def poll(self, events: int) -> int:
            await asyncio.sleep(0)
            return OUT

    kernel = Kernel(serve(Later))
    assert kernel.poll(kernel.peer.open()) == OUT


def test_a_wake_up_goes_to_who_asked_for_one_and_once(kernel: Kernel) -> None:
    fh = kernel.peer.open()
    file = Ready.last
    file.wake_pollers()
    kernel.poll(fh)
    file.wake_pollers()
    assert kernel.notified == []
    kernel.poll(fh, kh=5, waiting=True)
    kernel.poll(fh, kh=5, waiting=True)
    file.wake_pollers()
    file.wake_pollers()
    assert kernel.notified == [5]
    kernel.poll(fh, kh=5, waiting=True)
    file.wake_pollers()
    assert kernel.notified == [5, 5]


def test_each_open_file_has_its_own_pollers(kernel: Kernel) -> None:
    first = kernel.peer.open()
    first_file = Ready.last
    second = kernel.peer.open()
    kernel.poll(first, kh=1, waiting=True)
    kernel.poll(second, kh=2, waiting=True)
    first_file.wake_pollers()
    assert kernel.notified == [1]


def test_one_file_for_several_opens_wakes_all(serve: Serve) -> None:
    class Shared(Ready):
        pass

    shared = Shared()
    device = type(serve(File).session.device)()
    device.open = lambda request: shared  # of this device only
    kernel = Kernel(serve(device))
    for kh in (1, 2):
        kernel.poll(kernel.peer.open(), kh=kh, waiting=True)
    shared.wake_pollers()
    assert sorted(kernel.notified) == [1, 2]


def test_what_changes_while_poll_is_asked_is_not_missed(serve: Serve) -> None:
    """The answer says "nothing", and the notification is on its way before it."""

    class Late(File):
        def poll(self, events: int) -> int:
            self.wake_pollers()
            return 0

    kernel = Kernel(serve(Late))
    assert kernel.poll(kernel.peer.open(), kh=3, waiting=True) == 0
    assert kernel.notified == [3]
    assert kernel.log[-2] == 0


def test_waking_under_a_lock_that_poll_takes(serve: Serve) -> None:
    class Locked(File):
        last: "Locked"

        def __init__(self) -> None:
            Locked.last = self
            self.lock = threading.Lock()

        def poll(self, events: int) -> int:
            with self.lock:
                return IN

        def change(self) -> None:
            with self.lock:
                self.wake_pollers()

    kernel = Kernel(serve(Locked))
    kernel.poll(kernel.peer.open(), waiting=True)
    changer = threading.Thread(target=Locked.last.change, daemon=True)
    changer.start()
    changer.join(WAIT_S)
    assert not changer.is_alive()
    assert kernel.notified == [1]


def test_waking_before_open_has_returned_and_after_the_end(kernel: Kernel) -> None:
    Ready().wake_pollers()
    fh = kernel.peer.open()
    file = Ready.last
    kernel.poll(fh, waiting=True)
    kernel.peer.release(fh)
    kernel.peer.session.close()
    kernel.peer.refuse = OSError(errno.ENODEV, "gone")
    file.wake_pollers()
    kernel.peer.refuse = None
    file.wake_pollers()
    assert kernel.notified == []


def test_no_notification_is_lost_among_threads(kernel: Kernel) -> None:
    """Each schedule is followed by a wake-up; whatever their order, the last one is notified."""
    fh = kernel.peer.open()
    file = Ready.last
    for round_ in range(200):
        kernel.notified.clear()
        start = threading.Barrier(2)

        def wake(start: threading.Barrier = start) -> None:
            start.wait(WAIT_S)
            file.wake_pollers()

        waker = threading.Thread(target=wake, daemon=True)
        waker.start()
        start.wait(WAIT_S)
        kernel.poll(fh, kh=round_, waiting=True)
        waker.join(WAIT_S)
        file.wake_pollers()
        assert kernel.notified == [round_]
