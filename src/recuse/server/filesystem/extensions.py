"""What some requests say about the program besides what they ask for (fs/fuse/dir.c, file.c)."""

from __future__ import annotations

import os
import struct
from typing import Final

from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    fuse_create_in,
    fuse_ext_header,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_secctx,
    fuse_setattr_in,
    fuse_setxattr_in,
    fuse_supp_groups,
)
from recuse.wire.fuse import (
    FATTR_KILL_SUIDGID,
    FUSE_CREATE,
    FUSE_EXT_GROUPS,
    FUSE_MAX_NR_SECCTX,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_OPEN_KILL_SUIDGID,
    FUSE_SETATTR,
    FUSE_SETXATTR,
    FUSE_SETXATTR_ACL_KILL_SGID,
    FUSE_TMPFILE,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    fuse_in_header,
    fuse_open_in,
    fuse_write_in,
)

_HEADER: Final = fuse_in_header.SIZE


def umask(opcode: int, message: bytes) -> int:
    """Return the program's umask, from a request that makes something; from others 0."""
    if opcode in (FUSE_CREATE, FUSE_TMPFILE):
        return fuse_create_in.unpack(message, _HEADER).umask
    if opcode == FUSE_MKNOD:
        return fuse_mknod_in.unpack(message, _HEADER).umask
    if opcode == FUSE_MKDIR:
        return fuse_mkdir_in.unpack(message, _HEADER).umask
    return 0


def kill_suidgid(opcode: int, message: bytes) -> bool:
    """Whether set-user-ID and set-group-ID must be taken away with it."""
    if opcode == FUSE_WRITE:
        flags = fuse_write_in.unpack(message, _HEADER).write_flags
        return bool(flags & FUSE_WRITE_KILL_SUIDGID)
    if opcode == FUSE_SETATTR:
        return bool(fuse_setattr_in.unpack(message, _HEADER).valid & FATTR_KILL_SUIDGID)
    if opcode == FUSE_OPEN:
        return bool(fuse_open_in.unpack(message, _HEADER).open_flags & FUSE_OPEN_KILL_SUIDGID)
    if opcode in (FUSE_CREATE, FUSE_TMPFILE):
        return bool(fuse_create_in.unpack(message, _HEADER).open_flags & FUSE_OPEN_KILL_SUIDGID)
    if opcode == FUSE_SETXATTR:
        # All kernels that keep access control lists send the longer structure (7.33).
        flags = fuse_setxattr_in.unpack(message, _HEADER).setxattr_flags
        return bool(flags & FUSE_SETXATTR_ACL_KILL_SGID)
    return False


def groups(message: bytes) -> tuple[int, ...]:
    """Return the program's supplementary groups, as far as the request has them.

    Raises:
        WireError: lengths do not fit.
    """
    found: tuple[int, ...] = ()
    for kind, body in _extensions(message):
        if kind == FUSE_EXT_GROUPS:
            count = fuse_supp_groups.unpack(body).nr_groups
            if len(body) < 4 + 4 * count:
                raise WireError(f"{count} groups in {len(body)} bytes")
            found = struct.unpack_from(f"={count}I", body, fuse_supp_groups.SIZE)
    return found


def security_contexts(message: bytes) -> dict[str, bytes]:
    """Return the security contexts of what is made: names of extended attributes, and values.

    Raises:
        WireError: lengths do not fit.
    """
    found: dict[str, bytes] = {}
    for kind, body in _extensions(message):
        if kind > FUSE_MAX_NR_SECCTX:
            continue
        at = 0
        for _ in range(kind):
            size = fuse_secctx.unpack(body, at).size
            end = body.find(0, at + fuse_secctx.SIZE)
            value = body[end + 1 : end + 1 + size]
            if end < 0 or len(value) != size:
                raise WireError(f"a security context of {size} bytes does not end")
            found[os.fsdecode(body[at + fuse_secctx.SIZE : end])] = value
            at = end + 1 + size + 7 & ~7
    return found


def _extensions(message: bytes) -> list[tuple[int, bytes]]:
    """The extensions at a request's end: what kind each is, and what follows its header."""
    length = 8 * fuse_in_header.unpack(message).total_extlen
    if length > len(message) - _HEADER:
        raise WireError(f"{length} bytes of extensions in {len(message)}")
    rest, found = message[len(message) - length :], []
    while rest:
        header = fuse_ext_header.unpack(rest)
        if not fuse_ext_header.SIZE <= header.size <= len(rest):
            raise WireError(f"an extension of {header.size} bytes in {len(rest)}")
        found.append((header.type, rest[fuse_ext_header.SIZE : header.size]))
        rest = rest[header.size + 7 & ~7 :]
    return found
