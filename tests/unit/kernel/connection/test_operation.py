"""Driving operations: in one loop, by whichever thread has the reply, exactly one outcome."""

from __future__ import annotations

import errno
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.connection.request import Reply, Request
from recuse.wire.fuse import FUSE_READ

from ..support import BIG, Outcome, Server, connection, reply_bytes, start


def asks(count: int) -> Operation[int]:
    """Make `count` requests and return the sum of the lengths of the answers."""
    total = 0
    for _ in range(count):
        reply = yield Request(FUSE_READ, bytes(40), 0, 16)
        if reply.error:
            raise OSError(-reply.error, "as the server says")
        total += len(reply.payload)
    return total


def test_an_operation_without_requests_ends_at_once() -> None:
    outcome = start(connection(), asks(0))
    assert outcome.result == 0


def test_a_thousand_replies_at_once_need_no_stack() -> None:
    made = connection()
    Server(made, lambda message: b"four")
    count = sys.getrecursionlimit() * 2
    assert start(made, asks(count)).result == 4 * count


def test_a_thousand_late_replies_need_no_stack() -> None:
    made = connection()
    outcome = start(made, asks(sys.getrecursionlimit() * 2))
    unique = 4
    while outcome.pending:
        made.read(BIG)
        made.write(reply_bytes(unique, b"four"))
        unique += 2
    assert outcome.result == 8 * sys.getrecursionlimit()


def test_it_goes_on_in_the_thread_that_brings_the_reply() -> None:
    made = connection()
    threads: list[int] = []

    def operation() -> Operation[None]:
        threads.append(threading.get_ident())
        yield Request(FUSE_READ)
        threads.append(threading.get_ident())

    outcome = start(made, operation())

    def serve() -> None:
        made.read(BIG)
        made.write(reply_bytes(4))
        threads.append(threading.get_ident())

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert outcome.result is None
    assert threads[0] == threading.get_ident()
    assert threads[1] == threads[2] != threads[0]


def test_an_operations_oserror_is_its_outcome() -> None:
    made = connection()
    Server(made, lambda message: -errno.EPERM)
    outcome = start(made, asks(3))
    assert outcome.errno == errno.EPERM
    assert made.waiting == 0


def test_any_other_exception_is_eio_and_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def mistaken() -> Operation[int]:
        yield Request(FUSE_READ)
        raise ZeroDivisionError("mistake")

    made = connection()
    Server(made, lambda message: b"")
    assert start(made, mistaken()).errno == errno.EIO
    assert "mistake" in caplog.text


def test_an_operation_may_not_yield_a_request_twice(caplog: pytest.LogCaptureFixture) -> None:
    def mistaken() -> Operation[None]:
        request = Request(FUSE_READ)
        yield request
        yield request

    made = connection()
    Server(made, lambda message: b"")
    assert start(made, mistaken()).errno == errno.EIO
    assert "finished" in caplog.text.lower()


def test_abort_ends_it_wherever_it_is() -> None:
    made = connection()
    unread, read = start(made, asks(1)), None
    made.abort()
    read = start(made, asks(1))
    assert unread.errno == errno.ECONNABORTED
    assert read.errno == errno.ENOTCONN


def test_an_error_does_not_keep_the_operation_alive() -> None:
    made = connection()
    Server(made, lambda message: -errno.EPERM)
    outcome = start(made, asks(1))
    error = outcome.calls[0][1]
    assert error is not None
    assert error.__traceback__ is None


@pytest.fixture
def _no_cycles_collected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_cycles_collected")
def test_an_operation_that_waited_is_freed_when_it_ends() -> None:
    made = connection()
    operation = asks(1)
    alive = weakref.ref(operation)
    outcome = start(made, operation)
    del operation
    assert alive() is not None
    made.read(BIG)
    made.write(reply_bytes(4, b"four"))
    assert outcome.result == 4
    assert alive() is None


class Blocked(Connection):
    """A connection on which another thread replies after `submit` and before `watch`."""

    def watch(self, request: Request, done: Callable[[Reply], None]) -> bool:
        thread = threading.Thread(target=self._reply)
        thread.start()
        thread.join()
        return super().watch(request, done)

    def _reply(self) -> None:
        message = self.read(BIG)
        self.write(reply_bytes(int.from_bytes(message[8:16], sys.byteorder), b"four"))


def test_a_reply_between_submit_and_watch_is_not_lost() -> None:
    made = Blocked(Request(4096, max_reply=16), lambda reply: None)
    made._reply()
    made.initialised(45, 0)
    outcome = Outcome()
    assert run(made, asks(5), outcome) is None
    assert outcome.result == 20
