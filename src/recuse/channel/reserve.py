"""Answers for requests that cannot be handled, above all when there is no memory."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from recuse.runtime.locks import new_lock
from recuse.server.dispatch import pick_head
from recuse.server.pending_reply import NO_REPLY, Send
from recuse.wire.fuse import FUSE_INTERRUPT, fuse_out_header

if TYPE_CHECKING:
    from recuse.channel.devcuse import Channel

_PAUSE_S: Final = 0.01
_SILENT: Final = NO_REPLY | {FUSE_INTERRUPT}
_pack_out_header = fuse_out_header.CODEC.pack


class Reserve:
    """Memory for one request of the largest size, kept for when there is no other."""

    def __init__(self, size: int) -> None:
        """Make it: ``size`` bytes, which are only addresses until they are needed."""
        self._buffer = bytearray(size)
        self._lock = new_lock("Reserve")

    def read(self, channel: Channel) -> bytes | None:
        """Read the next request; None if there is none, or it was refused with ENOMEM.

        Raises OSError as `Channel.read` does; MemoryError, which leaves the request where it was.
        """
        if not self._lock.acquire(blocking=False):
            raise MemoryError  # another thread is here
        try:
            size = channel.read_into(self._buffer)
            return self._copied_or_refused(size, channel.write) if size else None
        finally:
            self._lock.release()

    def _copied_or_refused(self, size: int, send: Send) -> bytes | None:
        while True:
            try:
                with suppress(MemoryError):
                    return bytes(memoryview(self._buffer)[:size])
                if pick_head(self._buffer)[1] not in _SILENT:
                    refuse(self._buffer, errno.ENOMEM, send)
                    return None
            except MemoryError:
                pass
            time.sleep(_PAUSE_S)


def refuse(message: bytes | bytearray, number: int, send: Send) -> None:
    """Answer a request with an errno, if it needs an answer; the kernel may have one already."""
    _, opcode, unique = pick_head(message)
    if opcode not in _SILENT:
        with suppress(OSError):
            send(_pack_out_header(fuse_out_header.SIZE, -number, unique))
