"""The kernel half's side of a socket at which a filesystem is served.

Before INIT, RECUSE_DESCRIBE asks for what a server says of its mount on Linux.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from recuse.channel.packets import Packets
from recuse.channel.socket import HANDSHAKE_S, Link, Rejoining, RemoteError
from recuse.kernel.connection.connection import Tap
from recuse.kernel.fs.notifications import notified
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.cuse import RECUSE_DESCRIBE, RECUSE_DESCRIBE_READ_ONLY, recuse_describe_out
from recuse.wire.errors import WireError
from recuse.wire.fuse import fuse_in_header, fuse_out_header

_DESCRIBE = fuse_in_header(len=fuse_in_header.SIZE, opcode=RECUSE_DESCRIBE, unique=1).pack()

Appear = Callable[[Superblock, str], None]
"""Mounts a filesystem, which has that name."""


class RemoteFilesystem:
    """A filesystem that is served at a socket (`recuse serve`)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def join(
        self, appear: Appear, wanted: Callable[[], bool], tap: Callable[[], Tap] | None = None
    ) -> Rejoining[_MountLink]:
        """Mount it now, and again whenever its server has come back.

        Args:
            appear: mounts it.
            wanted: whether it is still to be mounted.
            tap: makes what sees the messages of a connection.

        Raises:
            RemoteError: as `recuse.channel.socket.Remote.connect`; ENOSYS if it is a device,
                ECONNREFUSED if the answer to INIT is no use; what ``appear`` raises.
        """
        return Rejoining(
            self.path, lambda packets: _MountLink(packets, appear, tap), "filesystem", wanted
        )


class _MountLink(Link):
    """One connection to a filesystem's server."""

    def __init__(self, packets: Packets, appear: Appear, tap: Callable[[], Tap] | None) -> None:
        super().__init__(packets)
        self._appear = appear
        self._tap = tap
        self._superblock: Superblock | None = None

    def shake_hands(self, path: str) -> None:
        """Have the server answer RECUSE_DESCRIBE and INIT, and mount what it serves."""
        options, name = self._ask(path)
        superblock = self._superblock = Superblock(options, notified)
        if self._tap is not None:
            superblock.connection.tap = self._tap()
        self.initialise(superblock.connection, path)
        if superblock.connection.ended:
            raise RemoteError(errno.ECONNREFUSED, "its first answer (INIT) is no use", path)
        self._appear(superblock, name)

    def _ask(self, path: str) -> tuple[MountOptions, str]:
        self.packets.set_timeout(HANDSHAKE_S)
        try:
            self.packets.send(_DESCRIBE)
        except OSError as error:
            raise RemoteError(
                errno.ECONNRESET, "its server has ended the connection", path
            ) from error
        message = self.receive_answer(path)
        if fuse_out_header.unpack(message).error == -errno.ENOSYS:
            raise RemoteError(
                errno.ENOSYS, "serves a device, not a filesystem: use -d unix:PATH", path
            )
        try:
            told = recuse_describe_out.unpack(message, fuse_out_header.SIZE)
        except WireError:
            raise RemoteError(errno.EPROTO, "its first answer is no use", path) from None
        options = MountOptions(
            user_id=os.geteuid(),
            group_id=os.getegid(),
            read_only=bool(told.flags & RECUSE_DESCRIBE_READ_ONLY),
            max_read=told.max_read,
        )
        name = message[fuse_out_header.SIZE + recuse_describe_out.SIZE :]
        return options, os.fsdecode(name) or "recuse"

    def end(self) -> None:
        """End the connection: programs get ENOTCONN."""
        if self._superblock is not None:
            self._superblock.connection.abort()
