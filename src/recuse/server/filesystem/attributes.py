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
    btime_ns: int | None = None
    """When it was made, for statx(2). None if not known."""
    ino: int = 0
    """As ``st_ino``. 0: the number that the node has in the protocol."""


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


@record
class InodeEntry:
    """What a name stands for, at the level of inodes.

    **It counts as one lookup** of the inode, as does each other answer with one. `Inodes.forget`
    takes them back, also those of an answer that nobody waited for any longer.
    """

    ino: int
    """The inode's number, 1 or more. In an answer to `Inodes.lookup` also 0: there is no such name,
    and the kernel may believe that for ``entry_cache_s``."""
    attributes: Attributes | os.stat_result | None
    """None only if there is no such name."""
    generation: int = 0
    """Tells apart files that have the same number one after the other. NFS needs it."""
    cache_s: float | None = None
    """How long the kernel may believe the attributes, in seconds. None: `Served.cache_s`."""
    entry_cache_s: float | None = None
    """How long it may believe what the name stands for. None: `Served.cache_s`."""


@record
class Opened:
    """How a file or directory was opened, at the level of inodes."""

    fh: object = None
    """Anything: it comes back with each operation on the open file."""
    direct: bool = False
    """Whether reads and writes come as they are made, bypassing the kernel's page cache."""
    keep_cache: bool = False
    """Whether what the kernel has cached from earlier opens is still valid."""
    backing: int | None = None
    """A descriptor that the kernel reads, writes and maps instead of asking (passthrough). With
    ``direct`` it is only mapped. It must stay open until `Inodes.release`. If the kernel cannot do
    this, `read` and `write` come."""
    nonseekable: bool = False
    """Whether programs cannot seek in it. Not with a backing file."""
    flushed: bool = True
    """Whether `Inodes.flush` is to come when a program closes a descriptor of it (Linux 5.16)."""
    parallel_writes: bool = False
    """Whether several writes may come at once, if it is ``direct`` (6.2)."""
    cache_entries: bool = False
    """For a directory: whether the kernel may remember its entries, until it is changed."""


@record
class DirectoryEntry:
    """One name in a directory, at the level of inodes."""

    name: str
    offset: int
    """Where the next entry is found: any number but 0, and not the same for two entries."""
    ino: int = 0
    """As ``st_ino``. Programs skip an entry with 0."""
    kind: int = 0
    """The type bits of ``st_mode``; 0 if not known."""
    entry: InodeEntry | None = None
    """In an answer to `Inodes.readdirplus`, except for "." and "..": what the name stands for. It
    replaces ``ino`` and ``kind``. None: the kernel has to look it up."""


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
