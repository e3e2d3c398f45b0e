"""A trace for people: one line for each exchange or event."""

from __future__ import annotations

import struct

from recuse.trace import names
from recuse.trace.exchanges import Event, Exchange, Part
from recuse.wire.declare import Structure
from recuse.wire.fuse import (
    FUSE_IOCTL_RETRY,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
    fuse_poll_out,
    fuse_write_out,
)
from recuse.wire.optable import NONE, OPERATIONS

SHOWN = 32
"""This many bytes of data are printed."""


def quoted(data: bytes, size: int) -> str:
    """Return data as a string in quotes; ``size`` is how much there was of it."""
    return f'"{names.escape(data[:SHOWN])}"{"..." if size > SHOWN or size > len(data) else ""}'


def duration(nanoseconds: int) -> str:
    """Return a time with at least three digits, and its unit."""
    if nanoseconds < 999_950:
        return f"{nanoseconds / 1e3:.1f} us"
    if nanoseconds < 999_950_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e9:.1f} s"


_fields: dict[str, tuple[tuple[str, bool], ...]] = {}
"""By structure, the fields worth printing; each with whether it is only printed if not 0."""


def _arguments(body: Structure) -> list[str]:
    kind = type(body).__name__
    words = []
    fields = _fields.get(kind)
    if fields is None:
        fields = _fields[kind] = tuple(
            (field.name, names.is_quiet(field.name))
            for field in body.FIELDS
            if not names.is_padding(field.name) and not names.is_everywhere(kind, field.name)
        )
    for field, quiet in fields:
        value = getattr(body, field)
        if quiet:
            value = names.without_usual(field, value)
        if isinstance(value, Structure):
            words.append(f"{field}={{{', '.join(_arguments(value))}}}")
        elif isinstance(value, tuple):
            words.append(f"{field}={list(value)}")
        elif value or not quiet:
            words.append(f"{field}={names.number(kind, field, value)}")
    return words


def _undecoded(part: Part) -> str:
    dots = "..." if part.size > min(len(part.data), SHOWN) else ""
    return f"{part.data[:SHOWN].hex(' ')}{dots} /* {part.problem} */"


def request(exchange: Exchange) -> str:
    """Return the operation with its arguments, as a call in C."""
    part = exchange.request
    if part.problem is not None:
        return f"{exchange.name}({_undecoded(part)})"
    words = _arguments(part.body) if part.body is not None else []
    if part.size:
        words.append(quoted(part.data, part.size))
    return f"{exchange.name}({', '.join(words)})"


def areas(out: fuse_ioctl_out, data: bytes) -> str:
    """Return the memory that an ioctl's RETRY asks for: in=[address:length ...] out=[...]."""
    size = fuse_ioctl_iovec.SIZE
    whole = data[: len(data) - len(data) % size]
    found = [f"{base:#x}:{length}" for base, length in struct.iter_unpack("=QQ", whole)]
    inputs, outputs = found[: out.in_iovs], found[out.in_iovs : out.in_iovs + out.out_iovs]
    return f"RETRY in=[{' '.join(inputs)}] out=[{' '.join(outputs)}]"


def result(exchange: Exchange) -> str:
    """Return the result of the request."""
    if exchange.error is None:
        return "? (the answer may be missing)" if exchange.lost else "? (never answered)"
    part = exchange.answer
    if part is None:
        return "(no answer)"
    if part.problem is not None:
        return f"EIO: {_undecoded(part)}"
    if exchange.error:
        return names.error(exchange.error)
    body = part.body
    if type(body) is fuse_ioctl_out:
        if body.flags & FUSE_IOCTL_RETRY:
            return areas(body, part.data)
        words = str(body.result)
        if part.file is not None:
            words += f" file={{{', '.join(_arguments(part.file))}}}"
    elif type(body) is fuse_write_out:
        words = str(body.size)
    elif type(body) is fuse_poll_out:
        words = names.number("fuse_poll_out", "revents", body.revents)
    elif body is not None:
        words = ", ".join(_arguments(body))
    else:
        operation = OPERATIONS.get(exchange.opcode)
        if operation is not None and operation.reply_payload is NONE:
            return "0"
        words = str(part.size)
    return f"{words} {quoted(part.data, part.size)}" if part.size else words


def _program(name: str, pid: int) -> str:
    return f"{names.printable(name) or '-'}[{pid}]" if pid else "-"


def _event(event: Event) -> str:
    values = event.values
    if event.kind == "added":
        if values.get("mount"):
            return "mounted"
        return f"device added, {values['major']}:{values['minor']}"
    if event.kind == "removed":
        return "unmounted" if values.get("mount") else "device removed"
    if event.kind == "joined":
        return f"joined by {_program(str(values['program']), int(values['pid']))}"
    if event.kind == "left":
        return "left"
    if event.kind == "interrupt":
        return f"INTERRUPT(unique={values['unique']} /* {values['of']} */)"
    if event.kind == "notification":
        return "notification POLL"
    if event.kind == "dropped":
        return f"{values['count']} messages are missing here: too many at once"
    first = event.data[:SHOWN]
    shown = first.hex(" ") + ("..." if values["size"] != len(first) else "")
    return f"refused message, {values['reason']}: {shown}"


class Formatter:
    """Makes lines; with ``colour``, background activity is dim and errors are red."""

    def __init__(self, *, colour: bool = False) -> None:
        self._dim, self._red, self._plain = (
            ("\x1b[2m", "\x1b[31m", "\x1b[0m") if colour else ("", "", "")
        )

    def start(self, time: str) -> str:
        """Return the first line."""
        del time
        return ""

    def line(self, item: Exchange | Event) -> str:
        """Return the line for an exchange or event, with its newline."""
        head = f"{self._dim}{item.time / 1e9:11.6f}{self._plain}"
        device = names.printable(item.device)
        if item.connection is not None:
            device += f"#{item.connection}"
        if isinstance(item, Event):
            words = f"{head} {device} -- {_event(item)}" if device else f"{head} -- {_event(item)}"
            return words + "\n"
        who = _program(item.program, item.pid)
        came_to = result(item)
        failed = item.error != 0 or (item.answer is not None and item.answer.problem is not None)
        if failed and self._red:
            came_to = f"{self._red}{came_to}{self._plain}"
        words = f"{head} {device} {who} {request(item)} = {came_to}"
        if item.latency is None:
            return words + "\n"
        return f"{words} {self._dim}<{duration(item.latency)}>{self._plain}\n"
