"""A kernel half that is nothing but messages, for tests of the server half."""

import errno
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from recuse import Device, File, Session
from recuse.wire.cuse import CUSE_INIT, CUSE_UNRESTRICTED_IOCTL, cuse_init_in
from recuse.wire.declare import Structure
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_IOCTL_RETRY,
    FUSE_IOCTL_UNRESTRICTED,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
    fuse_open_in,
    fuse_open_out,
    fuse_out_header,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
    fuse_write_out,
)

WAIT_S = 20.0
"""How long a test waits for what has to happen."""


class Failure(Exception):
    """An answer with an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, f"E{number}"))
        self.number = number


class Peer:
    """Sends requests to a session, and keeps the answers."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.uniques = itertools.count(2, 2)
        self.answers: dict[int, list[bytes]] = {}
        self.arrived = threading.Condition()
        self.refuse: OSError | None = None
        """Raised instead of taking an answer."""

    def take(self, message: bytes) -> None:
        if self.refuse is not None:
            raise self.refuse
        header = fuse_out_header.unpack(message)
        assert header.len == len(message)
        assert -512 < header.error <= 0
        assert not header.error or len(message) == fuse_out_header.SIZE
        with self.arrived:
            self.answers.setdefault(header.unique, []).append(message)
            self.arrived.notify_all()

    def post(
        self,
        opcode: int,
        body: Structure | bytes = b"",
        data: bytes = b"",
        *,
        unique: int | None = None,
        pid: int = 77,
        uid: int = 1000,
        gid: int = 100,
    ) -> int:
        """Send a request and return its number."""
        if unique is None:
            unique = next(self.uniques)
        packed = body if isinstance(body, bytes) else body.pack()
        header = fuse_in_header(
            len=fuse_in_header.SIZE + len(packed) + len(data),
            opcode=opcode,
            unique=unique,
            uid=uid,
            gid=gid,
            pid=pid,
        )
        self.session.handle(header.pack() + packed + data, self.take)
        return unique

    def answer(self, unique: int) -> bytes:
        """Wait for the answer to a request and return its payload."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: unique in self.answers, WAIT_S), "no answer"
            (message,) = self.answers[unique]
        error = fuse_out_header.unpack(message).error
        if error:
            raise Failure(-error)
        return message[fuse_out_header.SIZE :]

    def call(self, *arguments: Any, **options: Any) -> bytes:
        return self.answer(self.post(*arguments, **options))

    def fails(self, *arguments: Any, **options: Any) -> int:
        """Return the errno that a request fails with."""
        with pytest.raises(Failure) as caught:
            self.call(*arguments, **options)
        return caught.value.number

    def init(self, flags: int = CUSE_UNRESTRICTED_IOCTL, minor: int = 45, major: int = 7) -> bytes:
        return self.call(CUSE_INIT, cuse_init_in(major=major, minor=minor, flags=flags))

    def open(self, flags: int = 2, **options: Any) -> int:
        return fuse_open_out.unpack(self.call(FUSE_OPEN, fuse_open_in(flags=flags), **options)).fh

    def read(self, fh: int, size: int = 4096, offset: int = 0, flags: int = 2) -> bytes:
        return self.answer(self.post_read(fh, size, offset, flags))

    def post_read(self, fh: int, size: int = 4096, offset: int = 0, flags: int = 2) -> int:
        body = fuse_read_in(fh=fh, size=size, offset=offset, flags=flags)
        return self.post(FUSE_READ, body)

    def write(self, fh: int, data: bytes, offset: int = 0, flags: int = 2) -> int:
        body = fuse_write_in(fh=fh, size=len(data), offset=offset, flags=flags)
        return fuse_write_out.unpack(self.call(FUSE_WRITE, body, data)).size

    def release(self, fh: int) -> None:
        assert self.call(FUSE_RELEASE, fuse_release_in(fh=fh)) == b""

    def interrupt(self, unique: int) -> int:
        """Interrupt a request and return the INTERRUPT's own number."""
        body = fuse_interrupt_in(unique=unique)
        return self.post(FUSE_INTERRUPT, body, unique=unique | 1)

    def restricted_ioctl(
        self, fh: int, command: int, argument: int = 0, data: bytes = b"", out_size: int = 0
    ) -> tuple[int, bytes]:
        body = fuse_ioctl_in(fh=fh, cmd=command, arg=argument, in_size=len(data), out_size=out_size)
        payload = self.call(FUSE_IOCTL, body, data)
        out = fuse_ioctl_out.unpack(payload)
        assert (out.flags, out.in_iovs, out.out_iovs) == (0, 0, 0)
        assert len(payload) - fuse_ioctl_out.SIZE <= out_size
        return out.result, payload[fuse_ioctl_out.SIZE :]


class Program:
    """A thread with memory, in ioctls of unrestricted devices, as fs/fuse/ioctl.c does them."""

    BASE = 0x7F00_0000_0000

    def __init__(self, peer: Peer, pid: int = 77) -> None:
        self.peer = peer
        self.pid = pid
        self.memory = bytearray(1 << 16)
        self.rounds = 0
        self.after_round: Callable[[int], None] = lambda number: None
        """Called between rounds."""

    def put(self, offset: int, data: bytes) -> int:
        """Put data at an offset of the memory, and return the address."""
        self.memory[offset : offset + len(data)] = data
        return self.BASE + offset

    def get(self, address: int, size: int) -> bytes:
        at = address - self.BASE
        if at < 0 or at + size > len(self.memory):
            raise Failure(errno.EFAULT)
        return bytes(self.memory[at : at + size])

    def ioctl(self, fh: int, command: int, argument: int = 0) -> int:
        inputs: list[tuple[int, int]] = []
        outputs: list[tuple[int, int]] = []
        self.rounds = 0
        while True:
            self.rounds += 1
            out, payload = self.round(fh, command, argument, inputs, outputs)
            if out.flags != FUSE_IOCTL_RETRY:
                assert out.flags == 0
                break
            areas = list(fuse_ioctl_iovec.CODEC.iter_unpack(payload))
            assert len(areas) == out.in_iovs + out.out_iovs
            assert 0 < len(areas) <= 256
            assert all(size > 0 for _, size in areas)
            # A round without input after one with input: Linux 6.1 sends garbage.
            assert out.in_iovs or not inputs
            inputs, outputs = areas[: out.in_iovs], areas[out.in_iovs :]
            self.after_round(self.rounds)
        assert len(payload) <= sum(size for _, size in outputs)
        for address, size in outputs:
            part, payload = payload[:size], payload[size:]
            self.get(address, len(part))
            self.put(address - self.BASE, part)
        return out.result

    def round(
        self,
        fh: int,
        command: int,
        argument: int,
        inputs: list[tuple[int, int]],
        outputs: list[tuple[int, int]],
    ) -> tuple[fuse_ioctl_out, bytes]:
        data = b"".join(self.get(*area) for area in inputs)
        body = fuse_ioctl_in(
            fh=fh,
            flags=FUSE_IOCTL_UNRESTRICTED,
            cmd=command,
            arg=argument,
            in_size=len(data),
            out_size=sum(size for _, size in outputs),
        )
        payload = self.peer.call(FUSE_IOCTL, body, data, pid=self.pid)
        return fuse_ioctl_out.unpack(payload), payload[fuse_ioctl_out.SIZE :]


class Told:
    """What the author was told in the log."""

    def __init__(self, records: list[logging.LogRecord], come: threading.Event) -> None:
        self._records = records
        self._come = come

    def lines(self) -> list[str]:
        """Return the lines since the last call."""
        lines = [record.getMessage() for record in self._records]
        self._records.clear()
        self._come.clear()
        return lines

    def _only(self) -> logging.LogRecord:
        """The one record. It may come after the answer to the program."""
        assert self._come.wait(WAIT_S)
        self._come.clear()
        (record,) = self._records
        return record

    def line(self) -> str:
        record = self._only()
        assert record.exc_info is None
        (line,) = self.lines()
        return line

    def traceback(self) -> tuple[str, BaseException]:
        """Return the one line, and the exception that it shows."""
        record = self._only()
        assert record.exc_info is not None
        error = record.exc_info[1]
        assert error is not None
        (line,) = self.lines()
        return line, error


@pytest.fixture(autouse=True)
def told() -> Iterator[Told]:
    """What is logged as an error; a test fails if it has not looked at all of it."""
    records: list[logging.LogRecord] = []
    come = threading.Event()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            come.set()

    handler = Keep(logging.WARNING)
    logger = logging.getLogger("recuse.server")
    logger.addHandler(handler)
    yield Told(records, come)
    logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


Serve = Callable[[type[File] | Device], Peer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves a device, or a device whose files are of a class."""
    peers: list[Peer] = []

    def serve(device: type[File] | Device) -> Peer:
        if not isinstance(device, Device):
            device = one_file_device(device)()
        peer = Peer(Session(device))
        peers.append(peer)
        return peer

    yield serve
    for peer in peers:
        peer.session.close()
        assert all(len(answers) == 1 for answers in peer.answers.values())


def one_file_device(file: type[File]) -> type[Device]:
    class Probe(Device):
        name = "probe"

        def open(self, request: Any) -> File:
            return file()

    return Probe


@pytest.fixture
def program() -> type[Program]:
    return Program
