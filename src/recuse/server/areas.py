"""Memory that a device shares with the programs that map it."""

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
    """Some memory, zeros at first, that programs see when they map a file of the device.

    `File.mmap` returns one: a new one, or one that exists, which is then shared.  Whose it is,
    the device's, a file's or a mapping's, depends on where you keep it.  It works like a
    memoryview of bytes, and `buffer` is one, for numpy and struct::

        area = Area(640 * 480)
        area[0:4] = b"abcd"
        picture = numpy.frombuffer(area.buffer, dtype=numpy.uint8).reshape(480, 640)

    The memory lasts until nobody has it: a program that has mapped it keeps it, even if the Area is
    closed, or forgotten.
    """

    def __init__(
        self,
        size: int,
        *,
        name: str = "recuse",
        dont_copy: bool = False,
        dont_expand: bool = False,
    ) -> None:
        """Make an area of ``size`` bytes, 1 or more; it is of zeros, and takes room as it is used.

        ``name`` is what /proc/PID/maps shows.  With ``dont_copy`` the children of a program do not
        inherit its mappings of the area, with ``dont_expand`` mremap(2) cannot make them longer.

        Raises ValueError for a size below 1, OSError if there is no memory or no descriptor left.
        """
        if size < 1:
            raise ValueError(f"an area of {size} bytes")
        self.dont_copy = dont_copy
        self.dont_expand = dont_expand
        self.number = next(_numbers)
        """What traces call it: no other area of this process has the same."""
        self._descriptor = OwnedDescriptor(os.memfd_create(name))
        os.ftruncate(self._descriptor.fileno(), size)
        self._resizing = new_lock("Area.resizing")
        self._map, self._buffer = self._mapped()

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self._buffer.nbytes

    def __len__(self) -> int:
        return self._buffer.nbytes

    @property
    def buffer(self) -> memoryview:
        """The memory, as writable bytes.

        After `resize` it is another one, and views that were made of the old one keep its length.
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
    def __setitem__(self, key: slice, value: "Buffer") -> None: ...
    def __setitem__(self, key: SupportsIndex | slice, value: "int | Buffer") -> None:
        """Store a byte, or as many as the slice has."""
        self._buffer[key] = value  # type: ignore[index, assignment]

    def resize(self, size: int) -> None:
        """Change the size; what is added is zeros.

        A program that has mapped more than the area has gets SIGBUS where it goes beyond the last
        page, as with any file that was truncated.  The same would happen to this process through
        an old view: BufferError if there are views (of `buffer`, or arrays on it) and the area is
        to shrink.  Views are no hindrance to growth.

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
                # The old map, if anybody has a view of it, goes with the last one.
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
        """Give back what this process holds of it, as far as nobody has a view; again, do nothing.

        Programs that have mapped it keep it.  The same happens when nothing refers to the area.
        """
        self._descriptor.close()
        with contextlib.suppress(BufferError):
            self._unmap()

    def __enter__(self) -> "Self":
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
