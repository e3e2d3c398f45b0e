"""The server's side of a socket: one device or filesystem for any number of sandboxes at once.

One connection is one channel, like one open /dev/cuse or /dev/fuse. All share the `Device`, or the
filesystem (`recuse.channel.listen_mount`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from recuse.channel.packets import Packets, is_trusted, open_socket, peer_pid, peer_uid
from recuse.channel.taps import ServerTap, Tapped
from recuse.channel.workers import Workers
from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.device import Device, check_device
from recuse.server.loop import Tasks
from recuse.server.session import Session
from recuse.wire.errors import WireError

_PENDING_CONNECTIONS = 128
_ACCEPT_RETRY_S = 0.1
_CLOSE_WAIT_S = 10.0

_log = Log("recuse.channel")


class Handler(Protocol):
    """What serves one connection: the part of a session that a server needs."""

    def handle(self, message: bytes, reply: Callable[[bytes], object]) -> None:
        """Answer one request through ``reply``, now or later, if it needs an answer."""

    def close(self) -> None:
        """End: no more requests come."""


class SocketServer(ABC):
    """Serves something at a socket, from the constructor until `close`."""

    def __init__(self, name: str, path: str, tap: Callable[[], ServerTap] | None = None) -> None:
        """Listen at ``path``, with mode 0600, and serve all that connect.

        The socket of a server that has ended is replaced. ``tap`` makes the tap that traces a
        connection.

        Raises OSError: EADDRINUSE if a server is there, EEXIST if something else is, ENAMETOOLONG
        for a path that no socket can have, or the error of making it.
        """
        self.name = name
        self.path = path
        # asyncio's locks and queues belong to one event loop, which lasts as long as what is
        # served.
        self._loop = Tasks()
        try:
            self._listener = _listen(path)
        except BaseException:
            self._loop.release()
            raise
        self._inode = _inode(path)
        self._tap = tap
        self._lock = new_lock("DeviceServer")
        self._clients: set[_Client] = set()
        self._closing = threading.Event()
        try:
            self._accepting = threads.start(self._accept, name=f"recuse-accept-{name}")
        except OSError:
            self._loop.release()
            self._listener.close()
            _unlink(path, self._inode)
            raise

    @abstractmethod
    def session(self) -> Handler:
        """Return what serves a new connection."""

    @abstractmethod
    def end(self) -> None:
        """Tell what is served that this is the end; all connections have ended."""

    def close(self) -> None:
        """End all connections, and then what is served; a second call does nothing.

        Waits up to 10 seconds for the methods of files that the end has to wait for.
        """
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            clients = list(self._clients)
        _unlink(self.path, self._inode)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for client in clients:
            client.shutdown()
        for client in clients:
            client.join(_CLOSE_WAIT_S)
        self.end()
        self._loop.release()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except (OSError, MemoryError) as error:
                if not self._closing.is_set():
                    _log.error("%s: no connection: %s", self.path, error)
                    self._closing.wait(_ACCEPT_RETRY_S)  # out of descriptors, most likely
                continue
            try:
                uid = peer_uid(sock)
                if is_trusted(uid):
                    self._serve(Packets(sock), peer_pid(sock))
                    continue
                _log.warning("%s: refused a connection of user %d", self.path, uid)
            except Exception:
                _log.exception("%s: a connection cannot be served", self.path)
            sock.close()

    def _serve(self, packets: Packets, pid: int) -> None:
        client = _Client(self.name, self.session(), packets, self._forget)
        with self._lock:
            late = self._closing.is_set()
            if not late:
                self._clients.add(client)
        if late:
            packets.close()
            return
        if self._tap is not None:
            client.trace(self._tap(), pid)
        client.start()

    def _forget(self, client: _Client) -> None:
        with self._lock:
            self._clients.discard(client)


class DeviceServer(SocketServer):
    """Serves a device at a socket."""

    def __init__(
        self, device: Device, path: str, tap: Callable[[], ServerTap] | None = None
    ) -> None:
        """Serve it; see `SocketServer`.

        Raises ValueError or TypeError if the device is not well described (see `Device`).
        """
        check_device(device)
        self.device = device
        super().__init__(device.name, path, tap)

    def session(self) -> Session:
        """Return what serves a new connection."""
        return Session(self.device, shared=True)

    def end(self) -> None:
        """Close the device."""
        try:
            self.device.close()
        except Exception:
            _log.exception("%s.close failed", type(self.device).__name__)


class _Client:
    """One connection: a sandbox."""

    def __init__(
        self,
        name: str,
        session: Handler,
        packets: Packets,
        forget: Callable[[_Client], None],
    ) -> None:
        self._name = name
        self._packets = packets
        self._session = session
        self._workers = Workers(self._receive, self._handle, name=f"recuse-serve-{name}")
        self._forget = forget
        self._ending = new_lock("Client.ending")
        self._tapped: Tapped | None = None
        self._send: Callable[[bytes], object] = packets.send

    def trace(self, tap: ServerTap, pid: int) -> None:
        """Have messages recorded; ``pid`` is the process that joined. Call it before `start`."""
        self._tapped = Tapped(tap, self._packets.send)
        self._send = self._tapped.send
        tap.joined(self._name, pid)

    def start(self) -> None:
        """Serve in threads of its own until the connection ends."""
        try:
            self._workers.start()
        except OSError as error:  # no more threads
            _log.error("a connection cannot be served: %s", error.strerror)
            self._end()

    def shutdown(self) -> None:
        """End the connection; its threads do what follows from that."""
        self._packets.shutdown()

    def join(self, timeout: float) -> None:
        """Wait until it has ended, at most this many seconds."""
        self._workers.join(timeout)

    def _receive(self) -> bytes | None:
        message = self._packets.receive()
        if message is None:
            self._end()
        elif self._tapped is not None:
            self._tapped.request(message)
        return message

    def _handle(self, message: bytes) -> None:
        try:
            self._session.handle(message, self._send)
        except WireError as error:
            _log.warning("the other end of a socket sent %s: the connection is ended", error)
            self._packets.shutdown()

    def _end(self) -> None:
        # Two threads may find the end when one takes over from the other: it is the end for both.
        with self._ending:
            self._session.close()
            self._packets.close()
            tap = self._tapped.take_off() if self._tapped is not None else None
            if tap is not None:
                tap.left()
        self._forget(self)


def _listen(path: str) -> socket.socket:
    sock = open_socket()
    try:
        # bind(2) makes the file with the socket's own mode, so it never has another one.
        os.fchmod(sock.fileno(), 0o600)
        with locked(os.path.dirname(path) or "."):
            _make_way(path)
            try:
                sock.bind(path)
            except OSError as error:
                if error.errno is None:  # Python's own check of the length
                    raise _os_error(errno.ENAMETOOLONG, path) from error
                raise OSError(error.errno, error.strerror, path) from error
            # Before the lock is released: until then a socket looks as if its server had ended.
            sock.listen(_PENDING_CONNECTIONS)
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keep other servers from making or removing sockets in a directory meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_way(path: str) -> None:
    """Remove the socket of a server that has ended.

    Raises OSError: EADDRINUSE if the server is still there, EEXIST if it is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _os_error(errno.EEXIST, path)
    with open_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            # EAGAIN: too many connections wait; EPROTOTYPE: a socket of another kind.
            _log.debug("%s: %s", path, error)
    raise _os_error(errno.EADDRINUSE, path)


def _os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _unlink(path: str, inode: tuple[int, int]) -> None:
    """Remove the socket, unless somebody has put something else there."""
    with suppress(OSError), locked(os.path.dirname(path) or "."):
        if _inode(path) == inode:
            os.unlink(path)
