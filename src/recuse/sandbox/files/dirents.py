"""Entries of directories, as getdents(2) returns them (fs/readdir.c)."""

from __future__ import annotations

import struct
from typing import Final

_HEADER: Final = struct.Struct("=QQH")


def dirent(name: bytes, inode: int, following: int, kind: int, *, typed: bool) -> bytes:
    """Encode one entry.

    Args:
        name: its name.
        inode: its inode number.
        following: the position after it.
        kind: the type bits of its mode; 0 if they are not known.
        typed: it is a ``struct linux_dirent64``, with the type before the name. Otherwise it is a
            ``struct linux_dirent``, with the type in its last byte.
    """
    sort = bytes([kind >> 12])
    tail = sort + name + b"\0" if typed else name + b"\0"
    length = (_HEADER.size + len(tail) + (0 if typed else 1) + 7) & ~7
    entry = _HEADER.pack(inode, following, length) + tail
    return entry.ljust(length, b"\0") if typed else entry.ljust(length - 1, b"\0") + sort
