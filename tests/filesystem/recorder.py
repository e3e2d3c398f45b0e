"""A filesystem in memory, at the level of inodes, that records what Linux asks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from recuse import (
    ROOT_INODE,
    Attributes,
    Changes,
    DirectoryEntry,
    InodeEntry,
    Inodes,
    Opened,
    current_request,
)


class Recorder(Inodes):
    """One directory with files. `asked` has the operations, in order."""

    name = "recorder"
    cache_s = 0.0

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.requests: list[dict[str, Any]] = []
        """What is known of the program that asked for changes."""
        self.names: dict[str, int] = {}
        self.contents: dict[int, bytearray] = {}
        self.attributes = {ROOT_INODE: Attributes(stat.S_IFDIR | 0o777, uid=0, gid=0)}
        self.xattrs: dict[tuple[int, str], bytes] = {}

    def add(self, name: str, content: bytes = b"", mode: int = 0o644) -> int:
        """Make a file."""
        ino = len(self.attributes) + 1
        self.names[name] = ino
        self.contents[ino] = bytearray(content)
        self.attributes[ino] = Attributes(stat.S_IFREG | mode, size=len(content), btime_ns=10**9)
        return ino

    def note(self) -> None:
        request = current_request()
        self.asked.append(request.operation)
        self.requests.append(
            {
                "operation": request.operation,
                "uid": request.uid,
                "umask": request.umask,
                "kill_suidgid": request.kill_suidgid,
                "groups": request.groups,
                "security_contexts": request.security_contexts,
            }
        )

    def last(self, operation: str) -> dict[str, Any]:
        """Return what was known at the last operation of a kind."""
        return next(one for one in reversed(self.requests) if one["operation"] == operation)

    def entry(self, ino: int) -> InodeEntry:
        return InodeEntry(ino, self.attributes[ino])

    def lookup(self, parent: int, name: str) -> InodeEntry | None:
        self.note()
        if name in (".", ".."):
            return self.entry(parent)
        return self.entry(self.names[name]) if name in self.names else None

    def getattr(self, ino: int, fh: Any) -> Attributes:
        self.note()
        return self.attributes[ino]

    def setattr(self, ino: int, changes: Changes, fh: Any) -> Attributes:
        self.note()
        told = self.attributes[ino]
        if changes.size is not None:
            self.contents[ino] = self.contents[ino][: changes.size].ljust(changes.size, b"\0")
            told.size = changes.size
        if changes.mode is not None:
            told.mode = stat.S_IFMT(told.mode) | changes.mode
        return told

    def read(self, ino: int, fh: Any, size: int, offset: int) -> bytes:
        self.note()
        return bytes(self.contents[ino][offset : offset + size])

    def write(self, ino: int, fh: Any, data: bytes, offset: int) -> None:
        self.note()
        content = self.contents[ino]
        content.extend(bytes(max(offset - len(content), 0)))
        content[offset : offset + len(data)] = data
        self.attributes[ino].size = len(content)

    def readdir(self, ino: int, fh: Any, offset: int) -> Iterator[DirectoryEntry]:
        self.note()
        for index, (name, number) in enumerate(list(self.names.items())[offset:], offset + 1):
            yield DirectoryEntry(name, index, ino=number)


class Making(Recorder):
    """Files can be made and opened, and have extended attributes."""

    opened = Opened()

    def open(self, ino: int, flags: int) -> Opened:
        self.note()
        return self.opened

    def create(self, parent: int, name: str, mode: int, flags: int) -> Any:
        self.note()
        return self.entry(self.add(name, b"", mode)), self.opened

    def getxattr(self, ino: int, name: str) -> bytes:
        if (ino, name) not in self.xattrs:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return self.xattrs[ino, name]

    def setxattr(self, ino: int, name: str, value: bytes, flags: int) -> None:
        self.note()
        self.xattrs[ino, name] = value
