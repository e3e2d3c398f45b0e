"""The attributes of nodes, and changes of them: plain values."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from recuse.runtime.records import record

if TYPE_CHECKING:
    from recuse.server.device import File

STARTED_NS: Final = time.time_ns()
"""The times of a node if nobody has set them."""
UID: Final = os.geteuid()
GID: Final = os.getegid()
"""The default owner of a node: the user who serves it."""


@record
class Attributes:
    """What stat(2) returns for a node, for authors who have it all in one place."""

    mode: int
    """Type and permission bits, as ``st_mode``."""
    size: int = 0
    """In bytes."""
    nlink: int = 1
    uid: int = UID
    gid: int = GID
    rdev: int = 0
    """For a device node: ``os.makedev(major, minor)``."""
    atime_ns: int = STARTED_NS
    mtime_ns: int = STARTED_NS
    ctime_ns: int = STARTED_NS
    blocks: int | None = None
    """In blocks of 512 bytes. None: as many as the size needs."""
    block_size: int = 4096
    """Best size of a transfer, as ``st_blksize``."""


@record
class Changes:
    """What chmod, chown, truncate, utimensat and the like change. None means unchanged."""

    mode: int | None = None
    """The permission bits, 0 to 0o7777."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    """In bytes."""
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    """Only from a kernel that holds back written data for a while (`Filesystem.writeback`)."""
    file: File | None = None
    """The open file that was used for the change (ftruncate, fchmod...), if one was used."""


class Entry(NamedTuple):
    """A name in a directory whose node has not been made yet."""

    name: str
    kind: int
    """The type bits of ``st_mode``; 0 if not known."""
    ino: int = 0
    """As ``st_ino``, if known."""


class Lock(NamedTuple):
    """A lock of fcntl(2) or flock(2)."""

    type: int
    """`fcntl.F_RDLCK`, `fcntl.F_WRLCK` or `fcntl.F_UNLCK`."""
    start: int = 0
    end: int = (1 << 63) - 1
    """The last byte, inclusive."""
    pid: int = 0
    """The process that holds it."""
    flock: bool = False
    """Whether it is a flock lock. These do not conflict with fcntl's."""


@record
class Statistics:
    """What statfs(2) returns for a filesystem; sizes are in blocks of ``block_size`` bytes."""

    blocks: int = 0
    free: int = 0
    available: int = 0
    """Free for all users, not only for root."""
    files: int = 0
    free_files: int = 0
    block_size: int = 4096
    name_max: int = 255
