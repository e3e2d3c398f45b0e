"""A small filesystem of inodes, for tests."""

import os
import stat
from typing import Any

from recuse import (
    Attributes,
    InodeEntry,
    Inodes,
    Opened,
)
from recuse.wire import fuse

from .conftest import FilesystemPeer

FILE = Attributes(stat.S_IFREG | 0o640, size=12, ino=77, btime_ns=5 * 10**9 + 6)


ENTRY = InodeEntry(2, FILE, generation=9, cache_s=1.5, entry_cache_s=2.25)
"""What its lookups return."""


class Small(Inodes):
    """One file, number 2, whose name is anything; says what is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.lookups = 0

    def entry(self) -> InodeEntry:
        self.lookups += 1
        return InodeEntry(2, FILE, generation=9, cache_s=1.5, entry_cache_s=2.25)

    def forget(self, inodes: list[tuple[int, int]]) -> Any:
        self.lookups -= sum(count for _, count in inodes)
        self.asked.append(("forget", inodes))

    def lookup(self, parent: int, name: str) -> InodeEntry | None:
        if name == "none":
            return None
        return InodeEntry(0, None, entry_cache_s=4) if name == "never" else self.entry()

    def open(self, ino: int, flags: int) -> object:
        self.asked.append(("open", ino, flags))
        return "file"

    def release(self, ino: int, fh: object) -> Any:
        self.asked.append(("release", ino, fh))

    def opendir(self, ino: int, flags: int) -> object:
        return Opened("directory")

    def releasedir(self, ino: int, fh: object) -> None:
        self.asked.append(("releasedir", ino, fh))

    def create(self, parent: int, name: str, mode: int, flags: int) -> Any:
        self.asked.append(("create", parent, name, mode, flags))
        return self.entry(), Opened("new", direct=True, nonseekable=True)

    def destroy(self) -> Any:
        self.asked.append("destroy")


def opened(peer: FilesystemPeer, opcode: int = fuse.FUSE_OPEN, ino: int = 2) -> int:
    body = fuse.fuse_open_in(flags=os.O_RDWR)
    return fuse.fuse_open_out.unpack(peer.ask(opcode, ino, body)).fh
