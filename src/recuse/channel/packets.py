"""Messages of the FUSE protocol over a SOCK_SEQPACKET socket, in both directions.

A message is one packet. If it has more than `PART` bytes, it is several: all except the last have
`PART` bytes, and the length in the message's header shows how many there are. The reason is that
the kernel limits packets (twice net.core.wmem_max for an ordinary user), and a WRITE can be larger.

Before a message that carries a file descriptor (SCM_RIGHTS) there is a packet of one byte that says
so. A receiver has to be prepared for descriptors, and that would cost time with each packet.

Nothing else is on the socket. If the other end sends something that is not a message, it loses the
connection.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Final

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.wire.descriptor import BytesWithDescriptor, OwnedDescriptor
from recuse.wire.fuse import fuse_in_header, fuse_out_header

PART: Final = 160 << 10
"""Most bytes of one packet: room for 128 KiB with headers, and below Linux's default limit."""

MESSAGE_MAX: Final = 2 << 20
"""Most bytes of a received message: more than 1 MiB with its headers."""

BACKLOG_MAX: Final = 8 << 20
"""If this many bytes wait for the other end to take them, nothing more is received from it."""

_COST: Final = 512  # bytes of memory for each waiting packet, in addition to its content

_DESCRIPTOR_FOLLOWS: Final = b"\0"
_DESCRIPTOR: Final = struct.Struct("=i")

_BUFFER_SIZE: Final = 4 << 20
_LEAST: Final = min(fuse_in_header.SIZE, fuse_out_header.SIZE)
_LENGTH_SIZE: Final = 4  # both headers begin with the length, u32
_SO_PEERCRED_SIZE: Final = 12  # struct ucred: pid, uid, gid
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

_log = Log("recuse.channel")


def open_socket() -> socket.socket:
    """Return a new socket of the right kind, with the largest buffer that is possible."""
    return _roomy(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC))


def _roomy(sock: socket.socket) -> socket.socket:
    try:
        # socket(7): this exceeds net.core.wmem_max, and is only for root.
        sock.setsockopt(socket.SOL_SOCKET, 32, _BUFFER_SIZE)  # SO_SNDBUFFORCE
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_SIZE)
    return sock


def peer_uid(sock: socket.socket) -> int:
    """Return the user ID of the process at the other end, from when it connected or listened."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED_SIZE)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def peer_pid(sock: socket.socket) -> int:
    """Return the ID of that process, 0 if it has none here."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED_SIZE)
    return int.from_bytes(credentials[:4], sys.byteorder)


def is_trusted(uid: int) -> bool:
    """Whether a user may be at the other end: our own, and root, who may do anything anyway."""
    return uid in {0, os.geteuid()}


class Packets:
    """One connection's messages. Sending never waits. Any thread may send and receive."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        self.timed_out = False
        """Whether `receive` has given up."""
        self._sock = _roomy(sock)
        self._lock = new_lock("Packets")
        self._changed = threading.Condition(self._lock)
        self._backlog: deque[memoryview | BytesWithDescriptor] = deque()
        self._backlog_bytes = 0
        self._writer: threading.Thread | None = None
        self._ended = False
        self._receiving = new_lock("Packets.receiving")
        self._buffer = memoryview(bytearray(PART))

    def send(self, message: bytes) -> None:
        """Send a message, or keep it until the other end has room.

        Raises OSError(ENODEV) if the connection has ended. The connection ends if the message is
        kept but cannot be sent later, as there is no thread for that.
        """
        with self._lock:
            if self._ended:
                raise OSError(errno.ENODEV, "the connection has ended")
            if len(message) <= PART and not self._backlog and type(message) is bytes:
                try:
                    self._sock.send(message, _SEND_FLAGS)
                    return
                except BlockingIOError:
                    pass
                except OSError as error:
                    self._end()
                    raise OSError(errno.ENODEV, "the connection has ended") from error
            self._backlog += _parts(message)
            self._backlog_bytes += len(message) + _COST * -(-len(message) // PART)
            if self._writer is None:
                try:
                    self._writer = threads.start(self._write, name="recuse-packets")
                except OSError as error:
                    _log.error("the connection of a socket is ended: %s", error.strerror)
                    self._end()
                    raise OSError(errno.ENODEV, "the connection has ended") from error
            self._changed.notify_all()

    def receive(self) -> bytes | None:
        """Wait for a message; return None when the connection has ended.

        If something arrives that is not a message, this ends the connection and logs a warning.
        """
        if self._backlog_bytes > BACKLOG_MAX:
            with self._lock:
                self._changed.wait_for(lambda: self._backlog_bytes <= BACKLOG_MAX)
        with self._receiving:
            message = self._receive_part()
            if message is None or self._ended:
                return None
            size = len(message)
            length = int.from_bytes(message[:_LENGTH_SIZE], sys.byteorder)
            if length == size >= _LEAST:
                return message
            if message == _DESCRIPTOR_FOLLOWS:
                return self._receive_descriptor()
            if size != PART or not PART < length <= MESSAGE_MAX:
                self._malformed(f"{size} bytes that are not a message")
                return None
            parts = [message]
            while size < length:
                part = self._receive_part()
                if part is None:
                    return None
                if len(part) != min(PART, length - size):
                    self._malformed(f"{len(part)} bytes that are not part of a message")
                    return None
                parts.append(part)
                size += len(part)
            return b"".join(parts)

    def _receive_part(self) -> bytes | None:
        while True:
            try:
                size = self._sock.recv_into(self._buffer, 0, socket.MSG_TRUNC)
            except ConnectionResetError:
                # The other end was closed with data unread. What it had sent comes after this.
                continue
            except TimeoutError:
                self.timed_out = True
                return None
            except OSError:
                return None
            if size > PART:
                self._malformed(f"a packet of {size} bytes")
                return None
            return bytes(self._buffer[:size]) if size else None

    def _receive_descriptor(self) -> bytes | None:
        """Receive a message with its descriptor, or without it if there is no room for one here."""
        try:
            # Not recv_fds and send_fds, as they ignore their flags.
            message, ancillary, _, _ = self._sock.recvmsg(
                PART, socket.CMSG_SPACE(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None
        descriptors = [
            OwnedDescriptor(number)
            for _, _, data in ancillary
            for (number,) in _DESCRIPTOR.iter_unpack(data)
        ]
        length = int.from_bytes(message[:_LENGTH_SIZE], sys.byteorder)
        if length != len(message) or length < _LEAST:
            self._malformed(f"{len(message)} bytes that are not a message, with a descriptor")
            return None
        return BytesWithDescriptor(message, descriptors[0]) if descriptors else message

    def _malformed(self, what: str) -> None:
        _log.warning("the other end of a socket sent %s: the connection is ended", what)
        self.shutdown()

    def set_timeout(self, seconds: float | None) -> None:
        """Let `receive` stop waiting after this time, as if the connection had ended."""
        self._sock.settimeout(seconds)

    def shutdown(self) -> None:
        """End the connection at both ends; all who wait here stop waiting."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._backlog.clear()
        self._backlog_bytes = 0
        self._changed.notify_all()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and close the descriptor; a second call does nothing.

        It must not be called during `send` or `receive`.
        """
        self.shutdown()
        if self._writer is not None:
            self._writer.join()
        with self._receiving, self._lock:
            self._sock.close()

    def _write(self) -> None:
        """Send what could not be sent at once, until the connection ends."""
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._backlog or self._ended)
                if self._ended:
                    return
                part = self._backlog[0]
            try:
                if isinstance(part, BytesWithDescriptor):
                    self._sock.send(_DESCRIPTOR_FOLLOWS, socket.MSG_NOSIGNAL)
                    number = _DESCRIPTOR.pack(part.descriptor.fileno())
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, number)
                    self._sock.sendmsg([part], [rights], socket.MSG_NOSIGNAL)
                else:
                    self._sock.send(part, socket.MSG_NOSIGNAL)
            except (OSError, MemoryError):
                self.shutdown()
                return
            with self._lock:
                if self._ended:
                    return
                # Only now, so that messages sent meanwhile get in line behind it.
                self._backlog.popleft()
                self._backlog_bytes -= len(part) + _COST
                del part  # and its descriptor with it
                self._changed.notify_all()


def _parts(message: bytes) -> list[memoryview | BytesWithDescriptor]:
    """Return the packets of a message."""
    if isinstance(message, BytesWithDescriptor):
        return [message]
    view = memoryview(message)
    return [view[at : at + PART] for at in range(0, len(message), PART)]
