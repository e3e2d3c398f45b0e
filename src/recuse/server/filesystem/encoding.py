"""Makes the bytes of answers from what authors return."""

from __future__ import annotations

import os
import select
import stat
import struct
from functools import lru_cache
from typing import Any, NamedTuple

from recuse.server.errors import Misuse, brief
from recuse.server.filesystem.attributes import Attributes, Statistics
from recuse.server.filesystem.nodes import Node
from recuse.server.filesystem.requests import signed
from recuse.wire.filesystem import (
    fuse_attr,
    fuse_kstatfs,
    fuse_statfs_out,
    fuse_statx,
    fuse_statx_out,
    fuse_sx_time,
)

ALWAYS_READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
"""What files without a poll method are ready for (linux/poll.h, DEFAULT_POLLMASK)."""

_NS = 10**9
_pack_attr = struct.Struct("=QQQqqqIIIIIIIIII").pack
"""fuse_attr, with seconds before 1970 as they are."""
_pack_entry = struct.Struct("=QQQQII").pack
"""fuse_entry_out without its attributes, which follow."""
_pack_attr_head = struct.Struct("=QII").pack
"""fuse_attr_out without its attributes, which follow."""
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800
_MOST_VALID_S = 1 << 31
_U32 = struct.Struct("=I")
_MODE, _NODE_UID, _NODE_GID = 60, 68, 72
"""In fuse_attr."""


class Owner(NamedTuple):
    """The owner that all nodes are given instead of their own; None leaves it as the node says."""

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    """Permission bits that are always off; all others are on for everybody."""

    def of(self, number: int, told: Any) -> bytes:
        """See `attributes`."""
        packed = bytearray(attributes(number, told))
        if self.umask is not None:
            (mode,) = _U32.unpack_from(packed, _MODE)
            _U32.pack_into(packed, _MODE, stat.S_IFMT(mode) | 0o777 & ~self.umask)
        if self.uid is not None:
            _U32.pack_into(packed, _NODE_UID, self.uid)
        if self.gid is not None:
            _U32.pack_into(packed, _NODE_GID, self.gid)
        return bytes(packed)


@lru_cache(16)
def valid(seconds: float) -> tuple[int, int]:
    """How long something stays valid, as seconds and nanoseconds."""
    return divmod(int(min(max(seconds, 0.0), _MOST_VALID_S) * _NS), _NS)


def attributes(number: int, told: Any) -> bytes:
    """``struct fuse_attr`` for what `Node.attributes` has returned.

    If it has no inode number, programs see the node's number in the protocol. Raises Misuse if it
    is of the wrong type or out of range.
    """
    try:
        return _attributes(number, told)
    except (struct.error, TypeError, OverflowError) as error:
        raise Misuse(f"returned {brief(told)}, with a number that does not fit: {error}") from None


def ino(told: Any) -> int:
    """The inode number in what `Node.attributes` has returned; 0 if there is none."""
    if isinstance(told, os.stat_result):
        return told.st_ino
    return told.ino if isinstance(told, Attributes) else 0


def _attributes(number: int, told: Any) -> bytes:
    if isinstance(told, Node):
        size, mode, block_size = told.size or 0, told.mode, 4096
        if mode & ~0o7777 not in (0, told.kind):
            raise Misuse(f"returned {brief(told)}, whose mode {mode:#o} is not permission bits")
        mode |= told.kind
    elif isinstance(told, Attributes):
        size, mode, block_size = told.size, told.mode, told.block_size
        number = told.ino or number
        if not stat.S_IFMT(mode):
            raise Misuse(f"returned {brief(told)}, whose mode has no type, such as stat.S_IFREG")
    elif isinstance(told, os.stat_result):
        return _of_stat(number, told)
    else:
        raise Misuse(f"returned {brief(told)}, not a Node, Attributes or os.stat_result")
    atime, mtime, ctime = told.atime_ns, told.mtime_ns, told.ctime_ns
    return _pack_attr(
        number,
        size,
        (size + 511) >> 9 if told.blocks is None else told.blocks,
        atime // _NS,
        mtime // _NS,
        ctime // _NS,
        atime % _NS,
        mtime % _NS,
        ctime % _NS,
        mode,
        told.nlink,
        told.uid,
        told.gid,
        told.rdev,
        block_size,
        0,
    )


def _of_stat(number: int, told: os.stat_result) -> bytes:
    return _pack_attr(
        told.st_ino or number,
        told.st_size,
        told.st_blocks,
        told.st_atime_ns // _NS,
        told.st_mtime_ns // _NS,
        told.st_ctime_ns // _NS,
        told.st_atime_ns % _NS,
        told.st_mtime_ns % _NS,
        told.st_ctime_ns % _NS,
        told.st_mode,
        told.st_nlink,
        told.st_uid,
        told.st_gid,
        told.st_rdev,
        told.st_blksize,
        0,
    )


def entry(
    number: int, entry_valid: tuple[int, int], attr_valid: tuple[int, int], generation: int = 0
) -> bytes:
    """``struct fuse_entry_out`` without its attributes; number 0: there is no such name."""
    entry_s, entry_ns = entry_valid
    attr_s, attr_ns = attr_valid
    try:
        return _pack_entry(number, generation, entry_s, attr_s, entry_ns, attr_ns)
    except struct.error as error:
        raise Misuse(f"returned the generation {brief(generation)}: {error}") from None


def attr_head(attr_valid: tuple[int, int]) -> bytes:
    """``struct fuse_attr_out`` without its attributes."""
    return _pack_attr_head(*attr_valid, 0)


def statx(packed: bytes, btime_ns: int | None, attr_valid: tuple[int, int]) -> bytes:
    """``struct fuse_statx_out`` for a ``struct fuse_attr``."""
    attr = fuse_attr.unpack(packed)
    born = fuse_sx_time()
    mask = _STATX_BASIC_STATS
    if btime_ns is not None:
        mask |= _STATX_BTIME
        born = fuse_sx_time(btime_ns // _NS, btime_ns % _NS)
    told = fuse_statx(
        mask=mask,
        blksize=attr.blksize,
        nlink=attr.nlink,
        uid=attr.uid,
        gid=attr.gid,
        mode=attr.mode,
        ino=attr.ino,
        size=attr.size,
        blocks=attr.blocks,
        atime=fuse_sx_time(signed(attr.atime), attr.atimensec),
        btime=born,
        ctime=fuse_sx_time(signed(attr.ctime), attr.ctimensec),
        mtime=fuse_sx_time(signed(attr.mtime), attr.mtimensec),
        rdev_major=os.major(attr.rdev),
        rdev_minor=os.minor(attr.rdev),
    )
    return fuse_statx_out(attr_valid=attr_valid[0], attr_valid_nsec=attr_valid[1], stat=told).pack()


def statistics(returned: Any, _: object = None) -> bytes:
    """The answer to STATFS for what `Filesystem.statistics` has returned."""
    if isinstance(returned, os.statvfs_result):
        told = fuse_kstatfs(
            blocks=returned.f_blocks,
            bfree=returned.f_bfree,
            bavail=returned.f_bavail,
            files=returned.f_files,
            ffree=returned.f_ffree,
            bsize=returned.f_bsize,
            namelen=returned.f_namemax,
            frsize=returned.f_frsize,
        )
    elif isinstance(returned, Statistics):
        told = fuse_kstatfs(
            blocks=returned.blocks,
            bfree=returned.free,
            bavail=returned.available,
            files=returned.files,
            ffree=returned.free_files,
            bsize=returned.block_size,
            namelen=returned.name_max,
            frsize=returned.block_size,
        )
    else:
        raise Misuse(f"returned {brief(returned)}, not Statistics or os.statvfs_result")
    return fuse_statfs_out(told).pack()
