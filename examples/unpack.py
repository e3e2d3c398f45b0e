"""Reads at any offset of what is compressed, for examples/archive.py."""

import bz2
import gzip
import lzma
import os
import threading
from collections.abc import Callable
from typing import IO, Any, Protocol

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]

    open_zstd: Any = zstd.open
except ImportError:

    def open_zstd(path: str) -> IO[bytes]:
        raise NotImplementedError("zstd needs Python 3.14")


COMPRESSIONS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": open_zstd,
}
"""By what a file begins with."""

BLOCK = 1 << 17
KEPT = 1 << 20
STREAMS = 4


class Source(Protocol):
    """Bytes that can be read at any offset."""

    def read(self, size: int, offset: int) -> bytes: ...


class Stored:
    """A file from a certain offset on."""

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self.descriptor = descriptor
        self.start = start

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.descriptor, size, self.start + offset)


class Unpacker:
    """What can only be unpacked from its beginning.

    To go on is quick; to go back is to begin again.  So there are a few streams, each where some
    program reads.
    """

    def __init__(self, begin: Callable[[], IO[bytes]]) -> None:
        self.begin = begin
        self.streams = [Stream(begin())]
        self.lock = threading.Lock()

    def read(self, size: int, offset: int) -> bytes:
        with self.lock:
            suitable = [stream for stream in self.streams if stream.start <= offset]
            if suitable:
                stream = max(suitable, key=lambda stream: stream.end)
                self.streams.remove(stream)
            else:
                stream = Stream(self.begin())
                if len(self.streams) == STREAMS:
                    self.streams.pop(0).file.close()
            self.streams.append(stream)  # as the last one to be closed
            return stream.read(size, offset)

    def close(self) -> None:
        with self.lock:
            for stream in self.streams:
                stream.file.close()


class Stream:
    """One that unpacks, and the last of what it has unpacked.

    The kernel asks for several parts at once when it reads ahead, and they come in any order.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.kept = bytearray()
        self.end = 0

    @property
    def start(self) -> int:
        """The offset of what is kept."""
        return self.end - len(self.kept)

    def read(self, size: int, offset: int) -> bytes:
        while self.end < offset + size:
            piece = self.file.read(BLOCK)
            if not piece:
                break
            del self.kept[: max(0, min(len(self.kept) - KEPT, offset - self.start))]
            self.kept += piece
            self.end += len(piece)
        first = offset - self.start
        return bytes(self.kept[first : first + size])
