"""Messages that carry a file descriptor: answers to RECUSE_MMAP.

A descriptor is not bytes, and each channel has its own way to pass it on (SCM_RIGHTS over a
socket). Between the server's code that answers and the kernel half's code that takes the answer,
message and descriptor are one object.
"""

import os
from typing import SupportsIndex, overload


class OwnedDescriptor:
    """A descriptor of this process, closed once: by `close`, or when nobody holds it."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        """Own the descriptor with that number."""
        self._number = number

    def fileno(self) -> int:
        """Return its number, -1 if it is closed."""
        return self._number

    def close(self) -> None:
        """Close it; a second call does nothing."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    __del__ = close


class BytesWithDescriptor(bytes):
    """Bytes that keep their descriptor when they are prefixed or cut."""

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
