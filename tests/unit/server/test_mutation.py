"""Whatever bytes come, a session raises only WireError, answers once, and goes on serving."""

import logging
import struct
from collections.abc import Iterator
from ctypes import Structure, c_uint32, c_uint64

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse import IO, IOWR, Device, File, Memory, OpenRequest, Session, ioctl
from recuse.wire import declare
from recuse.wire.cuse import CUSE_INIT, cuse_init_in
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_FORGET,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_IOCTL_UNRESTRICTED,
    FUSE_NOTIFY_REPLY,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_out_header,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
)

NO_ANSWER = {FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_NOTIFY_REPLY}


class Pair(Structure):
    _fields_ = [("pointer", c_uint64), ("size", c_uint32)]


class EchoFile(File):
    data = b""

    def write(self, data: bytes, offset: int) -> None:
        self.data = data

    def read(self, size: int, offset: int) -> bytes:
        return self.data[:size]

    @ioctl(IOWR("E", 1, Pair), Pair)
    def follow(self, pair: Pair, memory: Memory) -> None:
        memory.write(pair.pointer, memory.read(pair.pointer, pair.size % 100))

    @ioctl(IO("E", 2))
    def number(self, argument: int) -> int:
        return argument % 1000

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        return len(memory.read(argument, command % 300))


class Echo(Device):
    name = "echo"

    def open(self, request: OpenRequest) -> File:
        return EchoFile()


def packed(
    opcode: int,
    body: declare.Structure,
    data: bytes = b"",
    unique: int = 2,
) -> bytes:
    content = body.pack() + data
    size = fuse_in_header.SIZE + len(content)
    return fuse_in_header(len=size, opcode=opcode, unique=unique, pid=5).pack() + content


GOOD = [
    packed(CUSE_INIT, cuse_init_in(major=7, minor=45, flags=1)),
    packed(FUSE_OPEN, fuse_open_in(flags=2)),
    packed(FUSE_READ, fuse_read_in(fh=1, size=10)),
    packed(FUSE_WRITE, fuse_write_in(fh=1, size=4), b"data"),
    packed(FUSE_IOCTL, fuse_ioctl_in(fh=1, cmd=IO("E", 2), arg=3)),
    packed(
        FUSE_IOCTL,
        fuse_ioctl_in(fh=1, cmd=IOWR("E", 1, Pair), in_size=16, out_size=16),
        bytes(16),
    ),
    packed(
        FUSE_IOCTL,
        fuse_ioctl_in(fh=1, flags=FUSE_IOCTL_UNRESTRICTED, cmd=IOWR("E", 1, Pair), arg=50),
    ),
    packed(FUSE_IOCTL, fuse_ioctl_in(fh=1, flags=FUSE_IOCTL_UNRESTRICTED, cmd=77, arg=50)),
    packed(FUSE_RELEASE, fuse_release_in(fh=1)),
    packed(FUSE_INTERRUPT, fuse_interrupt_in(unique=2), unique=3),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a good message with some numbers changed, and its length right as a rule."""
    message = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(message) // 4 - 1)) * 4
        number = draw(
            st.sampled_from([0, 1, 2, 3, 16, 40, 127, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
            | st.integers(0, 0xFFFFFFFF)
        )
        message[at : at + 4] = struct.pack("=I", number)
    cut = draw(st.integers(0, len(message)) | st.just(0))
    message = message[: len(message) - cut] + draw(st.binary(max_size=20))
    if draw(st.integers(0, 9)) and len(message) >= 4:
        message[:4] = struct.pack("=I", len(message))
    return bytes(message)


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    """The log is not looked at here: much is told."""
    logging.getLogger("recuse.server").disabled = True
    yield
    logging.getLogger("recuse.server").disabled = False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=120) | mutated(), max_size=12))
def test_bytes_of_all_kinds(messages: list[bytes]) -> None:
    session = Session(Echo())
    open_file(session)
    for message in messages:
        answers: list[bytes] = []
        try:
            session.handle(message, answers.append)
        except WireError:
            assert not answers
            header = fuse_in_header.unpack(message) if len(message) >= fuse_in_header.SIZE else None
            assert header is None or header.len != len(message)
            continue
        header = fuse_in_header.unpack(message)
        if header.opcode in NO_ANSWER:
            assert not answers
            continue
        if header.opcode == FUSE_INTERRUPT and not answers:
            continue
        (answer,) = answers
        out = fuse_out_header.unpack(answer)
        assert (out.len, out.unique) == (len(answer), header.unique)
        assert -512 < out.error <= 0
        if header.opcode == FUSE_READ and not out.error:
            size = fuse_read_in.unpack(message, fuse_in_header.SIZE).size
            assert len(answer) - fuse_out_header.SIZE <= size
    # And nothing of it harms others.
    fh = open_file(session)
    call(session, packed(FUSE_WRITE, fuse_write_in(fh=fh, size=4), b"good"))
    assert call(session, packed(FUSE_READ, fuse_read_in(fh=fh, size=3))) == b"goo"
    ask = fuse_ioctl_in(fh=fh, flags=FUSE_IOCTL_UNRESTRICTED, cmd=IO("E", 2), arg=3)
    assert call(session, packed(FUSE_IOCTL, ask))[:8] == bytes([3, 0, 0, 0, 0, 0, 0, 0])
    assert not session._runner._running


def open_file(session: Session) -> int:
    (handle,) = struct.unpack_from("=Q", call(session, packed(FUSE_OPEN, fuse_open_in(flags=2))))
    return int(handle)


def call(session: Session, message: bytes) -> bytes:
    answers: list[bytes] = []
    session.handle(message, answers.append)
    (answer,) = answers
    assert fuse_out_header.unpack(answer).error == 0
    return answer[fuse_out_header.SIZE :]


@pytest.mark.parametrize("message", GOOD, ids=lambda message: str(message[4]))
def test_cut_at_every_length(message: bytes) -> None:
    session = Session(Echo())
    open_file(session)
    for size in range(fuse_in_header.SIZE, len(message)):
        answers: list[bytes] = []
        short = struct.pack("=I", size) + message[4:size]
        session.handle(short, answers.append)
        (answer,) = answers
        assert fuse_out_header.unpack(answer).error == -5
