"""How a filesystem is mounted, and what INIT has agreed on (fs/fuse/inode.c)."""

import errno
import stat
from typing import Final, NamedTuple

from recuse.kernel.connection.request import MOST_PAGES, PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.wire.fuse import (
    FUSE_ABORT_ERROR,
    FUSE_ASYNC_DIO,
    FUSE_ASYNC_READ,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_AUTO_INVAL_DATA,
    FUSE_BIG_WRITES,
    FUSE_CACHE_SYMLINKS,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_DO_READDIRPLUS,
    FUSE_DONT_MASK,
    FUSE_EXPLICIT_INVAL_DATA,
    FUSE_EXPORT_SUPPORT,
    FUSE_FLOCK_LOCKS,
    FUSE_HANDLE_KILLPRIV,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_HAS_EXPIRE_ONLY,
    FUSE_HAS_RESEND,
    FUSE_INIT_EXT,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_MAX_PAGES,
    FUSE_NO_OPEN_SUPPORT,
    FUSE_NO_OPENDIR_SUPPORT,
    FUSE_PARALLEL_DIROPS,
    FUSE_PASSTHROUGH,
    FUSE_POSIX_ACL,
    FUSE_POSIX_LOCKS,
    FUSE_READDIRPLUS_AUTO,
    FUSE_SETXATTR_EXT,
    FUSE_WRITEBACK_CACHE,
    fuse_init_in,
    fuse_init_out,
)

OFFERED: Final = (
    FUSE_ASYNC_READ
    | FUSE_POSIX_LOCKS
    | FUSE_ATOMIC_O_TRUNC
    | FUSE_EXPORT_SUPPORT
    | FUSE_BIG_WRITES
    | FUSE_DONT_MASK
    | FUSE_FLOCK_LOCKS
    | FUSE_AUTO_INVAL_DATA
    | FUSE_DO_READDIRPLUS
    | FUSE_READDIRPLUS_AUTO
    | FUSE_ASYNC_DIO
    | FUSE_NO_OPEN_SUPPORT
    | FUSE_PARALLEL_DIROPS
    | FUSE_HANDLE_KILLPRIV
    | FUSE_ABORT_ERROR
    | FUSE_MAX_PAGES
    | FUSE_CACHE_SYMLINKS
    | FUSE_NO_OPENDIR_SUPPORT
    | FUSE_EXPLICIT_INVAL_DATA
    | FUSE_HANDLE_KILLPRIV_V2
    | FUSE_SETXATTR_EXT
    | FUSE_INIT_EXT
    | FUSE_HAS_EXPIRE_ONLY
    | FUSE_WRITEBACK_CACHE
    | FUSE_PASSTHROUGH
    | FUSE_DIRECT_IO_ALLOW_MMAP
    | FUSE_HAS_RESEND
    | FUSE_POSIX_ACL
)
"""The flags that INIT offers: what this half does."""

_MAX_READAHEAD: Final = 128 << 10
"""VM_READAHEAD_PAGES, in bytes."""
_DEFAULT_PAGES: Final = 32
"""FUSE_DEFAULT_MAX_PAGES_PER_REQ."""
_STACK_DEPTH: Final = 2
"""FILESYSTEM_MAX_STACK_DEPTH."""
_SECOND: Final = 10**9
_LIMITS_MINOR: Final = 13
NAME_MAX: Final = 1024
LONG_NAME_MAX: Final = 4095
"""FUSE_NAME_LOW_MAX, and FUSE_NAME_MAX of servers whose requests may have several pages."""
_OLDEST_MINOR: Final = 12
"""Requests of older servers have other structures."""


class MountOptions(NamedTuple):
    """What mount(2) says: the options of fuse(8) that matter here."""

    default_permissions: bool = True
    """Permissions are checked here, by the modes of files; otherwise the server checks them."""
    allow_other: bool = True
    """Others than the user who mounted it may use it."""
    read_only: bool = False
    user_id: int = 0
    group_id: int = 0
    """The user who mounted it."""
    root_mode: int = stat.S_IFDIR
    max_read: int = 0xFFFFFFFF
    """Most bytes of a READ."""
    block_size: int = 0
    """The block size of the device that it is on (fuseblk); 0 if it is on none."""


class Agreed(NamedTuple):
    """What INIT has agreed on."""

    minor: int = FUSE_KERNEL_MINOR_VERSION
    flags: int = 0
    max_write: int = PAGE_SIZE
    max_pages: int = _DEFAULT_PAGES
    max_readahead: int = 0
    """Most bytes that are read from a file at once, though the program has asked for fewer."""
    time_gran: int = 1
    """Times of files are multiples of so many nanoseconds."""
    max_background: int = 0
    congestion_threshold: int = 0
    """See `recuse.kernel.connection.connection`; 0: as they are."""
    name_max: int = NAME_MAX
    """Most bytes of a name; servers may accept fewer."""


def offer() -> bytes:
    """The body of INIT."""
    return fuse_init_in(
        major=FUSE_KERNEL_VERSION,
        minor=FUSE_KERNEL_MINOR_VERSION,
        max_readahead=_MAX_READAHEAD,
        flags=OFFERED & 0xFFFFFFFF,
        flags2=OFFERED >> 32,
    ).pack()


def agree(payload: bytes | memoryview) -> Agreed:
    """Take the answer to INIT; what a shorter one lacks is 0.

    Raises OSError: EPROTO for a version that this half does not speak.
    """
    # fs/fuse/inode.c, process_init_reply.
    out = fuse_init_out.unpack(bytes(payload).ljust(fuse_init_out.SIZE, b"\0"))
    if out.major != FUSE_KERNEL_VERSION or out.minor < _OLDEST_MINOR:
        raise os_error(errno.EPROTO)
    flags = out.flags
    if flags & FUSE_INIT_EXT:
        flags |= out.flags2 << 32
    flags &= OFFERED
    if flags & FUSE_WRITEBACK_CACHE or not 0 < out.max_stack_depth <= _STACK_DEPTH:
        flags &= ~FUSE_PASSTHROUGH
    pages, name_max = _DEFAULT_PAGES, NAME_MAX
    if flags & FUSE_MAX_PAGES:
        pages = min(MOST_PAGES, max(out.max_pages, 1))
        if pages > 1:
            name_max = LONG_NAME_MAX
    minor = min(out.minor, FUSE_KERNEL_MINOR_VERSION)
    # No WRITE has more pages, so nobody needs a larger buffer.
    max_write = min(max(out.max_write, PAGE_SIZE), MOST_PAGES * PAGE_SIZE)
    time_gran = out.time_gran if 0 < out.time_gran <= _SECOND else 1
    readahead = min(out.max_readahead, _MAX_READAHEAD)
    limits = (out.max_background, out.congestion_threshold)
    if minor < _LIMITS_MINOR:
        limits = (0, 0)
    return Agreed(minor, flags, max_write, pages, readahead, time_gran, *limits, name_max)
