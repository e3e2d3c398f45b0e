"""The memory that the argument of a test's ioctl points to."""

import errno
import os
from typing import Final

from recuse.wire.declare import Buffer


class ArgumentMemory:
    """One area; see `recuse.kernel.caller.Memory`."""

    ADDRESS: Final = 1 << 32

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def read(self, address: int, size: int) -> bytes:
        """Return what is there."""
        start = self._start(address, size)
        return bytes(self.data[start : start + size])

    def write(self, address: int, data: Buffer) -> int:
        """Change it."""
        room = self.writable(address, len(data))
        start = self._start(address, room)
        self.data[start : start + room] = data[:room]
        return room

    def writable(self, address: int, size: int) -> int:
        """Return how much of that is in the area."""
        return max(min(size, self.ADDRESS + len(self.data) - address), 0)

    def _start(self, address: int, size: int) -> int:
        if not size or not self.writable(address, size) or address < self.ADDRESS:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return address - self.ADDRESS
