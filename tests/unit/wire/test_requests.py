"""Requests: known bytes both ways, cut off, too long, mutated."""

import re
import struct
import sys
from copy import copy
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.wire.cuse import (
    CUSE_INIT,
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_NODE_INFO,
    RECUSE_SEEKABLE,
    cuse_init_in,
)
from recuse.wire.declare import Structure
from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    fuse_batch_forget_in,
    fuse_create_in,
    fuse_forget_one,
    fuse_mknod_in,
    fuse_rename_in,
    fuse_setxattr_in,
)
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_CREATE,
    FUSE_DESTROY,
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_IOCTL_UNRESTRICTED,
    FUSE_LOOKUP,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_RENAME,
    FUSE_SETXATTR,
    FUSE_SETXATTR_EXT,
    FUSE_WRITE,
    fuse_in_header,
    fuse_init_in,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_poll_in,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
)
from recuse.wire.message import decode_request, encode_request
from recuse.wire.optable import OPERATIONS, Payload


class Golden(NamedTuple):
    """A request as bytes and as its parts, and what INIT agreed on."""

    message: bytes
    header: fuse_in_header
    body: Structure | None
    payload: bytes = b""
    minor: int = 45
    flags: int = 0


def text(rows: str) -> bytes:
    """The bytes that rows of hex say, which end in a comment each."""
    return bytes.fromhex(re.sub(r"#.*", "", rows))


REQUESTS = {
    "CUSE_INIT": Golden(
        text("""
            38 00 00 00  00 10 00 00  # len 56, opcode 4096
            02 00 00 00 00 00 00 00   # unique 2
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
            07 00 00 00  2d 00 00 00  # 7.45
            00 00 00 00  01 00 03 00  # unused, flags
        """),
        fuse_in_header(56, CUSE_INIT, 2),
        cuse_init_in(7, 45, flags=CUSE_UNRESTRICTED_IOCTL | RECUSE_SEEKABLE | RECUSE_NODE_INFO),
    ),
    "OPEN": Golden(
        text("""
            30 00 00 00  0e 00 00 00  # len 48, opcode 14
            04 00 00 00 00 00 00 00   # unique 4
            00 00 00 00 00 00 00 00   # nodeid 0
            e8 03 00 00  e9 03 00 00  # uid 1000, gid 1001
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            02 80 00 00  00 00 00 00  # O_RDWR | O_LARGEFILE, open_flags
        """),
        fuse_in_header(48, FUSE_OPEN, 4, 0, 1000, 1001, 523),
        fuse_open_in(0o100002),
    ),
    "READ": Golden(
        text("""
            50 00 00 00  0f 00 00 00  # len 80, opcode 15
            06 00 00 00 00 00 00 00   # unique 6
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            01 00 00 00 00 00 00 00   # fh 1
            00 10 00 00 00 00 00 00   # offset 4096
            10 00 00 00  00 00 00 00  # size 16, read_flags
            00 00 00 00 00 00 00 00   # lock_owner
            00 88 00 00  00 00 00 00  # O_NONBLOCK | O_LARGEFILE, padding
        """),
        fuse_in_header(80, FUSE_READ, 6, pid=523),
        fuse_read_in(1, 4096, 16, flags=0o104000),
    ),
    "WRITE": Golden(
        text("""
            53 00 00 00  10 00 00 00  # len 83, opcode 16
            08 00 00 00 00 00 00 00   # unique 8
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            01 00 00 00 00 00 00 00   # fh 1
            00 00 00 00 00 00 00 00   # offset 0
            03 00 00 00  00 00 00 00  # size 3, write_flags
            00 00 00 00 00 00 00 00   # lock_owner
            01 80 00 00  00 00 00 00  # O_WRONLY | O_LARGEFILE, padding
            61 62 63                  # "abc"
        """),
        fuse_in_header(83, FUSE_WRITE, 8, pid=523),
        fuse_write_in(1, 0, 3, flags=0o100001),
        b"abc",
    ),
    "IOCTL": Golden(
        text("""
            4c 00 00 00  27 00 00 00  # len 76, opcode 39
            0a 00 00 00 00 00 00 00   # unique 10
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            01 00 00 00 00 00 00 00   # fh 1
            02 00 00 00  01 45 04 c0  # FUSE_IOCTL_UNRESTRICTED, _IOWR('E', 1, int)
            f0 de ff ff ff 7f 00 00   # arg 0x7fffffffdef0
            04 00 00 00  08 00 00 00  # in_size 4, out_size 8
            2a 00 00 00               # 42
        """),
        fuse_in_header(76, FUSE_IOCTL, 10, pid=523),
        fuse_ioctl_in(1, FUSE_IOCTL_UNRESTRICTED, 0xC0044501, 0x7FFFFFFFDEF0, 4, 8),
        b"\x2a\0\0\0",
    ),
    "POLL": Golden(
        text("""
            40 00 00 00  28 00 00 00  # len 64, opcode 40
            0c 00 00 00 00 00 00 00   # unique 12
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            01 00 00 00 00 00 00 00   # fh 1
            05 00 00 00 00 00 00 00   # kh 5
            01 00 00 00  41 00 00 00  # FUSE_POLL_SCHEDULE_NOTIFY, POLLIN | POLLRDNORM
        """),
        fuse_in_header(64, FUSE_POLL, 12, pid=523),
        fuse_poll_in(1, 5, FUSE_POLL_SCHEDULE_NOTIFY, 0x41),
    ),
    "INTERRUPT": Golden(
        text("""
            30 00 00 00  24 00 00 00  # len 48, opcode 36
            0b 00 00 00 00 00 00 00   # unique 10 | 1
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
            0a 00 00 00 00 00 00 00   # unique 10
        """),
        fuse_in_header(48, FUSE_INTERRUPT, 11),
        fuse_interrupt_in(10),
    ),
    "RELEASE": Golden(
        text("""
            40 00 00 00  12 00 00 00  # len 64, opcode 18
            0e 00 00 00 00 00 00 00   # unique 14
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
            01 00 00 00 00 00 00 00   # fh 1
            02 80 00 00  00 00 00 00  # O_RDWR | O_LARGEFILE, release_flags
            00 00 00 00 00 00 00 00   # lock_owner
        """),
        fuse_in_header(64, FUSE_RELEASE, 14),
        fuse_release_in(1, 0o100002),
    ),
    "INIT of Linux 6.18": Golden(
        text("""
            68 00 00 00  1a 00 00 00  # len 104, opcode 26
            02 00 00 00 00 00 00 00   # unique 2
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
            07 00 00 00  2d 00 00 00  # 7.45
            00 00 02 00  fb ff ff 73  # max_readahead 128 KiB, flags
            fd 07 00 00               # flags2
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00    # unused
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00    # unused
        """),
        fuse_in_header(104, FUSE_INIT, 2),
        fuse_init_in(7, 45, 0x20000, 0x73FFFFFB, 0x7FD),
    ),
    "DESTROY": Golden(
        text("""
            28 00 00 00  26 00 00 00  # len 40, opcode 38
            10 00 00 00 00 00 00 00   # unique 16
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
        """),
        fuse_in_header(40, FUSE_DESTROY, 16),
        None,
    ),
    "LOOKUP": Golden(
        text("""
            2e 00 00 00  01 00 00 00  # len 46, opcode 1
            12 00 00 00 00 00 00 00   # unique 18
            01 00 00 00 00 00 00 00   # nodeid 1
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            68 65 6c 6c 6f 00         # "hello"
        """),
        fuse_in_header(46, FUSE_LOOKUP, 18, 1, pid=523),
        None,
        b"hello\0",
    ),
    "RENAME": Golden(
        text("""
            35 00 00 00  0c 00 00 00  # len 53, opcode 12
            14 00 00 00 00 00 00 00   # unique 20
            01 00 00 00 00 00 00 00   # nodeid 1
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            02 00 00 00 00 00 00 00   # newdir 2
            61 00  62 63 00           # "a", "bc"
        """),
        fuse_in_header(53, FUSE_RENAME, 20, 1, pid=523),
        fuse_rename_in(2),
        b"a\0bc\0",
    ),
    "SETXATTR": Golden(
        text("""
            39 00 00 00  15 00 00 00  # len 57, opcode 21
            16 00 00 00 00 00 00 00   # unique 22
            01 00 00 00 00 00 00 00   # nodeid 1
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            03 00 00 00  01 00 00 00  # size 3, XATTR_CREATE
            75 2e 61 62 63 00         # "u.abc"
            78 00 79                  # "x", NUL, "y"
        """),
        fuse_in_header(57, FUSE_SETXATTR, 22, 1, pid=523),
        fuse_setxattr_in(3, 1),
        b"u.abc\0x\0y",
    ),
    "SETXATTR with SETXATTR_EXT": Golden(
        text("""
            3e 00 00 00  15 00 00 00  # len 62, opcode 21
            16 00 00 00 00 00 00 00   # unique 22
            01 00 00 00 00 00 00 00   # nodeid 1
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            00 00 00 00  02 00 00 00  # size 0, XATTR_REPLACE
            01 00 00 00  00 00 00 00  # FUSE_SETXATTR_ACL_KILL_SGID, padding
            75 2e 61 62 63 00         # "u.abc"
        """),
        fuse_in_header(62, FUSE_SETXATTR, 22, 1, pid=523),
        fuse_setxattr_in(0, 2, 1),
        b"u.abc\0",
        flags=FUSE_SETXATTR_EXT,
    ),
    "BATCH_FORGET": Golden(
        text("""
            50 00 00 00  2a 00 00 00  # len 80, opcode 42
            18 00 00 00 00 00 00 00   # unique 24
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
            02 00 00 00  00 00 00 00  # count 2, dummy
            05 00 00 00 00 00 00 00   # nodeid 5
            01 00 00 00 00 00 00 00   # nlookup 1
            06 00 00 00 00 00 00 00   # nodeid 6
            03 00 00 00 00 00 00 00   # nlookup 3
        """),
        fuse_in_header(80, FUSE_BATCH_FORGET, 24),
        fuse_batch_forget_in(2),
        fuse_forget_one(5, 1).pack() + fuse_forget_one(6, 3).pack(),
    ),
    "INIT of 7.35": Golden(
        text("""
            38 00 00 00  1a 00 00 00  # len 56, opcode 26
            02 00 00 00 00 00 00 00   # unique 2
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            00 00 00 00  00 00 00 00  # pid 0, no extensions
            07 00 00 00  23 00 00 00  # 7.35
            00 00 02 00  fb ff ff 33  # max_readahead 128 KiB, flags
        """),
        fuse_in_header(56, FUSE_INIT, 2),
        fuse_init_in(7, 35, 0x20000, 0x33FFFFFB),
        minor=35,
    ),
    "MKNOD of 7.11": Golden(
        text("""
            32 00 00 00  08 00 00 00  # len 50, opcode 8
            1a 00 00 00 00 00 00 00   # unique 26
            01 00 00 00 00 00 00 00   # nodeid 1
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            a4 21 00 00  01 05 00 00  # S_IFCHR | 0644, rdev 5:1
            61 00                     # "a"
        """),
        fuse_in_header(50, FUSE_MKNOD, 26, 1, pid=523),
        fuse_mknod_in(0o20644, 0x501),
        b"a\0",
        minor=11,
    ),
    "CREATE of 7.11": Golden(
        text("""
            32 00 00 00  23 00 00 00  # len 50, opcode 35
            1c 00 00 00 00 00 00 00   # unique 28
            01 00 00 00 00 00 00 00   # nodeid 1
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            42 00 00 00  a4 81 00 00  # O_RDWR | O_CREAT, S_IFREG | 0644
            61 00                     # "a"
        """),
        fuse_in_header(50, FUSE_CREATE, 28, 1, pid=523),
        fuse_create_in(0o102, 0o100644),
        b"a\0",
        minor=11,
    ),
    "an opcode that nobody knows": Golden(
        text("""
            2c 00 00 00  a0 0f 00 00  # len 44, opcode 4000
            1e 00 00 00 00 00 00 00   # unique 30
            00 00 00 00 00 00 00 00   # nodeid 0
            00 00 00 00  00 00 00 00  # uid 0, gid 0
            0b 02 00 00  00 00 00 00  # pid 523, no extensions
            01 02 03 04               # anything
        """),
        fuse_in_header(44, 4000, 30, pid=523),
        None,
        b"\x01\x02\x03\x04",
    ),
}

every_request = pytest.mark.parametrize(
    "golden",
    [
        pytest.param(
            golden,
            id=name,
            marks=pytest.mark.skipif(sys.byteorder != "little", reason="little-endian bytes"),
        )
        for name, golden in REQUESTS.items()
    ],
)


def with_length(message: bytes) -> bytes:
    """The message with its own length where it says that."""
    return struct.pack("=I", len(message)) + message[4:]


def decode(golden: Golden, message: bytes) -> tuple[fuse_in_header, Structure | None, memoryview]:
    return decode_request(message, golden.minor, golden.flags)


def takes_any(golden: Golden) -> bool:
    """Whether the request may go on as it likes after its structure."""
    operation = OPERATIONS.get(golden.header.opcode)
    return operation is None or operation.request_payload is Payload.BYTES


@every_request
def test_known_bytes_are_decoded(golden: Golden) -> None:
    for message in (golden.message, bytearray(golden.message), memoryview(golden.message)):
        header, body, payload = decode_request(message, golden.minor, golden.flags)
        assert header == golden.header
        assert body == golden.body
        assert payload == golden.payload


@every_request
def test_known_bytes_are_encoded(golden: Golden) -> None:
    header = copy(golden.header)
    header.len = 0
    message = encode_request(header, golden.body, golden.payload, golden.minor, golden.flags)
    assert message == golden.message
    assert header.len == 0


@every_request
def test_a_request_that_is_not_all_there_is_refused(golden: Golden) -> None:
    for size in range(len(golden.message)):
        with pytest.raises(WireError):
            decode(golden, golden.message[:size])


@every_request
def test_a_request_cut_short_is_refused_though_its_length_is_right(golden: Golden) -> None:
    least = len(golden.message) - len(golden.payload)
    for size in range(fuse_in_header.SIZE, len(golden.message)):
        cut = with_length(golden.message[:size])
        if takes_any(golden) and size >= least:
            assert len(decode(golden, cut)[2]) == size - least
        elif golden.header.opcode == FUSE_INIT and size == fuse_in_header.SIZE + 16:
            assert isinstance(golden.body, fuse_init_in)
            before_7_36 = copy(golden.body)
            before_7_36.flags2 = 0
            assert decode(golden, cut)[1] == before_7_36
        else:
            with pytest.raises(WireError):
                decode(golden, cut)


@every_request
def test_trailing_bytes_are_refused(golden: Golden) -> None:
    for trailing in (b"\0", b"x", b"x\0", bytes(8)):
        with pytest.raises(WireError):
            decode(golden, golden.message + trailing)
        longer = with_length(golden.message + trailing)
        if takes_any(golden) and golden.minor == 45:
            assert decode(golden, longer)[2] == golden.payload + trailing
        else:
            with pytest.raises(WireError):
                decode(golden, longer)


def test_a_kernel_newer_than_us_may_say_more_in_init() -> None:
    message = encode_request(fuse_in_header(opcode=FUSE_INIT), fuse_init_in(7, 99), b"more")
    _, body, payload = decode_request(message)
    assert body == fuse_init_in(7, 99)
    assert bytes(payload) == b"more"


def test_extensions_are_no_payload() -> None:
    groups = struct.pack("=IIII", 16, 32, 1, 1000)
    header = fuse_in_header(opcode=FUSE_CREATE, total_extlen=2)
    message = encode_request(header, fuse_create_in(mode=0o644), b"name\0" + groups)
    _, body, payload = decode_request(message)
    assert body == fuse_create_in(mode=0o644)
    assert bytes(payload) == b"name\0"


@pytest.mark.parametrize("units", [1, 2, 0xFFFF])
@pytest.mark.parametrize(
    ("opcode", "body"), [(FUSE_OPEN, fuse_open_in()), (FUSE_IOCTL, fuse_ioctl_in()), (4000, None)]
)
def test_extensions_are_behind_the_structure(
    opcode: int, body: Structure | None, units: int
) -> None:
    header = fuse_in_header(opcode=opcode, total_extlen=units)
    with pytest.raises(WireError):
        decode_request(encode_request(header, body))


@pytest.mark.parametrize(
    ("opcode", "body", "payload"),
    [
        (FUSE_WRITE, fuse_write_in(size=3), b"ab"),
        (FUSE_WRITE, fuse_write_in(size=3), b"abcd"),
        (FUSE_IOCTL, fuse_ioctl_in(in_size=1, out_size=4), b"abcd"),
        (FUSE_LOOKUP, None, b""),
        (FUSE_LOOKUP, None, b"a"),
        (FUSE_LOOKUP, None, b"a\0b"),
        (FUSE_LOOKUP, None, b"a\0b\0"),
        (FUSE_RENAME, fuse_rename_in(2), b"a\0"),
        (FUSE_RENAME, fuse_rename_in(2), b"a\0b"),
        (FUSE_RENAME, fuse_rename_in(2), b"a\0b\0c\0"),
        (FUSE_SETXATTR, fuse_setxattr_in(1), b"a\0"),
        (FUSE_SETXATTR, fuse_setxattr_in(1), b"a\0xy"),
        (FUSE_SETXATTR, fuse_setxattr_in(1), b"ax"),
        (FUSE_SETXATTR, fuse_setxattr_in(0), b""),
        (FUSE_BATCH_FORGET, fuse_batch_forget_in(1), fuse_forget_one(1, 1).pack() * 2),
        (FUSE_BATCH_FORGET, fuse_batch_forget_in(2**32 - 1), b""),
        (FUSE_BATCH_FORGET, fuse_batch_forget_in(1), bytes(15)),
    ],
)
def test_what_follows_is_as_the_structure_says(
    opcode: int, body: Structure | None, payload: bytes
) -> None:
    message = encode_request(fuse_in_header(opcode=opcode), body, payload)
    with pytest.raises(WireError, match=OPERATIONS[opcode].name):
        decode_request(message)


@pytest.mark.parametrize("body", [None, fuse_write_in(), fuse_in_header()])
def test_only_the_operations_own_structure_is_encoded(body: Structure | None) -> None:
    with pytest.raises(WireError, match="FUSE_READ has no"):
        encode_request(fuse_in_header(opcode=FUSE_READ), body)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A known request, or a table's operation with any bytes, after a few changes."""
    message = bytearray(draw(st.sampled_from([golden.message for golden in REQUESTS.values()])))
    if draw(st.booleans()):
        struct.pack_into("=I", message, 4, draw(st.sampled_from(list(OPERATIONS))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(message)))
        match draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                message[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del message[place : place + draw(st.integers(1, 40))]
            case "insert":
                message[place:place] = draw(st.binary(max_size=40))
    return with_length(bytes(message)) if draw(st.booleans()) else bytes(message)


@given(mutated() | st.binary(max_size=200), st.integers(11, 45), st.sampled_from([0, 2**64 - 1]))
def test_any_bytes_are_decoded_or_refused(message: bytes, minor: int, flags: int) -> None:
    try:
        header, body, payload = decode_request(message, minor, flags)
    except WireError:
        return
    if header.opcode == FUSE_INIT:
        return  # decoded by its length, encoded by its minor
    extensions = message[len(message) - 8 * header.total_extlen :]
    again = encode_request(header, body, bytes(payload) + extensions, minor, flags)
    assert again == message
