"""The shortest channel: requests are served in the thread that makes them."""

from __future__ import annotations

import errno
from functools import partial

from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.connection.connection import Connection, message_of
from recuse.kernel.connection.request import Reply, Transfer
from recuse.kernel.errors import os_error
from recuse.server.device import Device
from recuse.server.pending_reply import PendingReply, Send
from recuse.server.session import Session
from recuse.wire.fuse import FUSE_INTERRUPT

READ_SIZE = 2 << 20
"""Size of the buffer for reading requests, in bytes: larger than any request."""


class _DirectReply(PendingReply):
    """A READ or WRITE that the session has got without a message, and the right to answer it."""

    __slots__ = ("_connection", "_transfer")

    def __init__(self, connection: Connection, transfer: Transfer) -> None:
        self.opcode = transfer.opcode
        self.unique = transfer.unique
        self.interrupted = False
        self.task = None
        self._send = partial(connection.answer, transfer)
        self._connection = connection
        self._transfer = transfer

    @property
    def message(self) -> bytes:  # type: ignore[override]
        """The whole request, for those who ask who has made it."""
        return message_of(self._transfer, self._transfer.body)

    @property
    def send(self) -> Send:
        """See `PendingReply.send`."""
        return self._connection.write if self._send is not None else super().send

    def reply(self, payload: bytes) -> bool:
        """See `PendingReply.reply`."""
        try:
            reply = Reply(0, payload)
        except MemoryError:
            self.fail(errno.ENOMEM)
            return False
        return self._answer(reply)

    def _failure(self, number: int) -> Reply:
        return Reply(-number)


class InProcessChannel:
    """Joins one CUSE channel of the kernel half with one session."""

    def __init__(self, cuse: CuseChannel, session: Session) -> None:
        """Join them. Requests that are already pending, at least CUSE_INIT, are served at once."""
        self.cuse = cuse
        self.session = session
        self._connection = cuse.connection
        self._connection.on_pending = self._pump
        self._connection.on_transfer = self._transfer
        self._connection.at_end(self.close)
        while self._pump():
            pass

    @property
    def device(self) -> CharDevice | None:
        """The device, None if the kernel half refused it."""
        return self.cuse.device

    def close(self) -> None:
        """End the connection: the device goes, its files are released, the session is closed.

        This happens by itself when the connection is aborted: a server ends when its reads fail.
        """
        self.cuse.close()
        self.session.close()

    def _transfer(self, transfer: Transfer) -> None:
        """Serve a READ or WRITE, without a message if nobody wants to see it."""
        connection = self._connection
        if connection.tap is not None:
            self.session.handle(connection.message(transfer), connection.write)
            return
        self.session.transfer(
            _DirectReply(connection, transfer),
            transfer.fh,
            transfer.offset,
            transfer.size,
            transfer.file_flags,
            transfer.data,
        )

    def _pump(self) -> bool:
        """Serve one request, if there is one, and return whether there was.

        One is enough, as this is called once for each. That is not so for an INTERRUPT that the
        session sends back because it came before its request. So after an INTERRUPT, pending
        requests are served too.
        """
        connection = self._connection
        while True:
            try:
                message = connection.read(READ_SIZE)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENODEV):
                    return False
                raise
            self.session.handle(message, connection.write)
            if message[4] != FUSE_INTERRUPT:  # the low byte of the opcode
                return True


def connect(table: DeviceTable, device: Device) -> InProcessChannel:
    """Make ``device`` exist in ``table``, served in this process.

    Raises ValueError or TypeError if it is not well described (see `Device`), OSError if the kernel
    half refuses it: EEXIST for its name, EBUSY for its number; its ``filename`` is the node's path.
    """
    cuse = CuseChannel(table, descriptors=True, quiet=True)
    channel = InProcessChannel(cuse, Session(device))
    if channel.device is None:
        channel.close()
        error = cuse.error or os_error(errno.EIO)
        raise OSError(error.errno, error.strerror, f"/dev/{device.name}")
    return channel
