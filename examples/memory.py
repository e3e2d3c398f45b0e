"""A memory that grows as it is written to, with ioctls to get and set its size.

Try it::

    $ recuse run -d examples/memory.py,size=16 -- bash
    $ printf hello | dd of=/dev/memory bs=1 seek=8 status=none
    $ od -A d -t x1z /dev/memory
    0000000 00 00 00 00 00 00 00 00 68 65 6c 6c 6f 00 00 00  >........hello...<
    0000016

The ioctls are those of libfuse's example of a CUSE device, so its client program drives this one:
`cuse_client /dev/memory s` prints the size, `r SIZE OFFSET` reads and `w SIZE OFFSET` writes.
"""

import errno
from ctypes import Structure, c_int64, c_size_t, c_uint64
from threading import Lock

import recuse
from recuse import IO, IOR, IOW, OpenRequest, ioctl


class Transfer(Structure):
    """The argument of FIOC_READ and FIOC_WRITE; it points to the program's buffer."""

    _fields_ = [
        ("offset", c_int64),
        ("buffer", c_uint64),
        ("size", c_size_t),
        ("size_before", c_size_t),
        ("size_after", c_size_t),
    ]


FIOC_GET_SIZE = IOR("E", 0, c_size_t)
FIOC_SET_SIZE = IOW("E", 1, c_size_t)
FIOC_READ = IO("E", 2)
FIOC_WRITE = IO("E", 3)


class Memory(recuse.Device):
    """The device: its bytes, and the limit of its size."""

    name = "memory"
    limit = 16 << 20

    def __init__(self, *, name: str = "memory", size: int = 0, seekable: bool = True) -> None:
        super().__init__(name=name, seekable=seekable)
        self.content = bytearray(size)
        self.lock = Lock()

    def open(self, request: OpenRequest) -> recuse.File:
        return MemoryFile()

    def resize(self, size: int) -> None:
        """Cut the end off, or append zeros."""
        if size > self.limit:
            raise OSError(errno.ENOSPC, "the memory is full")
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of an area, up to the end."""
        if offset < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        return bytes(self.content[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Store data, and grow if necessary."""
        if offset < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        end = offset + len(data)
        if end > len(self.content):
            self.resize(end)
        self.content[offset:end] = data


class MemoryFile(recuse.File):
    """One open of it."""

    device: Memory

    def read(self, size: int, offset: int) -> bytes:
        with self.device.lock:
            return self.device.read(offset, size)

    def write(self, data: bytes, offset: int) -> None:
        with self.device.lock:
            self.device.write(offset, data)

    @ioctl(FIOC_GET_SIZE, c_size_t)
    def get_size(self) -> int:
        return len(self.device.content)

    @ioctl(FIOC_SET_SIZE, c_size_t)
    def set_size(self, size: int) -> None:
        with self.device.lock:
            self.device.resize(size)

    # The numbers of these two do not say that the argument points to a structure, nor that it is
    # read and filled in.  The result is the number of bytes, as with read(2) and write(2).

    @ioctl(FIOC_READ, Transfer, direction="rw")
    def transfer_out(self, transfer: Transfer, memory: recuse.Memory) -> int:
        with self.device.lock:
            data = self.device.read(transfer.offset, transfer.size)
            transfer.size_before = transfer.size_after = len(self.device.content)
        memory.write(transfer.buffer, data)
        return len(data)

    @ioctl(FIOC_WRITE, Transfer, direction="rw")
    def transfer_in(self, transfer: Transfer, memory: recuse.Memory) -> int:
        # Read the program's memory first: that may run this method again from its start.
        data = memory.read(transfer.buffer, transfer.size)
        with self.device.lock:
            transfer.size_before = len(self.device.content)
            self.device.write(transfer.offset, data)
            transfer.size_after = len(self.device.content)
        return len(data)
