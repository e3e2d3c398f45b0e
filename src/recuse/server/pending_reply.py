"""A request on its way to its one answer."""

from __future__ import annotations

import errno
import logging
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from recuse.runtime.log import Log
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_FORGET,
    FUSE_NOTIFY_REPLY,
    fuse_out_header,
)

if TYPE_CHECKING:
    import asyncio

Send = Callable[[bytes], object]
"""Sends the bytes of an answer to the other end; raises OSError if they are not wanted there."""
Gather = Callable[[bytes, bytes], object]
"""Sends an answer that is in two pieces, likewise: a large one need not be copied into one."""

log = Log("recuse.server")

NO_REPLY = frozenset({FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_NOTIFY_REPLY})
"""Requests that nobody waits for."""

_pack_out_header = fuse_out_header.CODEC.pack
_OUT_HEADER_SIZE = fuse_out_header.SIZE
_PAUSE_S = 0.01
_LARGE = 32 << 10
"""From this size on, in bytes, it costs more to copy a payload than to send two pieces."""


class PendingReply:
    """One request, and the right to answer it once.

    `reply` and `fail` answer. If either is called again, it raises RuntimeError and sends nothing.
    """

    __slots__ = ("_gather", "_send", "interrupted", "message", "opcode", "task", "unique")

    def __init__(
        self, message: bytes, opcode: int, unique: int, send: Send, gather: Gather | None = None
    ) -> None:
        self.message = message
        """The whole request."""
        self.opcode = opcode
        self.unique = unique
        self.interrupted = False
        """The kernel half has sent an INTERRUPT for it."""
        self.task: asyncio.Task[Any] | None = None
        """Runs the handler, if it is ``async def`` and has begun."""
        self._send: Callable[[Any], object] | None = send
        self._gather = gather

    def reply(self, payload: bytes) -> bool:
        """Answer with success, ENOMEM without memory; return whether the other end took it."""
        try:
            header = _pack_out_header(_OUT_HEADER_SIZE + len(payload), 0, self.unique)
            if len(payload) >= _LARGE and self._gather is not None:
                return self._answer(payload, partial(self._gather, header))
            message = header + payload
        except MemoryError:
            self.fail(errno.ENOMEM)
            return False
        return self._answer(message)

    @property
    def answered(self) -> bool:
        """Whether it was answered, or at least an answer was tried."""
        return self._send is None

    @property
    def send(self) -> Send:
        """The way to the other end, for messages that are not answers.

        Raises RuntimeError once the request has been answered.
        """
        if self._send is None:
            raise RuntimeError(f"request {self.unique} is answered already")
        return self._send

    def fail(self, number: int) -> bool:
        """Answer with an errno, 1 to 511; return whether the other end took it.

        Someone waits for it. So without memory, it waits for some.
        """
        while True:
            try:
                failure = self._failure(number)
                break
            except MemoryError:
                time.sleep(_PAUSE_S)
        return self._answer(failure)

    def _failure(self, number: int) -> object:
        """What is sent to answer with an errno."""
        return _pack_out_header(_OUT_HEADER_SIZE, -number, self.unique)

    def _answer(self, message: object, gather: Send | None = None) -> bool:
        send = self._send
        if send is None:
            raise RuntimeError(f"request {self.unique} is answered already")
        self._send = None
        try:
            (gather or send)(message)  # type: ignore[arg-type]  # bytes, if it is gathered
        except MemoryError:
            # The other end still waits for an answer, and a short one can be sent.
            self._send_lack(send)
            return False
        except Exception as error:
            # ENOENT: the program was killed meanwhile; ENODEV: the device is gone. Both happen to
            # correct servers. Anything else is a bug here or in the channel.
            usual = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENODEV)
            log.log(
                logging.DEBUG if usual else logging.ERROR,
                "the answer to request %d was not taken: %r",
                self.unique,
                error,
            )
            return False
        return True

    def _send_lack(self, send: Callable[[Any], object]) -> None:
        while True:
            try:
                with suppress(OSError):
                    send(self._failure(errno.ENOMEM))
                return
            except MemoryError:
                time.sleep(_PAUSE_S)


def answer_fault(pending: PendingReply, error: BaseException) -> None:
    """Answer a request that was malformed, or that a session failed to serve; log that."""
    malformed = isinstance(error, struct.error | WireError)
    if not pending.answered and pending.opcode not in NO_REPLY:
        pending.fail(errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO)
    if malformed:
        log.error("request %d, opcode %d, is malformed: %s", pending.unique, pending.opcode, error)
    else:
        log.error(
            "internal error in request %d, opcode %d",
            pending.unique,
            pending.opcode,
            exc_info=error,
        )


def discard(awaitable: Awaitable[Any]) -> None:
    """Forget a coroutine that has not begun, without Python's "never awaited" warning.

    Nor have coroutines begun that it was given as arguments, to await them.
    """
    close = getattr(awaitable, "close", None)
    if close is None:
        return
    frame = getattr(awaitable, "cr_frame", None)
    given = () if frame is None else tuple(frame.f_locals.values())
    close()
    for argument in given:
        if isinstance(argument, CoroutineType):
            discard(argument)
