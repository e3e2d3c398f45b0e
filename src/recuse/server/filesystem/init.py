"""What the two halves agree on first: INIT (fs/fuse/inode.c, process_init_reply, Linux 6.18)."""

from __future__ import annotations

import errno
import os
from typing import Final

from recuse.runtime.log import Log
from recuse.server.filesystem.requests import HEADER
from recuse.server.filesystem.served import Served
from recuse.wire.fuse import (
    FUSE_ABORT_ERROR,
    FUSE_ALLOW_IDMAP,
    FUSE_ASYNC_DIO,
    FUSE_ASYNC_READ,
    FUSE_AUTO_INVAL_DATA,
    FUSE_BIG_WRITES,
    FUSE_CACHE_SYMLINKS,
    FUSE_CREATE_SUPP_GROUP,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_DONT_MASK,
    FUSE_EXPLICIT_INVAL_DATA,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_HAS_EXPIRE_ONLY,
    FUSE_INIT_EXT,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_MAX_PAGES,
    FUSE_PARALLEL_DIROPS,
    FUSE_PASSTHROUGH,
    FUSE_POSIX_ACL,
    FUSE_REQUEST_TIMEOUT,
    FUSE_SECURITY_CTX,
    FUSE_SETXATTR_EXT,
    FUSE_WRITEBACK_CACHE,
    fuse_init_in,
    fuse_init_out,
)

log = Log("recuse.server")

LEAST_MINOR: Final = 31
"""Linux 5.2."""
PAGE: Final = 4096
_STACK_DEPTH: Final = 2
"""FILESYSTEM_MAX_STACK_DEPTH, linux/fs.h."""

_ALWAYS: Final = (
    FUSE_ASYNC_READ
    | FUSE_BIG_WRITES
    | FUSE_ASYNC_DIO
    | FUSE_PARALLEL_DIROPS
    | FUSE_ABORT_ERROR
    | FUSE_MAX_PAGES
    | FUSE_CACHE_SYMLINKS
    | FUSE_SETXATTR_EXT
    | FUSE_INIT_EXT
    | FUSE_CREATE_SUPP_GROUP
    | FUSE_HAS_EXPIRE_ONLY
)
"""Capabilities that are used if the kernel half offers them."""


def negotiate(served: Served, wanted: int, message: bytes, has_backing: bool) -> fuse_init_out:
    """Return the answer to an INIT.

    Args:
        served: what is served.
        wanted: further flags to take if they are offered.
        message: the request.
        has_backing: whether the channel can make backing files known to the kernel half.

    Raises:
        OSError: EPROTO if the kernel half speaks no version that is known here.
    """
    # Kernels before 7.36 send a shorter structure.
    offer = fuse_init_in.unpack(message[HEADER:].ljust(fuse_init_in.SIZE, b"\0"))
    if offer.major != FUSE_KERNEL_VERSION or offer.minor < LEAST_MINOR:
        log.error(
            "the kernel half speaks %d.%d, this is for 7.%d and later",
            offer.major,
            offer.minor,
            LEAST_MINOR,
        )
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    offered = offer.flags | (offer.flags2 << 32 if offer.flags & FUSE_INIT_EXT else 0)
    taken = (wanted | _wanted(served, has_backing)) & offered
    return fuse_init_out(
        major=FUSE_KERNEL_VERSION,
        minor=min(FUSE_KERNEL_MINOR_VERSION, offer.minor),
        max_readahead=offer.max_readahead,
        flags=taken & 0xFFFFFFFF,
        flags2=taken >> 32,
        max_background=64,
        congestion_threshold=48,
        max_write=served.max_write,
        time_gran=1,
        max_pages=-(-max(served.max_read, served.max_write) // PAGE),
        # A backing file may be on a filesystem that lies on another one, such as overlayfs.
        max_stack_depth=_STACK_DEPTH if taken & FUSE_PASSTHROUGH else 0,
        request_timeout=served.request_timeout_s if taken & FUSE_REQUEST_TIMEOUT else 0,
    )


def _wanted(served: Served, has_backing: bool) -> int:
    flags = _ALWAYS
    flags |= FUSE_EXPLICIT_INVAL_DATA if served.explicit_invalidation else FUSE_AUTO_INVAL_DATA
    if served.direct_mmap:
        flags |= FUSE_DIRECT_IO_ALLOW_MMAP
    if served.writeback:
        flags |= FUSE_WRITEBACK_CACHE
    elif served.passthrough and has_backing:
        flags |= FUSE_PASSTHROUGH
    if served.posix_acls:
        flags |= FUSE_POSIX_ACL | FUSE_DONT_MASK
    if served.handle_killpriv:
        flags |= FUSE_HANDLE_KILLPRIV_V2
    if served.security_contexts:
        flags |= FUSE_SECURITY_CTX
    if served.idmapped:
        flags |= FUSE_ALLOW_IDMAP
    if served.request_timeout_s:
        flags |= FUSE_REQUEST_TIMEOUT
    return flags
