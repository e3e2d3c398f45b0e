"""What is told of a node, and what is asked to be changed of it: plain values."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from recuse.runtime.records import record

if TYPE_CHECKING:
    from recuse.server.device import File

STARTED_NS: Final = time.time_ns()
"""What a node's times are if nobody has set them."""
UID: Final = os.geteuid()
GID: Final = os.getegid()
"""To whom a node belongs by default: to the user who serves it."""


@record
class Attributes:
    """What stat(2) tells of a node, for those that have it ready in one piece."""

    mode: int
    """Type and permission bits, as ``st_mode``."""
    size: int = 0
    """In bytes."""
    nlink: int = 1
    uid: int = UID
    gid: int = GID
    rdev: int = 0
    """Of a device node: ``os.makedev(major, minor)``."""
    atime_ns: int = STARTED_NS
    mtime_ns: int = STARTED_NS
    ctime_ns: int = STARTED_NS
    blocks: int | None = None
    """Of 512 bytes each; None: as many as the size needs."""
    block_size: int = 4096
    """Best size of a transfer, as ``st_blksize``."""


@record
class Changes:
    """What chmod, chown, truncate, utimensat and their like change; None is what stays."""

    mode: int | None = None
    """The permission bits, 0 to 0o7777."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    """In bytes."""
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    """Only from a kernel that keeps written data for a while (`Filesystem.writeback`)."""
    file: File | None = None
    """The open file by which it was asked for (ftruncate, fchmod...), if it was by one."""


class Entry(NamedTuple):
    """A name in a directory whose node is not made yet."""

    name: str
    kind: int
    """The type bits of ``st_mode``; 0 if that is not known."""
    ino: int = 0
    """As ``st_ino``, if it is known."""


class Lock(NamedTuple):
    """A lock of fcntl(2) or flock(2)."""

    type: int
    """`fcntl.F_RDLCK`, `fcntl.F_WRLCK` or `fcntl.F_UNLCK`."""
    start: int = 0
    end: int = (1 << 63) - 1
    """The last byte, included."""
    pid: int = 0
    """Of the process that has it."""
    flock: bool = False
    """Whether it is flock's, which are not in the way of fcntl's."""


@record
class Statistics:
    """What statfs(2) tells of a filesystem; sizes in blocks of ``block_size`` bytes."""

    blocks: int = 0
    free: int = 0
    available: int = 0
    """Free for everybody, not only for root."""
    files: int = 0
    free_files: int = 0
    block_size: int = 4096
    name_max: int = 255
