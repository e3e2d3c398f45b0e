"""A filesystem without a mount: its requests are served in the thread that makes them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from recuse.channel.inprocess import READ_SIZE
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.fuse import FUSE_INTERRUPT


class Handler(Protocol):
    """What serves a filesystem: the part of a session that a channel needs."""

    def handle(self, message: bytes, reply: Callable[[bytes], object]) -> None:
        """Answer one request through ``reply``, now or later, if it needs an answer."""

    def close(self) -> None:
        """End: no more requests come."""


class InProcessMount:
    """Joins one filesystem of the kernel half with one session."""

    def __init__(self, superblock: Superblock, session: Handler) -> None:
        """Join them. INIT is served at once."""
        self._session = session
        self._connection = superblock.connection
        self._connection.on_pending = self._pump
        self._connection.at_end(session.close)
        self._pump()

    def close(self) -> None:
        """End the connection: nothing more is asked, and the session is closed."""
        self._connection.abort()

    def _pump(self) -> None:
        """Serve one request: this is called once for each.

        An INTERRUPT that the session sends back is not announced, so one more is looked for.
        """
        while self._serve() == FUSE_INTERRUPT:
            pass

    def _serve(self) -> int:
        """Serve one request and return the low byte of its opcode, -1 if there is none."""
        try:
            message = self._connection.read(READ_SIZE)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENODEV):
                return -1
            raise
        self._session.handle(message, self._connection.write)
        return message[4]
