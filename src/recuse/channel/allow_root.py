"""Whom the mount option allow_root keeps out: the kernel knows allow_other only."""

from __future__ import annotations

import os
import sys
from typing import Final

from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_DESTROY,
    FUSE_FLUSH,
    FUSE_FORGET,
    FUSE_FSYNC,
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_RELEASEDIR,
    FUSE_WRITE,
)

_UID: Final = slice(24, 28)
"""Of fuse_in_header: who asks."""
_OPCODE: Final = slice(4, 8)
_FOR_ALL: Final = frozenset(
    {
        *(FUSE_INIT, FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT, FUSE_DESTROY),
        *(FUSE_READ, FUSE_WRITE, FUSE_FLUSH, FUSE_FSYNC, FUSE_RELEASE, FUSE_RELEASEDIR),
    }
)
"""What a program may ask for that has got a file from another: not who it is, but what it has."""


def is_kept_out(message: bytes) -> bool:
    """Whether neither root nor who serves asks for something that not everybody may have."""
    uid = int.from_bytes(message[_UID], sys.byteorder)
    opcode = int.from_bytes(message[_OPCODE], sys.byteorder)
    return uid not in (0, os.geteuid()) and opcode not in _FOR_ALL
