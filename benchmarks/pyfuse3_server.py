"""The benchmark's pyfuse3 server: what libfuse_server.c does, as pyfuse3 users write it.

    python pyfuse3_server.py MOUNTPOINT

Run with the interpreter that has pyfuse3 (benchmarks/requirements.txt). pyfuse3 has no ioctl.
Prints "ready" once it is mounted; SIGTERM unmounts it and ends it.
"""
# mypy: ignore-errors
# (pyfuse3 and trio need not be installed where mypy runs)

from __future__ import annotations

import errno
import signal
import stat
import sys
from typing import Any

import pyfuse3
import trio

NAME = b"bench"
FILE_INODE = 2
NEW_NAME = b"new"
NEW_INODE = 3
LARGEST = 1 << 20
# One object for each size that is asked for, so that slicing is not what gets measured.
ANSWERS = {size: b"R" * size for size in (16, 4096, 131072, LARGEST)}


def attributes(inode: int) -> Any:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_nlink = 1
    entry.attr_timeout = entry.entry_timeout = 3600
    if inode == pyfuse3.ROOT_INODE:
        entry.st_mode = stat.S_IFDIR | 0o755
    elif inode == FILE_INODE:
        entry.st_mode = stat.S_IFREG | 0o666
        entry.st_size = LARGEST
    elif inode == NEW_INODE:
        entry.st_mode = stat.S_IFREG | 0o600
    else:
        raise pyfuse3.FUSEError(errno.ENOENT)
    return entry


class Bench(pyfuse3.Operations):
    new_is_there = False

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        self.new_is_there = True
        return pyfuse3.FileInfo(fh=NEW_INODE), attributes(NEW_INODE)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self.new_is_there = False

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        if (parent_inode, name) == (pyfuse3.ROOT_INODE, NAME):
            return attributes(FILE_INODE)
        if name == NEW_NAME and self.new_is_there:
            return attributes(NEW_INODE)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def getattr(self, inode: int, ctx: Any) -> Any:
        return attributes(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return len(buf)


async def serve() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_on_signal, nursery.cancel_scope)
        await pyfuse3.main()


async def terminate_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    pyfuse3.init(Bench(), sys.argv[1], {"fsname=recuse-bench"})
    print("ready", flush=True)
    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)
