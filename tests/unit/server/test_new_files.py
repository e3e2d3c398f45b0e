"""ioctl handlers that make files."""

import ctypes
import errno
import os
import select
from collections.abc import Iterator
from ctypes import c_int32, c_uint8, c_uint32, c_uint64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import IOR, IOW, IOWR, Device, File, Memory, OpenRequest, ioctl
from recuse.server.ioctl_retries import IoctlCall, IoctlRetries
from recuse.wire.cuse import (
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_IOCTL_FILE,
    RECUSE_NEW_FILES,
    recuse_ioctl_file,
)
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_IOCTL_RETRY,
    FUSE_IOCTL_UNRESTRICTED,
    FUSE_POLL,
    fuse_ioctl_in,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
    fuse_poll_in,
    fuse_poll_out,
)

from .conftest import Peer, Serve, Told


class Made(ctypes.Structure):
    _fields_ = [("text", c_uint8 * 8), ("fd", c_int32), ("tail", c_uint32), ("address", c_uint64)]


SIZE = ctypes.sizeof(Made)
MAKE = IOWR("N", 1, Made)
MAKE_LATER = IOWR("N", 2, Made)
MAKE_AND_WRITE = IOWR("N", 3, Made)
MAKE_AND_READ = IOWR("N", 4, Made)
MAKE_NOTHING = IOWR("N", 5, Made)
MAKE_AND_WRITE_TOO_MUCH = IOWR("N", 6, Made)


MADE: list["New"] = []
"""All that the test has made."""


class New(File):
    flags = os.O_RDWR | os.O_CLOEXEC

    def __init__(self) -> None:
        self.released = 0
        MADE.append(self)

    def read(self, size: int, offset: int) -> bytes:
        return b"new"

    def release(self) -> None:
        self.released += 1


class Maker(File):
    @ioctl(MAKE, Made, descriptor="fd")
    def make(self, made: Made) -> New:
        made.text[0] += 1
        return New()

    @ioctl(MAKE_LATER, Made, descriptor="fd")
    async def make_later(self, made: Made) -> New:
        return self.make(made)

    @ioctl(MAKE_AND_WRITE, Made, descriptor="fd")
    def make_and_write(self, made: Made, memory: Memory) -> New:
        memory.write(made.address, b"written")
        return self.make(made)

    @ioctl(MAKE_AND_READ, Made, descriptor="fd")
    def make_and_read(self, made: Made, memory: Memory) -> New:
        made.text[1] = memory.read(made.address, 1)[0]
        return self.make(made)

    @ioctl(MAKE_AND_WRITE_TOO_MUCH, Made, descriptor="fd")
    def make_and_write_too_much(self, made: Made, memory: Memory) -> New:
        for number in range(300):
            memory.write(0x10000 + 2 * number, b"x")
        return New()

    @ioctl(MAKE_NOTHING, Made, descriptor="fd")  # type: ignore[type-var]  # no file
    def make_nothing(self, made: Made) -> int:
        return 5


@pytest.fixture
def peer(serve: Serve) -> Iterator[Peer]:
    MADE.clear()
    peer = serve(Maker)
    peer.init(flags=CUSE_UNRESTRICTED_IOCTL | RECUSE_NEW_FILES)
    yield peer
    peer.session.close()
    assert [file.released for file in MADE] == [1] * len(MADE)


def round_of(
    peer: Peer,
    fh: int,
    command: int,
    *,
    data: bytes = b"",
    out_size: int = 0,
    pid: int = 77,
    flags: int = FUSE_IOCTL_UNRESTRICTED,
    arg: int = 0x1100,
) -> tuple[fuse_ioctl_out, bytes]:
    body = fuse_ioctl_in(
        fh=fh,
        flags=flags,
        cmd=command,
        arg=arg,
        in_size=len(data),
        out_size=out_size,
    )
    payload = peer.call(FUSE_IOCTL, body, data, pid=pid)
    return fuse_ioctl_out.unpack(payload), payload[fuse_ioctl_out.SIZE :]


def ask(peer: Peer, fh: int, command: int, memory: bytearray) -> tuple[recuse_ioctl_file, int]:
    """Do the rounds, with ``memory`` at 0x1000; return the file and where its number goes."""
    base = 0x1000
    inputs: list[tuple[int, int]] = []
    outputs: list[tuple[int, int]] = []
    for _ in range(10):
        data = b"".join(bytes(memory[at - base : at - base + size]) for at, size in inputs)
        room = sum(size for _, size in outputs)
        out, payload = round_of(peer, fh, command, data=data, out_size=room)
        if out.flags != FUSE_IOCTL_RETRY:
            break
        areas = list(fuse_ioctl_iovec.CODEC.iter_unpack(payload))
        inputs, outputs = areas[: out.in_iovs], areas[out.in_iovs :]
    assert (out.flags, out.in_iovs, out.out_iovs) == (RECUSE_IOCTL_FILE, 0, 0)
    made = recuse_ioctl_file.unpack(payload)
    output = payload[recuse_ioctl_file.SIZE :]
    place, offset = None, 0
    for at, size in outputs:
        if offset <= made.offset < offset + size:
            place = at + made.offset - offset
        memory[at - base : at - base + size] = output[offset : offset + size]
        offset += size
    assert place is not None
    return made, place


@pytest.mark.parametrize("command", [MAKE, MAKE_LATER, MAKE_AND_WRITE, MAKE_AND_READ])
def test_a_handler_makes_a_file(peer: Peer, command: int) -> None:
    fh = peer.open()
    memory = bytearray(0x400)
    memory[0x100:0x108] = b"abcdefgh"
    memory[0x200] = 0x77
    memory[0x110:0x118] = (0x1200).to_bytes(8, "little")
    made, place = ask(peer, fh, command, memory)
    assert place == 0x1100 + Made.fd.offset
    assert made.flags == os.O_RDWR | os.O_CLOEXEC
    expected = b"b\x77cdefgh" if command == MAKE_AND_READ else b"bbcdefgh"
    assert memory[0x100:0x108] == expected
    assert memory[0x200:0x207] == (b"written" if command == MAKE_AND_WRITE else b"\x77" + bytes(6))
    (file,) = MADE
    assert file.device is peer.session.device
    assert file.flags == os.O_RDWR
    assert peer.read(made.fh) == b"new"
    assert made.fh != fh
    assert file.released == 0
    peer.release(made.fh)
    assert file.released == 1
    peer.release(fh)
    assert file.released == 1


class Polled(File):
    def poll(self, events: int) -> int:
        return events & select.POLLIN


class PolledMaker(File):
    @ioctl(MAKE, Made, descriptor="fd")
    def make(self, made: Made) -> Polled:
        return Polled()


def test_files_of_one_kind_need_a_poll_method_and_others_none(serve: Serve) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            return PolledMaker()

    peer = serve(Probe())
    peer.init(flags=RECUSE_NEW_FILES)
    fh = peer.open()

    def poll(fh: int) -> int:
        answer = peer.call(FUSE_POLL, fuse_poll_in(fh=fh, events=select.POLLIN))
        return fuse_poll_out.unpack(answer).revents

    always = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
    assert poll(fh) == always
    _, payload = round_of(peer, fh, MAKE, data=bytes(SIZE), out_size=SIZE, flags=0)
    assert poll(recuse_ioctl_file.unpack(payload).fh) == select.POLLIN
    assert poll(fh) == always


def test_a_device_whose_files_make_none_has_no_poll_whatever_others_of_its_module_do(
    serve: Serve,
) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            return File()

    assert Probe.__module__ == PolledMaker.__module__
    peer = serve(Probe())
    assert peer.fails(FUSE_POLL, fuse_poll_in(fh=peer.open())) == errno.ENOSYS


def test_a_restricted_device_makes_files(peer: Peer) -> None:
    fh = peer.open()
    out, payload = round_of(peer, fh, MAKE, data=bytes(SIZE), out_size=SIZE, flags=0)
    assert out == fuse_ioctl_out(flags=RECUSE_IOCTL_FILE)
    made = recuse_ioctl_file.unpack(payload)
    assert made.offset == Made.fd.offset
    assert len(payload) == recuse_ioctl_file.SIZE + SIZE
    assert peer.read(made.fh) == b"new"


def test_a_restricted_device_that_writes_elsewhere_has_its_file_released(
    peer: Peer, told: Told
) -> None:
    fh = peer.open()
    data = bytes(Made(address=0x1000 + SIZE))
    assert (
        peer.fails(
            FUSE_IOCTL,
            fuse_ioctl_in(fh=fh, cmd=MAKE_AND_WRITE, arg=0x1000, in_size=SIZE, out_size=SIZE),
            data,
        )
        == errno.EIO
    )
    assert "writes 7 bytes" in told.line()
    assert not MADE


def test_a_kernel_half_that_takes_no_files_is_told_once(serve: Serve, told: Told) -> None:
    MADE.clear()
    peer = serve(Maker)
    peer.init(flags=CUSE_UNRESTRICTED_IOCTL)
    fh = peer.open()
    for flags, data in [(FUSE_IOCTL_UNRESTRICTED, b""), (0, bytes(SIZE))]:
        body = fuse_ioctl_in(
            fh=fh, flags=flags, cmd=MAKE, arg=64, in_size=len(data), out_size=len(data)
        )
        assert peer.fails(FUSE_IOCTL, body, data) == errno.EOPNOTSUPP
    assert told.line() == (
        "Maker.make makes a file, which this kernel half does not take: EOPNOTSUPP for the program"
    )
    assert not MADE


def test_a_handler_that_returns_something_else_is_told(peer: Peer, told: Told) -> None:
    fh = peer.open()
    body = fuse_ioctl_in(fh=fh, cmd=MAKE_NOTHING, arg=64, in_size=SIZE, out_size=SIZE)
    assert peer.fails(FUSE_IOCTL, body, bytes(SIZE)) == errno.EIO
    assert told.line() == "Maker.make_nothing returned 5, not a File: EIO for the program"


def test_a_file_with_an_answer_that_cannot_be_is_released(peer: Peer, told: Told) -> None:
    fh = peer.open()
    body = fuse_ioctl_in(
        fh=fh,
        flags=FUSE_IOCTL_UNRESTRICTED,
        cmd=MAKE_AND_WRITE_TOO_MUCH,
        arg=64,
        in_size=SIZE,
        out_size=SIZE,
    )
    assert peer.fails(FUSE_IOCTL, body, bytes(SIZE)) == errno.EIO
    assert "uses 302 areas" in told.line()
    assert [file.released for file in MADE] == [1]


@pytest.mark.parametrize("command", [MAKE, MAKE_LATER])
def test_an_answer_that_nobody_takes_has_its_file_released(peer: Peer, command: int) -> None:
    fh = peer.open()
    peer.refuse = OSError(errno.ENOENT, "killed")
    body = fuse_ioctl_in(fh=fh, cmd=command, arg=64, in_size=SIZE, out_size=SIZE)
    peer.post(FUSE_IOCTL, body, bytes(SIZE))
    peer.session.close()
    assert [file.released for file in MADE] == [1]


def kept(peer: Peer, fh: int, pid: int = 77) -> tuple[int, int]:
    """Bring a file into being whose number needs one more round."""
    data = bytes(Made(address=0x1200))
    out, _ = round_of(peer, fh, MAKE_AND_WRITE, pid=pid)
    assert out.flags == FUSE_IOCTL_RETRY
    out, payload = round_of(peer, fh, MAKE_AND_WRITE, data=data, out_size=SIZE, pid=pid)
    assert out.flags == FUSE_IOCTL_RETRY
    areas = list(fuse_ioctl_iovec.CODEC.iter_unpack(payload))
    inputs, outputs = areas[: out.in_iovs], areas[out.in_iovs :]
    return sum(size for _, size in inputs), sum(size for _, size in outputs)


def test_a_file_whose_round_never_comes_is_released_with_the_maker(peer: Peer) -> None:
    fh = peer.open()
    kept(peer, fh)
    (file,) = MADE
    assert file.released == 0
    peer.release(fh)
    assert file.released == 1


def test_a_file_whose_round_never_comes_is_released_at_the_next_ioctl(peer: Peer) -> None:
    fh = peer.open()
    kept(peer, fh)
    round_of(peer, fh, MAKE)
    assert [file.released for file in MADE] == [1]


def test_a_file_whose_last_round_nobody_takes_is_released(peer: Peer) -> None:
    fh = peer.open()
    in_size, out_size = kept(peer, fh)
    peer.refuse = OSError(errno.ENOENT, "killed")
    body = fuse_ioctl_in(
        fh=fh,
        flags=FUSE_IOCTL_UNRESTRICTED,
        cmd=MAKE_AND_WRITE,
        arg=0x1100,
        in_size=in_size,
        out_size=out_size,
    )
    peer.post(FUSE_IOCTL, body, bytes(in_size))
    peer.refuse = None
    assert [file.released for file in MADE] == [1]


def test_strangers_files_are_kept_for_a_while(peer: Peer) -> None:
    fh = peer.open()
    for _ in range(65):
        kept(peer, fh, pid=0)
    assert sorted(file.released for file in MADE) == [0] * 64 + [1]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((MAKE, Made), {"descriptor": "text"}, ValueError),
        ((MAKE, Made), {"descriptor": "fb"}, ValueError),
        ((MAKE, Made), {"descriptor": "address"}, ValueError),
        ((IOW("N", 1, Made), Made), {"descriptor": "fd"}, ValueError),
        ((MAKE, Made), {"descriptor": "fd", "direction": "w"}, ValueError),
        ((IOR("N", 1, 4), c_int32), {"descriptor": "value"}, TypeError),
        ((IOR("N", 1, 4), bytes), {"descriptor": "fd"}, TypeError),
        ((IOR("N", 1, 4), c_int32 * 1), {"descriptor": "fd"}, TypeError),
        ((MAKE,), {"descriptor": "fd"}, ValueError),
    ],
)
def test_declarations_that_cannot_be(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ioctl(*arguments, **options)


class Files:
    def __init__(self) -> None:
        self.dropped: list[int] = []

    def adopt(self, file: object) -> tuple[int, int]:
        return 7, os.O_RDWR

    def drop(self, handle: int) -> None:
        self.dropped.append(handle)


@given(
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    gap=st.integers(0, 3),
    address=st.integers(64, (1 << 64) - 64),
    field=st.sampled_from(["first", "second", "third"]),
)
def test_the_offset_is_that_of_the_field_in_the_output(
    before: int, after: int, gap: int, address: int, field: str
) -> None:
    class Three(ctypes.Structure):
        _fields_ = [("first", c_int32), ("second", c_int32), ("third", c_int32)]

    class Writer(File):
        @ioctl(IOR("N", 1, Three), Three, descriptor=field)
        def make(self, three: Three, memory: Memory) -> New:
            setattr(three, field, -1)
            memory.write(address - gap - before, b"<" * before)
            memory.write(address + 12 + gap, b">" * after)
            return New()

    files = Files()
    rounds = IoctlRetries(files.drop)
    areas: list[tuple[int, int]] = []
    data = b""
    for _ in range(5):
        out_size = sum(size for _, size in areas)
        call = IoctlCall(Writer(), IOR("N", 1, Three), address, data, out_size, files)
        answer = rounds.begin(call, (1, 2))
        if answer is None:
            answer = call.answer(call.begin(), None)
        out = fuse_ioctl_out.unpack(answer)
        if out.flags != FUSE_IOCTL_RETRY:
            break
        found = list(fuse_ioctl_iovec.CODEC.iter_unpack(answer[fuse_ioctl_out.SIZE :]))
        inputs, areas = found[: out.in_iovs], found[out.in_iovs :]
        data = bytes(sum(size for _, size in inputs))
    assert answer is not None
    made = recuse_ioctl_file.unpack(answer, fuse_ioctl_out.SIZE)
    output = answer[fuse_ioctl_out.SIZE + recuse_ioctl_file.SIZE :]
    assert (made.fh, made.flags) == (7, os.O_RDWR)
    assert output[made.offset : made.offset + 4] == b"\xff" * 4
    assert output.count(b"\xff") == 4
    assert not files.dropped
