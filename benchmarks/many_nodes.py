"""A filesystem of EACH x EACH files that are made when they are looked up, by recuse.

    python many_nodes.py EACH MOUNTPOINT

Prints "ready" once it is mounted; SIGTERM unmounts it and ends it.
"""

from __future__ import annotations

import signal
import stat
import sys
from collections.abc import Iterator

from recuse import Directory, Entry, Filesystem, Mount, RegularFile


class Files(Directory):
    def __init__(self, each: int) -> None:
        super().__init__()
        self.each = each

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(number), stat.S_IFREG) for number in range(self.each))

    def lookup(self, name: str) -> RegularFile:
        return RegularFile(b"")


class Directories(Files):
    def entries(self) -> Iterator[Entry]:
        return (Entry(str(number), stat.S_IFDIR) for number in range(self.each))

    def lookup(self, name: str) -> Directory:  # type: ignore[override]
        return Files(self.each)


def main() -> None:
    each, mountpoint = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Mount(Filesystem(Directories(int(each))), mountpoint):
        print("ready", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
