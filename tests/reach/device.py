"""The device of the battery: what is written to it is read back; it has an ioctl and memory."""

import asyncio
import errno
import select
from ctypes import c_int

from recuse import IOWR, Area, Device, File, MmapRequest, OpenRequest, ioctl

COUNT = IOWR("R", 1, c_int)


class Reach(Device):
    """One stream of bytes for all its files."""

    name = "reach"

    def __init__(self, *, name: str = "reach") -> None:
        super().__init__(name=name)
        self.content = bytearray()
        self.written = asyncio.Condition()
        self.files: set[ReachFile] = set()
        self.area = Area(4096)
        self.area[0:5] = b"ready"

    def open(self, request: OpenRequest) -> File:
        file = ReachFile()
        self.files.add(file)
        return file

    def close(self) -> None:
        self.area.close()


class ReachFile(File):
    """One open of it."""

    device: Reach

    async def write(self, data: bytes, offset: int) -> None:
        async with self.device.written:
            self.device.content += data
            self.device.written.notify_all()
        for file in list(self.device.files):
            file.wake_pollers()

    async def read(self, size: int, offset: int) -> bytes:
        content = self.device.content
        async with self.device.written:
            while not content:
                if self.nonblocking:
                    raise BlockingIOError(errno.EAGAIN, "nothing is there")
                await self.device.written.wait()
            data = bytes(content[:size])
            del content[:size]
        return data

    def poll(self, events: int) -> int:
        return select.POLLOUT | (select.POLLIN if self.device.content else 0)

    @ioctl(COUNT, c_int)
    def count(self, number: int) -> int:
        return number + 1

    def mmap(self, request: MmapRequest) -> Area:
        return self.device.area

    def release(self) -> None:
        self.device.files.discard(self)
