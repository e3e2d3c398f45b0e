"""The results of stat(2) and the like, as `os` returns them."""

import os
from typing import Final

from recuse.wire.filesystem import fuse_attr

_NS: Final = 10**9
_SIGN: Final = 1 << 63


def stat_result(attr: fuse_attr, device: int) -> os.stat_result:
    """What `os.stat` returns for a file with these attributes, on the device ``device``."""
    times = [
        _signed(seconds) * _NS + nanoseconds
        for seconds, nanoseconds in (
            (attr.atime, attr.atimensec),
            (attr.mtime, attr.mtimensec),
            (attr.ctime, attr.ctimensec),
        )
    ]
    return os.stat_result((
        *(attr.mode, attr.ino, device, attr.nlink, attr.uid, attr.gid, attr.size),
        *(ns // _NS for ns in times),
        *(ns / _NS for ns in times),
        *times,
        *(attr.blksize or 4096, attr.blocks, attr.rdev),
    ))  # fmt: skip


def _signed(seconds: int) -> int:
    return seconds - 2 * _SIGN if seconds & _SIGN else seconds
