"""The devices that `recuse run` serves in the benchmark: what libfuse_server.c does.

`Plain` and `Async` take a 1 MiB read in one request and have their ioctl's area copied by the
command's own size and direction, as a file on kernel FUSE has; `Default` leaves both as a device
comes.
"""

from __future__ import annotations

import ctypes

from recuse import Device, File, ioctl

LARGEST = 1 << 20
# One object for each size that is asked for, so that slicing is not what gets measured.
ANSWERS = {size: b"R" * size for size in (16, 4096, 131072, LARGEST)}
IOCTL_COMMAND = 0x80104518  # EVIOCGKEY(16), as in client.c


class Keys(ctypes.Structure):
    _fields_ = (("keys", ctypes.c_uint8 * 16),)


KEYS = Keys.from_buffer_copy(ANSWERS[16])


class PlainFile(File):
    def read(self, size: int, offset: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    def write(self, data: bytes | memoryview, offset: int) -> int:
        return len(data)

    @ioctl(IOCTL_COMMAND, Keys)
    def get_keys(self, argument: Keys) -> Keys:
        return KEYS


class AsyncFile(File):
    async def read(self, size: int, offset: int) -> bytes:
        return ANSWERS.get(size) or b"R" * size

    async def write(self, data: bytes | memoryview, offset: int) -> int:
        return len(data)

    @ioctl(IOCTL_COMMAND, Keys)
    async def get_keys(self, argument: Keys) -> Keys:
        return KEYS


class Plain(Device):
    name = "bench"
    max_read = LARGEST
    unrestricted = False

    def open(self, request: object) -> File:
        return PlainFile()


class Async(Device):
    name = "bench"
    max_read = LARGEST
    unrestricted = False

    async def open(self, request: object) -> File:
        return AsyncFile()


class Default(Device):
    name = "bench"

    def open(self, request: object) -> File:
        return PlainFile()
