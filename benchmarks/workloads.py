"""What is timed: one kind of system call of one size, as benchmarks/client.c understands it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """`name` is for people and JSON, `argument` for the client."""

    name: str
    argument: str


READ_16 = Work("read 16 B", "read:16")
READ_4K = Work("read 4 KiB", "read:4096")
READ_128K = Work("read 128 KiB", "read:131072")
READ_1M = Work("read 1 MiB", "read:1048576")
READ_16_BY_8 = Work("read 16 B, 8 threads", "read:16x8")
WRITE_16 = Work("write 16 B", "write:16")
WRITE_1M = Work("write 1 MiB", "write:1048576")
IOCTL_16 = Work("ioctl 16 B", "ioctl:16")
OPEN_CLOSE = Work("open+close", "openclose")
STAT = Work("stat, uncached", "stat")
STAT_CACHED = Work("stat, cached", "stat:cached")
CREATE = Work("create+unlink", "create")
WAKE_UP = Work("poll wake-up", "wake")
MAP_1M = Work("mmap+munmap 1 MiB", "map:1048576")
COPY_1M = Work("copy 1 MiB out of a mapping", "copy:1048576")

READS = (READ_16, READ_4K, READ_128K, READ_1M)
WRITES = (WRITE_16, WRITE_1M)
NAMES = (STAT, OPEN_CLOSE, CREATE)
ALL = (*READS, READ_16_BY_8, *WRITES, IOCTL_16, STAT_CACHED, *NAMES, WAKE_UP, MAP_1M, COPY_1M)
