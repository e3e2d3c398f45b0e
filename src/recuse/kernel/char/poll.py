"""Readiness: fs/fuse/file.c, fuse_file_poll and fuse_notify_poll_wakeup, Linux 6.1.

A poll never waits. To wait, the caller polls with ``waiting``, goes to sleep if nothing is ready,
and polls again when the server says that something changed (FUSE_NOTIFY_POLL). A server may say
so at any time, even between a POLL request and its answer.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol

from recuse.kernel.connection.request import Request
from recuse.runtime.log import Log
from recuse.wire.fuse import (
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    fuse_poll_in,
    fuse_poll_out,
)
from recuse.wire.ids import Kh
from recuse.wire.poll import DEFAULT_POLLMASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from recuse.kernel.caller import Caller
    from recuse.kernel.connection.connection import Connection
    from recuse.kernel.connection.operation import Operation

log = Log("recuse.kernel")

POLLERR: Final = 0x8

POLL_KNOWN: Final = 0x27FF
"""All events that exist: POLLIN to POLLMSG, and POLLRDHUP (linux/poll.h, demangle_poll)."""


class PolledDevice(Protocol):
    """What do_poll needs of a device, or a filesystem."""

    no_poll: bool
    """The server has answered POLL with ENOSYS."""

    @property
    def connection(self) -> Connection:
        """The connection to its server."""


class PolledFile(Protocol):
    """What do_poll needs of a file."""

    @property
    def device(self) -> PolledDevice:
        """Its device, or its filesystem."""

    fh: int | None
    kh: Kh
    wake_pollers: Callable[[], None]


def do_poll(file: PolledFile, caller: Caller, events: int, waiting: bool) -> Operation[int]:
    """Ask which of ``events`` a file is ready for; see `OpenFile.poll`."""
    device = file.device
    if device.no_poll:
        return DEFAULT_POLLMASK
    if waiting:
        # This comes first, or a change from now on could be missed.
        device.connection.polled.add(file.kh, file.wake_pollers)
    flags = FUSE_POLL_SCHEDULE_NOTIFY if waiting else 0
    reply = yield Request(
        FUSE_POLL,
        fuse_poll_in(fh=file.fh or 0, kh=file.kh, flags=flags, events=events & POLL_KNOWN).pack(),
        fuse_poll_out.SIZE,
        fuse_poll_out.SIZE,
        caller.pid,
        caller.uid,
        caller.gid,
    )
    if not reply.error:
        return fuse_poll_out.unpack(reply.payload).revents & POLL_KNOWN
    if reply.error == -errno.ENOSYS:
        device.no_poll = True
        return DEFAULT_POLLMASK
    return POLLERR
