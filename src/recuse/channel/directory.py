"""The names of a FUSE mount: a tree of directories and files that never changes."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable

from recuse.server.device import Device
from recuse.wire.filesystem import (
    fuse_attr,
    fuse_attr_out,
    fuse_dirent,
    fuse_entry_out,
    fuse_kstatfs,
    fuse_statfs_out,
)
from recuse.wire.fuse import (
    FUSE_GETATTR,
    FUSE_LOOKUP,
    FUSE_OPENDIR,
    FUSE_READDIR,
    FUSE_RELEASEDIR,
    FUSE_ROOT_ID,
    FUSE_STATFS,
    fuse_open_out,
    fuse_read_in,
)

DIRECTORY_MODE = stat.S_IFDIR | 0o755
NAME_MAX = 255

_ENTRY_VALID_S = 1 << 30
"""How long the kernel may remember what a name means: for ever."""

Size = Callable[[Device], int]
"""Returns the current size of a device's file, in bytes."""


class _Node:
    def __init__(self, number: int, parent: _Node | None, device: Device | None) -> None:
        self.number = number
        self.parent = parent or self
        self.device = device
        self.children: dict[bytes, _Node] = {}

    @property
    def mode(self) -> int:
        return DIRECTORY_MODE if self.device is None else stat.S_IFREG | self.device.mode


class Directory:
    """Answers the requests about names and attributes.

    A device is a regular file. If its name has "/", there are directories.
    """

    def __init__(self, devices: Iterable[Device], size: Size) -> None:
        """Make the tree. Raises ValueError if the names of two devices conflict."""
        self._size = size
        self._made = time.time_ns()
        root = _Node(FUSE_ROOT_ID, None, None)
        self._nodes = {root.number: root}
        for device in devices:
            self._add(root, device)
        self._serve: dict[int, Callable[[_Node, bytes], bytes]] = {
            FUSE_LOOKUP: self._lookup,
            FUSE_GETATTR: lambda node, _: fuse_attr_out(attr=self._attributes(node)).pack(),
            FUSE_OPENDIR: lambda _, __: fuse_open_out().pack(),
            FUSE_READDIR: self._readdir,
            FUSE_RELEASEDIR: lambda _, __: b"",
            FUSE_STATFS: lambda _, __: fuse_statfs_out(
                fuse_kstatfs(bsize=4096, frsize=4096, namelen=NAME_MAX)
            ).pack(),
        }

    def _add(self, root: _Node, device: Device) -> None:
        node = root
        *directories, name = os.fsencode(device.name).split(b"/")
        for part in directories:
            node = node.children.get(part) or self._make(node, part, None)
        if node.device is not None or name in node.children:
            raise ValueError(f"the name {device.name} is taken twice")
        self._make(node, name, device)

    def _make(self, parent: _Node, name: bytes, device: Device | None) -> _Node:
        node = _Node(FUSE_ROOT_ID + len(self._nodes), parent, device)
        self._nodes[node.number] = parent.children[name] = node
        return node

    def device(self, number: int) -> Device | None:
        """Return the device whose file has this node number."""
        node = self._nodes.get(number)
        return None if node is None else node.device

    def answer(self, opcode: int, number: int, body: bytes) -> bytes | None:
        """Return the payload of an answer; None for a request that is not about names.

        Raises OSError.
        """
        serve = self._serve.get(opcode)
        if serve is None:
            return None
        if number not in self._nodes:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return serve(self._nodes[number], body)

    def _lookup(self, node: _Node, body: bytes) -> bytes:
        found = node.children.get(body.rstrip(b"\0"))
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return fuse_entry_out(
            nodeid=found.number, entry_valid=_ENTRY_VALID_S, attr=self._attributes(found)
        ).pack()

    def _attributes(self, node: _Node) -> fuse_attr:
        seconds, nanoseconds = divmod(self._made, 10**9)
        device = node.device
        subdirectories = sum(child.device is None for child in node.children.values())
        return fuse_attr(
            ino=node.number,
            size=0 if device is None else self._size(device),
            atime=seconds,
            mtime=seconds,
            ctime=seconds,
            atimensec=nanoseconds,
            mtimensec=nanoseconds,
            ctimensec=nanoseconds,
            mode=node.mode,
            nlink=2 + subdirectories if device is None else 1,
            uid=(device and device.uid) or 0,
            gid=(device and device.gid) or 0,
            blksize=4096,
        )

    def _readdir(self, node: _Node, body: bytes) -> bytes:
        call = fuse_read_in.unpack(body)
        entries = [(b".", node), (b"..", node.parent), *node.children.items()]
        listing = b""
        for index, (name, entry) in enumerate(entries[call.offset :], call.offset + 1):
            made = fuse_dirent(
                ino=entry.number, off=index, namelen=len(name), type=entry.mode >> 12
            ).pack()
            made += name + bytes(-len(name) % 8)
            if len(listing) + len(made) > call.size:
                break
            listing += made
        return listing
