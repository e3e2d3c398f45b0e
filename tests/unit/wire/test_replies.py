"""Answers: known bytes, cut off, too long, mutated."""

import errno
import re
import struct
import sys
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.wire.cuse import CUSE_INIT, CUSE_UNRESTRICTED_IOCTL, cuse_init_out
from recuse.wire.declare import Structure
from recuse.wire.errors import WireError
from recuse.wire.filesystem import create_out, fuse_attr, fuse_entry_out
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FUSE_CREATE,
    FUSE_FLUSH,
    FUSE_INIT,
    FUSE_IOCTL,
    FUSE_IOCTL_RETRY,
    FUSE_NOTIFY_POLL,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_READ,
    FUSE_WRITE,
    fuse_init_out,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
    fuse_notify_poll_wakeup_out,
    fuse_open_out,
    fuse_out_header,
    fuse_poll_out,
    fuse_write_out,
)
from recuse.wire.message import decode_reply
from recuse.wire.optable import OPERATIONS, Payload


class Golden(NamedTuple):
    """An answer to the opcode as bytes and as its parts."""

    opcode: int
    message: bytes
    header: fuse_out_header
    body: Structure | None
    payload: bytes = b""


def text(rows: str) -> bytes:
    """The bytes that rows of hex say, which end in a comment each."""
    return bytes.fromhex(re.sub(r"#.*", "", rows))


REPLIES = {
    "CUSE_INIT": Golden(
        CUSE_INIT,
        text("""
            65 00 00 00  00 00 00 00  # len 101, error 0
            02 00 00 00 00 00 00 00   # unique 2
            07 00 00 00  2d 00 00 00  # 7.45
            00 00 00 00  01 00 00 00  # unused, CUSE_UNRESTRICTED_IOCTL
            00 00 02 00  00 10 00 00  # max_read 128 KiB, max_write 4096
            fe 00 00 00  03 00 00 00  # number 254:3
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  # spare
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  # spare
            44 45 56 4e 41 4d 45 3d   # "DEVNAME="
            65 63 68 6f 00            # "echo"
        """),
        fuse_out_header(101, 0, 2),
        cuse_init_out(7, 45, 0, CUSE_UNRESTRICTED_IOCTL, 0x20000, 4096, 254, 3),
        b"DEVNAME=echo\0",
    ),
    "OPEN": Golden(
        FUSE_OPEN,
        text("""
            20 00 00 00  00 00 00 00  # len 32, error 0
            04 00 00 00 00 00 00 00   # unique 4
            01 00 00 00 00 00 00 80   # fh, its highest bit set
            01 00 00 00  ff ff ff ff  # FOPEN_DIRECT_IO, backing_id -1
        """),
        fuse_out_header(32, 0, 4),
        fuse_open_out(1 | 1 << 63, FOPEN_DIRECT_IO, -1),
    ),
    "READ": Golden(
        FUSE_READ,
        text("""
            13 00 00 00  00 00 00 00  # len 19, error 0
            06 00 00 00 00 00 00 00   # unique 6
            61 62 63                  # "abc"
        """),
        fuse_out_header(19, 0, 6),
        None,
        b"abc",
    ),
    "WRITE": Golden(
        FUSE_WRITE,
        text("""
            18 00 00 00  00 00 00 00  # len 24, error 0
            08 00 00 00 00 00 00 00   # unique 8
            03 00 00 00  00 00 00 00  # size 3, padding
        """),
        fuse_out_header(24, 0, 8),
        fuse_write_out(3),
    ),
    "FLUSH": Golden(
        FUSE_FLUSH,
        text("""
            10 00 00 00  00 00 00 00  # len 16, error 0
            0a 00 00 00 00 00 00 00   # unique 10
        """),
        fuse_out_header(16, 0, 10),
        None,
    ),
    "IOCTL with output": Golden(
        FUSE_IOCTL,
        text("""
            24 00 00 00  00 00 00 00  # len 36, error 0
            0c 00 00 00 00 00 00 00   # unique 12
            fe ff ff ff  00 00 00 00  # result -2, flags
            00 00 00 00  00 00 00 00  # in_iovs, out_iovs
            2a 00 00 00               # 42
        """),
        fuse_out_header(36, 0, 12),
        fuse_ioctl_out(-2),
        b"\x2a\0\0\0",
    ),
    "IOCTL to be retried": Golden(
        FUSE_IOCTL,
        text("""
            40 00 00 00  00 00 00 00  # len 64, error 0
            0e 00 00 00 00 00 00 00   # unique 14
            00 00 00 00  04 00 00 00  # result, FUSE_IOCTL_RETRY
            01 00 00 00  01 00 00 00  # in_iovs 1, out_iovs 1
            f0 de ff ff ff 7f 00 00   # base 0x7fffffffdef0
            10 00 00 00 00 00 00 00   # len 16
            00 10 00 00 00 00 00 00   # base 0x1000
            02 00 00 00 00 00 00 00   # len 2
        """),
        fuse_out_header(64, 0, 14),
        fuse_ioctl_out(0, FUSE_IOCTL_RETRY, 1, 1),
        fuse_ioctl_iovec(0x7FFFFFFFDEF0, 16).pack() + fuse_ioctl_iovec(0x1000, 2).pack(),
    ),
    "POLL": Golden(
        FUSE_POLL,
        text("""
            18 00 00 00  00 00 00 00  # len 24, error 0
            10 00 00 00 00 00 00 00   # unique 16
            41 00 00 00  00 00 00 00  # POLLIN | POLLRDNORM, padding
        """),
        fuse_out_header(24, 0, 16),
        fuse_poll_out(0x41),
    ),
    "an error": Golden(
        FUSE_OPEN,
        text("""
            10 00 00 00  f0 ff ff ff  # len 16, error -EBUSY
            12 00 00 00 00 00 00 00   # unique 18
        """),
        fuse_out_header(16, -errno.EBUSY, 18),
        None,
    ),
    "INIT": Golden(
        FUSE_INIT,
        text("""
            50 00 00 00  00 00 00 00  # len 80, error 0
            02 00 00 00 00 00 00 00   # unique 2
            07 00 00 00  28 00 00 00  # 7.40
            00 00 02 00  00 00 40 40  # max_readahead, FUSE_INIT_EXT | FUSE_MAX_PAGES
            0c 00  09 00              # max_background 12, congestion_threshold 9
            00 00 10 00  01 00 00 00  # max_write 1 MiB, time_gran 1 ns
            00 01  00 00              # max_pages 256, map_alignment
            20 00 00 00  01 00 00 00  # flags2 FUSE_PASSTHROUGH >> 32, max_stack_depth 1
            1e 00                     # request_timeout 30 s
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  # unused
        """),
        fuse_out_header(80, 0, 2),
        fuse_init_out(7, 40, 0x20000, 0x40400000, 12, 9, 0x100000, 1, 256, 0, 0x20, 1, 30),
    ),
    "INIT of 7.22": Golden(
        FUSE_INIT,
        text("""
            28 00 00 00  00 00 00 00  # len 40, error 0
            02 00 00 00 00 00 00 00   # unique 2
            07 00 00 00  16 00 00 00  # 7.22
            00 00 02 00  21 00 00 00  # max_readahead, FUSE_ASYNC_READ | FUSE_BIG_WRITES
            0c 00  09 00              # max_background 12, congestion_threshold 9
            00 00 02 00               # max_write 128 KiB
        """),
        fuse_out_header(40, 0, 2),
        fuse_init_out(7, 22, 0x20000, 0x21, 12, 9, 0x20000),
    ),
    "INIT that only says another version": Golden(
        FUSE_INIT,
        text("""
            18 00 00 00  00 00 00 00  # len 24, error 0
            02 00 00 00 00 00 00 00   # unique 2
            06 00 00 00  00 00 00 00  # 6.0
        """),
        fuse_out_header(24, 0, 2),
        fuse_init_out(6),
    ),
    "CREATE": Golden(
        FUSE_CREATE,
        text("""
            a0 00 00 00  00 00 00 00  # len 160, error 0
            14 00 00 00 00 00 00 00   # unique 20
            02 00 00 00 00 00 00 00   # nodeid 2
            01 00 00 00 00 00 00 00   # generation 1
            3c 00 00 00 00 00 00 00   # entry_valid 60 s
            01 00 00 00 00 00 00 00   # attr_valid 1 s
            00 00 00 00  05 00 00 00  # entry_valid_nsec, attr_valid_nsec 5
            02 00 00 00 00 00 00 00   # ino 2
            00 02 00 00 00 00 00 00   # size 512
            01 00 00 00 00 00 00 00   # blocks 1
            03 00 00 00 00 00 00 00   # atime 3
            04 00 00 00 00 00 00 00   # mtime 4
            05 00 00 00 00 00 00 00   # ctime 5
            06 00 00 00  07 00 00 00  # atimensec 6, mtimensec 7
            08 00 00 00  a4 81 00 00  # ctimensec 8, S_IFREG | 0644
            01 00 00 00  e8 03 00 00  # nlink 1, uid 1000
            e9 03 00 00  00 00 00 00  # gid 1001, rdev
            00 10 00 00  00 00 00 00  # blksize 4096, flags
            09 00 00 00 00 00 00 00   # fh 9
            00 00 00 00  00 00 00 00  # open_flags, backing_id
        """),
        fuse_out_header(160, 0, 20),
        create_out(
            fuse_entry_out(
                2,
                1,
                60,
                1,
                0,
                5,
                fuse_attr(2, 512, 1, 3, 4, 5, 6, 7, 8, 0o100644, 1, 1000, 1001, 0, 4096),
            ),
            fuse_open_out(9),
        ),
    ),
    "an opcode that nobody knows": Golden(
        4000,
        text("""
            12 00 00 00  00 00 00 00  # len 18, error 0
            16 00 00 00 00 00 00 00   # unique 22
            01 02                     # anything
        """),
        fuse_out_header(18, 0, 22),
        None,
        b"\x01\x02",
    ),
}

every_reply = pytest.mark.parametrize(
    "golden",
    [
        pytest.param(
            golden,
            id=name,
            marks=pytest.mark.skipif(sys.byteorder != "little", reason="little-endian bytes"),
        )
        for name, golden in REPLIES.items()
    ],
)


def with_length(message: bytes) -> bytes:
    """The message with its own length where it says that."""
    return struct.pack("=I", len(message)) + message[4:]


def takes_any(golden: Golden) -> bool:
    """Whether the answer may go on as it likes after its structure."""
    operation = OPERATIONS.get(golden.opcode)
    return not golden.header.error and (
        operation is None or operation.reply_payload is Payload.BYTES
    )


@every_reply
def test_known_bytes_are_decoded(golden: Golden) -> None:
    for message in (golden.message, bytearray(golden.message), memoryview(golden.message)):
        header, body, payload = decode_reply(golden.opcode, message)
        assert header == golden.header
        assert body == golden.body
        assert bytes(payload) == golden.payload


@every_reply
def test_known_bytes_are_packed(golden: Golden) -> None:
    body = b"" if golden.body is None else golden.body.pack()
    packed = golden.header.pack() + body + golden.payload
    assert packed[: len(golden.message)] == golden.message
    assert not any(packed[len(golden.message) :])  # what an older server leaves out is 0


@every_reply
def test_an_answer_that_is_not_all_there_is_refused(golden: Golden) -> None:
    for size in range(len(golden.message)):
        with pytest.raises(WireError):
            decode_reply(golden.opcode, golden.message[:size])


@every_reply
def test_an_answer_cut_short_is_refused_though_its_length_is_right(golden: Golden) -> None:
    least = len(golden.message) - len(golden.payload)
    for size in range(fuse_out_header.SIZE, len(golden.message)):
        cut = with_length(golden.message[:size])
        if takes_any(golden) and size >= least:
            assert len(decode_reply(golden.opcode, cut)[2]) == size - least
        elif golden.opcode == FUSE_INIT and size - fuse_out_header.SIZE in {8, 24}:
            assert isinstance(decode_reply(golden.opcode, cut)[1], fuse_init_out)
        else:
            with pytest.raises(WireError):
                decode_reply(golden.opcode, cut)


@every_reply
def test_trailing_bytes_are_refused(golden: Golden) -> None:
    for trailing in (b"\0", b"x", bytes(8)):
        with pytest.raises(WireError):
            decode_reply(golden.opcode, golden.message + trailing)
        longer = with_length(golden.message + trailing)
        if takes_any(golden):
            payload = decode_reply(golden.opcode, longer)[2]
            assert bytes(payload) == golden.payload + trailing
        else:
            with pytest.raises(WireError):
                decode_reply(golden.opcode, longer)


@pytest.mark.parametrize("error", [1, errno.EIO, -512, -513, -(2**31)])
def test_only_negative_errnos_are_errors(error: int) -> None:
    with pytest.raises(WireError, match=f"error {error},"):
        decode_reply(FUSE_READ, fuse_out_header(16, error, 2).pack())


def test_the_last_errno_is_an_error() -> None:
    header, body, payload = decode_reply(FUSE_WRITE, fuse_out_header(16, -511, 2).pack())
    assert (header.error, body, bytes(payload)) == (-511, None, b"")


def test_a_notification_is_no_answer() -> None:
    message = fuse_out_header(24, FUSE_NOTIFY_POLL, 0).pack()
    with pytest.raises(WireError, match="notification 1"):
        decode_reply(FUSE_POLL, message + fuse_notify_poll_wakeup_out(5).pack())


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A known answer after a few changes."""
    message = bytearray(draw(st.sampled_from([golden.message for golden in REPLIES.values()])))
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


@given(st.sampled_from([*OPERATIONS, 4000]), mutated() | st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(opcode: int, message: bytes) -> None:
    try:
        header, body, payload = decode_reply(opcode, message)
    except WireError:
        return
    packed = header.pack() + (b"" if body is None else body.pack()) + payload
    if opcode == FUSE_INIT:
        packed = packed[: len(message)]
    assert packed == message
