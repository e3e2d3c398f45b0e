"""Shows a test what was asked of its filesystem."""

from typing import Any, NamedTuple

from recuse.wire.errors import WireError
from recuse.wire.fuse import fuse_in_header
from recuse.wire.message import decode_request
from recuse.wire.optable import OPERATIONS


class Sent(NamedTuple):
    """A request."""

    name: str
    """As in the protocol, without FUSE_: "LOOKUP", "READ"."""
    header: fuse_in_header
    body: Any
    """The request's structure (`recuse.wire.filesystem`); None if it has none."""
    payload: bytes
    """What follows: names with a NUL after each, or data."""


class Recorder:
    """A connection's tap that keeps its requests."""

    def __init__(self, minor: int, flags: int) -> None:
        """Make one for what INIT has agreed on."""
        self._minor, self._flags = minor, flags
        self.sent: list[Sent] = []

    def request(self, message: bytes) -> None:
        """Record a request."""
        try:
            header, body, payload = decode_request(message, self._minor, self._flags)
        except WireError:
            header, body, payload = fuse_in_header.unpack(message), None, memoryview(b"")
        operation = OPERATIONS.get(header.opcode)
        name = str(header.opcode) if operation is None else operation.name
        self.sent.append(Sent(name.removeprefix("FUSE_"), header, body, bytes(payload)))

    def reply(self, message: bytes) -> None:
        """Replies are not kept."""

    def added(self, name: str, major: int, minor: int) -> None:
        """Only devices are added."""

    def removed(self) -> None:
        """Only devices are removed."""
