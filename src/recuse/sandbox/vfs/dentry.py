"""Names in trees that exist only in a sandbox, and where a tree is seen.

As in Linux, a place in the tree of files is a pair: which mount, and which name in its tree
(``struct path``). A tree may be seen at several places.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.nodes import Node

if TYPE_CHECKING:
    from recuse.sandbox.trap.call import TrappedCall


SERVER_GONE: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a tree says whose server has ended. If it is an addition, nothing is added any more."""


class Dentry:
    """A name in a directory, and the node that it leads to.

    What ``children`` are is its tree's business: all that there are in a directory of a tree in
    memory, those that are known in others.
    """

    __slots__ = ("children", "name", "node", "parent")

    def __init__(self, name: bytes, node: Node, parent: Dentry | None = None) -> None:
        """Make one; the root of a tree has neither a name nor a parent."""
        self.name = name
        self.node = node
        self.parent = parent
        self.children: dict[bytes, Dentry] = {}

    def add(self, name: bytes, node: Node) -> Dentry:
        """Give a directory an entry, in place of the one that has the name."""
        child = self.children[name] = Dentry(name, node, self)
        if node.is_directory:
            self.node.links += 1
        return child

    def remove(self) -> None:
        """Take the name out of its directory; it stays known to who has it open."""
        self.node.removed = True
        parent = self.parent
        if parent is not None and parent.children.get(self.name) is self:
            del parent.children[self.name]
            if self.node.is_directory:
                parent.node.links -= 1

    def path(self, top: bytes) -> bytes:
        """Its path, if that of its tree's root is ``top``."""
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
    """A tree of files that is seen at a mount or addition.

    What it has to ask somebody else for it asks the call for, which makes it wait:
    :meth:`recuse.sandbox.trap.call.TrappedCall.ask`.
    """

    @property
    def root(self) -> Dentry:
        """The directory at the top."""

    def lookup(self, call: TrappedCall, directory: Dentry, name: bytes) -> Dentry | None:
        """What there is by a name, None if nothing. Raises OSError for the call."""

    def list(self, call: TrappedCall, directory: Dentry) -> Sequence[Dentry]:
        """All that there is in a directory. Raises OSError for the call."""

    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        """Where a symbolic link leads. Raises OSError for the call: EINVAL if it is none."""

    def statfs(self, call: TrappedCall) -> bytes:
        """``struct statfs`` of all files in it. Raises OSError for the call."""


class Mount:
    """A place where a tree is seen: all that is at that path otherwise is covered."""

    __slots__ = ("path", "point", "tree")

    def __init__(self, tree: FileTree, path: bytes, point: Location | None = None) -> None:
        """Make one; `recuse.sandbox.vfs.mounts.Mounts` is to be told of it.

        Args:
            tree: what is seen.
            path: where, from the supervisor's root.
            point: the directory of ours that it covers; None for a native one.
        """
        self.tree = tree
        self.path = path
        self.point = point


class Addition(Mount):
    """A tree whose root's entries are in a native directory, besides what is there natively.

    Among those of one directory, and of a native file and one of ours of the same name, the first
    one is seen: of those that ``hide``, then the native one, then the others. The root itself is
    never seen.
    """

    __slots__ = ("hides",)

    def __init__(self, tree: FileTree, path: bytes, *, hides: bool = False) -> None:
        """Make one; ``path`` is the directory's from the supervisor's root."""
        super().__init__(tree, path)
        self.hides = hides


class Location(NamedTuple):
    """A place in the tree of files that is ours."""

    mount: Mount
    dentry: Dentry

    @property
    def node(self) -> Node:
        """What is there."""
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
    """A tree all of which is in memory, on a filesystem that there is natively."""

    def __init__(self, root: Node, filesystem: bytes) -> None:
        """Make one that is empty; ``filesystem`` is the path of a directory of that filesystem."""
        self.root: Final = Dentry(b"", root)
        self._filesystem = filesystem

    def lookup(self, call: TrappedCall, directory: Dentry, name: bytes) -> Dentry | None:
        """What there is by a name."""
        return directory.children.get(name)

    def list(self, call: TrappedCall, directory: Dentry) -> Sequence[Dentry]:
        """All that there is in a directory."""
        return list(directory.children.values())

    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        """Where a symbolic link leads. OSError: EINVAL if it is none."""
        return link.node.read_link()

    def statfs(self, call: TrappedCall) -> bytes:
        """That of the native filesystem. OSError as statfs."""
        return native_files.statfs_at(self._filesystem)


class LoneTree(MemoryTree):
    """Of a file that has no place in any tree (fs/libfs.c, init_pseudo)."""

    def __init__(self, root: Node) -> None:
        """Make it of the file."""
        super().__init__(root, b"")

    def statfs(self, call: TrappedCall) -> bytes:
        """That of the kernel's own anonymous files (fs/libfs.c, simple_statfs)."""
        return native_files.statfs_of_anonymous()


def lone(node: Node, name: bytes) -> Location:
    """Where a file is that has no place in any tree of ours; ``name`` is all of its path."""
    tree = LoneTree(node)
    return Location(Mount(tree, name), tree.root)
