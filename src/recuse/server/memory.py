"""The calling program's memory during one ioctl.

A server cannot access the program's memory.  It has the bytes that the kernel half sent, and can
ask for more with FUSE_IOCTL_RETRY: the request then arrives again, with those bytes.  So a read of
bytes that are missing ends the handler with `MoreMemory`, and the session runs it again from its
start when they have arrived.  Writes are collected and sent with the answer.
"""

from __future__ import annotations

import ctypes
import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from recuse.server.errors import Misuse

if TYPE_CHECKING:
    from ctypes import _CData

    from typing_extensions import Buffer

    C = TypeVar("C", bound=_CData)

Span = tuple[int, int]
"""Address and size in bytes, the size more than 0."""

_ADDRESS_END = 1 << 64
_RESTRICTED = (
    ", outside what the command's number says, and the device is restricted or on a FUSE mount"
)


class MoreMemory(BaseException):
    """Unwinds a handler that reads bytes which have not arrived; `Memory` knows which.

    It is not an Exception, so handlers that catch Exception let it pass.
    """


class Spans:
    """A set of addresses: disjoint areas in ascending order, adjoining ones joined."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, areas: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for address, size in areas:
            self.add(address, size)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[Span]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def add(self, address: int, size: int) -> None:
        """Add an area; size 0 adds nothing."""
        if size == 0:
            return
        end = address + size
        first = bisect_right(self._starts, address)
        if first and self._ends[first - 1] >= address:
            first -= 1
            address = self._starts[first]
        last = first
        while last < len(self._starts) and self._starts[last] <= end:
            end = max(end, self._ends[last])
            last += 1
        self._starts[first:last] = [address]
        self._ends[first:last] = [end]

    def gaps(self, address: int, size: int) -> list[Span]:
        """Return the parts of an area that are not in the set."""
        found: list[Span] = []
        end = address + size
        at = bisect_right(self._starts, address)
        if at and self._ends[at - 1] > address:
            address = self._ends[at - 1]
        while address < end:
            stop = min(end, self._starts[at]) if at < len(self._starts) else end
            if stop > address:
                found.append((address, stop - address))
            if at == len(self._starts):
                break
            address = self._ends[at]
            at += 1
        return found


class Memory:
    """The calling program's memory, by address, during one ioctl.

    **A read may run the handler again from its start**: bytes that are not known yet are fetched
    from the program first, once for each read that needs new ones.  So read before you act: what a
    handler does after its last read happens once, what it does before may happen several times.
    Writes reach the program after the handler has succeeded.  If it fails, none do.

    A program that passes a bad address gets EFAULT, and the handler does not notice.  The kernel
    half accepts at most 256 separate areas, and 128 KiB in each direction.

    A device with ``unrestricted = False`` has only the argument that the command's number
    describes.  Anything else is EIO for the program, and a line in the log.
    """

    __slots__ = (
        "_data",
        "_ends",
        "_missing",
        "_offsets",
        "_read",
        "_room",
        "_starts",
        "_written",
    )

    def __init__(
        self, areas: Sequence[Span], data: bytes, room: Sequence[Span] | None = None
    ) -> None:
        """Hold ``data``, which came from ``areas``, one after the other.

        The areas are disjoint, and in ascending order.  With ``room`` there will be nothing else
        to read, and nowhere else to write.
        """
        self._data = data
        self._starts = [address for address, _ in areas]
        self._ends = [address + size for address, size in areas]
        self._offsets: list[int] = []
        offset = 0
        for _, size in areas:
            self._offsets.append(offset)
            offset += size
        self._room = None if room is None else Spans(room)
        self._read: list[Span] = []
        """What was read, but for what was written before."""
        self._written: list[tuple[int, bytes]] = []
        self._missing = False

    def read(self, address: int, size: int) -> bytes:
        """Return the ``size`` bytes at ``address``, with what the handler wrote there.

        Raises ValueError if the size is negative, OSError with EFAULT if there is no such address.
        """
        if not self._written and not self._missing and size > 0:
            # The usual case: within one of the areas.
            index = bisect_right(self._starts, address) - 1
            if index >= 0 and address + size <= self._ends[index]:
                self._read.append((address, size))
                offset = self._offsets[index] + address - self._starts[index]
                return self._data[offset : offset + size]
        return self.read_many([(address, size)])[0]

    def read_many(self, areas: Sequence[Span]) -> list[bytes]:
        """Return the bytes of several areas, given as address and size, fetched all at once.

        The same as one `read` for each, but the handler is run again once, not once for each.
        """
        came = Spans(self._areas())
        written = Spans(self.written)
        for address, size in areas:
            _check(address, size)
            for part in written.gaps(address, size):
                self._read.append(part)
                for gap in came.gaps(*part):
                    if self._room is not None:
                        raise Misuse(f"reads {gap[1]} bytes at {gap[0]:#x}{_RESTRICTED}")
                    self._missing = True
        if self._missing:
            raise MoreMemory
        return [self._assemble(address, size) for address, size in areas]

    def write(self, address: int, data: Buffer) -> None:
        """Write ``data``, bytes or the like, at ``address``.

        Raises OSError with EFAULT if there is no such address.
        """
        content = memoryview(data).tobytes()
        _check(address, len(content))
        if self._room is not None and self._room.gaps(address, len(content)):
            raise Misuse(f"writes {len(content)} bytes at {address:#x}{_RESTRICTED}")
        if content:
            self._written.append((address, content))

    def read_struct(self, address: int, type: type[C]) -> C:  # noqa: A002
        """Return a copy of what is at ``address``, as an instance of a ctypes type."""
        return _copy(type, self.read(address, ctypes.sizeof(type)), 0)

    def write_struct(self, address: int, value: _CData) -> None:
        """Write an instance of a ctypes type at ``address``."""
        self.write(address, memoryview(value))

    def read_array(self, address: int, type: type[C], count: int) -> list[C]:  # noqa: A002
        """Return ``count`` instances of a ctypes type, which lie in a row at ``address``."""
        size = ctypes.sizeof(type)
        data = self.read(address, size * count)
        return [_copy(type, data, size * index) for index in range(count)]

    # For the session.

    @property
    def wanted(self) -> list[Span]:
        """All areas that the handler read, if some of them were missing; else empty."""
        return list(Spans(self._read)) if self._missing else []

    @property
    def written(self) -> list[Span]:
        """All areas that the handler wrote."""
        return list(Spans([(address, len(data)) for address, data in self._written]))

    def content(self, areas: Sequence[Span]) -> bytes | None:
        """Return the bytes of ``areas``, joined; None if some are not known."""
        known = Spans([*self._areas(), *self.written])
        if any(known.gaps(*area) for area in areas):
            return None
        return b"".join(self._assemble(*area) for area in areas)

    def _areas(self) -> Iterator[Span]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def _assemble(self, address: int, size: int) -> bytes:
        """Put together an area that is known; written bytes replace those that were fetched."""
        end = address + size
        result = bytearray(size)
        index = max(bisect_right(self._starts, address) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            start = self._starts[index]
            low, high = max(start, address), min(self._ends[index], end)
            if low < high:
                offset = self._offsets[index] - start
                result[low - address : high - address] = self._data[offset + low : offset + high]
            index += 1
        for start, data in self._written:
            low, high = max(start, address), min(start + len(data), end)
            if low < high:
                result[low - address : high - address] = data[low - start : high - start]
        return bytes(result)


def _copy(type_: type[C], data: bytes, offset: int) -> C:
    # typeshed has this method on the subclasses of _CData, each for itself.
    made: C = cast(Any, type_).from_buffer_copy(data, offset)
    return made


def _check(address: int, size: int) -> None:
    if size < 0:
        raise ValueError(f"{size} bytes of memory")
    if address < 0 or address + size > _ADDRESS_END:
        raise OSError(errno.EFAULT, f"no address {address:#x}")
