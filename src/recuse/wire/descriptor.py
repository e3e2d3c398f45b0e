"""Messages that bring a file descriptor with them: answers to RECUSE_MMAP.

A descriptor is no bytes, and each channel has its own way of passing it on (SCM_RIGHTS over a
socket). From the server's code that answers to the kernel half's that takes the answer, message and
descriptor are one object.
"""

import os
from typing import SupportsIndex, overload


class OwnedDescriptor:
    """A descriptor of this process's that is closed once: by `close`, or when nobody has it."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        """Own the descriptor of that number."""
        self._number = number

    def fileno(self) -> int:
        """Return its number, -1 if it is closed."""
        return self._number

    def close(self) -> None:
        """Close it; again, do nothing."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    __del__ = close


class BytesWithDescriptor(bytes):
    """Bytes that keep their descriptor when something is put before them or cut off."""

    descriptor: OwnedDescriptor

    def __new__(cls, data: bytes, descriptor: OwnedDescriptor) -> "BytesWithDescriptor":
        """Join the two."""
        made = super().__new__(cls, data)
        made.descriptor = descriptor
        return made

    def __radd__(self, head: bytes) -> "BytesWithDescriptor":
        """Put ``head`` before the bytes."""
        return BytesWithDescriptor(head + bytes(self), self.descriptor)

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice) -> int | bytes:
        """Return one byte, or a part that has the descriptor too."""
        if isinstance(key, slice):
            return BytesWithDescriptor(super().__getitem__(key), self.descriptor)
        return super().__getitem__(key)
