"""Memory that a device shares with the programs that map it."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex, overload

from recuse.runtime.locks import new_lock
from recuse.wire.descriptor import OwnedDescriptor

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

_numbers = itertools.count(1)


class Area:
    """Memory that programs see when they map a file of the device.  It is initially zero.

    `File.mmap` returns one: a new one, or an existing one, which is then shared.  Where you keep it
    decides whether it belongs to the device, a file or a mapping.  It works like a memoryview of
    bytes, and `buffer` is one, for numpy and struct::

        area = Area(640 * 480)
        area[0:4] = b"abcd"
        picture = numpy.frombuffer(area.buffer, dtype=numpy.uint8).reshape(480, 640)

    The memory lasts as long as anybody uses it: a program that has mapped it keeps it, even if the
    Area is closed or deleted.
    """

    def __init__(
        self,
        size: int,
        *,
        name: str = "recuse",
        dont_copy: bool = False,
        dont_expand: bool = False,
    ) -> None:
        """Create an area of ``size`` zero bytes, 1 or more; they take up memory as they are used.

        /proc/PID/maps shows ``name``.  With ``dont_copy``, the children of a program do not inherit
        its mappings of the area.  With ``dont_expand``, mremap(2) cannot make them longer.

        Raises ValueError for a size below 1, OSError if there is no memory or no descriptor left.
        """
        if size < 1:
            raise ValueError(f"an area of {size} bytes")
        self.dont_copy = dont_copy
        self.dont_expand = dont_expand
        self.number = next(_numbers)
        """Its name in traces, unique among the areas of this process."""
        self._descriptor = OwnedDescriptor(os.memfd_create(name))
        os.ftruncate(self._descriptor.fileno(), size)
        self._resizing = new_lock("Area.resizing")
        self._map, self._buffer = self._mapped()

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self._buffer.nbytes

    def __len__(self) -> int:
        return self._buffer.nbytes

    @property
    def buffer(self) -> memoryview:
        """The memory, as writable bytes.

        After `resize` this is a new memoryview.  Views of the old one keep their length.
        """
        return self._buffer

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> memoryview: ...
    def __getitem__(self, key: SupportsIndex | slice) -> int | memoryview:
        """Return a byte, or a view of a part."""
        return self._buffer[key]

    @overload
    def __setitem__(self, key: SupportsIndex, value: int) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer) -> None: ...
    def __setitem__(self, key: SupportsIndex | slice, value: int | Buffer) -> None:
        """Store a byte, or as many as the slice has."""
        self._buffer[key] = value  # type: ignore[index, assignment]

    def resize(self, size: int) -> None:
        """Change the size; added bytes are zero.

        A program that has mapped more than the area gets SIGBUS beyond its last page, as with any
        truncated file.  This process would get it through an old view.  So an area cannot shrink
        while there are views (of `buffer`, or arrays on it): BufferError.  It can always grow.

        Raises ValueError for a size below 1 and for a closed area, BufferError, and OSError if
        there is no memory.
        """
        if size < 1:
            raise ValueError(f"an area of {size} bytes")
        with self._resizing:
            if size < self.size:
                self._unmap()
                try:
                    os.ftruncate(self.fileno(), size)
                finally:
                    self._map, self._buffer = self._mapped()
            elif size > self.size:
                os.ftruncate(self.fileno(), size)
                # The old map, if anybody has a view of it, ends with the last view.
                self._map, self._buffer = self._mapped()

    def _mapped(self) -> tuple[mmap.mmap, memoryview]:
        number = self.fileno()
        made = mmap.mmap(number, os.fstat(number).st_size)
        return made, memoryview(made)

    def _unmap(self) -> None:
        """Unmap it here; BufferError if there are views."""
        try:
            self._buffer.release()
            self._map.close()
        except BufferError:
            self._buffer = memoryview(self._map)
            raise BufferError("there are views of the area's memory") from None

    def fileno(self) -> int:
        """Return the number of the memory's descriptor (memfd_create(2)).

        Raises ValueError if the area is closed.
        """
        number = self._descriptor.fileno()
        if number < 0:
            raise ValueError("the area is closed")
        return number

    def close(self) -> None:
        """Free what this process holds of it, except memory with views; twice does nothing.

        Programs that have mapped it keep it.  Deleting the last reference to the area does the
        same.
        """
        self._descriptor.close()
        with contextlib.suppress(BufferError):
            self._unmap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._descriptor.fileno() < 0:
            return f"<Area {self.number}, closed>"
        return f"<Area {self.number}, {self.size} bytes>"
