"""A filesystem in memory by pyfuse3, as far as tar and find need one.

    python pyfuse3_memory.py MOUNTPOINT

Run with the interpreter that has pyfuse3 (benchmarks/requirements.txt). Prints "ready" once it is
mounted; SIGTERM unmounts it and ends it.
"""
# mypy: ignore-errors
# (pyfuse3 and trio need not be installed where mypy runs)

from __future__ import annotations

import errno
import itertools
import stat
import sys
import time
from typing import Any

import pyfuse3
import trio
from pyfuse3_server import terminate_on_signal

SAME = {
    "update_mode": "st_mode",
    "update_uid": "st_uid",
    "update_gid": "st_gid",
    "update_atime": "st_atime_ns",
    "update_mtime": "st_mtime_ns",
}


class Node:
    """A directory or a regular file."""

    def __init__(self, inode: int, mode: int, ctx: Any = None) -> None:
        self.children: dict[bytes, Node] = {}
        self.content = bytearray()
        self.entry = entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode = inode, mode
        entry.st_nlink = 1
        if ctx is not None:
            entry.st_uid, entry.st_gid = ctx.uid, ctx.gid
        entry.attr_timeout = entry.entry_timeout = 1
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time.time_ns()

    def attributes(self) -> Any:
        self.entry.st_size = len(self.content)
        return self.entry


class Memory(pyfuse3.Operations):
    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        root = pyfuse3.ROOT_INODE
        self.nodes = {root: Node(root, stat.S_IFDIR | 0o755)}
        self.numbers = itertools.count(root + 1)

    def make(self, parent: int, name: bytes, mode: int, ctx: Any) -> Node:
        node = Node(next(self.numbers), mode & ~ctx.umask, ctx)
        self.nodes[node.entry.st_ino] = self.nodes[parent].children[name] = node
        return node

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        node = self.nodes[parent_inode].children.get(name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node.attributes()

    async def getattr(self, inode: int, ctx: Any) -> Any:
        return self.nodes[inode].attributes()

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> Any:
        node = self.nodes[inode]
        for field, name in SAME.items():
            if getattr(fields, field):
                setattr(node.entry, name, getattr(attr, name))
        if fields.update_size:
            node.content[attr.st_size :] = bytes(max(0, attr.st_size - len(node.content)))
        return node.attributes()

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        return self.make(parent_inode, name, mode | stat.S_IFDIR, ctx).attributes()

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        node = self.make(parent_inode, name, mode, ctx)
        return pyfuse3.FileInfo(fh=node.entry.st_ino), node.attributes()

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        entries = list(self.nodes[fh].children.items())
        for number, (name, node) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, node.attributes(), number):
                break

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self.nodes[fh].content[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.nodes[fh].content[off : off + len(buf)] = buf
        return len(buf)


async def serve() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_on_signal, nursery.cancel_scope)
        await pyfuse3.main()


if __name__ == "__main__":
    pyfuse3.init(Memory(), sys.argv[1], {"fsname=recuse-bench"})
    print("ready", flush=True)
    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)
