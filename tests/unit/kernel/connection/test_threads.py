"""Many programs and many servers at once: each request is answered once, to whom it belongs."""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import pytest

from recuse.kernel.char.files import open_file
from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.connection.request import Request
from recuse.wire.fuse import FUSE_INTERRUPT, FUSE_OPEN, FUSE_READ, FUSE_RELEASE, fuse_open_out

from ..support import (
    BIG,
    FakeMemory,
    Message,
    Outcome,
    caller,
    connection,
    device,
    error_of,
    reply_bytes,
)

T = TypeVar("T")

PROGRAMS = 8
SERVERS = 4
CALLS = 300


class Servers:
    """Threads that read a connection until it ends and answer what `handler` returns."""

    def __init__(
        self, made: Connection, handler: Callable[[Message], bytes], count: int = SERVERS
    ) -> None:
        self.connection = made
        self.handler = handler
        self.seen: Counter[int] = Counter()
        self.refused = 0
        self.ends: list[int] = []
        self.ready = threading.Semaphore(0)
        made.on_pending = self.ready.release
        made.at_end(lambda: self.ready.release(count))
        self.threads = [threading.Thread(target=self._serve) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _serve(self) -> None:
        while True:
            self.ready.acquire()
            try:
                raw = self.connection.read(BIG)
            except BlockingIOError:
                continue  # withdrawn meanwhile
            except OSError:
                self.ends.append(error_of(self.connection.read, BIG))
                return
            message = Message(raw)
            self.seen[message.unique] += 1
            if message.opcode == FUSE_INTERRUPT:
                continue
            answer = self.handler(message)
            if error_of(self.connection.write, reply_bytes(message.unique, answer)):
                self.refused += 1

    def join(self) -> None:
        self.connection.abort()
        for thread in self.threads:
            thread.join()
        assert self.ends == [errno.ENODEV] * len(self.threads)


def call(number: int) -> Operation[int]:
    reply = yield Request(FUSE_READ, struct.pack("=QQQQQ", number, 0, 8, 0, 0), 0, 8)
    if reply.error:
        raise OSError(-reply.error, os.strerror(-reply.error))
    return int.from_bytes(reply.payload, "little")


def echo(message: Message) -> bytes:
    return int(message.body.fh).to_bytes(8, "little")


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Waited(Outcome):
    """An outcome that a thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.there = threading.Event()

    def __call__(self, result: object, error: OSError | None) -> None:
        super().__call__(result, error)
        self.there.set()

    def wait(self) -> Waited:
        self.there.wait()
        return self


def wait(made: Connection, operation: Operation[T]) -> T:
    """Run an operation to its end, whichever thread brings it there."""
    outcome = Waited()
    run(made, operation, outcome)
    return cast(T, outcome.wait().result)


@pytest.fixture(autouse=True)
def _often_another_thread() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_each_call_gets_its_own_answer() -> None:
    made = connection()
    servers = Servers(made, echo)

    def program(index: int) -> None:
        for turn in range(CALLS):
            number = index * CALLS + turn
            assert wait(made, call(number)) == number

    in_threads(PROGRAMS, program)
    assert made.waiting == 0
    servers.join()
    assert servers.refused == 0
    assert set(servers.seen.values()) == {1}
    assert len(servers.seen) == PROGRAMS * CALLS


def test_abort_in_the_middle_leaves_nobody_waiting() -> None:
    made = connection()
    gate = threading.Barrier(PROGRAMS + 1)
    servers = Servers(made, echo)
    outcomes: list[list[Waited]] = [[] for _ in range(PROGRAMS)]

    def program(index: int) -> None:
        gate.wait()
        if index == PROGRAMS:
            while len(outcomes[0]) < CALLS:
                pass
            made.abort()
            return
        ended = False
        while not ended:
            ended = made.ended
            outcome = Waited()
            outcomes[index].append(outcome)
            run(made, call(len(outcomes[index])), outcome)

    in_threads(PROGRAMS + 1, program)
    errors = set()
    for row in outcomes:
        for number, outcome in enumerate(row, start=1):
            ((result, error),) = outcome.wait().calls
            errors.add(error and error.errno)
            assert error or result == number
        assert outcome.errno == errno.ENOTCONN
    servers.join()
    assert made.waiting == 0
    assert errors - {None} <= {errno.ECONNABORTED, errno.ENOTCONN}


def test_interrupts_from_another_thread() -> None:
    made = connection()
    servers = Servers(made, echo)
    outcomes: list[Waited] = []
    for number in range(CALLS):
        outcome = Waited()
        outcomes.append(outcome)
        running = run(made, call(number), outcome)
        if running is not None and number % 2:
            running.interrupt()
    for number, outcome in enumerate(outcomes):
        ((result, error),) = outcome.wait().calls
        if error is None:
            assert result == number
        else:
            assert number % 2
            assert error.errno == errno.EINTR
    servers.join()
    assert servers.refused == 0


@pytest.mark.parametrize("turn", range(20))
def test_release_is_sent_once_after_all_that_runs(turn: int) -> None:
    made = device()
    log: list[int] = []
    gate = threading.Barrier(PROGRAMS + 1)

    def serve() -> None:
        message = Message(made.connection.read(BIG))
        log.append(message.opcode)
        answer = fuse_open_out(fh=7).pack() if message.opcode == FUSE_OPEN else b""
        made.connection.write(reply_bytes(message.unique, answer))

    made.connection.on_pending = serve
    file = wait(made.connection, open_file(made, os.O_RDWR, caller()))
    read: list[int] = []

    def program(index: int) -> None:
        gate.wait()
        if index == PROGRAMS:
            while len(read) < turn:
                pass
            wait(made.connection, file.release())
            return
        memory = FakeMemory(1)
        while True:
            outcome = Waited()
            run(made.connection, file.read(caller(memory), [(0, 4)], None), outcome)
            if outcome.wait().calls[0][1] is not None:
                assert outcome.errno == errno.EBADF
                return
            read.append(0)

    in_threads(PROGRAMS + 1, program)
    assert log.count(FUSE_RELEASE) == 1
    assert log[-1] == FUSE_RELEASE
    assert log.count(FUSE_READ) == len(read) >= turn
