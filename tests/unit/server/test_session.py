"""Requests and answers of devices with plain methods."""

import errno
import itertools
import os
import threading

import pytest

from recuse import Device, File, Memory, OpenRequest, Session, current_request
from recuse.wire.cuse import (
    CUSE_INIT,
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_NEW_FILES,
    RECUSE_NODE_INFO,
    RECUSE_SEEKABLE,
    cuse_init_out,
)
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_FLUSH,
    FUSE_FORGET,
    FUSE_IOCTL,
    FUSE_NOTIFY_REPLY,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
)

from .conftest import Serve, Told


class EchoFile(File):
    data = b""

    def write(self, data: bytes, offset: int) -> None:
        self.data = data

    def read(self, size: int, offset: int) -> bytes:
        return self.data[:size]


class Echo(Device):
    name = "echo"

    def open(self, request: OpenRequest) -> File:
        return EchoFile()


# The whole conversation of a program that writes and reads, as bytes.
GOLDEN = [
    (  # CUSE_INIT
        "38000000 00100000 0200000000000000 0000000000000000"  # len opcode unique nodeid
        "00000000 00000000 00000000 0000 0000"  # uid gid pid extlen padding
        "07000000 2d000000 00000000 01000000",  # 7.45, flags: unrestricted
        "62000000 00000000 0200000000000000"  # len error unique
        "07000000 2d000000 00000000 01000000"  # 7.45, flags: unrestricted
        "00000200 00000200 00000000 00000000"  # max_read max_write major minor
        + "00000000" * 10
        + b"DEVNAME=e\0".hex(),
    ),
    (  # FUSE_OPEN
        "30000000 0e000000 0400000000000000 0000000000000000"
        "e8030000 64000000 4d000000 0000 0000"
        "02800000 00000000",  # flags: O_RDWR | O_LARGEFILE
        "20000000 00000000 0400000000000000"
        "0100000000000000 00000000 00000000",  # fh open_flags backing_id
    ),
    (  # FUSE_WRITE
        "53000000 10000000 0600000000000000 0000000000000000"
        "e8030000 64000000 4d000000 0000 0000"
        "0100000000000000 0000000000000000 03000000 00000000"  # fh offset size write_flags
        "0000000000000000 02800000 00000000"  # lock_owner flags padding
        "61 62 63",
        "18000000 00000000 0600000000000000 03000000 00000000",  # size padding
    ),
    (  # FUSE_READ
        "50000000 0f000000 0800000000000000 0000000000000000"
        "e8030000 64000000 4d000000 0000 0000"
        "0100000000000000 0000000000000000 02000000 00000000"  # fh offset size read_flags
        "0000000000000000 02800000 00000000",  # lock_owner flags padding
        "12000000 00000000 0800000000000000 61 62",
    ),
    (  # FUSE_IOCTL without handler
        "48000000 27000000 0a00000000000000 0000000000000000"
        "e8030000 64000000 4d000000 0000 0000"
        "0100000000000000 01000000 99990000"  # fh flags cmd
        "0000000000000000 00000000 00000000",  # arg in_size out_size
        "10000000 e7ffffff 0a00000000000000",  # ENOTTY
    ),
    (  # FUSE_RELEASE
        "40000000 12000000 0c00000000000000 0000000000000000"
        "00000000 00000000 00000000 0000 0000"
        "0100000000000000 02800000 00000000 0000000000000000",  # fh flags release_flags owner
        "10000000 00000000 0c00000000000000",
    ),
]


def test_golden_messages() -> None:
    session = Session(Echo(name="e"))
    for request, answer in GOLDEN:
        answers: list[bytes] = []
        session.handle(bytes.fromhex(request), answers.append)
        assert [one.hex() for one in answers] == [bytes.fromhex(answer).hex()]


def test_every_open_has_a_file_of_its_own(serve: Serve) -> None:
    peer = serve(Echo())
    first, second = peer.open(), peer.open()
    assert first != second
    assert peer.write(first, b"one") == 3
    assert peer.write(second, b"two!") == 4
    assert peer.read(first) == b"one"
    assert peer.read(second, 2) == b"tw"


def test_the_file_knows_its_device_and_flags(serve: Serve) -> None:
    seen: list[tuple[object, ...]] = []

    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            seen.append((request.flags, request.nonblocking))
            return ProbeFile()

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            seen.append((self.flags, self.nonblocking, self.device))
            return b""

        write = read  # type: ignore[assignment]  # it sees the same

    device = Probe()
    peer = serve(device)
    fh = peer.open(os.O_RDWR | os.O_NONBLOCK)
    peer.read(fh, flags=os.O_RDWR | os.O_NONBLOCK)
    peer.read(fh, flags=os.O_RDWR)  # after fcntl(F_SETFL)
    assert seen == [
        (os.O_RDWR | os.O_NONBLOCK, True),
        (os.O_RDWR | os.O_NONBLOCK, True, device),
        (os.O_RDWR, False, device),
    ]


def test_flags_come_with_writes_too(serve: Serve) -> None:
    class ProbeFile(File):
        def write(self, data: bytes, offset: int) -> None:
            assert self.nonblocking == (data == b"n")

    peer = serve(ProbeFile)
    fh = peer.open()
    assert peer.write(fh, b"n", flags=os.O_RDWR | os.O_NONBLOCK) == 1
    assert peer.write(fh, b"b") == 1


def test_open_sees_the_flags_already_set_by_the_time_of_the_first_ioctl(serve: Serve) -> None:
    class ProbeFile(File):
        def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
            return self.flags

    peer = serve(ProbeFile)
    assert peer.restricted_ioctl(peer.open(5), 1) == (5, b"")


def test_offsets_and_sizes_are_passed_on(serve: Serve) -> None:
    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            return f"{size} {offset}".encode()

        def write(self, data: bytes, offset: int) -> int:
            assert (data, offset) == (b"x" * 5000, 1 << 40)
            assert type(data) is bytes
            return 4999

    peer = serve(ProbeFile)
    fh = peer.open()
    assert peer.read(fh, 131072, (1 << 63) - 1) == b"131072 9223372036854775807"
    assert peer.write(fh, b"x" * 5000, 1 << 40) == 4999


@pytest.mark.parametrize(
    "data", [b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"aXbXcX")[::2]]
)
def test_read_may_return_anything_with_bytes(
    serve: Serve, data: bytearray | bytes | memoryview
) -> None:
    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytearray | bytes | memoryview:
            return data

    peer = serve(ProbeFile)
    assert peer.read(peer.open(), 3) == b"abc"


@pytest.mark.parametrize("returned", [None, 3])
def test_write_may_return_none_for_all(serve: Serve, returned: int | None) -> None:
    class ProbeFile(File):
        def write(self, data: bytes, offset: int) -> int | None:
            return returned

    peer = serve(ProbeFile)
    assert peer.write(peer.open(), b"abc") == 3


def test_write_of_nothing_taken(serve: Serve) -> None:
    class ProbeFile(File):
        def write(self, data: bytes, offset: int) -> int:
            return 0

    peer = serve(ProbeFile)
    assert peer.write(peer.open(), b"abc") == 0


def test_operations_that_a_file_does_not_have(serve: Serve) -> None:
    peer = serve(File)
    fh = peer.open()
    assert peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=1)) == errno.EINVAL
    assert peer.fails(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x") == errno.EINVAL
    peer.release(fh)


def test_release_is_called_once_and_the_handle_is_gone(serve: Serve) -> None:
    released = []

    class ProbeFile(File):
        def release(self) -> None:
            released.append(self)

    peer = serve(ProbeFile)
    fh = peer.open()
    peer.release(fh)
    assert len(released) == 1
    for opcode, body, data in [
        (FUSE_RELEASE, fuse_release_in(fh=fh), b""),
        (FUSE_READ, fuse_read_in(fh=fh, size=1), b""),
        (FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x"),
        (FUSE_IOCTL, fuse_ioctl_in(fh=fh), b""),
    ]:
        assert peer.fails(opcode, body, data) == errno.EBADF
    peer.session.close()
    assert len(released) == 1


@pytest.mark.parametrize("opcode", [FUSE_FLUSH, 4097])
def test_unknown_operations(serve: Serve, opcode: int) -> None:
    assert serve(Echo()).fails(opcode) == errno.ENOSYS


@pytest.mark.parametrize("opcode", [FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_NOTIFY_REPLY])
def test_requests_without_answer(serve: Serve, opcode: int) -> None:
    peer = serve(Echo())
    peer.post(opcode)
    assert not peer.answers


# INIT


def info(payload: bytes) -> list[str]:
    """Return the strings behind the structure."""
    strings = payload[cuse_init_out.SIZE :]
    assert strings.endswith(b"\0")
    return strings[:-1].decode().split("\0")


def test_init_says_what_the_device_is(serve: Serve) -> None:
    device = Echo(major=240, minor=7, max_read=8192, max_write=4096)
    answer = cuse_init_out.unpack(serve(device).init())
    assert answer == cuse_init_out(
        major=7, minor=45, flags=1, max_read=8192, max_write=4096, dev_major=240, dev_minor=7
    )


@pytest.mark.parametrize(("theirs", "ours"), [(11, 11), (31, 31), (45, 45), (46, 45), (99, 45)])
def test_init_agrees_on_the_smaller_minor(serve: Serve, theirs: int, ours: int) -> None:
    peer = serve(Echo())
    assert cuse_init_out.unpack(peer.init(minor=theirs)).minor == ours
    assert peer.session.minor == ours


@pytest.mark.parametrize(("major", "minor"), [(7, 10), (7, 0), (6, 45), (8, 45)])
def test_init_with_a_version_that_has_no_cuse(
    serve: Serve, told: Told, major: int, minor: int
) -> None:
    peer = serve(Echo())
    with pytest.raises(Exception, match="EPROTO"):
        peer.init(major=major, minor=minor)
    assert f"{major}.{minor}" in told.line()


@pytest.mark.parametrize("offered", range(16))
@pytest.mark.parametrize("seekable", [False, True])
@pytest.mark.parametrize("unrestricted", [False, True])
def test_init_takes_only_flags_that_were_offered(
    serve: Serve, offered: int, seekable: bool, unrestricted: bool
) -> None:
    bits = [CUSE_UNRESTRICTED_IOCTL, RECUSE_SEEKABLE, RECUSE_NODE_INFO, RECUSE_NEW_FILES]
    flags = sum(bit for index, bit in enumerate(bits) if offered >> index & 1)
    device = Echo(mode=0o640, uid=0, gid=20, seekable=seekable, unrestricted=unrestricted)
    payload = serve(device).init(flags=flags | 1 << 30)
    wanted = [unrestricted, seekable, True, True]
    expected = sum(bit for bit, want in zip(bits, wanted, strict=True) if want) & flags
    assert cuse_init_out.unpack(payload).flags == expected
    node = ["DEVMODE=0640", "DEVUID=0", "DEVGID=20"] if flags & RECUSE_NODE_INFO else []
    assert info(payload) == ["DEVNAME=echo", *node]


def test_init_leaves_out_owners_that_are_not_said(serve: Serve) -> None:
    payload = serve(Echo(mode=0)).init(flags=RECUSE_NODE_INFO)
    assert info(payload) == ["DEVNAME=echo", "DEVMODE=0000"]


def test_init_name_is_utf_8(serve: Serve) -> None:
    payload = serve(Echo(name="snd/größe")).init()
    assert info(payload) == ["DEVNAME=snd/größe"]


# Malformed messages


def message(opcode: int, body: bytes, unique: int = 2, length: int | None = None) -> bytes:
    size = fuse_in_header.SIZE + len(body) if length is None else length
    return fuse_in_header(len=size, opcode=opcode, unique=unique).pack() + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(40),
        message(FUSE_OPEN, bytes(8))[:39],
        message(FUSE_OPEN, bytes(8))[:-1],
        message(FUSE_OPEN, bytes(8)) + b"x",
        message(FUSE_OPEN, bytes(8), length=0),
    ],
)
def test_what_cannot_be_answered_raises(data: bytes) -> None:
    answers: list[bytes] = []
    with pytest.raises(WireError):
        Session(Echo()).handle(data, answers.append)
    assert not answers


@pytest.mark.parametrize("opcode", [CUSE_INIT, FUSE_OPEN, FUSE_READ, FUSE_RELEASE, FUSE_IOCTL, 36])
def test_a_request_that_is_too_short_is_answered(serve: Serve, told: Told, opcode: int) -> None:
    assert serve(Echo()).fails(opcode, bytes(7)) == errno.EIO
    assert "malformed" in told.line()


def test_data_that_are_too_short(serve: Serve, told: Told) -> None:
    peer = serve(Echo())
    fh = peer.open()
    assert peer.fails(FUSE_WRITE, fuse_write_in(fh=fh, size=4), b"abc") == errno.EIO
    assert "3 bytes of data, not 4" in told.line()
    body = bytes(24) + b"\4\0\0\0" + bytes(4)
    assert peer.fails(FUSE_IOCTL, body, b"abc") == errno.EIO
    assert "3 bytes of data, not 4" in told.line()


# The end


def test_close_releases_files_then_closes_the_device_once() -> None:
    events: list[int | str] = []

    class ProbeFile(File):
        def __init__(self, number: int) -> None:
            self.number = number

        def release(self) -> None:
            events.append(self.number)

    class Probe(Device):
        name = "probe"
        numbers = itertools.count()

        def open(self, request: OpenRequest) -> File:
            return ProbeFile(next(self.numbers))

        def close(self) -> None:
            events.append("device")

    session = Session(Probe())
    for unique in (2, 4, 6):
        session.handle(message(FUSE_OPEN, bytes(8), unique), lambda answer: None)
    session.handle(message(FUSE_RELEASE, fuse_release_in(fh=2).pack(), 8), lambda answer: None)
    session.close()
    session.close()
    assert events == [1, 0, 2, "device"]


def test_a_closed_session_has_no_device(serve: Serve) -> None:
    peer = serve(Echo())
    fh = peer.open()
    peer.session.close()
    assert peer.fails(FUSE_OPEN, fuse_open_in()) == errno.ENODEV
    assert peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=1)) == errno.ENODEV


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_an_open_that_nobody_waits_for_is_released(serve: Serve, number: int) -> None:
    released = []

    class ProbeFile(File):
        def release(self) -> None:
            released.append(self)

    peer = serve(ProbeFile)
    peer.refuse = OSError(number, "the program was killed")
    peer.post(FUSE_OPEN, fuse_open_in())
    assert len(released) == 1
    peer.refuse = None
    peer.session.close()
    assert len(released) == 1


def test_an_answer_that_is_refused_for_another_reason_is_told(serve: Serve, told: Told) -> None:
    peer = serve(Echo())
    fh = peer.open()
    peer.refuse = OSError(errno.EINVAL, "malformed")
    unique = peer.post_read(fh)
    assert f"request {unique}" in told.line()
    peer.refuse = None
    assert peer.read(fh) == b""


def test_an_open_that_ends_after_the_session_is_released() -> None:
    released = []
    opening, go_on = threading.Event(), threading.Event()

    class ProbeFile(File):
        def release(self) -> None:
            released.append(self)

    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            opening.set()
            assert go_on.wait(20)
            return ProbeFile()

    session = Session(Probe())
    answers: list[bytes] = []
    thread = threading.Thread(
        target=session.handle, args=(message(FUSE_OPEN, bytes(8)), answers.append)
    )
    thread.start()
    assert opening.wait(20)
    session.close()
    go_on.set()
    thread.join()
    assert len(released) == 1
    assert [answer.hex() for answer in answers] == ["10000000edffffff0200000000000000"]  # ENODEV


# Threads


def test_two_threads_run_methods_of_one_file_at_once(serve: Serve) -> None:
    both = threading.Barrier(2, timeout=20)

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            both.wait()
            return b"r"

        def write(self, data: bytes, offset: int) -> None:
            both.wait()

    peer = serve(ProbeFile)
    fh = peer.open()
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(peer.write(fh, b"w")))
    thread.start()
    results.append(peer.read(fh))
    thread.join()
    assert sorted(map(str, results)) == ["1", "b'r'"]


def test_many_threads_get_each_its_own_answer(serve: Serve) -> None:
    class ProbeFile(File):
        def write(self, data: bytes, offset: int) -> int:
            assert current_request().unique == int(data)
            return len(data) - 1

    peer = serve(ProbeFile)
    fh = peer.open()
    start = threading.Barrier(8, timeout=20)

    def work(first: int) -> None:
        start.wait()
        for unique in range(first, first + 4000, 16):
            data = b"%d" % unique
            body = fuse_write_in(fh=fh, size=len(data))
            expected = (len(data) - 1).to_bytes(8, "little")
            assert peer.call(FUSE_WRITE, body, data, unique=unique) == expected
            done[first] += 1

    done = dict.fromkeys(range(1000, 1016, 2), 0)
    threads = [threading.Thread(target=work, args=(first,)) for first in done]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(done.values()) == {250}
