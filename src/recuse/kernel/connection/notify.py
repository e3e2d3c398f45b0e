"""Notifications: messages from a server that answer nothing. fs/fuse/dev.c, fuse_notify, 6.1.

A CUSE connection has no inodes. So all except POLL fail even if they are well formed, as on Linux.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, TypeAlias

from recuse.kernel.errors import os_error
from recuse.wire.fuse import (
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_POLL,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
    fuse_notify_poll_wakeup_out,
)
from recuse.wire.ids import Kh
from recuse.wire.notify import (
    fuse_notify_delete_out,
    fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out,
    fuse_notify_retrieve_out,
    fuse_notify_store_out,
)

NAME_MAX: Final = 1024
"""FUSE_NAME_MAX: most bytes of a name."""

_Check: TypeAlias = Callable[[bytes, int], None]


def notified_poller(code: int, body: bytes, size: int) -> Kh:
    """Check a notification; for a POLL, return the kh of the file whose pollers it wakes.

    ``body`` is what follows the header, ``size`` bytes, or only its beginning if the rest could not
    be read from the server's memory.

    Raises OSError: EINVAL for a bad code or size; ENAMETOOLONG for too long a name; EFAULT if a
    part that is needed could not be read; ENOENT for all except POLL, as there is no inode.
    """
    if code == FUSE_NOTIFY_POLL:
        _exactly(fuse_notify_poll_wakeup_out.SIZE, body, size)
        return Kh(fuse_notify_poll_wakeup_out.unpack(body).kh)
    check = _CHECKS.get(code)
    if check is None:
        raise os_error(errno.EINVAL)
    check(body, size)
    raise os_error(errno.ENOENT)


def _exactly(expected: int, body: bytes, size: int) -> None:
    if size != expected:
        raise os_error(errno.EINVAL)
    if len(body) < size:
        raise os_error(errno.EFAULT)


def _inval_inode(body: bytes, size: int) -> None:
    _exactly(fuse_notify_inval_inode_out.SIZE, body, size)


def _retrieve(body: bytes, size: int) -> None:
    _exactly(fuse_notify_retrieve_out.SIZE, body, size)


def _at_least(least: int, body: bytes, size: int) -> None:
    if size < least:
        raise os_error(errno.EINVAL)
    if len(body) < least:
        raise os_error(errno.EFAULT)


def _inval_entry(body: bytes, size: int) -> None:
    _at_least(fuse_notify_inval_entry_out.SIZE, body, size)
    namelen = fuse_notify_inval_entry_out.unpack(body).namelen
    _named(fuse_notify_inval_entry_out.SIZE, namelen, body, size)


def _delete(body: bytes, size: int) -> None:
    _at_least(fuse_notify_delete_out.SIZE, body, size)
    namelen = fuse_notify_delete_out.unpack(body).namelen
    _named(fuse_notify_delete_out.SIZE, namelen, body, size)


def _named(fixed: int, namelen: int, body: bytes, size: int) -> None:
    if namelen > NAME_MAX:
        raise os_error(errno.ENAMETOOLONG)
    _exactly(fixed + namelen + 1, body, size)


def _store(body: bytes, size: int) -> None:
    # The data is not checked, as there is no inode.
    _at_least(fuse_notify_store_out.SIZE, body, size)
    if size - fuse_notify_store_out.SIZE != fuse_notify_store_out.unpack(body).size:
        raise os_error(errno.EINVAL)


_CHECKS: Final[dict[int, _Check]] = {
    FUSE_NOTIFY_INVAL_INODE: _inval_inode,
    FUSE_NOTIFY_INVAL_ENTRY: _inval_entry,
    FUSE_NOTIFY_STORE: _store,
    FUSE_NOTIFY_RETRIEVE: _retrieve,
    FUSE_NOTIFY_DELETE: _delete,
}
"""How each code is checked."""
