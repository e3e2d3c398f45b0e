"""What an answer promises the kernel half, in case that it does not receive it.

That happens if the connection has ended, or if nobody waits for the answer any longer. Then no
FORGET or RELEASE comes for what the answer told it about (fs/fuse/dev.c, fuse_dev_do_write).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from recuse.runtime.records import NamedTuple
from recuse.wire.filesystem import fuse_dirent, fuse_entry_out
from recuse.wire.fuse import (
    FUSE_CREATE,
    FUSE_LINK,
    FUSE_LOOKUP,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_OPENDIR,
    FUSE_READDIRPLUS,
    FUSE_SYMLINK,
    FUSE_TMPFILE,
    fuse_open_out,
)

_ENTRIES: Final = frozenset({FUSE_LOOKUP, FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK, FUSE_LINK})
"""Requests whose answer tells the kernel half about a node."""
_MAKING: Final = frozenset({FUSE_CREATE, FUSE_TMPFILE})
"""Those that also open it."""
_OPENING: Final = frozenset({FUSE_OPEN, FUSE_OPENDIR})
_pick_number: Final = struct.Struct("=Q").unpack_from
_pick_name_length: Final = struct.Struct("=I").unpack_from
_NAME_LENGTH: Final = 16
"""In fuse_dirent."""


class Promises(NamedTuple):
    """What an answer promises."""

    nodes: list[int]
    """The numbers of nodes, each with one lookup."""
    handle: int | None = None
    """An open file or directory."""


def promises(opcode: int, payload: bytes) -> Promises | None:
    """Return what the answer to a request promises; None if it is nothing."""
    if opcode in _ENTRIES:
        return Promises([number] if (number := _pick_number(payload)[0]) else [])
    if opcode in _MAKING:
        handle = fuse_open_out.unpack(payload, fuse_entry_out.SIZE).fh
        return Promises([_pick_number(payload)[0]], handle)
    if opcode in _OPENING:
        return Promises([], fuse_open_out.unpack(payload).fh)
    if opcode == FUSE_READDIRPLUS:
        return Promises(list(_listed(payload)))
    return None


def _listed(payload: bytes) -> Iterator[int]:
    at = 0
    while at < len(payload):
        (number,) = _pick_number(payload, at)
        if number:
            yield number
        at += fuse_entry_out.SIZE
        (length,) = _pick_name_length(payload, at + _NAME_LENGTH)
        at += fuse_dirent.SIZE + length + 7 & ~7
