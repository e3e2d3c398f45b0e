"""Channels where no threads can be started: an error for who asks, and nothing hangs."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from recuse import Device, File
from recuse.channel.inprocess import connect
from recuse.channel.listen import DeviceServer
from recuse.channel.packets import Packets
from recuse.channel.signals import ending_signals
from recuse.channel.socket import Remote, RemoteError
from recuse.server import loop
from recuse.server.session import Session
from recuse.trace.recorder import Recorder
from recuse.wire import fuse

from .support import Program, Table, message


class Plain(Device):
    name = "plain"

    def open(self, request: object) -> File:
        return PlainFile()


class PlainFile(File):
    def read(self, size: int, offset: int) -> bytes:
        return b"x" * size

    async def write(self, data: bytes, offset: int) -> None:
        pass


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_an_async_method_fails_and_a_plain_one_works(
    no_threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table()
    channel = connect(table, Plain())
    program = Program(table.by_name("plain")).open()
    assert program.get(3) == b"xxx"
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            program.put(b"x")
    channel.close()
    (record,) = caplog.records
    assert record.getMessage() == "async handlers cannot run: no more threads can be started"


@pytest.mark.parametrize("lacking", ["socketpair", "eventfd"])
def test_without_descriptors_for_the_loop_it_is_enfile(
    monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    def none(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    table = Table()
    channel = connect(table, Plain())
    program = Program(table.by_name("plain")).open()
    with monkeypatch.context() as patch:
        patch.setattr(socket if lacking == "socketpair" else os, lacking, none)
        with pytest.raises(OSError, match=r"\w") as raised:
            program.put(b"x")
    assert raised.value.errno == errno.ENFILE
    assert program.put(b"x") == 1  # they are there again
    channel.close()


def test_a_callback_that_exits_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    tasks = loop.Tasks()

    def leave() -> None:
        raise SystemExit(3)

    tasks.loop.call_soon_threadsafe(leave)

    async def still_there() -> None:
        pass

    assert tasks.wait(still_there(), 20)
    tasks.release()


def test_a_backlog_that_nobody_can_send_ends_the_connection(
    no_threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets = Packets(ours)
    with theirs:
        large = message(2, bytes(1 << 20))
        with pytest.raises(OSError, match=r"\w") as raised:
            packets.send(large)
        assert raised.value.errno == errno.ENODEV
        assert packets.receive() is None
        assert theirs.recv(16) == b""
    packets.close()
    assert "no more threads can be started" in caplog.text


def test_a_server_cannot_be_joined(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = DeviceServer(Plain(), path)
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name == "recuse-remote":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)
    table = Table()
    with pytest.raises(RemoteError) as raised:
        Remote(path).connect(table)
    assert raised.value.errno == errno.EAGAIN
    assert list(table) == []
    server.close()


def test_a_connection_that_cannot_be_served_is_ended(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = DeviceServer(Plain(), path)
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name.startswith("recuse-serve-plain-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_others)
        with pytest.raises(RemoteError) as raised:
            Remote(path).connect(Table())
    assert raised.value.errno == errno.ECONNRESET
    channel = Remote(path).connect(Table())  # the next one is served
    channel.close()
    server.close()
    assert "a connection cannot be served: no more threads can be started" in caplog.text


def test_a_server_without_a_thread_leaves_nothing(path: str, no_threads: None) -> None:
    with pytest.raises(OSError, match=r"\w") as raised:
        DeviceServer(Plain(), path)
    assert raised.value.errno == errno.EAGAIN
    assert not Path(path).exists()


def test_a_second_signal_ends_the_process_without_a_thread(no_threads: None) -> None:
    with ending_signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_trace_without_a_thread_is_an_error(no_threads: None, tmp_path: Path) -> None:
    with open(tmp_path / "trace", "wb") as file, pytest.raises(OSError, match=r"\w") as raised:
        Recorder(file.fileno())
    assert raised.value.errno == errno.EAGAIN


@pytest.mark.parametrize(
    ("error", "number"),
    [(MemoryError(), errno.ENOMEM), (RuntimeError("oops"), errno.EIO), (SystemExit(), errno.EIO)],
)
def test_a_request_is_answered_whatever_is_raised_inside(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, number: int
) -> None:
    session = Session(Plain())
    answers: list[bytes] = []

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(session._serve, fuse.FUSE_READ, fail)
    header = fuse.fuse_in_header(len=40, opcode=fuse.FUSE_READ, unique=8)
    session.handle(header.pack(), answers.append)
    assert [fuse.fuse_out_header.unpack(answer).error for answer in answers] == [-number]
    session.close()


def test_an_answer_that_there_is_no_memory_for_is_enomem() -> None:
    session = Session(Plain())
    answers: list[bytes] = []

    def send(answer: bytes) -> None:
        if len(answer) > fuse.fuse_out_header.SIZE:
            raise MemoryError
        answers.append(answer)

    body = fuse.fuse_open_in(flags=os.O_RDWR).pack()
    header = fuse.fuse_in_header(len=40 + len(body), opcode=fuse.FUSE_OPEN, unique=8)
    session.handle(header.pack() + body, send)
    assert [fuse.fuse_out_header.unpack(answer).error for answer in answers] == [-errno.ENOMEM]
    session.close()
