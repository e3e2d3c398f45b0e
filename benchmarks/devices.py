"""The devices that `recuse run` serves in the benchmark: what libfuse_server.c does.

`Plain` and `Async` take a 1 MiB read in one request and have their ioctl's area copied by the
command's own size and direction, as a file on kernel FUSE has; `Default` leaves both as a device
comes.
"""

from __future__ import annotations

import ctypes
import functools
import queue
import select
import threading
import time

from recuse import IO, IOR, Area, Device, File, MmapRequest, ioctl

LARGEST = 1 << 20
# One object for each size that is asked for, so that slicing is not what gets measured.
ANSWERS = {size: b"R" * size for size in (16, 4096, 131072, LARGEST)}
IOCTL_COMMAND = 0x80104518  # EVIOCGKEY(16), as in client.c


class Keys(ctypes.Structure):
    _fields_ = (("keys", ctypes.c_uint8 * 16),)


KEYS = Keys.from_buffer_copy(ANSWERS[16])

# As in client.c: have it wake up who polls, and when it did.
WAKE_SOON = IO("E", 0x70)
WOKEN_AT = IOR("E", 0x71, ctypes.c_uint64)
# Time for the client to fall asleep, in seconds.
SOON_S = 0.001


class WakingFile(File):
    device: Mappable
    woken_ns = 0

    def mmap(self, request: MmapRequest) -> Area:
        return self.device.area

    def wake(self) -> None:
        self.woken_ns = time.monotonic_ns()
        self.wake_pollers()


class PlainFile(WakingFile):
    def read(self, size: int, offset: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    def write(self, data: bytes | memoryview, offset: int) -> int:
        return len(data)

    @ioctl(IOCTL_COMMAND, Keys)
    def get_keys(self, argument: Keys) -> Keys:
        return KEYS

    def poll(self, events: int) -> int:
        return select.POLLIN if self.woken_ns else 0

    @ioctl(WAKE_SOON)
    def wake_soon(self) -> None:
        self.woken_ns = 0
        alarm().put(self)

    @ioctl(WOKEN_AT, ctypes.c_uint64)
    def woken_at(self) -> int:
        return self.woken_ns


@functools.cache
def alarm() -> queue.SimpleQueue[WakingFile]:
    """A thread that wakes up those who poll the files that it is given."""
    files: queue.SimpleQueue[WakingFile] = queue.SimpleQueue()

    def run() -> None:
        while True:
            file = files.get()
            time.sleep(SOON_S)
            file.wake()

    threading.Thread(target=run, daemon=True).start()
    return files


class AsyncFile(WakingFile):
    async def read(self, size: int, offset: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    async def write(self, data: bytes | memoryview, offset: int) -> int:
        return len(data)

    @ioctl(IOCTL_COMMAND, Keys)
    async def get_keys(self, argument: Keys) -> Keys:
        return KEYS

    async def poll(self, events: int) -> int:
        return select.POLLIN if self.woken_ns else 0

    @ioctl(WAKE_SOON)
    async def wake_soon(self) -> None:
        import asyncio  # noqa: PLC0415  # start-up is measured with the plain device, without it

        self.woken_ns = 0
        asyncio.get_running_loop().call_later(SOON_S, self.wake)

    @ioctl(WOKEN_AT, ctypes.c_uint64)
    async def woken_at(self) -> int:
        return self.woken_ns


class Mappable(Device):
    @functools.cached_property
    def area(self) -> Area:
        return Area(LARGEST)


class Plain(Mappable):
    name = "bench"
    max_read = LARGEST
    unrestricted = False

    def open(self, request: object) -> File:
        return PlainFile()


class Async(Mappable):
    name = "bench"
    max_read = LARGEST
    unrestricted = False

    async def open(self, request: object) -> File:
        return AsyncFile()


class Default(Mappable):
    name = "bench"

    def open(self, request: object) -> File:
        return PlainFile()
