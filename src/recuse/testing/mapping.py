"""A file that a test has mapped: what `mmap.mmap` has, without memory."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from recuse.kernel.fs.mapping import MappedPages

if TYPE_CHECKING:
    from recuse.kernel.connection.operation import Operation
    from recuse.kernel.fs.credentials import FileCaller
    from recuse.testing.driver import Driver, Path

T = TypeVar("T")


class TestMapping:
    """A mapping, as `TestFile.mmap` returns it. A context manager, which closes it.

    Bytes are read by index or slice, and written by assigning to a slice. Where a program would get
    SIGBUS, behind the page with the file's end, it is OSError(EFAULT).
    """

    __test__ = False

    def __init__(  # noqa: PLR0917 - what it belongs to, and its place
        self,
        driver: Driver,
        caller: FileCaller,
        mapping: MappedPages,
        path: Path,
        offset: int,
        size: int,
    ) -> None:
        self._driver = driver
        self._caller = caller
        self._mapping = mapping
        self._path = path
        self._offset = offset
        self._size = size
        self.closed = False
        driver.opened(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        start, size = self._place(place)
        return self._run(self._mapping.read(self._caller, self._offset + start, size))

    def __setitem__(self, place: slice, data: bytes) -> None:
        start, size = self._place(place)
        if size != len(data):
            raise IndexError(f"{size} bytes cannot become {len(data)}")
        self._run(self._mapping.write(self._caller, self._offset + start, bytes(data)))

    def _place(self, place: slice) -> tuple[int, int]:
        start, stop, step = place.indices(self._size)
        if step != 1:
            raise ValueError("only bytes in a row")
        return start, max(stop - start, 0)

    def flush(self) -> None:
        """Have the filesystem know what was written, and make it safe (msync)."""
        self._run(self._mapping.sync(self._caller))

    def close(self) -> None:
        """Unmap it, once. What was written is written back; the file may be closed before that."""
        if not self.closed:
            self.closed = True
            self._run(self._mapping.close())

    def _run(self, operation: Operation[T]) -> T:
        return self._driver.run(operation, self._path)
