"""The kernel half's side of a socket: a device that another process serves.

`Rejoining` and `Link` are also those of filesystems (`recuse.channel.socket_mount`).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from recuse.channel.packets import Packets, is_trusted, open_socket, peer_uid
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.connection.connection import Connection
from recuse.runtime import threads
from recuse.runtime.locks import new_lock, new_rlock
from recuse.runtime.log import Log

HANDSHAKE_S = 10.0
"""How long a server may take to answer CUSE_INIT."""

RETRY_S = (0.1, 1.0)
"""Seconds between attempts to reach a server that is gone: initially, and at most."""

_REFUSED_RETRY_S = 10.0
_AWAY = {errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EAGAIN}
_REQUEST_MAX = 1 << 32  # a request of any size can be sent

_log = Log("recuse.channel")


class RemoteError(OSError):
    """A server cannot be joined; ``strerror`` tells the user why."""


class Remote:
    """A device that is served at a socket (`recuse serve`)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def connect(self, table: DeviceTable) -> RemoteChannel:
        """Make the device exist in ``table``, now and whenever its server is there.

        Raises RemoteError, with the path: ENOENT or ECONNREFUSED if nobody serves there; EPERM if
        the server is another user's; EPROTOTYPE for a socket of another kind; ECONNRESET if it ends
        the connection; ETIMEDOUT if it does not answer within 10 seconds; EEXIST or EBUSY if
        ``table`` has a device of that name or number; EINVAL or EPROTO for a bad answer.
        """
        return RemoteChannel(self.path, table)


L = TypeVar("L", bound="Link")


class Rejoining(Generic[L]):
    """Joins a server at a socket, and again whenever the server comes back.

    One thread reads replies. While the server is gone, this thread tries to reach it.
    """

    def __init__(
        self,
        path: str,
        make: Callable[[Packets], L],
        kind: str,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Join the server; see `Remote.connect`.

        Args:
            path: the socket's.
            make: makes a link of a connection.
            kind: what is served, in messages.
            wanted: whether to join it again.
        """
        self._path = path
        self._make = make
        self._kind = kind
        self._wanted = wanted
        self._lock = new_lock("RemoteChannel")
        self._closed = threading.Event()
        self._link: L | None = None
        link = self._join()
        try:
            self._thread = threads.start(self._run, link, name="recuse-remote")
        except OSError as error:
            link.close()
            raise RemoteError(error.errno, error.strerror, path) from error

    def close(self) -> None:
        """End it: what is served goes, requests fail with ECONNABORTED, nothing is retried."""
        self._closed.set()
        with self._lock:
            if self._link is not None:
                self._link.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _join(self) -> L:
        """Connect and bring up what is served. Raises RemoteError."""
        link = self._make(_connect(self._path))
        with self._lock:
            self._link = link
            if self._closed.is_set():
                link.shutdown()
        try:
            link.shake_hands(self._path)
        except BaseException:
            link.close()
            raise
        return link

    def _run(self, link: L | None) -> None:
        while True:
            if link is not None:
                try:
                    link.serve()
                except Exception:
                    _log.exception("internal error while %s is served", self._path)
                if not self._closed.is_set() and self._wanted():
                    _log.warning(
                        "%s: its server has gone; the %s comes back when it does",
                        self._path,
                        self._kind,
                    )
                link.close()
            link, delay = None, RETRY_S[0]
            while link is None:
                if self._closed.wait(delay) or not self._wanted():
                    return
                try:
                    link = self._join()
                except RemoteError as error:
                    delay = min(delay * 2, RETRY_S[1])
                    if error.errno not in _AWAY:
                        _log.warning("%s: %s", self._path, error.strerror)
                        delay = _REFUSED_RETRY_S
                except Exception:
                    _log.exception("internal error while joining %s", self._path)
                    delay = _REFUSED_RETRY_S


class RemoteChannel(Rejoining["_Link"]):
    """Joins a device's server at a socket to a device table."""

    def __init__(self, path: str, table: DeviceTable) -> None:
        """Join the server; see `Remote.connect`."""
        super().__init__(path, lambda packets: _Link(packets, table), "device")

    @property
    def device(self) -> CharDevice | None:
        """The device, None while the server is gone."""
        link = self._link
        return None if link is None or link.connection.ended else link.cuse.device


class Link(ABC):
    """One connection to a server, and the kernel half's connection for it."""

    connection: Connection

    def __init__(self, packets: Packets) -> None:
        """Take over a connection."""
        self.packets = packets
        # Messages go out in the order in which they are read.
        self._sending = new_rlock("Link.sending")
        self._warned = False

    @abstractmethod
    def shake_hands(self, path: str) -> None:
        """Bring up what is served. Raises RemoteError if it is not there then."""

    @abstractmethod
    def end(self) -> None:
        """End what is served."""

    def initialise(self, connection: Connection, path: str) -> None:
        """Have the server answer INIT. Raises RemoteError if it does not."""
        self.connection = connection
        # If it is aborted in this sandbox, by a write to sysfs, a new one can be opened.
        connection.at_end(self.shutdown)
        connection.on_pending = self._send
        self.packets.set_timeout(HANDSHAKE_S)
        self._send()
        message = self.receive_answer(path)
        # This comes before anything is there, as requests for it are sent without waiting.
        self.packets.set_timeout(None)
        self._take(message)

    def receive_answer(self, path: str) -> bytes:
        """The first message. Raises RemoteError if none comes."""
        message = self.packets.receive()
        if message is None:
            raise _no_answer(path, self.packets.timed_out)
        return message

    def serve(self) -> None:
        """Take replies until the connection ends. What is served is there until `close`."""
        while (message := self.packets.receive()) is not None:
            self._take(message)

    def shutdown(self) -> None:
        """End the connection; `serve` and `shake_hands` return."""
        self.packets.shutdown()

    def close(self) -> None:
        """End what is served and release what this holds."""
        self.end()
        self.packets.close()

    def _send(self) -> None:
        """Send what is pending; never waits."""
        with self._sending:
            while True:
                try:
                    message = self.connection.read(_REQUEST_MAX)
                except OSError as error:
                    if error.errno in {errno.EAGAIN, errno.ENODEV}:
                        return
                    raise
                try:
                    self.packets.send(message)
                except OSError:
                    # `receive` has noticed it as well, and ends what is served.
                    return

    def _take(self, message: bytes) -> None:
        try:
            self.connection.write(message)
        except OSError as error:
            if error.errno == errno.EINVAL and not self._warned:
                # Linux would report this to the server. Here there is no way to do that.
                self._warned = True
                _log.warning("a server sent %d bytes that are not a reply", len(message))
        if message[8] & 1:
            # A reply to an INTERRUPT may ask for the INTERRUPT again.
            self._send()


class _Link(Link):
    """One connection to a device's server, and the kernel half's channel of the device."""

    def __init__(self, packets: Packets, table: DeviceTable) -> None:
        super().__init__(packets)
        self.cuse = CuseChannel(table, descriptors=True, quiet=True)
        self.connection = self.cuse.connection
        # The device may come back, so a program should open it again, not think of a network.
        self.connection.error_when_aborted = errno.ENODEV

    def shake_hands(self, path: str) -> None:
        """Have the server answer CUSE_INIT. Raises RemoteError if there is no device then."""
        self.initialise(self.connection, path)
        if self.cuse.device is None or self.connection.ended:
            error = self.cuse.error
            number = errno.EIO if error is None or error.errno is None else error.errno
            raise _refused(number, path)

    def end(self) -> None:
        """End the device."""
        self.cuse.close()


def _connect(path: str) -> Packets:
    sock = open_socket()
    try:
        # With a timeout, connect fails at once when too many connections wait to be accepted.
        sock.settimeout(HANDSHAKE_S)
        try:
            sock.connect(path)
        except OSError as error:
            raise _unreachable(error, path) from error
        uid = peer_uid(sock)
        if not is_trusted(uid):
            raise RemoteError(errno.EPERM, f"its server runs as user {uid}", path)
        return Packets(sock)
    except BaseException:
        sock.close()
        raise


def _unreachable(error: OSError, path: str) -> RemoteError:
    if error.errno == errno.ECONNREFUSED and not _is_socket(path):
        return RemoteError(errno.ECONNREFUSED, "is not a socket", path)
    reasons = {
        errno.ENOENT: "nobody serves there (`recuse serve SPEC...` prints where it serves)",
        errno.ECONNREFUSED: "its server has ended",
        errno.EPROTOTYPE: "is a socket of another kind",
        errno.EAGAIN: "its server does not accept connections",
    }
    if error.errno is None:  # Python's own check of the length
        return RemoteError(errno.ENAMETOOLONG, "too long for the path of a socket", path)
    return RemoteError(error.errno, reasons.get(error.errno, os.strerror(error.errno)), path)


def _is_socket(path: str) -> bool:
    """Whether there is a socket at that path; true if nobody can say."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def _no_answer(path: str, timed_out: bool) -> RemoteError:
    if timed_out:
        return RemoteError(errno.ETIMEDOUT, f"no answer from its server in {HANDSHAKE_S} s", path)
    return RemoteError(errno.ECONNRESET, "its server has ended the connection", path)


def _refused(number: int, path: str) -> RemoteError:
    reasons = {
        errno.EEXIST: "a device of its name is there already",
        errno.EBUSY: "a device of its number is there already",
        errno.ENOSYS: "serves a filesystem, not a device: use -m DIR=unix:PATH",
    }
    return RemoteError(number, reasons.get(number, f"no device: {os.strerror(number)}"), path)
