"""Whole messages, by the table of operations: header, structure, and what follows.

Requests go from the kernel half to the server half, and answers come back. Nothing here copies what
follows the structure: payloads are views of the message.
"""

from copy import copy
from typing import Any

from recuse.wire.declare import Buffer, Structure
from recuse.wire.errors import WireError
from recuse.wire.fuse import FUSE_KERNEL_MINOR_VERSION, fuse_in_header, fuse_out_header
from recuse.wire.optable import (
    BYTES,
    IN_SIZE,
    NAME,
    NAME_VALUE,
    NONE,
    OPERATIONS,
    RECORDS,
    SIZE,
    Operation,
    Short,
)

_EMPTY = memoryview(b"")
_ERROR_END = -512
"""-errno is above this: from 512 up are the kernel's internal numbers (ERESTARTSYS)."""


def decode_request(
    message: Buffer, minor: int = FUSE_KERNEL_MINOR_VERSION, flags: int = 0
) -> tuple[fuse_in_header, Structure | None, memoryview]:
    """Return a request's header, its structure if the operation has one, and what follows it.

    ``message`` is one whole request; ``minor`` and ``flags`` are what INIT agreed on. If the table
    does not have the operation, everything after the header is returned as payload, so that it can
    be answered with ENOSYS. Extensions are in none of the three: they are the message's last
    ``8 * header.total_extlen`` bytes.
    Raises WireError if the lengths in the message do not fit each other and the operation.
    """
    header = fuse_in_header.unpack(message)
    start, end = fuse_in_header.SIZE, len(message)
    if header.len != end:
        raise WireError(f"request of {end} bytes says that it has {header.len}")
    if header.total_extlen:
        end -= 8 * header.total_extlen
        if end < start:
            raise WireError(f"{header.total_extlen} * 8 bytes of extensions in {header.len}")
    operation = OPERATIONS.get(header.opcode)
    if operation is None:
        return header, None, memoryview(message)[start:end]
    body: Structure | None = None
    if operation.request is not None:
        size = operation.request.SIZE
        if operation.short is not None and _is_short(operation.short, minor, flags, end - start):
            size = operation.short.size
        if end - start < size:
            raise WireError(f"{operation.name} takes {size} bytes, but {end - start} are there")
        if size == operation.request.SIZE:
            body = operation.request.unpack(message, start)
        else:
            body = _lengthened(operation.request, message[start : start + size])
        start += size
    if operation.request_payload is NONE:
        if start != end:
            raise WireError(f"{operation.name} has {end - start} bytes too many")
        return header, body, _EMPTY
    payload = memoryview(message)[start:end]
    _check_payload(operation, body, payload)
    return header, body, payload


def encode_request(
    header: fuse_in_header,
    body: Structure | None = None,
    payload: Buffer = b"",
    minor: int = FUSE_KERNEL_MINOR_VERSION,
    flags: int = 0,
) -> bytes:
    """Return the request made of these parts; ``header.len`` is ignored and computed.

    ``minor`` and ``flags`` are what INIT agreed on; ``payload`` includes any extensions.
    Raises WireError if ``body`` is not the operation's structure, or if a value does not fit.
    """
    operation = OPERATIONS.get(header.opcode)
    packed = b"" if body is None else body.pack()
    if operation is not None:
        if type(body) is not (operation.request or type(None)):
            raise WireError(f"{operation.name} has no {type(body).__name__}")
        if operation.short is not None and _is_short(operation.short, minor, flags):
            packed = packed[: operation.short.size]
    size = fuse_in_header.SIZE + len(packed) + len(payload)
    header = copy(header)
    header.len = size
    return header.pack() + packed + payload


def decode_reply(
    opcode: int, message: Buffer
) -> tuple[fuse_out_header, Structure | None, memoryview]:
    """Return an answer's header, its structure if the operation has one, and what follows it.

    ``opcode`` is that of the request. An answer with an error has neither structure nor payload. If
    the table does not have the operation, there is no structure.
    Raises WireError if lengths do not fit, if the error is not 0 or a negative errno, and for a
    notification (unique 0).
    """
    header = fuse_out_header.unpack(message)
    start, end = fuse_out_header.SIZE, len(message)
    if header.len != end:
        raise WireError(f"answer of {end} bytes says that it has {header.len}")
    if header.unique == 0:
        raise WireError(f"notification {header.error} where an answer is expected")
    if not _ERROR_END < header.error <= 0:
        raise WireError(f"answer with error {header.error}, which is not a negative errno")
    if header.error:
        if start != end:
            raise WireError(f"answer with error {header.error} and {end - start} bytes")
        return header, None, _EMPTY
    operation = OPERATIONS.get(opcode)
    body: Structure | None = None
    if operation is not None:
        if operation.reply is not None:
            if end - start in operation.short_replies:
                return header, _lengthened(operation.reply, message[start:end]), _EMPTY
            body = operation.reply.unpack(message, start)
            start += operation.reply.SIZE
        if operation.reply_payload is NONE and start != end:
            raise WireError(f"answer to {operation.name} has {end - start} bytes too many")
    return header, body, memoryview(message)[start:end]


def _is_short(short: Short, minor: int, flags: int, length: int | None = None) -> bool:
    """Return whether a request has the shorter structure; ``length`` is a received one's."""
    if short.by_length and length is not None:
        return length == short.size
    return minor < short.before_minor or short.without_flag & ~flags != 0


def _lengthened(structure: type[Structure], short: Buffer) -> Structure:
    """Return the structure whose first bytes are ``short``; the fields after them are 0."""
    return structure.unpack(bytes(short).ljust(structure.SIZE, b"\0"))


def _check_payload(operation: Operation, body: Any, payload: memoryview) -> None:
    """Raise WireError if ``payload`` breaks the operation's rule, given ``body``."""
    rule = operation.request_payload
    if rule is SIZE:
        fits = len(payload) == body.size
    elif rule is IN_SIZE:
        fits = len(payload) == body.in_size
    elif rule is BYTES:
        fits = True
    elif rule is RECORDS:
        assert operation.record is not None
        fits = len(payload) == body.count * operation.record.SIZE
    elif rule is NAME_VALUE:
        _, nul, value = bytes(payload).partition(b"\0")
        fits = nul != b"" and len(value) == body.size
    else:
        names = bytes(payload)
        fits = names.endswith(b"\0") and names.count(0) == (1 if rule is NAME else 2)
    if not fits:
        raise WireError(f"{operation.name} with {body}: {len(payload)} bytes do not fit it")
