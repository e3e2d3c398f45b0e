"""Names and nodes of a filesystem, as the sandbox's walk sees them.

They have nothing of their own: a name is one of the kernel half's, and so is its inode. What is
valid, and for how long, is decided there.
"""

from __future__ import annotations

import stat
from typing import Final

from recuse.kernel.fs import dentries
from recuse.kernel.fs.inodes import Inode
from recuse.sandbox.vfs.dentry import Dentry
from recuse.sandbox.vfs.nodes import Node


class NodeView(Node):
    """An inode. Its attributes must be asked for: `recuse.sandbox.fs.tree.MountedTree.status`."""

    __slots__ = ()

    def __init__(self) -> None:
        self.removed = False
        """What has been removed can still be used by whoever holds it; the kernel half says how."""


class _DirectoryView(NodeView):
    __slots__ = ()

    is_directory = True


class _LinkView(NodeView):
    __slots__ = ()

    is_link = True


_VIEWS: Final[dict[int, NodeView]] = {
    stat.S_IFDIR: _DirectoryView(),
    stat.S_IFLNK: _LinkView(),
}
_OTHER: Final = NodeView()


class Name(Dentry):
    """A name of the kernel half's. Two are equal if they are the same one there."""

    __slots__ = ("of",)

    def __init__(self, of: dentries.Dentry) -> None:
        """See one; something has that name."""
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and other.of is self.of

    def __hash__(self) -> int:
        return hash(self.of)

    @property
    def inode(self) -> Inode:
        """What it leads to."""
        inode = self.of.inode
        assert inode is not None
        return inode

    # What is renamed is elsewhere from then on, so nothing of this is kept.

    @property
    def name(self) -> bytes:  # type: ignore[override]  # it is not changed from here
        """See `Dentry`."""
        return self.of.name

    @property
    def parent(self) -> Name | None:  # type: ignore[override]
        """See `Dentry`."""
        parent = self.of.parent
        return None if parent is None else Name(parent)

    @property
    def node(self) -> NodeView:  # type: ignore[override]
        """Its kind of node."""
        return _VIEWS.get(self.inode.kind, _OTHER)

    @property
    def is_removed(self) -> bool:
        """Whether its directory does not have it any more."""
        here: dentries.Dentry | None = self.of
        while here is not None:
            if not here.is_attached:
                return True
            here = here.parent
        return False

    def path(self, top: bytes) -> bytes:
        """See `Dentry.path`; " (deleted)" follows if there is none any more (fs/d_path.c)."""
        path = super().path(top)
        return path + b" (deleted)" if self.is_removed else path
