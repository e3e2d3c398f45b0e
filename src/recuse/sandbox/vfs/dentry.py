"""Names in trees that exist only in a sandbox, and the places where a tree is seen.

As in Linux, a place is a pair: a mount, and a name in its tree (``struct path``). One tree can be
seen at several places.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from recuse.runtime.records import NamedTuple
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.nodes import Node

if TYPE_CHECKING:
    from recuse.sandbox.trap.call import TrappedCall


SERVER_GONE: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a tree fails with when its server has ended. An addition then adds nothing any more."""


class Dentry:
    """A name in a directory, and the node that it leads to.

    The tree decides what is in ``children``. A tree in memory has all entries of a directory there;
    other trees have those that are known.
    """

    __slots__ = ("children", "name", "node", "parent")

    def __init__(self, name: bytes, node: Node, parent: Dentry | None = None) -> None:
        """Make a name; the root of a tree has neither a name nor a parent."""
        self.name = name
        self.node = node
        self.parent = parent
        self.children: dict[bytes, Dentry] = {}

    def add(self, name: bytes, node: Node) -> Dentry:
        """Give a directory an entry. It replaces an entry of the same name."""
        child = self.children[name] = Dentry(name, node, self)
        if node.is_directory:
            self.node.links += 1
        return child

    def remove(self) -> None:
        """Take the name out of its directory. Whoever has it open can still use it."""
        self.node.removed = True
        parent = self.parent
        if parent is not None and parent.children.get(self.name) is self:
            del parent.children[self.name]
            if self.node.is_directory:
                parent.node.links -= 1

    def path(self, top: bytes) -> bytes:
        """Its path, if the path of its tree's root is ``top``."""
        names = []
        here = self
        while here.parent is not None:
            names.append(here.name)
            here = here.parent
        if not names:
            return top
        names.append(b"" if top == b"/" else top)
        names.reverse()
        return b"/".join(names)


class FileTree(Protocol):
    """A tree of files that is seen at a mount or as an addition.

    To ask somebody else for something, a tree asks the call, which then waits:
    :meth:`recuse.sandbox.trap.call.TrappedCall.ask`.
    """

    @property
    def root(self) -> Dentry:
        """The directory at the top."""

    is_filesystem: bool
    """Whether it is a `recuse.sandbox.vfs.filesystem_tree.FilesystemTree`."""

    def lookup(self, call: TrappedCall, directory: Dentry, name: bytes) -> Dentry | None:
        """What has that name; None if nothing has it. Raises OSError for the call."""

    def list(self, call: TrappedCall, directory: Dentry) -> Sequence[Dentry]:
        """All entries of a directory. Raises OSError for the call."""

    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        """Where a symbolic link leads. Raises OSError for the call: EINVAL if it is no link."""

    def statfs(self, call: TrappedCall) -> bytes:
        """``struct statfs`` for all files of the tree. Raises OSError for the call."""


class Mount:
    """A place where a tree is seen. It covers everything else at that path."""

    __slots__ = ("detached", "late", "path", "point", "tree")

    def __init__(
        self,
        tree: FileTree,
        path: bytes,
        point: Location | None = None,
        *,
        late: bool = False,
    ) -> None:
        """Make a mount; `recuse.sandbox.vfs.mounts.Mounts` must be told of it.

        Args:
            tree: what is seen.
            path: where it is seen, from the supervisor's root.
            point: recuse's directory that it covers; None if it covers a native directory.
            late: whether programs may have been in the directory, or have had it open, before.
        """
        self.tree = tree
        self.path = path
        self.point = point
        self.late = late
        self.detached = False
        """Whether it was unmounted. Whoever is in it or has its files open can still use them."""


class Addition(Mount):
    """A tree whose root's entries are seen in a native directory, next to the native entries.

    If several entries of a directory have the same name, one is seen: the first among the additions
    that ``hide``; if there is none, the native one; and if there is none, the first among the other
    additions. The root itself is never seen.
    """

    __slots__ = ("hides",)

    def __init__(self, tree: FileTree, path: bytes, *, hides: bool = False) -> None:
        """Make an addition; ``path`` is the directory's, from the supervisor's root."""
        super().__init__(tree, path)
        self.hides = hides


class Location(NamedTuple):
    """A place in a tree of recuse's."""

    mount: Mount
    dentry: Dentry

    @property
    def node(self) -> Node:
        """The node that is there."""
        return self.dentry.node

    @property
    def path(self) -> bytes:
        """Its path, from the supervisor's root."""
        return self.dentry.path(self.mount.path)

    def read_link(self, call: TrappedCall) -> bytes:
        """Where it leads, if it is a symbolic link. Raises OSError for the call."""
        return self.mount.tree.read_link(call, self.dentry)

    @property
    def is_root(self) -> bool:
        """Whether it is the root of its tree."""
        return self.dentry.parent is None


class MemoryTree:
    """A tree that is all in memory, and appears to be on a native filesystem."""

    is_filesystem = False

    def __init__(self, root: Node, filesystem: bytes) -> None:
        """Make an empty tree; ``filesystem`` is the path of a directory on that filesystem."""
        self.root: Final = Dentry(b"", root)
        self._filesystem = filesystem

    def lookup(self, call: TrappedCall, directory: Dentry, name: bytes) -> Dentry | None:
        """What has that name."""
        return directory.children.get(name)

    def list(self, call: TrappedCall, directory: Dentry) -> Sequence[Dentry]:
        """All entries of a directory."""
        return list(directory.children.values())

    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        """Where a symbolic link leads. OSError: EINVAL if it is no link."""
        return link.node.read_link()

    def statfs(self, call: TrappedCall) -> bytes:
        """What statfs says of the native filesystem. OSError as statfs."""
        return native_files.statfs_at(self._filesystem)


class LoneTree(MemoryTree):
    """The tree of a file that has no place in any other (fs/libfs.c, init_pseudo)."""

    def __init__(self, root: Node) -> None:
        """Make the tree of this file."""
        super().__init__(root, b"")

    def statfs(self, call: TrappedCall) -> bytes:
        """What statfs says of the kernel's own anonymous files (fs/libfs.c, simple_statfs)."""
        return native_files.statfs_of_anonymous()


def lone(node: Node, name: bytes) -> Location:
    """The location of a file that has no place in any tree; ``name`` is its whole path."""
    tree = LoneTree(node)
    return Location(Mount(tree, name), tree.root)
