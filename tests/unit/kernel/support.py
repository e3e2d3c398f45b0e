"""What these tests share: a caller's memory with holes, the server's end of a connection, and a
way to run an operation to its end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

from recuse.kernel.caller import Caller
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.char.files import OpenFile, open_file
from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.connection.request import Reply, Request
from recuse.wire.cuse import (
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_FILE_FLAGS,
    RECUSE_MAPPING,
    RECUSE_NEW_FILES,
    RECUSE_SEEKABLE,
    cuse_init_out,
)
from recuse.wire.declare import Structure
from recuse.wire.fuse import (
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    fuse_in_header,
    fuse_open_out,
    fuse_out_header,
    fuse_write_out,
)
from recuse.wire.message import decode_request

T = TypeVar("T")

PAGE = 4096
BIG = 1 << 20
"""A read buffer that any request fits in."""


def fault() -> OSError:
    return OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def error_of(call: Callable[..., object], *arguments: object) -> int:
    """The errno of the OSError that a call raises, 0 if it raises none."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


class FakeMemory:
    """Pages from address 0 on, of which some are missing and some read-only.

    Nobody asks it for areas of no bytes.
    """

    def __init__(
        self, pages: int = 64, *, holes: tuple[int, ...] = (), readonly: tuple[int, ...] = ()
    ) -> None:
        self.data = bytearray(pages * PAGE)
        self.holes = set(holes)
        self.readonly = set(readonly)
        self.touched: list[str] = []

    def _reach(self, address: int, size: int, barred: set[int]) -> int:
        """How many bytes from `address` on lie in pages that are there and not barred."""
        assert size > 0
        end = min(address + size, len(self.data))
        reached = address
        while reached < end and reached // PAGE not in barred:
            reached = min(end, (reached // PAGE + 1) * PAGE)
        return max(reached - address, 0)

    def read(self, address: int, size: int) -> bytes:
        self.touched.append("read")
        reach = self._reach(address, size, self.holes)
        if not reach:
            raise fault()
        return bytes(self.data[address : address + reach])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> int:
        self.touched.append("write")
        reach = self._reach(address, len(data), self.holes | self.readonly)
        if not reach:
            raise fault()
        self.data[address : address + reach] = data[:reach]
        return reach

    def writable(self, address: int, size: int) -> int:
        self.touched.append("writable")
        return self._reach(address, size, self.holes | self.readonly)


OWNER = 0xFEDCBA9876543210


def caller(memory: FakeMemory | None = None) -> Caller:
    return Caller(pid=11, uid=22, gid=33, memory=memory or FakeMemory(), owner=OWNER)


class Message:
    """A request as the server reads it."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.header, body, payload = decode_request(raw)
        self.body = cast(Any, body)
        self.payload = bytes(payload)

    @property
    def opcode(self) -> int:
        return self.header.opcode

    @property
    def unique(self) -> int:
        return self.header.unique


def reply_bytes(unique: int, payload: bytes = b"", error: int = 0) -> bytes:
    length = fuse_out_header.SIZE + len(payload)
    return fuse_out_header(len=length, error=error, unique=unique).pack() + payload


Answer = Structure | bytes | int | Reply | None
"""A structure or bytes: the payload; an int: a negative errno; None: no answer yet."""


def as_reply(answer: Structure | bytes | int | Reply) -> Reply:
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, int):
        return Reply(answer)
    return Reply(0, answer if isinstance(answer, bytes) else answer.pack())


class Done:
    """Takes a request's reply, and notes each time that it got one."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def __call__(self, reply: Reply) -> None:
        self.replies.append(reply)

    @property
    def error(self) -> int:
        (reply,) = self.replies
        return reply.error

    @property
    def payload(self) -> bytes:
        (reply,) = self.replies
        return bytes(reply.payload)


def submit(made: Connection, request: Request | None = None) -> Done:
    """Send a request, a READ of up to 64 bytes by default."""
    done = Done()
    made.submit(request or Request(FUSE_READ, bytes(40), 0, 64), done)
    return done


class Server:
    """The server's end of a connection: reads all that is pending whenever there is something,
    keeps it, and answers what `handler` has an answer for.
    """

    def __init__(
        self, connection: Connection, handler: Callable[[Message], Answer] = lambda message: None
    ) -> None:
        self.connection = connection
        self.handler = handler
        self.messages: list[Message] = []
        connection.on_pending = self.serve

    def serve(self) -> None:
        for raw in drain(self.connection):
            message = Message(raw)
            self.messages.append(message)
            answer = self.handler(message)
            if answer is not None:
                self.reply(message, answer)

    def reply(self, message: Message, answer: Structure | bytes | int | Reply = b"") -> None:
        reply = as_reply(answer)
        self.connection.write(reply_bytes(message.unique, bytes(reply.payload), reply.error))

    @property
    def opcodes(self) -> list[int]:
        return [message.opcode for message in self.messages]


def drain(connection: Connection) -> Generator[bytes, None, None]:
    while True:
        try:
            yield connection.read(BIG)
        except BlockingIOError:
            return


def connection(max_write: int = PAGE) -> Connection:
    """A connection whose INIT has been answered; the next request has the number 4."""
    init = Request(4096, bytes(16), max_reply=100)

    def accept(reply: Reply) -> None:
        assert made.initialised(45, max_write)

    made = Connection(init, accept)
    message = fuse_in_header.unpack(made.read(BIG))
    made.write(reply_bytes(message.unique))
    return made


def init_reply(
    info: bytes = b"DEVNAME=thing\0",
    *,
    major: int = 7,
    minor: int = 45,
    flags: int = CUSE_UNRESTRICTED_IOCTL,
    max_read: int = 131072,
    max_write: int = 131072,
    dev_major: int = 0,
    dev_minor: int = 0,
) -> bytes:
    out = cuse_init_out(
        major, minor, 0, flags, max_read, max_write, dev_major=dev_major, dev_minor=dev_minor
    )
    return out.pack() + info


def answer_init(channel: CuseChannel, payload: bytes, error: int = 0) -> None:
    message = Message(channel.connection.read(BIG))
    channel.connection.write(reply_bytes(message.unique, payload, error))


def device(
    *,
    table: DeviceTable | None = None,
    unrestricted: bool = True,
    seekable: bool = False,
    new_files: bool = False,
    mapping: bool = False,
    file_flags: bool = False,
    **options: Any,
) -> CharDevice:
    """A device that is there, with nobody reading its channel."""
    channel = CuseChannel(DeviceTable() if table is None else table, descriptors=mapping)
    flags = unrestricted * CUSE_UNRESTRICTED_IOCTL | seekable * RECUSE_SEEKABLE
    flags |= new_files * RECUSE_NEW_FILES | mapping * RECUSE_MAPPING
    flags |= file_flags * RECUSE_FILE_FLAGS
    answer_init(channel, init_reply(flags=flags, **options))
    assert channel.device is not None
    return channel.device


class Outcome:
    """What an operation came to, and how often it said so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, OSError | None]] = []

    def __call__(self, result: Any, error: OSError | None) -> None:
        self.calls.append((result, error))

    @property
    def pending(self) -> bool:
        return not self.calls

    @property
    def result(self) -> Any:
        ((result, error),) = self.calls
        if error is not None:
            raise error
        return result

    @property
    def errno(self) -> int | None:
        ((_, error),) = self.calls
        assert error is not None
        return error.errno


def start(connection: Connection, operation: Operation[Any]) -> Outcome:
    outcome = Outcome()
    run(connection, operation, outcome)
    return outcome


def finish(connection: Connection, operation: Operation[T]) -> T:
    """Run an operation that a server answers at once."""
    return cast(T, start(connection, operation).result)


class Opened:
    """A file of a device, and the server behind it.

    OPEN is answered with fh 7 and RELEASE with success; the rest is up to `handler`, and what it
    was asked is in `asked`.
    """

    def __init__(
        self,
        handler: Callable[[Message], Answer] = lambda message: None,
        *,
        flags: int = os.O_RDWR,
        memory: FakeMemory | None = None,
        **options: Any,
    ) -> None:
        self.handler = handler
        self.memory = memory or FakeMemory()
        self.caller = caller(self.memory)
        self.device = device(**options)
        self.connection = self.device.connection
        self.server = Server(self.connection, self._answer)
        self.asked: list[Message] = []
        self.file: OpenFile = finish(self.connection, open_file(self.device, flags, self.caller))

    def _answer(self, message: Message) -> Answer:
        if message.opcode == FUSE_OPEN:
            return fuse_open_out(fh=7)
        if message.opcode == FUSE_RELEASE:
            return b""
        self.asked.append(message)
        return self.handler(message)

    def read(self, *segments: tuple[int, int], offset: int | None = None) -> int:
        return finish(self.connection, self.file.read(self.caller, segments, offset))

    def write(self, *segments: tuple[int, int], offset: int | None = None) -> int:
        return finish(self.connection, self.file.write(self.caller, segments, offset))

    def ioctl(self, command: int, argument: int = 0, compat: bool = False) -> int:
        return finish(
            self.connection, self.file.ioctl(self.caller, command, argument, compat=compat)
        )

    def release(self) -> None:
        finish(self.connection, self.file.release())


MAX = 131072
"""max_read and max_write of these devices: 32 pages."""


def gives(message: Message) -> bytes:
    """Answer READ with all that is asked for: each byte says where it is from."""
    first = message.body.offset
    return bytes((first + index) % 251 for index in range(message.body.size))


def takes(message: Message) -> fuse_write_out:
    return fuse_write_out(size=message.body.size)


def failed(opened: Opened, call: str, *segments: tuple[int, int], offset: int | None = None) -> int:
    return error_of(lambda: getattr(opened, call)(*segments, offset=offset))
