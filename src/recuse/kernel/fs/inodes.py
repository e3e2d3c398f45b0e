"""Inodes: what this half knows about the server's nodes (fs/fuse/inode.c, dir.c).

An inode exists as long as something refers to it: a name, an open file, an operation. Python's own
counting of references is what counts. Then all lookups of the node are taken back by FORGET.
"""

import errno
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from recuse.kernel.errors import os_error
from recuse.kernel.fs.backing import IoMode
from recuse.kernel.fs.locks import RecordLocks
from recuse.kernel.fs.pages import Pages
from recuse.kernel.fs.turns import InodeLock
from recuse.kernel.locks import FileLocks
from recuse.runtime.locks import new_lock
from recuse.wire.filesystem import fuse_attr
from recuse.wire.fuse import (
    FUSE_AUTO_INVAL_DATA,
    FUSE_EXPLICIT_INVAL_DATA,
    FUSE_WRITEBACK_CACHE,
)

if TYPE_CHECKING:
    from typing import Protocol

    class Forgetting(Protocol):
        """What inodes need of their superblock."""

        attr_version: int

        def new_version(self) -> int:
            """Have older replies about attributes be stale."""

        def forget(self, nodeid: int, lookups: int) -> None:
            """Take back lookups of a node, later."""

        def expired(self, until: int) -> bool:
            """Whether a time has come."""

        def has(self, flag: int) -> bool:
            """Whether INIT has agreed on a flag."""

    class Writer(Protocol):
        """An open file that can write, as far as writing back needs it."""

        fh: int | None


# linux/stat.h: which attributes are known to be out of date.
STATX_TYPE: Final = 0x1
STATX_MODE: Final = 0x2
STATX_NLINK: Final = 0x4
STATX_UID: Final = 0x8
STATX_GID: Final = 0x10
STATX_ATIME: Final = 0x20
STATX_MTIME: Final = 0x40
STATX_CTIME: Final = 0x80
STATX_INO: Final = 0x100
STATX_SIZE: Final = 0x200
STATX_BLOCKS: Final = 0x400
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
MODIFIED: Final = STATX_MTIME | STATX_CTIME | STATX_BLOCKS
"""FUSE_STATX_MODIFY: what a write changes."""
MODIFIED_SIZE: Final = MODIFIED | STATX_SIZE
KEPT_HERE: Final = STATX_SIZE | STATX_MTIME | STATX_CTIME
"""What the server is not asked about a file that is written back (fuse_get_cache_mask)."""

UNKNOWN_ACL: Final = object()
"""Of an inode's list: it has to be asked for."""

_TYPES: Final = frozenset({
    *(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR),
    *(stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK),
})  # fmt: skip
MOST_SIZE: Final = (1 << 63) - 1


def is_invalid(attr: fuse_attr) -> bool:
    """Whether no file can have such attributes (fuse_invalid_attr)."""
    return stat.S_IFMT(attr.mode) not in _TYPES or attr.size > MOST_SIZE


class WriteErrors:
    """What went wrong when content was written back: told once (lib/errseq.c, mm/filemap.c).

    Each file that is open then hears it from fsync(2), and the next close(2) reports it too, unless
    an fsync did.
    """

    __slots__ = ("_number", "_seen", "count", "pending")

    def __init__(self) -> None:
        self.count = 0
        """How many errors there were."""
        self.pending = 0
        """The errno that the next close reports: EIO or ENOSPC."""
        self._number = 0
        self._seen = True

    def add(self, number: int) -> None:
        """Note an error (mapping_set_error)."""
        self.count += 1
        self._number = number
        self._seen = False
        self.pending = errno.ENOSPC if number == errno.ENOSPC else errno.EIO

    def sample(self) -> int:
        """How many errors a file that is opened now need not hear of."""
        return self.count if self._seen else self.count - 1

    def take(self) -> int:
        """Return the errno that a close reports, 0 if none (filemap_check_errors)."""
        number, self.pending = self.pending, 0
        return number

    def take_since(self, sample: int) -> int:
        """Return the last errno since a sample, 0 if none (file_check_and_advance_wb_err)."""
        if sample == self.count:
            return 0
        self._seen = True
        self.pending = 0
        return self._number


class Inode:
    """A node of the server's.

    attr
        What the server has said about it, and what has changed here since then.
    valid_until
        When that expires, as `Superblock.clock`; 0: it has.
    outdated
        STATX_ bits of what is known to be wrong in it.
    attr_version
        Replies to requests that were sent before this version are stale.
    bad
        The server has said that it is another kind of file: only EIO is left of it.
    alias
        A weak reference to a directory's only name (`recuse.kernel.fs.dentries.Dentry`).
    advise_plus, from_plus
        For the adaptive choice of READDIRPLUS: names in it were looked up after a listing; its
        attributes came with a listing and have not been used yet.
    flocks
        The locks of flock(2), if there were any and the server does not have them
        (`InodeTable.locks_of`).
    is_directory
        Whether it is one.
    is_plain
        It is known to have neither set-user-ID nor capabilities (S_NOSEC).
    kind
        The type bits of its mode, which stay the same: otherwise it is bad.
    linkable
        It has no name, but may get one: it was opened with O_TMPFILE (I_LINKABLE).
    pages
        What is known of a regular file's content.
    target
        What a symbolic link holds, if the server lets it be remembered.
    writers
        Open files that dirty pages can be written by; the last one is used.
    times_dirty
        The server does not have its times yet (I_DIRTY_SYNC).
    errors
        What went wrong with what was written back.
    """

    __slots__ = (
        "__weakref__",
        "_superblock",
        "acl",
        "advise_plus",
        "alias",
        "attr",
        "attr_version",
        "bad",
        "errors",
        "flocks",
        "from_plus",
        "generation",
        "io_mode",
        "is_directory",
        "is_plain",
        "kind",
        "linkable",
        "lock",
        "lookups",
        "nodeid",
        "outdated",
        "pages",
        "records",
        "removed",
        "target",
        "times_dirty",
        "valid_until",
        "writers",
        "writing",
    )

    def __init__(
        self, superblock: "Forgetting", nodeid: int, generation: int, attr: fuse_attr
    ) -> None:
        self._superblock = superblock
        self.nodeid = nodeid
        self.generation = generation
        self.attr = attr
        self.kind = stat.S_IFMT(attr.mode)
        self.is_directory = stat.S_ISDIR(attr.mode)
        self.valid_until = 0
        self.outdated = 0
        self.attr_version = 0
        self.lookups = 0
        self.bad = False
        self.removed = False
        self.is_plain = False
        self.linkable = False
        self.advise_plus = False
        self.from_plus = False
        self.alias: Callable[[], Any] | None = None
        self.target: bytes | None = None
        self.pages = Pages() if stat.S_ISREG(attr.mode) else _NO_PAGES
        self.lock = InodeLock()
        self.writing = InodeLock()
        """Held while pages or times are written back; RELEASE of a writer waits for it."""
        self.writers: list[Writer] = []
        self.times_dirty = False
        self.errors = WriteErrors()
        self.acl: Any = UNKNOWN_ACL
        """Its access control list (`recuse.kernel.fs.acl`), if that is known."""
        self.records: RecordLocks | None = None
        """Locks of bytes, if the server leaves them to this half."""
        self.flocks: FileLocks | None = None
        self.io_mode: IoMode | None = None
        """How those who have it open read and write it."""

    def __del__(self) -> None:
        if self.lookups:
            self._superblock.forget(self.nodeid, self.lookups)

    def __repr__(self) -> str:
        return f"<Inode {self.nodeid} mode={self.attr.mode:o} lookups={self.lookups}>"

    @property
    def is_kept(self) -> bool:
        """Whether its size and times are known here better than by the server."""
        return stat.S_ISREG(self.attr.mode) and self._superblock.has(FUSE_WRITEBACK_CACHE)

    def check(self) -> None:
        """Raise OSError(EIO) if it is bad."""
        if self.bad:
            raise os_error(errno.EIO)

    def is_stale(self, generation: int, attr: fuse_attr) -> bool:
        """Whether a reply about its node is about another file."""
        # fs/fuse/fuse_i.h, fuse_stale_inode.
        return generation != self.generation or stat.S_IFMT(attr.mode) != self.kind

    def outdate(self, mask: int = STATX_BASIC_STATS) -> None:
        """Note that some attributes have to be asked for again (fuse_invalidate_attr_mask)."""
        self.outdated |= mask

    def needs(self, mask: int) -> bool:
        """Whether some of these attributes have to be asked for."""
        outdated = self.outdated & mask
        if outdated and self.is_kept:
            outdated &= ~KEPT_HERE
        return bool(outdated) or self._superblock.expired(self.valid_until)

    def change(
        self, mask: int = STATX_BASIC_STATS, size: int | None = None, at_least: int = 0
    ) -> None:
        """Note that it has changed: some attributes are outdated, and replies under way are stale.

        ``size`` is its size now, if that is known; ``at_least``: or it is as large as that.
        """
        with _guard:
            self.attr_version = self._superblock.new_version()
            self.attr.size = max(self.attr.size if size is None else size, at_least)
            self.outdated |= mask

    def grow(self, end: int) -> None:
        """Note that it was written up to ``end``, and that the server does not know that yet."""
        with _guard:
            self.attr.size = max(self.attr.size, end)

    def shrink(self, end: int, version: int) -> None:
        """Note that a READ found its end; ``version`` was current when it was sent."""
        # fuse_read_update_size
        with _guard:
            if self.attr_version <= version and end < self.attr.size:
                self.attr_version = self._superblock.new_version()
                self.attr.size = end

    def update(self, attr: fuse_attr, valid_until: int, version: int) -> None:
        """Take attributes from a reply; ``version`` was current when it was asked for, 0: any.

        If something has changed them since then, they are only outdated.
        """
        # fs/fuse/inode.c, fuse_change_attributes_i.
        with _guard:
            self.acl = UNKNOWN_ACL
            kept = self.is_kept
            if kept:
                self.keep_own(attr)
            if version and self.attr_version > version:
                self.outdate()
                return
            self.attr_version = self._superblock.attr_version
            old, self.attr = self.attr, attr
            self.valid_until = valid_until
            self.outdated = 0
        if (len(self.pages) or self.pages.memory) and not kept:
            self._update_pages(old, attr)

    def keep_own(self, attr: fuse_attr) -> None:
        """Put into attributes from the server what is known better here."""
        own = self.attr
        attr.size = own.size
        attr.mtime, attr.mtimensec = own.mtime, own.mtimensec
        attr.ctime, attr.ctimensec = own.ctime, own.ctimensec

    def _update_pages(self, old: fuse_attr, attr: fuse_attr) -> None:
        """Give up content that the server says has changed."""
        if attr.size != old.size:
            self.pages.truncate(attr.size)
            gone = not self._superblock.has(FUSE_EXPLICIT_INVAL_DATA)
        else:
            newer = (attr.mtime, attr.mtimensec) != (old.mtime, old.mtimensec)
            gone = newer and self._superblock.has(FUSE_AUTO_INVAL_DATA)
        if gone:
            self.pages.drop()


_guard = new_lock("Inode")
"""Of all inodes: it is held for a few instructions, and there are very many of them."""
_NO_PAGES: Final = Pages()


class InodeTable:
    """The inodes of a filesystem, by node. Thread-safe."""

    def __init__(self, superblock: "Forgetting") -> None:
        self._superblock = superblock
        self._lock = new_lock("InodeTable")
        self._inodes: WeakValueDictionary[int, Inode] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._inodes)

    def find(self, nodeid: int) -> Inode | None:
        """Return a node's inode, None if there is none (fuse_ilookup)."""
        return self._inodes.get(nodeid)

    def all(self) -> list[Inode]:
        """Return all inodes there are now."""
        return list(self._inodes.values())

    def get(
        self, nodeid: int, generation: int, attr: fuse_attr, valid_until: int, version: int
    ) -> Inode:
        """Return the inode of a node that a reply was about, which counts as a lookup.

        If there was one, and the node is now another file, that one is bad.
        """
        # fs/fuse/inode.c, fuse_iget.
        with self._lock:
            inode = self._inodes.get(nodeid)
            if inode is not None and inode.is_stale(generation, attr):
                inode.bad = True
                inode = None
            if inode is None:
                inode = self._inodes[nodeid] = Inode(self._superblock, nodeid, generation, attr)
            inode.lookups += 1
        inode.update(attr, valid_until, version)
        return inode

    def records_of(self, inode: Inode) -> RecordLocks:
        """Return the table of the locks of an inode's bytes."""
        with self._lock:
            if inode.records is None:
                inode.records = RecordLocks()
            return inode.records

    def locks_of(self, inode: Inode) -> FileLocks:
        """Return the table of an inode's locks."""
        with self._lock:
            if inode.flocks is None:
                inode.flocks = FileLocks()
            return inode.flocks

    def count(self, inode: Inode) -> None:
        """Note another lookup of an inode's node."""
        with self._lock:
            inode.lookups += 1
