"""poll: what the server is asked, what the program gets, and who is woken."""

from __future__ import annotations

import errno
import os
import select
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recuse.kernel.char.files import OpenFile, open_file
from recuse.wire.fuse import (
    FUSE_NOTIFY_POLL,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_RELEASE,
    fuse_in_header,
    fuse_notify_poll_wakeup_out,
    fuse_open_out,
    fuse_out_header,
    fuse_poll_in,
    fuse_poll_out,
)
from recuse.wire.poll import DEFAULT_POLLMASK

from ..support import Answer, Message, Opened, Server, caller, device, error_of, finish, start

IN, OUT, ERR, HUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP


def notification(kh: int, code: int = FUSE_NOTIFY_POLL) -> bytes:
    body = fuse_notify_poll_wakeup_out(kh=kh).pack()
    return fuse_out_header(len=16 + len(body), error=code, unique=0).pack() + body


def answers(revents: int) -> Opened:
    return Opened(lambda message: fuse_poll_out(revents=revents))


def poll(opened: Opened, events: int = IN, waiting: bool = False) -> int:
    return finish(opened.connection, opened.file.poll(opened.caller, events, waiting))


def test_poll_asks_with_the_files_numbers_and_the_callers_ids() -> None:
    opened = answers(IN)
    assert poll(opened, IN | ERR | HUP) == IN
    (message,) = opened.asked
    assert message.header == fuse_in_header(
        len=64, opcode=FUSE_POLL, unique=6, nodeid=0, pid=11, uid=22, gid=33
    )
    assert message.body == fuse_poll_in(fh=7, kh=1, flags=0, events=IN | ERR | HUP)


def test_only_who_waits_asks_for_a_notification() -> None:
    opened = answers(0)
    assert poll(opened, waiting=False) == poll(opened, waiting=True) == 0
    assert [message.body.flags for message in opened.asked] == [0, FUSE_POLL_SCHEDULE_NOTIFY]


def test_events_that_do_not_exist_are_dropped_both_ways() -> None:
    opened = answers(0xFFFFFFFF)
    assert poll(opened, 0xC000_0000 | IN) == 0x27FF
    assert opened.asked[0].body.events == IN


def test_kh_counts_the_opens_of_a_connection_also_those_that_fail() -> None:
    def handler(message: Message) -> Answer:
        if message.opcode == FUSE_OPEN:
            return -errno.EBUSY if len(server.messages) == 2 else fuse_open_out(fh=9)
        return fuse_poll_out(revents=0)

    made = device()
    server = Server(made.connection, handler)
    first = finish(made.connection, open_file(made, os.O_RDWR, caller()))
    opening = start(made.connection, open_file(made, os.O_RDWR, caller()))
    assert opening.errno == errno.EBUSY
    third = finish(made.connection, open_file(made, os.O_RDWR, caller()))
    for file in (first, third, first):
        finish(made.connection, file.poll(caller(), IN, False))
    assert [m.body.kh for m in server.messages if m.opcode == FUSE_POLL] == [1, 3, 1]


def test_a_server_without_poll_is_asked_once_and_its_files_are_always_ready() -> None:
    opened = Opened(lambda message: -errno.ENOSYS)
    assert poll(opened) == poll(opened, OUT, waiting=True) == DEFAULT_POLLMASK == 0x145
    assert len(opened.asked) == 1
    other = finish(opened.connection, open_file(opened.device, os.O_RDWR, opened.caller))
    assert finish(opened.connection, other.poll(opened.caller, IN, True)) == DEFAULT_POLLMASK
    assert len(opened.asked) == 1


@pytest.mark.parametrize("error", [errno.EIO, errno.EINTR, errno.EAGAIN])
def test_any_other_error_of_the_server_is_pollerr(error: int) -> None:
    opened = Opened(lambda message: -error)
    assert poll(opened) == poll(opened) == ERR
    assert len(opened.asked) == 2


def test_a_malformed_answer_is_pollerr() -> None:
    opened = Opened()
    outcome = start(opened.connection, opened.file.poll(opened.caller, IN, False))
    assert error_of(opened.server.reply, opened.asked[0], b"1234") == errno.EINVAL
    assert outcome.result == ERR


def test_poll_after_the_end_is_pollerr() -> None:
    opened = answers(IN)
    opened.connection.abort()
    assert poll(opened, waiting=True) == ERR


def test_poll_of_a_released_file_is_refused() -> None:
    opened = answers(IN)
    opened.release()
    assert error_of(poll, opened) == errno.EBADF


def test_a_release_during_a_poll_is_sent_after_it() -> None:
    opened = Opened()
    outcome = start(opened.connection, opened.file.poll(opened.caller, IN, True))
    opened.release()
    assert FUSE_RELEASE not in opened.server.opcodes
    opened.server.reply(opened.asked[0], fuse_poll_out(revents=IN))
    assert outcome.result == IN
    assert opened.server.opcodes[-1] == FUSE_RELEASE


def test_a_notification_may_come_before_the_answer() -> None:
    opened = Opened()
    woken: list[int] = []
    opened.file.wake_pollers = lambda: woken.append(1)
    outcome = start(opened.connection, opened.file.poll(opened.caller, IN, True))
    opened.connection.write(notification(1))
    assert woken == [1]
    assert outcome.pending


def test_a_failing_callback_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    opened = answers(0)

    def fail() -> None:
        raise RuntimeError("of the sandbox's")

    opened.file.wake_pollers = fail
    poll(opened, waiting=True)
    opened.connection.write(notification(1))
    opened.connection.abort()
    assert caplog.text.count("pollers were not woken") == 2
    caplog.clear()


@pytest.mark.parametrize("message", [notification(1)[:-1], notification(1) + b"\0"])
def test_a_notification_of_another_size_is_refused(message: bytes) -> None:
    opened = answers(0)
    message = len(message).to_bytes(4, "little") + message[4:]
    assert error_of(opened.connection.write, message) == errno.EINVAL


class Wakes(RuleBasedStateMachine):
    """Any order of opens, polls, notifications and releases, and an end."""

    def __init__(self) -> None:
        super().__init__()
        self.device = device()
        self.connection = self.device.connection
        Server(self.connection, self.answer)
        self.files: list[OpenFile] = []
        self.woken: Counter[int] = Counter()
        self.expected: Counter[int] = Counter()
        self.waiting: set[int] = set()
        self.released: set[int] = set()

    @staticmethod
    def answer(message: Message) -> Answer:
        if message.opcode == FUSE_OPEN:
            return fuse_open_out(fh=1)
        return fuse_poll_out(revents=0) if message.opcode == FUSE_POLL else b""

    @precondition(lambda self: not self.connection.ended)
    @rule()
    def open(self) -> None:
        file = finish(self.connection, open_file(self.device, os.O_RDWR, caller()))
        self.files.append(file)
        kh = len(self.files)
        file.wake_pollers = lambda: self.woken.update([kh])

    @precondition(lambda self: self.files)
    @rule(data=st.data(), waiting=st.booleans())
    def poll(self, data: st.DataObject, waiting: bool) -> None:
        kh = data.draw(st.integers(1, len(self.files)))
        if kh in self.released:
            return
        ended = self.connection.ended
        result = finish(self.connection, self.files[kh - 1].poll(caller(), IN, waiting))
        assert result == (ERR if ended else 0)
        if waiting:
            self.waiting.add(kh)

    @rule(kh=st.integers(0, 6) | st.just(1 << 63))
    def notify(self, kh: int) -> None:
        self.connection.write(notification(kh))
        self.expected.update(self.waiting & {kh})

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        kh = data.draw(st.integers(1, len(self.files)))
        finish(self.connection, self.files[kh - 1].release())
        self.released.add(kh)
        self.waiting.discard(kh)

    @precondition(lambda self: len(self.files) > 2)
    @rule()
    def abort(self) -> None:
        if not self.connection.ended:
            self.expected.update(self.waiting)
        self.connection.abort()

    @invariant()
    def each_is_woken_when_it_should(self) -> None:
        assert self.woken == self.expected


TestWakes = Wakes.TestCase
