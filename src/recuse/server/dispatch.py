"""From a request's bytes to the author's method, and from its result to the answer's bytes.

These functions have no state; `recuse.server.session` has it.
"""

from __future__ import annotations

import struct
from typing import Any

from recuse.server.errors import Misuse, brief
from recuse.wire.cuse import recuse_mmap_in
from recuse.wire.declare import Structure
from recuse.wire.fuse import (
    fuse_in_header,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_poll_in,
    fuse_poll_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
    fuse_write_out,
)

_CODES = {"u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q"}


def picker(body: type[Structure], *names: str, header: str = "") -> struct.Struct:
    """Return the codec of some fields of a request, with those of the header first.

    To answer a request takes only a few of its fields. Only those are unpacked, in one step.
    ``header`` has names of header fields, separated by spaces. Fields are in the order of their
    declaration.
    """
    wanted = [(field, 0) for field in fuse_in_header.FIELDS if field.name in header.split()]
    wanted += [(field, fuse_in_header.SIZE) for field in body.FIELDS if field.name in names]
    code = "="
    for field, base in wanted:
        gap = base + field.offset - struct.calcsize(code)
        code += f"{gap}x{_CODES[field.type]}"
    return struct.Struct(code + f"{fuse_in_header.SIZE + body.SIZE - struct.calcsize(code)}x")


pick_head = struct.Struct(f"=IIQ{fuse_in_header.SIZE - 16}x").unpack_from
"""len, opcode and unique of any request."""
pick_open = picker(fuse_open_in, "flags").unpack_from
pick_read = picker(fuse_read_in, "fh", "offset", "size", "flags").unpack_from
pick_write = picker(fuse_write_in, "fh", "offset", "size", "flags").unpack_from
pick_release = picker(fuse_release_in, "fh").unpack_from
pick_ioctl = picker(
    fuse_ioctl_in, "fh", "flags", "cmd", "arg", "in_size", "out_size", header="pid"
).unpack_from
pick_poll = picker(fuse_poll_in, "fh", "kh", "flags", "events").unpack_from
pick_mmap = picker(recuse_mmap_in, "fh").unpack_from
pick_interrupt = picker(fuse_interrupt_in, "unique").unpack_from

WRITE_DATA = fuse_in_header.SIZE + fuse_write_in.SIZE
"""Where the data of a WRITE begin."""
IOCTL_DATA = fuse_in_header.SIZE + fuse_ioctl_in.SIZE
"""Where the data of an IOCTL begin."""

_WRITE_OUT = fuse_write_out.CODEC.pack
_POLL_OUT = fuse_poll_out.CODEC.pack
_EVENTS_END = 1 << 16


def read_answer(returned: Any, size: int) -> bytes:
    """Return the payload for the result of `File.read`."""
    if type(returned) is bytes:
        if len(returned) > size:
            raise Misuse(f"returned {len(returned)} bytes, but at most {size} were asked for")
        return returned
    try:
        view = memoryview(returned)
    except TypeError:
        raise Misuse(f"returned {brief(returned)}, not bytes") from None
    if view.nbytes > size:
        raise Misuse(f"returned {view.nbytes} bytes, but at most {size} were asked for")
    return view.tobytes()


def write_answer(returned: Any, size: int) -> bytes:
    """Return the payload for the result of `File.write`."""
    if returned is None:
        return _WRITE_OUT(size, 0)
    if not isinstance(returned, int):
        raise Misuse(f"returned {brief(returned)}, not a number of bytes or None")
    if not 0 <= returned <= size:
        raise Misuse(f"returned {returned}, but was given {size} bytes")
    return _WRITE_OUT(returned, 0)


def poll_answer(returned: Any, _: None) -> bytes:
    """Return the payload for the result of `File.poll`."""
    if not isinstance(returned, int):
        raise Misuse(f"returned {brief(returned)}, not events such as select.POLLIN")
    if not 0 <= returned < _EVENTS_END:
        raise Misuse(f"returned {returned}, which is not a set of events")
    return _POLL_OUT(returned, 0)


def release_answer(_: Any, __: None) -> bytes:
    """Return the payload of a RELEASE, which has none."""
    return b""
