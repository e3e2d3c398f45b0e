"""Interrupts: what becomes of a request whose caller has left, by where it is."""

from __future__ import annotations

import errno

import pytest

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation, Running, run
from recuse.kernel.connection.request import Reply, Request, State
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_READ,
    FUSE_RELEASE,
    fuse_in_header,
    fuse_interrupt_in,
)

from ..support import BIG, Outcome, connection, drain, error_of, reply_bytes


def submitted(made: Connection, *, sent: bool, force: bool = False) -> tuple[Request, list[Reply]]:
    request = Request(FUSE_READ, b"", 0, 16, force=force)
    replies: list[Reply] = []
    made.submit(request, replies.append)
    if sent:
        made.read(BIG)
    return request, replies


def interrupted(message: bytes) -> int:
    """The number of the request that an INTERRUPT names."""
    header = fuse_in_header.unpack(message)
    named = fuse_interrupt_in.unpack(message, fuse_in_header.SIZE).unique
    assert header == fuse_in_header(len=48, opcode=FUSE_INTERRUPT, unique=named | 1)
    return named


def test_a_request_that_was_not_read_is_withdrawn_with_eintr() -> None:
    made = connection()
    request, replies = submitted(made, sent=False)
    made.interrupt(request)
    assert [reply.error for reply in replies] == [-errno.EINTR]
    assert request.state is State.FINISHED
    assert list(drain(made)) == []


def test_a_held_request_is_withdrawn_with_eintr() -> None:
    made = Connection(Request(4096), lambda reply: None)
    request, replies = submitted(made, sent=False)
    made.interrupt(request)
    assert [reply.error for reply in replies] == [-errno.EINTR]
    assert made.waiting == 1


@pytest.mark.parametrize("held", [False, True])
def test_a_signal_that_does_not_kill_leaves_a_request_to_be_read(held: bool) -> None:
    made = Connection(Request(4096), lambda reply: None)
    made.read(BIG)
    if not held:
        made.initialised(31, 4096)
    request, replies = submitted(made, sent=False)
    made.interrupt(request, fatal=False)
    made.initialised(31, 4096)
    read, interrupt = drain(made)
    assert fuse_in_header.unpack(read).opcode == FUSE_READ
    assert interrupted(interrupt) == request.unique
    assert not replies


def test_a_signal_that_kills_withdraws_what_another_one_has_left() -> None:
    made = connection()
    request, replies = submitted(made, sent=False)
    made.interrupt(request, fatal=False)
    made.interrupt(request, fatal=True)
    assert [reply.error for reply in replies] == [-errno.EINTR]
    assert list(drain(made)) == []


def test_a_request_has_one_interrupt() -> None:
    made = connection()
    request, _ = submitted(made, sent=True)
    counts = []
    for fatal in (False, False, True):
        made.interrupt(request, fatal=fatal)
        counts.append(len(list(drain(made))))
    assert counts == [1, 0, 0]


def test_an_interrupt_that_waits_with_its_request_is_told_of_at_the_next_signal() -> None:
    made = connection()
    request, _ = submitted(made, sent=False)
    made.interrupt(request, fatal=False)
    made.read(BIG)
    calls: list[None] = []
    made.on_pending = lambda: calls.append(None)
    made.interrupt(request, fatal=False)
    assert len(calls) == 1
    assert len(list(drain(made))) == 1
    made.interrupt(request, fatal=False)
    assert len(calls) == 1


def test_a_request_that_was_read_stays_and_an_interrupt_is_sent() -> None:
    made = connection()
    request, replies = submitted(made, sent=True)
    calls: list[None] = []
    made.on_pending = lambda: calls.append(None)
    made.interrupt(request)
    assert len(calls) == 1
    (message,) = drain(made)
    assert interrupted(message) == request.unique == 4
    assert not replies
    made.write(reply_bytes(4, b"data"))
    assert bytes(replies[0].payload) == b"data"


def test_an_interrupt_comes_before_requests() -> None:
    made = connection()
    request, _ = submitted(made, sent=True)
    submitted(made, sent=False)
    made.interrupt(request)
    opcodes = [fuse_in_header.unpack(message).opcode for message in drain(made)]
    assert opcodes == [FUSE_INTERRUPT, FUSE_READ]


def test_a_channel_that_cannot_take_an_interrupt_aborts(caplog: pytest.LogCaptureFixture) -> None:
    made = connection()
    request, replies = submitted(made, sent=True)

    def fail() -> None:
        raise ZeroDivisionError("broken channel")

    made.on_pending = fail
    made.interrupt(request)
    assert [reply.error for reply in replies] == [-errno.ECONNABORTED]
    assert "broken channel" in caplog.text


def test_one_interrupt_is_pending_at_a_time() -> None:
    made = connection()
    request, _ = submitted(made, sent=True)
    made.interrupt(request)
    made.interrupt(request)
    assert len(list(drain(made))) == 1


def test_a_reply_before_the_interrupt_is_read_takes_it_back() -> None:
    made = connection()
    request, replies = submitted(made, sent=True)
    made.interrupt(request)
    made.write(reply_bytes(4))
    assert replies
    assert list(drain(made)) == []


def test_a_finished_request_cannot_be_interrupted() -> None:
    made = connection()
    request, replies = submitted(made, sent=True)
    made.write(reply_bytes(4))
    made.interrupt(request)
    assert list(drain(made)) == []
    assert [reply.error for reply in replies] == [0]


def test_what_has_to_reach_the_server_does_and_is_interrupted_there() -> None:
    made = connection()
    request = Request(FUSE_RELEASE, bytes(24), force=True)
    replies: list[Reply] = []
    made.submit(request, replies.append)
    made.interrupt(request)
    assert not replies
    release, interrupt = drain(made)
    assert fuse_in_header.unpack(release).opcode == FUSE_RELEASE
    assert interrupted(interrupt) == request.unique
    made.write(reply_bytes(4))
    assert [reply.error for reply in replies] == [0]


def test_abort_ends_interrupted_requests() -> None:
    made = connection()
    request, replies = submitted(made, sent=True)
    made.interrupt(request)
    made.abort()
    assert [reply.error for reply in replies] == [-errno.ECONNABORTED]
    with pytest.raises(OSError, match="No such device"):
        made.read(BIG)


# Replies to INTERRUPT


def test_eagain_has_the_interrupt_sent_again() -> None:
    made = connection()
    request, replies = submitted(made, sent=True)
    made.interrupt(request)
    for _ in range(3):
        (message,) = drain(made)
        assert interrupted(message) == 4
        made.write(reply_bytes(5, error=-errno.EAGAIN))
    list(drain(made))
    made.write(reply_bytes(4))
    assert replies
    assert list(drain(made)) == []


def test_enosys_is_remembered() -> None:
    made = connection()
    request, _ = submitted(made, sent=True)
    made.interrupt(request)
    list(drain(made))
    made.write(reply_bytes(5, error=-errno.ENOSYS))
    other, replies = submitted(made, sent=False, force=True)
    made.interrupt(other)
    assert [fuse_in_header.unpack(message).opcode for message in drain(made)] == [FUSE_READ]
    # What the server has not read is withdrawn all the same.
    third, replies = submitted(made, sent=False)
    made.interrupt(third)
    assert [reply.error for reply in replies] == [-errno.EINTR]


def test_enosys_does_not_hold_for_requests_that_were_under_way() -> None:
    made = connection()
    first, _ = submitted(made, sent=True)
    second, _ = submitted(made, sent=True)
    made.interrupt(first)
    list(drain(made))
    made.write(reply_bytes(5, error=-errno.ENOSYS))
    made.write(reply_bytes(5, error=-errno.ENOSYS))
    third, _ = submitted(made, sent=True)
    made.interrupt(third)
    made.interrupt(second)
    assert [interrupted(message) for message in drain(made)] == [second.unique]
    with pytest.raises(OSError, match="Invalid argument"):
        made.write(reply_bytes(third.unique + 1, error=-errno.EAGAIN))


@pytest.mark.parametrize("error", [0, -errno.EINTR, -errno.EIO])
def test_other_replies_change_nothing(error: int) -> None:
    made = connection()
    request, replies = submitted(made, sent=True)
    made.interrupt(request)
    list(drain(made))
    made.write(reply_bytes(5, error=error))
    assert not replies
    assert not made.no_interrupt
    assert list(drain(made)) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (reply_bytes(7), errno.ENOENT),
        (reply_bytes(3), errno.ENOENT),
        (reply_bytes(5, b"x"), errno.EINVAL),
        (reply_bytes(5, error=-errno.EAGAIN), errno.EINVAL),  # never interrupted
    ],
)
def test_replies_to_no_interrupt(message: bytes, expected: int) -> None:
    made = connection()
    _, replies = submitted(made, sent=True)
    assert error_of(made.write, message) == expected
    assert not replies


def test_a_reply_to_the_interrupt_of_a_finished_request_is_enoent() -> None:
    made = connection()
    request, _ = submitted(made, sent=True)
    made.interrupt(request)
    list(drain(made))
    made.write(reply_bytes(4))
    with pytest.raises(FileNotFoundError):
        made.write(reply_bytes(5, error=-errno.EAGAIN))


# Operations


def test_a_release_that_an_interrupted_operation_comes_to_is_not_interrupted() -> None:
    made = connection()

    def operation() -> Operation[int]:
        yield Request(FUSE_READ, b"1", 0, 16)
        yield Request(FUSE_RELEASE, bytes(24), force=True)
        return 1

    outcome = Outcome()
    running = run(made, operation(), outcome)
    assert running is not None
    list(drain(made))
    running.interrupt()
    list(drain(made))
    made.write(reply_bytes(4, error=-errno.EINTR))
    running.interrupt()
    (release,) = drain(made)
    assert fuse_in_header.unpack(release).opcode == FUSE_RELEASE
    made.write(reply_bytes(6))
    assert outcome.result == 1


def twice() -> Operation[list[int]]:
    first = yield Request(FUSE_READ, b"1", 0, 16)
    second = yield Request(FUSE_READ, b"2", 0, 16)
    return [first.error, second.error]


def test_an_interrupted_operation_has_its_later_requests_interrupted_too() -> None:
    made = connection()
    outcome = Outcome()
    running = run(made, twice(), outcome)
    assert isinstance(running, Running)
    list(drain(made))
    running.interrupt()
    list(drain(made))
    made.write(reply_bytes(4))
    assert outcome.result == [0, -errno.EINTR]
    assert list(drain(made)) == []


def test_an_operation_is_interrupted_in_the_request_that_it_has_come_to() -> None:
    made = connection()
    outcome = Outcome()
    running = run(made, twice(), outcome)
    assert running is not None
    list(drain(made))
    made.write(reply_bytes(4))
    running.interrupt()
    assert outcome.result == [0, -errno.EINTR]


def test_an_operation_that_was_not_read_ends_when_interrupted() -> None:
    made = connection()
    outcome = Outcome()
    running = run(made, twice(), outcome)
    assert isinstance(running, Running)
    running.interrupt()
    assert outcome.result == [-errno.EINTR, -errno.EINTR]
    running.interrupt()
    assert made.waiting == 0
