"""Notifications, and messages that end where the server's memory does, errno by errno."""

from __future__ import annotations

import errno

import pytest

from recuse.kernel.connection.request import Request
from recuse.wire.fuse import (
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_POLL,
    FUSE_NOTIFY_RESEND,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
    FUSE_READ,
    fuse_out_header,
)

from ..support import BIG, connection, error_of, reply_bytes, submit


@pytest.mark.parametrize(
    ("code", "body", "size", "number"),
    [
        (FUSE_NOTIFY_POLL, b"1234567", 8, errno.EFAULT),
        (FUSE_NOTIFY_POLL, b"1234567", 9, errno.EINVAL),
        (FUSE_NOTIFY_INVAL_INODE, bytes(23), 24, errno.EFAULT),
        (FUSE_NOTIFY_INVAL_ENTRY, bytes(15), 17, errno.EFAULT),
        (FUSE_NOTIFY_INVAL_ENTRY, bytes(16), 17, errno.EFAULT),
        (FUSE_NOTIFY_INVAL_ENTRY, bytes(16), 18, errno.EINVAL),
        (FUSE_NOTIFY_INVAL_ENTRY, bytes(15), 15, errno.EINVAL),
        (FUSE_NOTIFY_INVAL_ENTRY, bytes(8) + b"\x01\x04" + bytes(6), 17, errno.ENAMETOOLONG),
        (FUSE_NOTIFY_STORE, bytes(24), 24, errno.ENOENT),
        (FUSE_NOTIFY_STORE, bytes(24), 25, errno.EINVAL),
        (FUSE_NOTIFY_DELETE, bytes(24), 25, errno.EFAULT),
        (FUSE_NOTIFY_RETRIEVE, bytes(32), 32, errno.ENOENT),
        (FUSE_NOTIFY_RESEND, b"", 0, errno.EINVAL),
    ],
)
def test_what_is_wrong_with_a_notification_is_found_in_linuxs_order(
    code: int, body: bytes, size: int, number: int
) -> None:
    message = fuse_out_header(len=16 + size, error=code).pack() + body
    made = connection()
    if len(body) == size:
        assert error_of(made.write, message) == number
    else:
        assert error_of(made.write_torn, message, 16 + size) == number


@pytest.mark.parametrize(
    ("message", "size", "number"),
    [
        (b"", 15, errno.EINVAL),
        (reply_bytes(4)[:15], 16, errno.EFAULT),
        (reply_bytes(4, b"1234")[:18], 21, errno.EINVAL),
        (reply_bytes(4, b"1234", 5)[:18], 20, errno.EINVAL),
        (reply_bytes(4, b"1234", -512)[:18], 20, errno.EINVAL),
        (reply_bytes(6, b"1234")[:18], 20, errno.ENOENT),
        (reply_bytes(5, b"1234")[:18], 20, errno.EINVAL),
        (reply_bytes(7, b"1234")[:18], 20, errno.ENOENT),
    ],
)
def test_a_torn_message_that_is_malformed_is_no_reply(
    message: bytes, size: int, number: int
) -> None:
    made = connection()
    done = submit(made, Request(FUSE_READ, b"", 0, 4))
    made.read(BIG)
    assert error_of(made.write_torn, message, size) == number
    assert not done.replies


@pytest.mark.parametrize(
    ("error", "size", "number"), [(0, 4, errno.EFAULT), (0, 5, errno.EINVAL), (-5, 4, errno.EINVAL)]
)
def test_a_torn_reply_finishes_its_request_with_eio(error: int, size: int, number: int) -> None:
    made = connection()
    done = submit(made, Request(FUSE_READ, b"", 0, 4))
    made.read(BIG)
    message = reply_bytes(4, bytes(size), error)
    assert error_of(made.write_torn, message[:17], len(message)) == number
    assert done.error == -errno.EIO
    assert error_of(made.write, reply_bytes(4)) == errno.ENOENT
