"""The kernel half's side of a socket, against a server's end by hand."""

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse.channel import packets
from recuse.channel import socket as module
from recuse.channel.packets import open_socket
from recuse.channel.socket import Remote, RemoteChannel, RemoteError
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import CharDevice
from recuse.kernel.char.files import OpenFile
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.submit import ConnectionState
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_open_out,
    fuse_write_out,
)

from .support import WAIT_S, Program, RawServer, Table, init_reply, number_of, reply


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", (0.001, 0.01))


def listen(path: str) -> socket.socket:
    sock = open_socket()
    sock.bind(path)
    sock.listen(8)
    return sock


@pytest.fixture
def listener(path: str) -> Iterator[socket.socket]:
    with listen(path) as sock:
        yield sock


@pytest.fixture
def table() -> Table:
    return Table()


class Joining(threading.Thread):
    """A Remote's connect, which waits for the server that the test plays."""

    def __init__(self, path: str, table: Table) -> None:
        super().__init__()
        self.path, self.table = path, table
        self.error: OSError | None = None
        self.channel: RemoteChannel | None = None
        self.start()

    def run(self) -> None:
        try:
            self.channel = Remote(self.path).connect(self.table)
        except OSError as error:
            self.error = error

    def outcome(self) -> RemoteChannel:
        self.join(WAIT_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        assert self.channel is not None
        return self.channel


@pytest.fixture
def joined(
    path: str, listener: socket.socket, table: Table
) -> Iterator[tuple[RawServer, RemoteChannel]]:
    """A server's end, and the channel that has joined it."""
    joining = Joining(path, table)
    server = RawServer(listener).serve_init()
    channel = joining.outcome()
    yield server, channel
    server.close()
    channel.close()
    assert list(table) == []


def opened(server: RawServer, device: CharDevice | None) -> Program:
    """A program that has the device open."""
    program = Program(device)
    opening = threading.Thread(target=program.open)
    opening.start()
    server.packets.send(reply(number_of(server.get()), fuse_open_out(fh=1).pack()))
    opening.join(WAIT_S)
    return program


def opcode_of(request: bytes) -> int:
    return fuse_in_header.unpack(request).opcode


def test_a_device_joins(joined: tuple[RawServer, RemoteChannel], table: Table) -> None:
    _, channel = joined
    assert list(table) == [channel.device]
    assert channel.device is not None
    assert channel.device.name == "raw"


def test_requests_and_replies_are_packets(joined: tuple[RawServer, RemoteChannel]) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    wait = program.begin_write(b"hello")
    request = server.get()
    assert opcode_of(request) == FUSE_WRITE
    assert request.endswith(b"hello")
    assert len(request) == 40 + 40 + 5
    server.packets.send(reply(number_of(request), fuse_write_out(size=5).pack()))
    assert wait() == 5
    wait = program.begin_read(100)
    server.packets.send(reply(number_of(server.get()), b"world"))
    assert wait() == 5
    assert program.content[:5] == b"world"


def test_answers_in_another_order(joined: tuple[RawServer, RemoteChannel]) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    waits = [program.begin_read(10) for _ in range(5)]
    requests = [server.get() for _ in waits]
    numbers = [number_of(request) for request in requests]
    assert numbers == sorted(numbers)
    for position in (3, 0, 4, 1, 2):
        server.packets.send(reply(numbers[position], bytes(position)))
        assert waits[position]() == position


def test_a_megabyte_each_way(path: str, listener: socket.socket, table: Table) -> None:
    joining = Joining(path, table)
    server = RawServer(listener).serve_init(max_write=1 << 20)
    channel = joining.outcome()
    try:
        program = opened(server, channel.device)
        data = os.urandom(1 << 20)
        wait = program.begin_write(data)
        request = server.get()
        assert request[80:] == data
        server.packets.send(reply(number_of(request), fuse_write_out(size=len(data)).pack()))
        assert wait() == len(data)
        program.content[: len(data)] = bytes(len(data))
        wait = program.begin_read(len(data))
        server.packets.send(reply(number_of(server.get()), data))
        assert wait() == len(data)
        assert program.content[: len(data)] == data
    finally:
        server.close()
        channel.close()


@pytest.mark.parametrize("large", [False, True])
def test_a_stuck_server_holds_nobody_up(
    joined: tuple[RawServer, RemoteChannel], monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Neither who submits requests nor who ends the channel waits for its reading."""
    server, channel = joined
    program = opened(server, channel.device)
    size = 131072 if large else 1
    count = 40 if large else 3000
    waits = [program.begin_write(bytes(size)) for _ in range(count)]
    assert not any(wait.ended() for wait in waits)
    channel.close()
    for wait in waits:
        with pytest.raises(ConnectionAbortedError):
            wait()


def test_what_was_held_up_arrives_in_order(joined: tuple[RawServer, RemoteChannel]) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    waits = []
    for number in range(100):
        waits.append(program.begin_write(bytes([number]) * 131072))
    for number, wait in enumerate(waits):
        request = server.get()
        assert request[80:] == bytes([number]) * 131072
        server.packets.send(reply(number_of(request), fuse_write_out(size=131072).pack()))
        assert wait() == 131072


def test_the_end_of_the_server(joined: tuple[RawServer, RemoteChannel], table: Table) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    device = channel.device
    waits = [program.begin_read(10) for _ in range(3)]
    began = time.monotonic()
    server.close()
    for wait in waits:
        with pytest.raises(ConnectionAbortedError):
            wait()
    assert time.monotonic() - began < 1
    table.wait()
    assert channel.device is None
    with pytest.raises(OSError, match="No such device"):
        program.get(1)
    with pytest.raises(OSError, match="No such device"):
        Program(device).open()


def test_a_server_that_comes_back(
    joined: tuple[RawServer, RemoteChannel],
    path: str,
    listener: socket.socket,
    table: Table,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    old = channel.device
    listener.close()
    os.unlink(path)
    server.close()
    table.wait()
    assert "has gone" in caplog.text
    for name in (b"raw", b"renamed"):
        with listen(path) as again:
            server = RawServer(again).serve_init(name)
            device = table.wait(name.decode())
            assert device is not old
            assert opened(server, device).device is device
            assert channel.device is device
        os.unlink(path)
        server.close()
        table.wait()
    with pytest.raises(OSError, match="No such device"):
        program.get(1)


def test_a_server_that_does_not_come_back(
    joined: tuple[RawServer, RemoteChannel], listener: socket.socket, table: Table
) -> None:
    """The channel ends while it looks for it."""
    server, channel = joined
    listener.close()
    server.close()
    table.wait()
    channel.close()
    channel.close()
    assert not channel._thread.is_alive()


def test_the_end_while_the_server_takes_its_time(
    joined: tuple[RawServer, RemoteChannel], listener: socket.socket
) -> None:
    server, channel = joined
    server.close()
    slow = RawServer(listener)
    slow.get()
    began = time.monotonic()
    channel.close()
    assert time.monotonic() - began < 5
    assert slow.packets.receive() is None
    slow.close()


def test_a_name_that_is_taken_when_the_server_comes_back(
    joined: tuple[RawServer, RemoteChannel],
    listener: socket.socket,
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_REFUSED_RETRY_S", 0.001)
    server, _ = joined
    server.close()
    table.wait()
    other = table.register("raw", 0, 0, CuseChannel(table).connection)
    for _ in range(2):
        again = RawServer(listener).serve_init()
        assert again.packets.receive() is None
        again.close()
    table.remove(other)
    again = RawServer(listener).serve_init()
    assert table.wait("raw") is not other
    again.close()


# ---- joining that fails


def fails(path: str, table: Table, number: int) -> str:
    with pytest.raises(RemoteError) as raised:
        Remote(path).connect(table)
    assert (raised.value.errno, raised.value.filename) == (number, path)
    assert list(table) == []
    assert "recuse-remote" not in {thread.name for thread in threading.enumerate()}
    return str(raised.value.strerror)


def test_nobody_is_there(path: str, table: Table) -> None:
    assert "nobody" in fails(path, table, errno.ENOENT)
    listen(path).close()
    assert "ended" in fails(path, table, errno.ECONNREFUSED)


def test_something_else_is_there(path: str, table: Table) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(path)
        stream.listen()
        assert "another kind" in fails(path, table, errno.EPROTOTYPE)


def test_a_path_that_is_too_long(path: str, table: Table) -> None:
    fails(path + "x" * 200, table, errno.ENAMETOOLONG)


@pytest.mark.usefixtures("listener")
def test_a_server_of_somebody_else(
    path: str, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "peer_uid", lambda _: os.geteuid() + 1)
    assert f"user {os.geteuid() + 1}" in fails(path, table, errno.EPERM)


@pytest.mark.usefixtures("listener")
def test_a_server_that_does_not_answer(
    path: str, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.01)
    assert "no answer" in fails(path, table, errno.ETIMEDOUT)


def test_a_server_that_accepts_nobody(path: str, table: Table) -> None:
    """It was stopped, and as many as it wants to have wait already."""
    with open_socket() as sock, open_socket() as waiting:
        sock.bind(path)
        sock.listen(0)
        waiting.connect(path)
        assert "accept" in fails(path, table, errno.EAGAIN)


def joining_fails(
    path: str, table: Table, listener: socket.socket, answer: Callable[[int], bytes] | None
) -> RemoteError:
    joining = Joining(path, table)
    server = RawServer(listener)
    number = number_of(server.get())
    if answer is None:
        server.close()
    else:
        server.sock.send(answer(number))
    with pytest.raises(RemoteError) as raised:
        joining.outcome()
    server.close()
    assert list(table) == []
    return raised.value


def test_a_server_that_leaves_before_it_answers(
    path: str, table: Table, listener: socket.socket
) -> None:
    error = joining_fails(path, table, listener, None)
    assert (error.errno, error.filename) == (errno.ECONNRESET, path)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (lambda number: reply(number, error=-errno.EPERM), errno.EPERM),
        (lambda number: reply(number, b"short"), errno.EIO),
        (lambda number: reply(number + 2, b"for another"), errno.EIO),
        (lambda number: init_reply(number, b"../raw"), errno.EINVAL),
        (lambda _: b"junk", errno.ECONNRESET),
    ],
)
def test_a_bad_answer_to_init(
    path: str,
    table: Table,
    listener: socket.socket,
    answer: Callable[[int], bytes],
    number: int,
) -> None:
    assert joining_fails(path, table, listener, answer).errno == number


def test_a_name_or_number_that_is_taken(path: str, table: Table, listener: socket.socket) -> None:
    other = table.register("raw", 200, 0, CuseChannel(table).connection)
    joining = Joining(path, table)
    server = RawServer(listener).serve_init()
    with pytest.raises(RemoteError, match="its name"):
        joining.outcome()
    server.close()
    joining = Joining(path, table)
    server = RawServer(listener).serve_init(b"other", major=200)
    with pytest.raises(RemoteError, match="its number"):
        joining.outcome()
    server.close()
    assert list(table) == [other]


# ---- what a server must not send


def test_replies_that_are_none_harm_nobody(
    joined: tuple[RawServer, RemoteChannel], caplog: pytest.LogCaptureFixture
) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    wait = program.begin_read(4)
    number = number_of(server.get())
    for bad in (
        reply(number + 2, b"unknown"),
        reply(number, error=5),
        reply(number, error=-512),
        reply(number | 1, error=-errno.EAGAIN),
        reply(0, b"", error=99),
        reply(0, bytes(8), error=1),
    ):
        server.packets.send(bad)
    server.packets.send(reply(number, b"good"))
    assert wait() == 4
    assert caplog.text.count("bytes that are not a reply") == 1
    server.packets.send(reply(number, b"twice"))
    wait = program.begin_read(4)
    server.packets.send(reply(number_of(server.get()), b"more than was asked for"))
    with pytest.raises(OSError, match="Input/output error"):
        wait()
    wait = program.begin_read(4)
    server.packets.send(reply(number_of(server.get()), b"fine"))
    assert wait() == 4


@pytest.mark.parametrize("junk", [b"x", b"x" * 16, bytes(200), bytes(packets.PART + 1)])
def test_what_is_no_message_ends_the_device(
    joined: tuple[RawServer, RemoteChannel], table: Table, junk: bytes
) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    wait = program.begin_read(4)
    server.sock.send(junk)
    with pytest.raises(ConnectionAbortedError):
        wait()
    table.wait()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=64), min_size=1, max_size=4), st.integers(0, 4))
def test_any_bytes_from_a_server(sent: list[bytes], unanswered: int) -> None:
    """Each call ends, at the latest with the connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    table = Table()
    link = module._Link(packets.Packets(ours), table)
    server = packets.Packets(theirs)
    server.send(init_reply(2))
    link.shake_hands("path")

    def serve_and_close() -> None:
        link.serve()
        link.close()

    reader = threading.Thread(target=serve_and_close)
    reader.start()
    try:
        program = Program(link.cuse.device)
        opening = program.begin(module_open(program))
        waits = [opening, *(program.begin(module_open(program)) for _ in range(unanswered))]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for packet in sent:
                theirs.send(packet)
        server.close()
        for wait in waits:
            with pytest.raises(OSError, match=r"."):
                wait()
        reader.join(WAIT_S)
        assert link.connection.state is ConnectionState.ABORTED
        assert list(table) == []
    finally:
        server.close()
        link.shutdown()
        reader.join(WAIT_S)
        link.close()


def module_open(program: Program) -> Operation[OpenFile]:
    from recuse.kernel.char.files import open_file  # noqa: PLC0415

    return open_file(program.device, os.O_RDWR, program.caller)


def test_an_interrupt_that_comes_too_early_is_sent_again(
    joined: tuple[RawServer, RemoteChannel],
) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    wait = program.begin_read(4)
    request = server.get()
    assert channel.device is not None
    connection = channel.device.connection
    (waiting,) = connection._queue.processing.values()
    connection.interrupt(waiting)
    for _ in range(3):
        interrupt = server.get()
        assert opcode_of(interrupt) == FUSE_INTERRUPT
        assert fuse_interrupt_in.unpack(interrupt, 40).unique == number_of(request)
        server.packets.send(reply(number_of(interrupt), error=-errno.EAGAIN))
    server.get()
    server.packets.send(reply(number_of(request), error=-errno.EINTR))
    with pytest.raises(InterruptedError):
        wait()


def test_release_reaches_the_server_at_the_end(joined: tuple[RawServer, RemoteChannel]) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    program.begin(program.file.release())
    channel.close()
    assert opcode_of(server.get()) == FUSE_RELEASE
    assert server.packets.receive() is None


def test_opcodes(joined: tuple[RawServer, RemoteChannel]) -> None:
    server, channel = joined
    program = opened(server, channel.device)
    program.begin_read(1)
    assert opcode_of(server.get()) == FUSE_READ
    program.begin(module_open(program))
    assert opcode_of(server.get()) == FUSE_OPEN
