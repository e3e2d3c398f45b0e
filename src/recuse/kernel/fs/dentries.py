"""Names that are known, and that are known not to exist (fs/dcache.c).

A directory refers to the names in it, and a name to its directory. `Dentry.detach` undoes both.
"""

import errno
from weakref import ref

from recuse.kernel.errors import os_error
from recuse.kernel.fs.inodes import Inode


class Dentry:
    """A name in a directory, and the inode that it leads to: None if nothing has that name.

    valid_until
        When the server wants to be asked again, as `Superblock.clock`; 0: now.
    epoch
        See `Superblock.epoch`.
    """

    __slots__ = ("__weakref__", "children", "epoch", "inode", "name", "parent", "valid_until")

    def __init__(self, name: bytes, inode: Inode | None, parent: "Dentry | None" = None) -> None:
        """Make a name; the root has neither a name nor a parent."""
        self.name = name
        self.inode = inode
        self.parent = parent
        self.valid_until = 0
        self.epoch = 0
        self.children: dict[bytes, Dentry] = {}
        if inode is not None and inode.is_directory:
            inode.alias = ref(self)

    def __repr__(self) -> str:
        return f"<Dentry {self.name!r} {self.inode!r}>"

    @property
    def directory(self) -> "Dentry":
        """The directory that it is in; the root's is itself."""
        return self if self.parent is None else self.parent

    @property
    def is_attached(self) -> bool:
        """Whether its directory still has it under this name."""
        return self.parent is None or self.parent.children.get(self.name) is self

    def put(self, name: bytes, inode: Inode | None) -> "Dentry":
        """Have a name lead to an inode, in this directory; a directory moves here with its names.

        A directory has one name (d_splice_alias). Raises OSError: ELOOP if this one is in it.
        """
        old = self.children.get(name)
        alias: Dentry | None = None if inode is None or inode.alias is None else inode.alias()
        if old is not None and old is not alias:
            old.detach()
        if alias is None:
            alias = Dentry(name, inode, self)
        elif self.is_below(alias):
            raise os_error(errno.ELOOP)
        else:
            alias.move(self, name)
        self.children[name] = alias
        return alias

    def move(self, directory: "Dentry", name: bytes) -> None:
        """Take another place in the tree."""
        if self.parent is not None and self.is_attached:
            del self.parent.children[self.name]
        self.parent, self.name = directory, name
        directory.children[name] = self

    def exchange(self, other: "Dentry") -> None:
        """Take the place of another, and give it this one's."""
        place, name = self.directory, self.name
        other_place, other_name = other.directory, other.name
        self.parent, self.name = other_place, other_name
        other.parent, other.name = place, name
        place.children[name] = other
        other_place.children[other_name] = self

    def detach(self) -> None:
        """Take it and all below it out of the tree (d_invalidate). Whoever uses it, keeps it."""
        parent = self.parent
        if parent is not None and parent.children.get(self.name) is self:
            del parent.children[self.name]
        left = [self]
        while left:
            dentry = left.pop()
            left += dentry.children.values()
            dentry.children.clear()

    def shrink(self) -> None:
        """Drop the names below that nothing uses (shrink_dcache_sb)."""
        below = list(self.children.values())
        index = 0
        while index < len(below):
            below += below[index].children.values()
            index += 1
        while below:
            parent, name = below[-1].parent, below[-1].name
            del below[-1]  # it would be a use
            if parent is not None:
                parent.drop(name)

    def drop(self, name: bytes) -> None:
        """Drop a name if nothing uses it and nothing is known below it."""
        child = self.children.pop(name, None)
        if child is None:
            return
        watch = ref(child)
        if not child.children:
            del child
        used = watch()
        if used is not None:
            self.children.setdefault(name, used)

    def is_below(self, other: "Dentry") -> bool:
        """Whether it is ``other``, or in it, however deep."""
        here: Dentry | None = self
        while here is not None:
            if here is other:
                return True
            here = here.parent
        return False
