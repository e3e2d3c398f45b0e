"""The server's side of a socket: one device for many sandboxes, here device tables."""

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse import Device, File, OpenRequest
from recuse.channel import listen as module
from recuse.channel.listen import DeviceServer, _Client
from recuse.channel.packets import PART, Packets, open_socket
from recuse.channel.socket import Remote, RemoteChannel
from recuse.server import loop

from .support import WAIT_S, Program, Table, ends, init_request, message, number_of, reply

Join = Callable[[], RemoteChannel]
Connect = Callable[[], socket.socket]


class PipeFile(File):
    device: "Pipe"

    def read(self, size: int, offset: int) -> bytes:
        with self.device.changed:
            data = bytes(self.device.data[:size])
            del self.device.data[:size]
        return data

    def write(self, data: bytes, offset: int) -> None:
        with self.device.changed:
            self.device.data += data

    def release(self) -> None:
        self.device.count("released")


class Pipe(Device):
    """What any sandbox writes, any sandbox reads."""

    name = "pipe"
    max_read = max_write = 1 << 20

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.data = bytearray()
        self.changed = threading.Condition()
        self.opened = self.released = self.closed = 0

    def open(self, request: OpenRequest) -> File:
        self.count("opened")
        return PipeFile()

    def close(self) -> None:
        self.count("closed")

    def count(self, what: str) -> None:
        with self.changed:
            setattr(self, what, getattr(self, what) + 1)
            self.changed.notify_all()

    def wait(self, what: str, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: getattr(self, what) >= number, WAIT_S)
            assert getattr(self, what) == number


@pytest.fixture
def device() -> Pipe:
    return Pipe()


@pytest.fixture
def server(device: Pipe, path: str) -> Iterator[DeviceServer]:
    server = DeviceServer(device, path)
    yield server
    server.close()
    assert not os.path.exists(path)
    assert not loop.shared.running


@pytest.fixture
def join(server: DeviceServer) -> Iterator[Join]:
    """Joins the server with a table of its own; gives the channel."""
    channels: list[RemoteChannel] = []

    def join() -> RemoteChannel:
        channels.append(Remote(server.path).connect(Table()))
        return channels[-1]

    yield join
    for channel in channels:
        channel.close()


@pytest.fixture
def raw(server: DeviceServer) -> Iterator[Connect]:
    """Connects to the server by hand."""
    socks: list[socket.socket] = []

    def connect() -> socket.socket:
        socks.append(open_socket())
        socks[-1].settimeout(WAIT_S)
        socks[-1].connect(server.path)
        return socks[-1]

    yield connect
    for sock in socks:
        sock.close()


def test_several_sandboxes_share_the_device(join: Join, device: Pipe) -> None:
    programs = [Program(join().device).open() for _ in range(5)]
    for number, program in enumerate(programs):
        program.put(b"%d" % number)
    assert programs[2].get(3) == b"012"
    assert programs[4].get(3) == b"34"
    assert device.opened == 5


def test_a_sandbox_that_leaves_releases_its_files_alone(join: Join, device: Pipe) -> None:
    one, other = join(), join()
    programs = [Program(channel.device).open() for channel in (one, one, other)]
    one.close()
    device.wait("released", 2)
    programs[2].put(b"still there")
    assert programs[2].get(100) == b"still there"
    assert (device.released, device.closed) == (2, 0)


def test_a_sandbox_that_has_left_is_forgotten(
    join: Join, server: DeviceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = threading.Event()
    forget = server._forget

    def forget_and_tell(client: _Client) -> None:
        forget(client)
        forgotten.set()

    monkeypatch.setattr(server, "_forget", forget_and_tell)
    channel = join()
    assert len(server._clients) == 1
    channel.close()
    assert forgotten.wait(WAIT_S)
    assert server._clients == set()


def test_the_end_of_the_server(device: Pipe, path: str) -> None:
    before = set(threading.enumerate())  # of earlier tests: a method that never returns, perhaps
    server = DeviceServer(device, path)
    tables = [Table() for _ in range(3)]
    channels = [Remote(path).connect(table) for table in tables]
    for channel in channels:
        Program(channel.device).open()
    server.close()
    assert (device.released, device.closed) == (3, 1)
    assert not os.path.exists(path)
    server.close()
    assert device.closed == 1
    for channel, table in zip(channels, tables, strict=True):
        table.wait()
        channel.close()
    threads = set(threading.enumerate()) - before
    for thread in threads:
        thread.join(5)  # its end is decided, but may not have come yet
    assert not [thread for thread in threads if thread.is_alive()]


def test_who_comes_while_the_server_ends_is_not_served(
    device: Pipe, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted before, but known to nobody when the others' connections were ended."""
    server = DeviceServer(device, path)
    accepted = threading.Event()

    def pid_of(sock: socket.socket) -> int:
        accepted.set()
        assert server._closing.wait(WAIT_S)
        return 1

    monkeypatch.setattr(module, "peer_pid", pid_of)
    with open_socket() as sock:
        sock.settimeout(WAIT_S)
        sock.connect(path)
        assert accepted.wait(WAIT_S)
        server.close()
        with contextlib.suppress(BrokenPipeError):
            sock.send(init_request())
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1 << 20) == b""
    assert server._clients == set()


def test_the_device_is_closed_last_and_what_it_raises_is_logged(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    class SlowFile(PipeFile):
        def release(self) -> None:
            threading.Event().wait(0.05)
            super().release()

    class Failing(Pipe):
        def open(self, request: OpenRequest) -> File:
            super().open(request)
            return SlowFile()

        def close(self) -> None:
            super().close()
            assert self.released == self.opened == 1
            raise ValueError("of the author")

    device = Failing()
    server = DeviceServer(device, path)
    channel = Remote(path).connect(Table())
    Program(channel.device).open()
    server.close()
    channel.close()
    assert device.closed == 1
    assert "Failing.close failed" in caplog.text


@pytest.mark.parametrize("size", [131072, PART, 1 << 20])
def test_large_transfers(join: Join, size: int) -> None:
    program = Program(join().device).open()
    data = os.urandom(size)
    assert program.put(data) == size
    assert program.get(size) == data


def test_many_sandboxes_at_once(join: Join, device: Pipe) -> None:
    """Each with a program that writes and reads all the time."""
    failures = []

    def work(channel: RemoteChannel) -> None:
        try:
            program = Program(channel.device).open()
            for _ in range(30):
                program.put(b"x" * 1000)
                assert program.get(1000) == b"x" * 1000
            program.release()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(join(),)) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (device.opened, device.released) == (40, 40)
    assert device.data == b""


# ---- the socket


def test_the_sockets_mode(server: DeviceServer) -> None:
    status = os.stat(server.path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_the_sockets_mode_whatever_the_umask(device: Pipe, path: str) -> None:
    previous = os.umask(0)
    try:
        server = DeviceServer(device, path)
    finally:
        os.umask(previous)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    server.close()
    assert mode == 0o600


def test_the_socket_of_a_dead_server_is_replaced(device: Pipe, path: str) -> None:
    with open_socket() as sock:
        sock.bind(path)
        sock.listen()
    DeviceServer(device, path).close()
    assert not os.path.exists(path)


def test_a_living_server_is_left_alone(join: Join, server: DeviceServer) -> None:
    other = Pipe()
    with pytest.raises(OSError, match="in use") as raised:
        DeviceServer(other, server.path)
    assert (raised.value.errno, raised.value.filename) == (errno.EADDRINUSE, server.path)
    assert other.closed == 0
    Program(join().device).open()


def test_a_living_server_that_is_overrun_is_left_alone(device: Pipe, path: str) -> None:
    with open_socket() as busy, contextlib.ExitStack() as waiting:
        busy.bind(path)
        busy.listen(0)
        refused = 0
        while not refused:  # until the one place is taken
            sock = waiting.enter_context(open_socket())
            sock.setblocking(False)
            refused = sock.connect_ex(path)
        assert refused == errno.EAGAIN
        with pytest.raises(OSError, match="in use") as caught:
            DeviceServer(device, path)
        assert caught.value.errno == errno.EADDRINUSE
        assert os.path.exists(path)


def test_a_path_without_a_directory(
    device: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = DeviceServer(device, "socket")
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)
    server.close()
    assert not (tmp_path / "socket").exists()


def test_servers_that_start_at_once(path: str) -> None:
    """One of them wins, the others are told so; nobody listens where nobody can connect."""
    with open_socket() as sock:
        sock.bind(path)
    begin = threading.Barrier(8)
    servers, errors = [], []

    def start() -> None:
        begin.wait()
        try:
            servers.append(DeviceServer(Pipe(), path))
        except OSError as error:
            errors.append(error.errno)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (server,) = servers
    assert errors == [errno.EADDRINUSE] * 7
    Remote(path).connect(Table()).close()
    server.close()


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_something_else_is_there(device: Pipe, path: str, kind: str) -> None:
    if kind == "file":
        open(path, "x").close()
    elif kind == "directory":
        os.mkdir(path)
    else:
        os.symlink("nowhere", path)
    with pytest.raises(FileExistsError):
        DeviceServer(device, path)
    assert os.path.lexists(path)


def test_a_socket_of_another_kind_is_there(device: Pipe, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(path)
        stream.listen()
        with pytest.raises(OSError, match="in use"):
            DeviceServer(device, path)


@pytest.mark.parametrize(
    ("name", "number"), [("gone/s", errno.ENOENT), ("x" * 120, errno.ENAMETOOLONG)]
)
def test_paths_that_cannot_be(device: Pipe, tmp_path: Path, name: str, number: int) -> None:
    path = str(tmp_path / name)
    with pytest.raises(OSError, match=r".") as raised:
        DeviceServer(device, path)
    assert raised.value.errno == number


def test_a_device_that_is_none(path: str) -> None:
    with pytest.raises(ValueError, match="name"):
        DeviceServer(Pipe(name=""), path)
    with pytest.raises(TypeError, match="no open method"):
        DeviceServer(Device(name="x"), path)
    assert not os.path.exists(path)


def test_a_socket_that_was_replaced_stays(device: Pipe, path: str) -> None:
    """By a server that somebody started after removing the first one's socket."""
    first = DeviceServer(device, path)
    os.unlink(path)
    second = DeviceServer(Pipe(), path)
    first.close()
    Remote(path).connect(Table()).close()
    second.close()
    assert not os.path.exists(path)


# ---- who may come


def test_other_users_are_refused(
    server: DeviceServer,
    raw: Connect,
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "peer_uid", lambda _: os.geteuid() + 1)
        assert ends(raw())
        assert f"refused a connection of user {os.geteuid() + 1}" in caplog.text
    Program(join().device).open()


CONNECT_AS_NOBODY = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setuid(65534)
sock.settimeout(20)
try:
    sock.connect(sys.argv[1])
    print(sock.recv(100))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_who_is_somebody_else(device: Pipe) -> None:
    path = f"/tmp/recuse-test-{os.getpid()}.sock"
    server = DeviceServer(device, path)

    def connect() -> str:
        argv = [sys.executable, "-c", CONNECT_AS_NOBODY, path]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    try:
        assert connect() == "Permission denied\n"
        os.chmod(path, 0o666)
        assert connect() == "b''\n"
    finally:
        server.close()


# ---- what comes from them


@pytest.mark.parametrize(
    "junk",
    [
        b"x",
        bytes(16),
        reply(2),
        bytes(PART + 1),
        message(2)[:20],
        b"\xff\xff\xff\xff" + bytes(PART - 4),
        (PART + 5).to_bytes(4, "little") + bytes(PART - 4),
    ],
)
def test_what_is_no_message_ends_one_connection(raw: Connect, join: Join, junk: bytes) -> None:
    program = Program(join().device).open()
    sock = raw()
    sock.send(junk)
    if len(junk) == PART and junk[0] == 5:
        sock.send(b"not five")
    assert ends(sock)
    program.put(b"fine")
    assert program.get(4) == b"fine"


def test_requests_without_sense_are_answered(raw: Connect) -> None:
    sock = raw()
    for opcode, body in [(14, b""), (15, bytes(40)), (16, bytes(40)), (39, bytes(8)), (99, b"")]:
        sock.send(message(6, body, opcode))
        answer = sock.recv(1 << 20)
        assert len(answer) == 16
        assert int.from_bytes(answer[4:8], "little", signed=True) < 0
        assert int.from_bytes(answer[8:], "little") == 6
    sock.send(init_request())
    assert b"DEVNAME=pipe" in sock.recv(1 << 20)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.binary(max_size=120), max_size=4), st.integers(0, 40))
def test_any_bytes(raw: Connect, server: DeviceServer, sent: list[bytes], opcode: int) -> None:
    """The server lives, whatever one connection says."""
    sock = raw()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for packet in sent:
            sock.send(message(2, packet, opcode) if opcode % 2 else packet)
    sock.close()
    other = Remote(server.path).connect(Table())
    program = Program(other.device).open()
    assert program.get(1) == b""
    other.close()


def test_a_sandbox_that_reads_no_answers_harms_nobody(
    raw: Connect, join: Join, device: Pipe
) -> None:
    program = Program(join().device).open()
    sock = raw()
    sock.send(init_request())
    sock.settimeout(0.05)
    with contextlib.suppress(TimeoutError):  # when the server takes no more
        while True:
            sock.send(message(4, bytes(100), 99))
    program.put(b"fine")
    assert program.get(4) == b"fine"


def test_connections_that_say_nothing(raw: Connect, join: Join) -> None:
    silent = [raw() for _ in range(20)]
    Program(join().device).open()
    assert len(silent) == 20


def test_connections_that_cannot_be_accepted(
    server: DeviceServer,
    join: Join,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server goes on when it has descriptors again."""
    failed = threading.Event()
    accept = socket.socket.accept

    def fail(sock: socket.socket) -> tuple[socket.socket, str]:
        if not failed.is_set():
            connection, _ = accept(sock)
            connection.close()
            failed.set()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", fail)
    monkeypatch.setattr(module, "_ACCEPT_RETRY_S", 0.001)
    join()  # the call of accept that waits already
    with pytest.raises(OSError, match="ended the connection"):
        join()
    join()
    assert "Too many open files" in caplog.text


def test_an_answer_comes_back_over_the_socket_alone(server: DeviceServer) -> None:
    """The bytes on it are those of the protocol, which another server could have sent."""
    with open_socket() as sock:
        sock.connect(server.path)
        packets = Packets(sock)
        packets.send(init_request())
        answer = packets.receive()
        assert answer is not None
        assert number_of(init_request()) == int.from_bytes(answer[8:16], "little") == 2
        packets.close()
