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
from recuse.kernel.fs.pages import Pages
from recuse.kernel.fs.turns import InodeLock
from recuse.kernel.locks import FileLocks
from recuse.runtime.locks import new_lock
from recuse.wire.filesystem import fuse_attr
from recuse.wire.fuse import FUSE_AUTO_INVAL_DATA, FUSE_EXPLICIT_INVAL_DATA

if TYPE_CHECKING:
    from typing import Protocol

    class Forgetting(Protocol):
        """What inodes need of their superblock."""

        attr_version: int

        def forget(self, nodeid: int, lookups: int) -> None:
            """Take back lookups of a node, later."""

        def expired(self, until: int) -> bool:
            """Whether a time has come."""

        def has(self, flag: int) -> bool:
            """Whether INIT has agreed on a flag."""


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

_TYPES: Final = frozenset({
    *(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR),
    *(stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK),
})  # fmt: skip
MOST_SIZE: Final = (1 << 63) - 1


def is_invalid(attr: fuse_attr) -> bool:
    """Whether no file can have such attributes (fuse_invalid_attr)."""
    return stat.S_IFMT(attr.mode) not in _TYPES or attr.size > MOST_SIZE


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
    is_plain
        It is known to have neither set-user-ID nor capabilities (S_NOSEC).
    linkable
        It has no name, but may get one: it was opened with O_TMPFILE (I_LINKABLE).
    pages
        What is known of a regular file's content.
    target
        What a symbolic link holds, if the server lets it be remembered.
    """

    __slots__ = (
        "__weakref__",
        "_superblock",
        "advise_plus",
        "alias",
        "attr",
        "attr_version",
        "bad",
        "flocks",
        "from_plus",
        "generation",
        "is_plain",
        "linkable",
        "lock",
        "lookups",
        "nodeid",
        "outdated",
        "pages",
        "removed",
        "target",
        "valid_until",
    )

    def __init__(
        self, superblock: "Forgetting", nodeid: int, generation: int, attr: fuse_attr
    ) -> None:
        self._superblock = superblock
        self.nodeid = nodeid
        self.generation = generation
        self.attr = attr
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
        self.flocks: FileLocks | None = None
        self.pages = Pages() if stat.S_ISREG(attr.mode) else _NO_PAGES
        self.lock = InodeLock()

    def __del__(self) -> None:
        if self.lookups:
            self._superblock.forget(self.nodeid, self.lookups)

    def __repr__(self) -> str:
        return f"<Inode {self.nodeid} mode={self.attr.mode:o} lookups={self.lookups}>"

    @property
    def kind(self) -> int:
        """The type bits of its mode."""
        return stat.S_IFMT(self.attr.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return stat.S_ISDIR(self.attr.mode)

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
        return bool(self.outdated & mask) or self._superblock.expired(self.valid_until)

    def update(self, attr: fuse_attr, valid_until: int, version: int) -> None:
        """Take attributes from a reply; ``version`` was current when it was asked for, 0: any.

        If something has changed them since then, they are only outdated.
        """
        # fs/fuse/inode.c, fuse_change_attributes_i.
        if version and self.attr_version > version:
            self.outdate()
            return
        self.attr_version = self._superblock.attr_version
        if len(self.pages):
            self._update_pages(attr)
        self.attr = attr
        self.valid_until = valid_until
        self.outdated = 0

    def _update_pages(self, attr: fuse_attr) -> None:
        """Give up content that the server says has changed."""
        old = self.attr
        if attr.size != old.size:
            self.pages.truncate(attr.size)
            gone = not self._superblock.has(FUSE_EXPLICIT_INVAL_DATA)
        else:
            newer = (attr.mtime, attr.mtimensec) != (old.mtime, old.mtimensec)
            gone = newer and self._superblock.has(FUSE_AUTO_INVAL_DATA)
        if gone:
            self.pages.drop()


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
