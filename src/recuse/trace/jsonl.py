"""A trace for programs: one JSON object per line; docs/tracing.md has the keys."""

from __future__ import annotations

import json

from recuse.trace import names
from recuse.trace.exchanges import Event, Exchange, Part
from recuse.wire.declare import Structure
from recuse.wire.fuse import fuse_ioctl_out, fuse_open_out, fuse_poll_out, fuse_write_out

VERSION = 1

SHOWN = 64
"""This many bytes of data are written, in hex."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def _numbers(body: Structure) -> dict[str, object]:
    values: dict[str, object] = {}
    for field in body.FIELDS:
        if not names.is_padding(field.name):
            value = getattr(body, field.name)
            values[field.name] = _numbers(value) if isinstance(value, Structure) else value
    return values


def _body(part: Part | None) -> dict[str, object] | None:
    if part is None or part.body is None:
        return None
    numbers = _numbers(part.body)
    return numbers if part.file is None else {**numbers, "file": _numbers(part.file)}


def _result(exchange: Exchange) -> int | None:
    part = exchange.answer
    if exchange.error or part is None or part.problem is not None:
        return None
    body = part.body
    if isinstance(body, fuse_ioctl_out):
        return body.result
    if isinstance(body, fuse_write_out):
        return body.size
    if isinstance(body, fuse_open_out):
        return body.fh
    if isinstance(body, fuse_poll_out):
        return body.revents
    return part.size if body is None else 0


def _connection(item: Exchange | Event) -> dict[str, object]:
    return {} if item.connection is None else {"connection": item.connection}


def record(item: Exchange | Event) -> dict[str, object]:
    """Return the content of the line for an exchange or event."""
    seconds = item.time / 1e9
    if isinstance(item, Event):
        head: dict[str, object]
        head = {"event": item.kind, "ts": seconds, "device": item.device, **item.values}
        head |= _connection(item)
        return {**head, "data": item.data.hex()} if item.data else head
    request, answer = item.request, item.answer
    args = _body(request)
    if args is not None and item.name == "IOCTL":
        args["command"] = names.command(int(str(args["cmd"])))
    problem = request.problem or (answer.problem if answer is not None else None)
    error = "EIO" if answer is not None and answer.problem is not None else None
    return {
        "event": "exchange",
        "ts": seconds,
        "device": item.device,
        **_connection(item),
        "unique": item.unique,
        "opcode": item.opcode,
        "name": item.name,
        "pid": item.pid,
        "program": item.program,
        "args": args,
        "in_size": request.size,
        "in_data": request.data[:SHOWN].hex(),
        "answered": None if item.lost and item.error is None else item.error is not None,
        "result": _result(item),
        "errno": error or (names.error(item.error) if item.error else None),
        "reply": _body(answer),
        "out_size": answer.size if answer is not None else 0,
        "out_data": answer.data[:SHOWN].hex() if answer is not None else "",
        "latency_us": None if item.latency is None else item.latency / 1e3,
        "problem": problem,
    }


class Formatter:
    """Makes lines."""

    def start(self, time: str) -> str:
        """Return the line with the start time of the trace and this format's version."""
        return _encode({"event": "start", "ts": 0.0, "time": time, "version": VERSION}) + "\n"

    def line(self, item: Exchange | Event) -> str:
        """Return the line for an exchange or event, with its newline."""
        return _encode(record(item)) + "\n"
