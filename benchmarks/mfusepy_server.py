"""The benchmark's mfusepy server: what libfuse_server.c does, as mfusepy users write it.

    python mfusepy_server.py MOUNTPOINT

Run with the interpreter that has mfusepy (benchmarks/requirements.txt), with
FUSE_LIBRARY_NAME=fuse3 in the environment so that it loads the libfuse that the other servers have.
It is single-threaded: two threads would take turns for the interpreter. Prints "ready" once it is
mounted; SIGTERM unmounts it and ends it.
"""
# mypy: ignore-errors
# (mfusepy need not be installed where mypy runs)

from __future__ import annotations

import ctypes
import errno
import stat
import sys
from typing import Any

import mfusepy

NAME = "/bench"
NEW_NAME = "/new"
LARGEST = 1 << 20
# One object for each size that is asked for, so that slicing is not what gets measured.
ANSWERS = {size: b"R" * size for size in (16, 4096, 131072, LARGEST)}
IOCTL_COMMAND = 0x80104518  # EVIOCGKEY(16), as in client.c


class Bench(mfusepy.Operations):
    use_ns = True
    new_is_there = False

    def init(self, path: str) -> None:
        print("ready", flush=True)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 1}
        if path == NAME:
            return {"st_mode": stat.S_IFREG | 0o666, "st_nlink": 1, "st_size": LARGEST}
        if path == NEW_NAME and self.new_is_there:
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self.new_is_there = True
        return 0

    def unlink(self, path: str) -> None:
        self.new_is_there = False

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return len(data)

    def ioctl(  # noqa: PLR0917
        self, path: str, cmd: int, arg: int, fh: int, flags: int, data: Any
    ) -> int:
        if cmd & 0xFFFFFFFF != IOCTL_COMMAND:
            raise mfusepy.FuseOSError(errno.ENOTTY)
        ctypes.memmove(data, ANSWERS[16], 16)
        return 0


if __name__ == "__main__":
    mfusepy.FUSE(
        Bench(),
        sys.argv[1],
        foreground=True,
        nothreads=True,
        direct_io=True,
        attr_timeout=3600,
        entry_timeout=3600,
        fsname="recuse-bench",
    )
