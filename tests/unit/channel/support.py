"""What the tests of sockets share: a program, a table that can be waited for, raw ends."""

import contextlib
import os
import socket
import threading
from typing import Any, Generic, Self, TypeVar, cast

from recuse.channel.packets import Packets
from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.char.files import open_file
from recuse.kernel.connection.operation import Operation, run
from recuse.wire.cuse import CUSE_INIT, cuse_init_in, cuse_init_out
from recuse.wire.declare import Buffer
from recuse.wire.fuse import (
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    fuse_in_header,
    fuse_out_header,
)

T = TypeVar("T")

WAIT_S = 20
"""How long to wait for what must come; only a failure takes as long."""


class Table(DeviceTable):
    """A device table that tells when devices come and go."""

    def __init__(self) -> None:
        super().__init__(self._note, self._note)
        self._changed = threading.Condition()

    def _note(self, device: CharDevice) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, *names: str) -> CharDevice | None:
        """Wait until exactly these devices are there; return the first."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sorted(device.name for device in self) == sorted(names), WAIT_S
            )
        return self.by_name(names[0]) if names else None


class Begun(Generic[T]):
    """An operation that has begun: called, it waits for the result or raises the error."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._outcome: list[tuple[T | None, OSError | None]] = []
        self.ended = self._ended.is_set

    def done(self, result: T | None, error: OSError | None) -> None:
        self._outcome.append((result, error))
        self._ended.set()

    def __call__(self) -> T:
        assert self._ended.wait(WAIT_S)
        ((result, error),) = self._outcome
        if error is not None:
            raise error
        return cast(T, result)


class Program:
    """Makes system calls on a device; its memory is one buffer at address 0."""

    def __init__(self, device: CharDevice | None, pid: int = 1000) -> None:
        assert device is not None
        self.device = device
        self.content = bytearray(2 << 20)
        self.caller = Caller(pid, 1, 2, self)

    def read_memory(self, address: int, size: int) -> bytes:
        return bytes(self.content[address : address + size])

    def begin(self, operation: Operation[T]) -> Begun[T]:
        """Begin an operation; its result, or its error, is to be waited for."""
        begun = Begun[T]()
        run(self.device.connection, operation, begun.done)
        return begun

    def open(self, flags: int = os.O_RDWR) -> Self:
        self.file = self.begin(open_file(self.device, flags, self.caller))()
        return self

    def release(self) -> None:
        return self.begin(self.file.release())()

    def begin_read(self, size: int) -> Begun[int]:
        return self.begin(self.file.read(self.caller, [(0, size)], None))

    def get(self, size: int) -> bytes:
        """Read so many bytes at most, and return them."""
        return bytes(self.content[: self.begin_read(size)()])

    def begin_write(self, data: bytes) -> Begun[int]:
        self.content[: len(data)] = data
        return self.begin(self.file.write(self.caller, [(0, len(data))], None))

    def put(self, data: bytes) -> int:
        return self.begin_write(data)()

    # Of the memory, for the kernel half.

    def read(self, address: int, size: int) -> bytes:
        return self.read_memory(address, size)

    def write(self, address: int, data: Buffer) -> int:
        self.content[address : address + len(data)] = data
        return len(data)

    def writable(self, address: int, size: int) -> int:
        return size


def message(unique: int, body: bytes = b"", opcode: int = 0) -> bytes:
    """A request."""
    header = fuse_in_header(len=40 + len(body), opcode=opcode, unique=unique)
    return header.pack() + body


def init_request() -> bytes:
    offer = cuse_init_in(major=FUSE_KERNEL_VERSION, minor=FUSE_KERNEL_MINOR_VERSION)
    return message(2, offer.pack(), CUSE_INIT)


def reply(unique: int, payload: bytes = b"", error: int = 0) -> bytes:
    return fuse_out_header(len=16 + len(payload), error=error, unique=unique).pack() + payload


def init_reply(unique: int, name: bytes = b"raw", major: int = 0, max_write: int = 131072) -> bytes:
    answer = cuse_init_out(
        major=FUSE_KERNEL_VERSION,
        minor=FUSE_KERNEL_MINOR_VERSION,
        max_read=1 << 20,
        max_write=max_write,
        dev_major=major,
    )
    return reply(unique, answer.pack() + b"DEVNAME=" + name + b"\0")


def number_of(request: bytes) -> int:
    """The unique number of a request."""
    return fuse_in_header.unpack(request).unique


class RawServer:
    """One connection's server end, by hand."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(WAIT_S)
        self.sock, _ = listener.accept()
        self.packets = Packets(self.sock)

    def get(self) -> bytes:
        request = self.packets.receive()
        assert request is not None
        return request

    def serve_init(self, name: bytes = b"raw", **options: Any) -> Self:
        self.packets.send(init_reply(number_of(self.get()), name, **options))
        return self

    def close(self) -> None:
        self.packets.close()


def ends(sock: socket.socket) -> bool:
    """Whether the other end has ended the connection, by now or soon."""
    sock.settimeout(WAIT_S)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sock.recv(1 << 20):
            pass
    return True
