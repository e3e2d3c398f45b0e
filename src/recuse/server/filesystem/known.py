"""The nodes that a kernel half knows, by number, and how often it was told about each.

LOOKUP, and every other answer with an entry, adds one to the count of a node. FORGET takes some of
it back (fs/fuse/inode.c, fuse_iget, fuse_evict_inode). A node that the kernel half has forgotten
keeps its number: the same object is the same file.
"""

from __future__ import annotations

import errno
import itertools
import os

from recuse.runtime.locks import new_lock
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.nodes import Node
from recuse.wire.fuse import FUSE_ROOT_ID


class KnownNodes:
    """The known nodes of one connection. Thread-safe."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        self._lock = new_lock("KnownNodes")
        self._by_number: dict[int, Node] = {}
        self._lookups: dict[int, int] = {}
        root = vars(filesystem.root)
        # A tree has one sequence of numbers, whichever filesystem shows it.
        self._numbers: itertools.count[int] = root.setdefault(
            "_numbers", itertools.count(FUSE_ROOT_ID + 1)
        )
        filesystem.root._number = FUSE_ROOT_ID
        filesystem.root._filesystem = filesystem
        self._by_number[FUSE_ROOT_ID] = filesystem.root

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: int) -> Node:
        """Return the node with a number. Raises OSError: ESTALE if the kernel half knows none."""
        try:
            return self._by_number[number]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def number(self, node: Node) -> int:
        """Return a node's number, 1 for the root. A node without one gets one now."""
        if not node._number:
            # In one step: several sessions, even of several filesystems, may have the same tree.
            vars(node).setdefault("_number", next(self._numbers))
        return node._number

    def know(self, node: Node) -> int:
        """Note that the kernel half is told about a node once more; return its number."""
        number = node._number or self.number(node)
        if node._filesystem is not self._filesystem:
            node._filesystem = self._filesystem
        with self._lock:
            self._lookups[number] = self._lookups.get(number, 0) + 1
            self._by_number[number] = node
        return number

    def forget(self, number: int, count: int) -> Node | None:
        """Take back ``count`` of that; return the node if it is no longer known."""
        with self._lock:
            left = self._lookups.get(number, 0) - count
            if left > 0:
                self._lookups[number] = left
                return None
            self._lookups.pop(number, None)
            return self._by_number.pop(number, None) if number != FUSE_ROOT_ID else None

    def all_but_root(self) -> list[Node]:
        """Return the nodes that the kernel half knows."""
        return [node for number, node in [*self._by_number.items()] if number != FUSE_ROOT_ID]

    def forget_all(self) -> list[Node]:
        """Return all nodes that the kernel half knew: the connection is over."""
        with self._lock:
            left = self.all_but_root()
            self._by_number.clear()
            self._lookups.clear()
        return left
