"""A request on its way to its one answer."""

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recuse.wire.fuse import fuse_out_header

if TYPE_CHECKING:
    import asyncio

Send = Callable[[bytes], object]
"""Takes the bytes of an answer to the other end; raises OSError if they are not wanted there."""

log = logging.getLogger("recuse.server")

_OUT = fuse_out_header.CODEC.pack
_OUT_SIZE = fuse_out_header.SIZE


class Exchange:
    """One request, and the single use of the way back.

    `reply` and `fail` answer; the second call of either raises RuntimeError and sends nothing.
    """

    __slots__ = ("_send", "interrupted", "message", "opcode", "task", "unique")

    def __init__(self, message: bytes, opcode: int, unique: int, send: Send) -> None:
        self.message = message
        self.opcode = opcode
        self.unique = unique
        self.interrupted = False
        self.task: asyncio.Task[Any] | None = None
        """Runs the handler, if it is an ``async def`` one that has begun."""
        self._send: Send | None = send

    @property
    def answered(self) -> bool:
        return self._send is None

    def reply(self, payload: bytes) -> bool:
        """Answer with success; return whether the other end took it."""
        return self._answer(_OUT(_OUT_SIZE + len(payload), 0, self.unique) + payload)

    def fail(self, number: int) -> bool:
        """Answer with an errno, 1 to 511; return whether the other end took it."""
        return self._answer(_OUT(_OUT_SIZE, -number, self.unique))

    def _answer(self, message: bytes) -> bool:
        send = self._send
        if send is None:
            raise RuntimeError(f"request {self.unique} is answered already")
        self._send = None
        try:
            send(message)
        except OSError as error:
            # ENOENT: the program was killed meanwhile; ENODEV: the device is gone.  Both happen
            # to correct servers.  Anything else means that what was said is not the protocol.
            usual = error.errno in (errno.ENOENT, errno.ENODEV)
            log.log(
                logging.DEBUG if usual else logging.ERROR,
                "answer to request %d not taken: %s",
                self.unique,
                error,
            )
            return False
        return True
