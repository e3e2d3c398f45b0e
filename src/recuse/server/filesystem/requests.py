"""Takes the requests apart. These functions have no state.

Each ``pick_`` function takes a message and returns the fields it is named for, in their order.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from typing import Final

from recuse.server.dispatch import picker
from recuse.server.filesystem.attributes import Changes, Lock
from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    fuse_access_in,
    fuse_batch_forget_in,
    fuse_bmap_in,
    fuse_copy_file_range_in,
    fuse_create_in,
    fuse_fallocate_in,
    fuse_forget_in,
    fuse_forget_one,
    fuse_getattr_in,
    fuse_getxattr_in,
    fuse_link_in,
    fuse_lk_in,
    fuse_lseek_in,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_rename2_in,
    fuse_rename_in,
    fuse_setattr_in,
    fuse_setxattr_in,
    fuse_statx_in,
)
from recuse.wire.fuse import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_CTIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_FORGET,
    FUSE_LK_FLOCK,
    FUSE_RENAME2,
    fuse_flush_in,
    fuse_fsync_in,
    fuse_in_header,
    fuse_open_in,
    fuse_read_in,
    fuse_release_in,
)

HEADER: Final = fuse_in_header.SIZE
NAME_MAX: Final = 255
ENCODING, ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""As os.fsdecode and os.fsencode have them, which take three times as long."""
MOST_COPIED: Final = 0x7FFFF000
"""MAX_RW_COUNT, linux/fs.h: no more is copied in one COPY_FILE_RANGE, whose answer has 32 bits."""
_NS: Final = 10**9

pick_head = struct.Struct(f"=IIQQ{fuse_in_header.SIZE - 24}x").unpack_from
"""len, opcode, unique and nodeid of any request."""
pick_open = picker(fuse_open_in, "flags").unpack_from
pick_create = picker(fuse_create_in, "flags", "mode").unpack_from
pick_mknod = picker(fuse_mknod_in, "mode", "rdev").unpack_from
pick_mkdir = picker(fuse_mkdir_in, "mode").unpack_from
pick_link = picker(fuse_link_in, "oldnodeid").unpack_from
pick_readdir = picker(fuse_read_in, "fh", "offset", "size").unpack_from
pick_release = picker(fuse_release_in, "fh", "release_flags", "lock_owner").unpack_from
pick_flush = picker(fuse_flush_in, "fh", "lock_owner").unpack_from
pick_fsync = picker(fuse_fsync_in, "fh", "fsync_flags").unpack_from
pick_getattr = picker(fuse_getattr_in, "getattr_flags", "fh").unpack_from
pick_getxattr = picker(fuse_getxattr_in, "size").unpack_from
pick_statx = picker(fuse_statx_in, "getattr_flags", "fh", "sx_flags", "sx_mask").unpack_from
pick_fallocate = picker(fuse_fallocate_in, "fh", "offset", "length", "mode").unpack_from
_pick_lseek = picker(fuse_lseek_in, "fh", "offset", "whence").unpack_from
pick_access = picker(fuse_access_in, "mask").unpack_from
pick_bmap = picker(fuse_bmap_in, "block", "blocksize").unpack_from
pick_copy = picker(
    fuse_copy_file_range_in, "fh_in", "off_in", "nodeid_out", "fh_out", "off_out", "len", "flags"
).unpack_from
_pick_forget = picker(fuse_forget_in, "nlookup").unpack_from
_pick_rename = picker(fuse_rename_in, "newdir").unpack_from
_pick_rename2 = picker(fuse_rename2_in, "newdir", "flags").unpack_from
_pick_setattr = picker(
    fuse_setattr_in,
    *("valid", "fh", "size", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec"),
    *("mode", "uid", "gid"),
).unpack_from
_pick_setxattr = picker(fuse_setxattr_in, "size", "flags").unpack_from

CREATE_NAME: Final = HEADER + fuse_create_in.SIZE
MKNOD_NAME: Final = HEADER + fuse_mknod_in.SIZE
MKDIR_NAME: Final = HEADER + fuse_mkdir_in.SIZE
LINK_NAME: Final = HEADER + fuse_link_in.SIZE
GETXATTR_NAME: Final = HEADER + fuse_getxattr_in.SIZE
"""Where the names in these requests begin. In others they follow the header."""


def name_at(message: bytes, start: int) -> tuple[str, int]:
    """Return the name that begins at ``start``, and where what follows it begins.

    Raises:
        OSError: ENAMETOOLONG, which the kernel leaves to the server to check.
        WireError: it has no end, or it is not a valid name.
    """
    end = message.find(0, start)
    if end < 0:
        raise WireError("a name without an end")
    name = message[start:end]
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if not name or b"/" in name:
        raise WireError(f"{name!r} is not a valid name")
    return name.decode(ENCODING, ERRORS), end + 1


def name_of(message: bytes) -> str:
    """Return the name that follows the header. Raises as `name_at`."""
    return name_at(message, HEADER)[0]


def text_at(message: bytes, start: int) -> tuple[str, int]:
    """Return what ends with the next NUL, and where what follows it begins. Raises WireError."""
    end = message.find(0, start)
    if end < 0:
        raise WireError("a text without an end")
    return message[start:end].decode(ENCODING, ERRORS), end + 1


def renaming(message: bytes, opcode: int) -> tuple[str, int, str, int]:
    """Take RENAME or RENAME2 apart: a name, the other directory, the new name, and the flags."""
    if opcode == FUSE_RENAME2:
        (target, flags), start = _pick_rename2(message), HEADER + fuse_rename2_in.SIZE
    else:
        (target,), flags, start = _pick_rename(message), 0, HEADER + fuse_rename_in.SIZE
    name, after = name_at(message, start)
    return name, target, name_at(message, after)[0], flags


def setting_xattr(message: bytes, size: int) -> tuple[str, bytes, int]:
    """Take SETXATTR apart, whose structure has ``size`` bytes: name, value and flags."""
    length, flags = _pick_setxattr(message.ljust(HEADER + fuse_setxattr_in.SIZE))
    name, after = text_at(message, HEADER + size)
    value = message[after : after + length]
    if len(value) != length:
        raise WireError(f"{len(value)} bytes of a value, not {length}")
    return name, value, flags


def changing(message: bytes) -> tuple[Changes, int | None]:
    """Take SETATTR apart: what changes, and the open file's handle, if there is one."""
    valid, fh, size, atime, mtime, ctime, *rest = _pick_setattr(message)
    atime_ns, mtime_ns, ctime_ns, mode, uid, gid = rest
    changes = Changes()
    if valid & FATTR_MODE:
        changes.mode = mode & 0o7777
    if valid & FATTR_UID:
        changes.uid = uid
    if valid & FATTR_GID:
        changes.gid = gid
    if valid & FATTR_SIZE:
        changes.size = size
    if valid & FATTR_ATIME:
        now = valid & FATTR_ATIME_NOW
        changes.atime_ns = time.time_ns() if now else _time_ns(atime, atime_ns)
    if valid & FATTR_MTIME:
        now = valid & FATTR_MTIME_NOW
        changes.mtime_ns = time.time_ns() if now else _time_ns(mtime, mtime_ns)
    elif valid & FATTR_SIZE and valid & FATTR_FH:
        # ftruncate(2) changes it even if the size stays. Linux leaves that to the server
        # (fs/fuse/dir.c, update_mtime).
        changes.mtime_ns = time.time_ns()
    if valid & FATTR_CTIME:
        changes.ctime_ns = _time_ns(ctime, ctime_ns)
    return changes, fh if valid & FATTR_FH else None


def signed(seconds: int) -> int:
    """Seconds as the protocol has them, of 64 bits: they are negative before 1970."""
    return seconds - (seconds >> 63 << 64)


def _time_ns(seconds: int, nanoseconds: int) -> int:
    return signed(seconds) * _NS + nanoseconds


def seeking(message: bytes) -> tuple[int, int, int]:
    """Take LSEEK apart: the open file's handle, an offset, SEEK_DATA or SEEK_HOLE.

    Raises:
        OSError: ENXIO, the offset is before the beginning; the kernel does not look at it.
    """
    handle, offset, whence = _pick_lseek(message)
    if offset >> 63:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return handle, offset, whence


def locking(message: bytes) -> tuple[int, Lock, int]:
    """Take GETLK, SETLK or SETLKW apart: the open file's handle, the lock, and its owner."""
    request = fuse_lk_in.unpack(message, HEADER)
    asked, flock = request.lk, bool(request.lk_flags & FUSE_LK_FLOCK)
    return request.fh, Lock(asked.type, asked.start, asked.end, asked.pid, flock), request.owner


def forgetting(message: bytes, opcode: int, number: int) -> list[tuple[int, int]]:
    """Take FORGET or BATCH_FORGET apart: the number of a node, and how many lookups, for each.

    Raises:
        WireError: it is shorter than it says.
    """
    if opcode == FUSE_FORGET:
        return [(number, *_pick_forget(message))]
    count = fuse_batch_forget_in.unpack(message, HEADER).count
    start = HEADER + fuse_batch_forget_in.SIZE
    records = message[start : start + count * fuse_forget_one.SIZE]
    if len(records) != count * fuse_forget_one.SIZE:
        raise WireError(f"{len(records)} bytes of records, not {count} of {fuse_forget_one.SIZE}")
    return [*fuse_forget_one.CODEC.iter_unpack(records)]
