"""Pairs requests with their answers and decodes them; and what else happens to a connection.

Nothing here raises, whatever the bytes are: what cannot be decoded is passed on with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from recuse.wire.cuse import CUSE_INIT, RECUSE_IOCTL_FILE, recuse_ioctl_file
from recuse.wire.declare import Structure
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_NOTIFY_POLL,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_ioctl_out,
    fuse_out_header,
    fuse_read_in,
)
from recuse.wire.message import decode_reply, decode_request
from recuse.wire.optable import OPERATIONS

LIMIT = 512
"""This many bytes of a message are recorded: all of its structure, and some of what follows."""

OUTSTANDING_MOST = 65536
"""This many unanswered requests are remembered; programs that wait for theirs make fewer."""


class Kind(IntEnum):
    """What a record describes."""

    REQUEST = 0
    REPLY = 1
    ADDED = 2
    REMOVED = 3
    DROPPED = 4
    JOINED = 5
    LEFT = 6


Record: TypeAlias = "tuple[int, int, int, bytes, int, bytes]"
"""Kind; connection's number; nanoseconds on any clock; the message's first bytes; its length;
the program's name.

ADDED has the device's name in place of a message, and major << 20 | minor as its length. JOINED has
the device's name, the other end's process ID as the length, and its program. DROPPED has as its
length the number of records that are missing before it.
"""


@dataclass(slots=True)
class Part:
    """One decoded message: its structure, and what follows it (maybe only its start).

    size is how long the latter is. problem says why it could not be decoded; then data is
    everything after the header.
    """

    body: Structure | None = None
    data: bytes = b""
    size: int = 0
    problem: str | None = None
    file: recuse_ioctl_file | None = None
    """A file that an answer to an ioctl carries in addition."""


@dataclass(slots=True)
class Exchange:
    """A request and its result. Times are in nanoseconds; time counts from the trace's start.

    error is a positive errno, 0, or None if the server never answered. Then answer and latency are
    None too.
    """

    time: int
    device: str
    unique: int
    opcode: int
    pid: int
    program: str
    request: Part
    error: int | None = None
    answer: Part | None = None
    latency: int | None = None
    lost: bool = False
    """Messages are missing after the request, maybe including its answer."""
    connection: int | None = None
    """Which of several connections that share the device."""

    @property
    def name(self) -> str:
        """The operation's name without FUSE_, "OPCODE_n" if it has none."""
        return _NAMES.get(self.opcode) or f"OPCODE_{self.opcode}"


@dataclass(slots=True)
class Event:
    """Something that is not an exchange.

    kind, and what is in values: "added" (major, minor) and "removed", both with mount=True if it is
    not a device but a mount; "joined" (pid, program), "left", "interrupt" (unique, of: the
    operation's name), "notification" (code, size), "refused" (size, reason: a message that answers
    nothing; data has its first bytes), "dropped" (count).
    connection is as in `Exchange`.
    """

    time: int
    device: str
    kind: str
    values: dict[str, int | str] = field(default_factory=dict)
    data: bytes = b""
    connection: int | None = None


_NAMES = {opcode: row.name.removeprefix("FUSE_") for opcode, row in OPERATIONS.items()}

_HEADER = fuse_in_header.SIZE
_unpack_in_header = fuse_in_header.CODEC.unpack_from
_unpack_out_header = fuse_out_header.CODEC.unpack_from
_OUT_HEADER = fuse_out_header.SIZE


def _cut(structure: type[Structure] | None, message: bytes, start: int, size: int) -> Part:
    """Decode a message of ``size`` bytes when only its beginning is there."""
    body = None
    if structure is not None:
        body = structure.unpack(message, start)
        start += structure.SIZE
    return Part(body, message[start:], size - start)


def decode(message: bytes, size: int, opcode: int, *, answer: bool) -> Part:
    """Decode what follows the header of a message of ``size`` bytes, maybe cut off at LIMIT."""
    try:
        if len(message) == size:
            whole = decode_reply(opcode, message) if answer else decode_request(message)
            data = whole[2]
            return Part(whole[1], bytes(data[:LIMIT]), len(data))
        operation = OPERATIONS.get(opcode)
        if answer:
            structure = None if operation is None else operation.reply
            return _cut(structure, message, _OUT_HEADER, size)
        return _cut(None if operation is None else operation.request, message, _HEADER, size)
    except WireError as error:
        start = _OUT_HEADER if answer else _HEADER
        return Part(None, message[start:], size - start, str(error))


@dataclass(slots=True)
class _Connection:
    device: str = "?"
    number: int | None = None
    """None if the device's name is enough."""
    mount: bool = False
    """It is a filesystem's on a directory, not a device's."""
    outstanding: dict[int, Exchange] = field(default_factory=dict)

    def kind(self) -> dict[str, int | str]:
        """What an event says of it."""
        return {"mount": True} if self.mount else {}

    def event(
        self,
        time: int,
        kind: str,
        values: dict[str, int | str] | None = None,
        data: bytes = b"",
    ) -> Event:
        return Event(time, self.device, kind, values or {}, data, self.number)


class Exchanges:
    """Pairs what was recorded, in the order of recording."""

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._connections: dict[int, _Connection] = {}
        self._lossy = False

    def feed(self, record: Record) -> Iterator[Exchange | Event]:
        """Yield what a record completes."""
        kind, number, time, data, size, program = record
        time -= self._start
        connection = self._connections.get(number)
        if connection is None:
            connection = self._connections[number] = _Connection()
        if kind == Kind.REPLY:
            yield from self._reply(connection, time, data, size)
        elif kind == Kind.REQUEST:
            yield from self._request(connection, time, data, size, program)
        elif kind == Kind.ADDED:
            connection.device = _text(data)
            numbers = {"major": size >> 20, "minor": size & 0xFFFFF}
            yield connection.event(time, "added", {**numbers, **connection.kind()})
        elif kind == Kind.REMOVED:
            yield from self._unanswered(connection)
            yield connection.event(time, "removed", connection.kind())
        elif kind == Kind.JOINED:
            connection.device, connection.number = _text(data), number
            yield connection.event(time, "joined", {"pid": size, "program": _text(program)})
        elif kind == Kind.LEFT:
            yield from self._unanswered(connection)
            del self._connections[number]
            yield connection.event(time, "left")
        else:
            self._lossy = True
            for other in self._connections.values():
                for exchange in other.outstanding.values():
                    exchange.lost = True
            yield Event(time, "", "dropped", {"count": size})

    def end(self) -> Iterator[Exchange]:
        """Yield the requests that were never answered."""
        for connection in self._connections.values():
            yield from self._unanswered(connection)

    def _unanswered(self, connection: _Connection) -> Iterator[Exchange]:
        yield from connection.outstanding.values()
        connection.outstanding.clear()

    def _request(
        self, connection: _Connection, time: int, data: bytes, size: int, program: bytes
    ) -> Iterator[Exchange | Event]:
        if len(data) < _HEADER:
            yield _refused(connection, time, data, size, "shorter than a header")
            return
        _, opcode, unique, _, _, _, pid, _, _ = _unpack_in_header(data)
        part = decode(data, size, opcode, answer=False)
        if opcode == FUSE_INTERRUPT and isinstance(part.body, fuse_interrupt_in):
            meant = connection.outstanding.get(part.body.unique)
            of = meant.name if meant is not None else "?"
            yield connection.event(time, "interrupt", {"unique": part.body.unique, "of": of})
            return
        if opcode == FUSE_INIT:
            connection.mount = True
        name = _text(program)
        exchange = Exchange(time, connection.device, unique, opcode, pid, name, part)
        exchange.connection = connection.number
        operation = OPERATIONS.get(opcode)
        if operation is not None and not operation.has_reply:
            exchange.error = 0
            yield exchange
            return
        if len(connection.outstanding) >= OUTSTANDING_MOST:
            yield connection.outstanding.pop(next(iter(connection.outstanding)))
        connection.outstanding[unique] = exchange

    def _reply(
        self, connection: _Connection, time: int, data: bytes, size: int
    ) -> Iterator[Exchange | Event]:
        if len(data) < _OUT_HEADER:
            yield _refused(connection, time, data, size, "shorter than a header")
            return
        length, error, unique = _unpack_out_header(data)
        if length != size:
            yield _refused(connection, time, data, size, f"says that it has {length} bytes")
            return
        if not unique:
            if error != FUSE_NOTIFY_POLL:
                yield _refused(connection, time, data, size, f"notification {error}")
                return
            yield connection.event(time, "notification", {"code": error, "size": size})
            return
        if not -512 < error <= 0:
            yield _refused(connection, time, data, size, f"error {error}")
            return
        exchange = connection.outstanding.pop(unique, None)
        if exchange is None:
            reason = f"answers {unique}, which is not waiting"
            if unique & 1:
                reason = f"answers INTERRUPT {unique} with error {error}"
            elif self._lossy:
                return  # the request is most likely one of the missing messages
            yield _refused(connection, time, data, size, reason)
            return
        exchange.error = -error
        part = exchange.answer = decode(data, size, exchange.opcode, answer=True)
        asked = exchange.request.body
        if type(asked) is fuse_read_in and part.size > asked.size and not part.problem:
            part.problem = f"{part.size} bytes where {asked.size} were asked for"
        _take_file(part)
        exchange.latency = time - exchange.time
        if exchange.opcode == CUSE_INIT:
            for entry in part.data.split(b"\0"):
                key, _, value = entry.partition(b"=")
                if key.strip() == b"DEVNAME":
                    connection.device = exchange.device = _text(value.strip())
        yield exchange


def _take_file(part: Part) -> None:
    """Separate the file that an ioctl made from its output."""
    body = part.body
    if type(body) is fuse_ioctl_out and body.flags & RECUSE_IOCTL_FILE:
        if len(part.data) < recuse_ioctl_file.SIZE:
            part.problem = "says that there is a file, and has none"
            return
        part.file = recuse_ioctl_file.unpack(part.data)
        part.data = part.data[recuse_ioctl_file.SIZE :]
        part.size -= recuse_ioctl_file.SIZE


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _refused(connection: _Connection, time: int, data: bytes, size: int, reason: str) -> Event:
    return connection.event(time, "refused", {"reason": reason, "size": size}, data)
