"""The filesystem that recuse mounts in the benchmark: what libfuse_server.c does.

    python mount_server.py [-o OPTIONS] MOUNTPOINT

With -o async its methods are `async def`. Prints "ready" once it is mounted; SIGTERM unmounts it
and ends it.
"""

from __future__ import annotations

import signal
import sys

from recuse import Directory, Filesystem, Mount, OpenFile, OpenRequest, RegularFile

LARGEST = 1 << 20
# One object for each size that is asked for, so that slicing is not what gets measured.
ANSWERS = {size: b"R" * size for size in (16, 4096, 131072, LARGEST)}


class BenchFile(OpenFile):
    direct = True

    def read(self, size: int, offset: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    def write(self, data: bytes | memoryview, offset: int) -> int:
        return len(data)


class AsyncFile(BenchFile):
    async def read(self, size: int, offset: int) -> bytes:  # type: ignore[override]
        return ANSWERS.get(size) or b"R" * size

    async def write(self, data: bytes | memoryview, offset: int) -> int:  # type: ignore[override]
        return len(data)


class Bench(RegularFile):
    size = LARGEST
    mode = 0o666
    cache_s = 3600.0
    file: type[OpenFile] = BenchFile

    def open(self, request: OpenRequest) -> OpenFile:
        return self.file()

    def truncate(self, size: int) -> None:
        pass


class AsyncBench(Bench):
    file = AsyncFile


class Root(Directory):
    """A directory in which files can be made."""

    def create(self, name: str, mode: int) -> RegularFile:
        self.children[name] = made = RegularFile(b"")
        return made

    def unlink(self, name: str) -> None:
        del self.children[name]


class Cached(Bench):
    """What it reads stays in the page cache."""

    class file(BenchFile):  # noqa: N801 - as an attribute of the class above
        direct = False


class BenchFilesystem(Filesystem):
    """For `recuse run -m`."""

    name = "recuse-bench"

    def __init__(self) -> None:
        super().__init__(Root({"bench": Bench(), "cached": Cached()}))


def main() -> None:
    *flags, mountpoint = sys.argv[1:]
    options = flags[1] if flags else ""
    bench = AsyncBench() if "async" in options else Bench()
    options = ",".join(word for word in options.split(",") if word != "async")
    filesystem = Filesystem(Root({"bench": bench}))
    filesystem.name = "recuse-bench"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Mount(filesystem, mountpoint, options) as mount:
        if "io_uring" in options and not mount.uses_io_uring:
            sys.exit("io_uring is not possible")
        print("ready", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
