"""A filesystem of EACH x EACH files that are made when they are looked up, by pyfuse3.

    python pyfuse3_many_nodes.py EACH MOUNTPOINT

Run with the interpreter that has pyfuse3 (benchmarks/requirements.txt). Prints "ready" once it is
mounted; SIGTERM unmounts it and ends it.
"""
# mypy: ignore-errors
# (pyfuse3 and trio need not be installed where mypy runs)

from __future__ import annotations

import stat
import sys
from typing import Any

import pyfuse3
import trio
from pyfuse3_memory import Memory, Node, serve


class Many(Memory):
    def __init__(self, each: int) -> None:
        super().__init__()
        self.each = each

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        parent = self.nodes[parent_inode]
        node = parent.children.get(name)
        if node is None:
            mode = stat.S_IFDIR if parent_inode == pyfuse3.ROOT_INODE else stat.S_IFREG
            node = Node(next(self.numbers), mode | 0o755)
            self.nodes[node.entry.st_ino] = parent.children[name] = node
        return node.attributes()

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        for number in range(start_id, self.each):
            name = b"%d" % number
            entry = await self.lookup(fh, name, None)
            if not pyfuse3.readdir_reply(token, name, entry, number + 1):
                break


if __name__ == "__main__":
    pyfuse3.init(Many(int(sys.argv[1])), sys.argv[2], {"fsname=recuse-bench"})
    print("ready", flush=True)
    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)
