"""The connection's two ends: what each call does in each state, errno by errno."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Reply, Request, State
from recuse.kernel.connection.submit import ConnectionState
from recuse.wire.fuse import (
    FUSE_FORGET,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_POLL,
    FUSE_READ,
    FUSE_SETXATTR,
    FUSE_WRITE,
    fuse_in_header,
    fuse_notify_poll_wakeup_out,
    fuse_out_header,
)
from recuse.wire.ids import Kh

from ..support import BIG, Done, connection, drain, error_of, reply_bytes, submit


def written(made: Connection, message: bytes) -> int:
    """Write what the server may not write, and return the errno."""
    return error_of(made.write, message)


def uninitialised() -> Connection:
    made = Connection(Request(4096, bytes(16), max_reply=72), lambda reply: None)
    assert made.state is ConnectionState.INITIALISING
    return made


def refused() -> Connection:
    made = uninitialised()
    made.refuse()
    assert made.state is ConnectionState.REFUSED
    return made


def aborted() -> Connection:
    made = connection()
    made.abort()
    assert made.state is ConnectionState.ABORTED
    return made


# What goes over the wire


def test_a_message_is_the_header_and_the_body() -> None:
    made = connection()
    submit(made, Request(FUSE_WRITE, b"body", 0, 0, 1, 2, 3, 4))
    message = made.read(BIG)
    assert message[40:] == b"body"
    assert fuse_in_header.unpack(message) == fuse_in_header(
        len=44, opcode=FUSE_WRITE, unique=4, nodeid=4, pid=1, uid=2, gid=3
    )


def test_requests_are_read_in_their_order_and_numbered_by_two() -> None:
    made = connection()
    for opcode in range(1, 6):
        submit(made, Request(opcode))
    headers = [fuse_in_header.unpack(message) for message in drain(made)]
    assert [(h.opcode, h.unique) for h in headers] == [(1, 4), (2, 6), (3, 8), (4, 10), (5, 12)]


def test_replies_find_their_requests_in_any_order() -> None:
    made = connection()
    first, second = submit(made), submit(made)
    messages = [fuse_in_header.unpack(message) for message in drain(made)]
    made.write(reply_bytes(messages[1].unique, b"second"))
    assert not first.replies
    made.write(reply_bytes(messages[0].unique, b"first"))
    assert (first.payload, second.payload) == (b"first", b"second")


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_a_payload_is_kept_whatever_becomes_of_the_servers_buffer(
    kind: Callable[[bytes], bytes | bytearray | memoryview], size: int
) -> None:
    made = connection()
    done = submit(made, Request(FUSE_READ, b"", 0, size))
    made.read(BIG)
    message = kind(reply_bytes(4, b"x" * size))
    made.write(message)
    if not isinstance(message, bytes):
        message[:] = bytes(len(message))
    assert done.payload == b"x" * size


# The server's reads


def test_nothing_to_read_is_eagain() -> None:
    with pytest.raises(BlockingIOError):
        connection().read(BIG)


@pytest.mark.parametrize(
    ("max_write", "least"), [(0, 8192), (8112, 8192), (8113, 8193), (131072, 131152)]
)
def test_a_read_buffer_holds_at_least_8192_bytes_and_the_largest_write(
    max_write: int, least: int
) -> None:
    made = connection(max_write)
    done = submit(made)
    for size in (0, least - 1):
        assert error_of(made.read, size) == errno.EINVAL
    made.read(least)
    assert not done.replies


def test_before_init_is_answered_8192_bytes_are_enough() -> None:
    made = uninitialised()
    with pytest.raises(OSError, match="Invalid argument"):
        made.read(8191)
    assert fuse_in_header.unpack(made.read(8192)).opcode == 4096


def test_a_request_larger_than_the_buffer_fails_and_the_next_one_is_tried() -> None:
    made = connection()
    too_big = submit(made, Request(FUSE_WRITE, bytes(8192 - 40 + 1)))
    too_big_too = submit(made, Request(FUSE_SETXATTR, bytes(8192 - 40 + 1)))
    fits = submit(made, Request(FUSE_WRITE, bytes(8192 - 40)))
    assert fuse_in_header.unpack(made.read(8192)).unique == 8
    assert (too_big.error, too_big_too.error) == (-errno.EIO, -errno.E2BIG)
    assert not fits.replies


def test_only_requests_that_do_not_fit_is_eagain() -> None:
    made = connection()
    too_big = submit(made, Request(FUSE_WRITE, bytes(10_000)))
    with pytest.raises(BlockingIOError):
        made.read(8192)
    assert too_big.error == -errno.EIO
    assert made.waiting == 0


def test_a_request_without_reply_is_finished_by_reading_it() -> None:
    made = connection()
    done = submit(made, Request(FUSE_FORGET, bytes(8), no_reply=True))
    assert not done.replies
    assert fuse_in_header.unpack(made.read(BIG)).opcode == FUSE_FORGET
    assert done.error == 0
    assert written(made, reply_bytes(4)) == errno.ENOENT


# The server's writes


@pytest.mark.parametrize(
    "message",
    [
        b"",
        reply_bytes(4)[:15],
        reply_bytes(4, b"data")[:-1],
        reply_bytes(4) + b"x",
        fuse_out_header(len=15, unique=4).pack(),
        reply_bytes(4, error=1),
        reply_bytes(4, error=-512),
        reply_bytes(4, error=-(2**31)),
        reply_bytes(5, error=-512),
    ],
    ids=repr,
)
def test_a_malformed_reply_is_einval_and_leaves_the_request_as_it_is(message: bytes) -> None:
    made = connection()
    done = submit(made)
    made.read(BIG)
    assert written(made, message) == errno.EINVAL
    assert not done.replies
    made.write(reply_bytes(4, b"good"))
    assert done.payload == b"good"


@pytest.mark.parametrize("error", [-1, -errno.ENOSYS, -511])
def test_errors_up_to_511_pass(error: int) -> None:
    made = connection()
    done = submit(made, Request(FUSE_READ, b"", 16, 16))
    made.read(BIG)
    made.write(reply_bytes(4, error=error))
    assert (done.error, done.payload) == (error, b"")


@pytest.mark.parametrize("unique", [2, 6, 3, 2**64 - 2])
def test_a_reply_to_no_request_is_enoent(unique: int) -> None:
    made = connection()
    done = submit(made)
    assert written(made, reply_bytes(4)) == errno.ENOENT  # not read yet
    made.read(BIG)
    assert written(made, reply_bytes(unique)) == errno.ENOENT
    assert not done.replies


def test_a_second_reply_is_enoent() -> None:
    made = connection()
    done = submit(made)
    made.read(BIG)
    made.write(reply_bytes(4, b"first"))
    assert written(made, reply_bytes(4, b"second")) == errno.ENOENT
    assert done.payload == b"first"


@pytest.mark.parametrize(
    ("least", "most", "size", "error"),
    [
        (0, 0, 1, 0),
        (16, 16, 15, 0),
        (16, 16, 17, 0),
        (16, 16, 0, 0),
        (16, 32, 15, 0),
        (16, 32, 33, 0),
        (0, 32, 33, 0),
        (0, 32, 1, -errno.EPERM),
        (16, 16, 16, -errno.EPERM),
    ],
)
def test_a_payload_of_the_wrong_size_is_einval_and_eio(
    least: int, most: int, size: int, error: int
) -> None:
    made = connection()
    done, other = submit(made, Request(1, b"", least, most)), submit(made)
    list(drain(made))
    assert written(made, reply_bytes(4, bytes(size), error)) == errno.EINVAL
    assert (done.error, done.payload) == (-errno.EIO, b"")
    assert not other.replies
    assert written(made, reply_bytes(4, bytes(least))) == errno.ENOENT


@pytest.mark.parametrize(
    ("least", "most", "size"), [(0, 0, 0), (16, 16, 16), (16, 32, 16), (16, 32, 32), (0, 32, 7)]
)
def test_a_payload_of_the_right_size_passes(least: int, most: int, size: int) -> None:
    made = connection()
    done = submit(made, Request(1, b"", least, most))
    made.read(BIG)
    made.write(reply_bytes(4, bytes(size)))
    assert (done.error, done.payload) == (0, bytes(size))


def test_notifications() -> None:
    made = connection()
    wakeup = fuse_notify_poll_wakeup_out(kh=1).pack()
    made.write(reply_bytes(0, wakeup, FUSE_NOTIFY_POLL))
    assert written(made, reply_bytes(0, wakeup[:-1], FUSE_NOTIFY_POLL)) == errno.EINVAL
    assert written(made, reply_bytes(0, wakeup + b"x", FUSE_NOTIFY_POLL)) == errno.EINVAL
    assert written(made, reply_bytes(0, bytes(24), FUSE_NOTIFY_INVAL_INODE)) == errno.ENOENT
    assert written(made, reply_bytes(0)) == errno.EINVAL
    assert written(made, reply_bytes(0, error=-5)) == errno.EINVAL


def test_a_notification_wakes_the_pollers_of_its_file_and_the_end_those_of_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = connection()
    woken: list[Kh] = []
    first, second, third = (made.polled.next_kh() for _ in range(3))
    assert [first, second, third] == [1, 2, 3]  # as Linux counts

    def fail() -> None:
        raise KeyError(third)

    def notify(kh: int) -> None:
        body = fuse_notify_poll_wakeup_out(kh=kh).pack()
        made.write(reply_bytes(0, body, FUSE_NOTIFY_POLL))

    made.polled.add(first, lambda: woken.append(first))
    made.polled.add(second, lambda: woken.append(second))
    notify(second)
    notify(second)
    assert woken == [second, second]
    made.polled.remove(second)
    made.polled.remove(second)
    notify(second)
    notify(third)
    assert woken == [second, second]
    made.polled.add(second, fail)
    made.polled.add(third, lambda: woken.append(third))
    assert caplog.text == ""
    made.abort()
    assert woken == [second, second, first, third]
    assert "pollers were not woken" in caplog.text


# The programs' side


def test_done_is_called_once_with_the_reply_that_the_request_has() -> None:
    made = connection()
    request = Request(FUSE_READ, b"", 0, 4)
    done = submit(made, request)
    states = [request.state]
    made.read(BIG)
    states.append(request.state)
    made.write(reply_bytes(4, b"data"))
    states.append(request.state)
    assert states == [State.PENDING, State.PROCESSING, State.FINISHED]
    assert done.replies == [request.reply]


def test_watch_takes_over_what_is_not_finished() -> None:
    made = connection()
    request = Request(FUSE_READ, b"", 0, 4)
    made.submit(request)
    done = Done()
    assert made.watch(request, done)
    made.read(BIG)
    made.write(reply_bytes(4, b"data"))
    assert done.payload == b"data"
    late = Done()
    assert not made.watch(request, late)
    assert not late.replies


def test_a_request_is_submitted_once() -> None:
    made = connection()
    request = Request(FUSE_READ, b"", 0, 4)
    done = submit(made, request)
    with pytest.raises(RuntimeError):
        submit(made, request)
    assert made.waiting == 1
    made.read(BIG)
    made.write(reply_bytes(4))
    assert len(done.replies) == 1
    with pytest.raises(RuntimeError):
        submit(made, request)


def test_on_pending_is_called_once_for_each_message_without_the_lock() -> None:
    made = connection()
    calls: list[int] = []

    def read_all() -> None:
        calls.append(len(list(drain(made))))

    made.on_pending = read_all
    submit(made)
    submit(made)
    assert calls == [1, 1]


def test_a_reply_from_on_pending_is_there_when_submit_returns() -> None:
    made = connection()

    def serve() -> None:
        header = fuse_in_header.unpack(made.read(BIG))
        made.write(reply_bytes(header.unique, b"data"))

    made.on_pending = serve
    assert submit(made).payload == b"data"


def test_a_channel_that_raises_aborts_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    made = connection()

    def fail() -> None:
        raise ZeroDivisionError("broken channel")

    made.on_pending = fail
    assert submit(made).error == -errno.ECONNABORTED
    assert made.state is ConnectionState.ABORTED
    assert "broken channel" in caplog.text


def test_a_callback_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    made = connection()

    def fail(reply: Reply) -> None:
        raise ZeroDivisionError("broken program")

    made.submit(Request(1), fail)
    done = submit(made)
    made.abort()
    assert done.error == -errno.ECONNABORTED
    assert "broken program" in caplog.text


def test_waiting_counts_what_is_not_answered() -> None:
    made = connection()
    assert made.waiting == 0
    submit(made)
    submit(made)
    made.read(BIG)
    assert made.waiting == 2
    made.write(reply_bytes(4))
    assert made.waiting == 1
    made.abort()
    assert made.waiting == 0
    assert uninitialised().waiting == 1  # INIT


# INIT


def test_only_init_is_sent_before_it_is_answered() -> None:
    made = uninitialised()
    done = submit(made)
    (init,) = drain(made)
    assert fuse_in_header.unpack(init).opcode == 4096
    made.write(reply_bytes(2))
    assert list(drain(made)) == []  # answered, but not accepted yet
    calls: list[None] = []
    made.on_pending = lambda: calls.append(None)
    assert made.initialised(45, 0)
    assert len(calls) == 1
    (message,) = drain(made)
    assert fuse_in_header.unpack(message).unique == 4
    assert not done.replies


def test_held_requests_are_sent_in_their_order() -> None:
    made = uninitialised()
    for opcode in range(1, 6):
        submit(made, Request(opcode))
    list(drain(made))
    made.initialised(45, 0)
    assert [fuse_in_header.unpack(message).opcode for message in drain(made)] == [1, 2, 3, 4, 5]


def test_a_refused_connection_refuses_everything() -> None:
    made = uninitialised()
    held = submit(made)
    made.refuse()
    assert held.error == -errno.ECONNREFUSED
    assert submit(made).error == -errno.ECONNREFUSED
    assert not made.initialised(45, 0)
    assert submit(made).error == -errno.ECONNREFUSED
    made.abort()
    assert submit(made).error == -errno.ENOTCONN


def test_init_of_an_aborted_connection_changes_nothing() -> None:
    made = aborted()
    assert not made.initialised(45, 0)
    made.refuse()
    assert submit(made).error == -errno.ENOTCONN


# Errno by state: submit, read, write


@pytest.mark.parametrize(
    ("make", "submitted", "read"),
    [
        (refused, -errno.ECONNREFUSED, errno.ENODEV),
        (aborted, -errno.ENOTCONN, errno.ENODEV),
    ],
)
def test_errnos_after_the_end(make: Callable[[], Connection], submitted: int, read: int) -> None:
    made = make()
    assert made.ended
    assert submit(made).error == submitted
    assert error_of(made.read, BIG) == read
    with pytest.raises(OSError, match="Invalid argument"):
        made.read(100)
    assert written(made, reply_bytes(4)) == errno.ENOENT
    assert written(made, b"short") == errno.EINVAL


# Abort


def test_abort_finishes_requests_in_every_state() -> None:
    made = connection()
    processing, pending = submit(made), submit(made)
    made.read(BIG)
    without_reply = submit(made, Request(FUSE_FORGET, no_reply=True))
    made.abort()
    assert processing.error == pending.error == without_reply.error == -errno.ECONNABORTED
    assert written(made, reply_bytes(4)) == errno.ENOENT
    made.abort()
    assert len(processing.replies) == len(pending.replies) == 1


def test_abort_finishes_held_requests_and_init() -> None:
    init: list[int] = []
    made = Connection(Request(4096, max_reply=72), lambda reply: init.append(reply.error))
    held = submit(made)
    made.abort()
    assert held.error == -errno.ECONNABORTED
    assert init == [-errno.ECONNABORTED]


def test_the_end_is_told_in_its_order() -> None:
    order: list[str] = []
    made = Connection(Request(4096), lambda reply: order.append("init"))
    made.submit(Request(1), lambda reply: order.append("request"))
    made.at_end(lambda: order.append("end"))
    made.abort()
    made.abort()
    assert order == ["init", "request", "end"]
    made.at_end(lambda: order.append("late"))
    assert order[-1] == "late"


def test_the_end_is_told_to_all_even_if_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    made = connection()
    told: list[None] = []

    def fail() -> None:
        raise ZeroDivisionError("broken listener")

    made.at_end(fail)
    made.at_end(lambda: told.append(None))
    made.abort()
    assert len(told) == 1
    assert "broken listener" in caplog.text


def test_what_is_submitted_while_the_end_is_told_fails_at_once() -> None:
    made = connection()
    again: list[Done] = []
    made.submit(Request(1), lambda reply: again.append(submit(made)))
    made.abort()
    assert again[0].error == -errno.ENOTCONN
