"""The page cache of one file: content that the server need not be asked for again.

What is written goes to the server at once, and into pages that are here. With FUSE_WRITEBACK_CACHE,
and through mappings, it only goes into pages, which are then dirty: `recuse.kernel.fs.writeback`.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.fs.memory import PagesInMemory

_NO_LOCK: Final = contextlib.nullcontext()


class Pages:
    """Pages by their number, each PAGE_SIZE bytes: after the end of the file they are zeros.

    version changes whenever something is written or invalidated: what was read before that is not
    to be kept. dirty are the pages that the server does not have yet, writing those that are on
    their way to it. memory is what programs have mapped, if they have and the host has memory.
    """

    __slots__ = ("_pages", "dirty", "memory", "version", "writing")

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}
        self.version = 0
        self.dirty: set[int] = set()
        self.writing: set[int] = set()
        self.memory: PagesInMemory | None = None

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, number: int) -> bytes | None:
        """Return a page, None if it is not here."""
        return self._pages.get(number)

    def lack(self, number: int, most: int) -> int:
        """How many pages in a row are not here, from this one on; at most ``most``."""
        count = 0
        while count < most and number + count not in self._pages:
            count += 1
        return count

    def known_before(self, number: int, most: int) -> int:
        """How many pages in a row are here right before this one; at most ``most``."""
        count = 0
        while count < min(most, number) and number - count - 1 in self._pages:
            count += 1
        return count

    def keep(self, number: int, data: bytes) -> None:
        """Keep what was read from the server: whole pages, or less at the end of the file.

        A page that is here already and mapped stays: programs may have stored something in it.
        """
        with self._lock():
            for start in range(0, len(data), PAGE_SIZE):
                here = number + start // PAGE_SIZE
                if self.memory is None or here not in self.memory:
                    self._set(here, data[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))

    def _lock(self) -> contextlib.AbstractContextManager[object]:
        """What is held while pages change, or whether they have is found out."""
        return _NO_LOCK if self.memory is None else self.memory.lock

    def _set(self, number: int, page: bytes, low: int = 0, high: int = PAGE_SIZE) -> None:
        """Have a page; the bytes from ``low`` to ``high`` are new."""
        self._pages[number] = page
        if self.memory is not None:
            self.memory.put(number, page, low, high)

    def _pop(self, number: int) -> None:
        page = self._pages.pop(number, None)
        if page is not None and self.memory is not None:
            self.memory.drop(number, page)

    def show(self, number: int) -> bool:
        """Put a page that is here into the memory that is mapped; False if it is not here.

        Raises OSError(ENOMEM).
        """
        assert self.memory is not None
        with self._lock():
            page = self._pages.get(number)
            if page is None:
                return False
            if number not in self.memory:
                self.memory.show(number, page)
            return True

    def take_stores(self, first: int, after: int | None, size: int) -> bool:
        """Find what programs have stored in mappings of a file of ``size`` bytes; it is dirty then.

        Pages from ``first`` on, before ``after``; None: to the end. Returns whether there was any.
        """
        memory = self.memory
        if memory is None or not memory.writable:
            return False
        found = False
        with memory.lock:
            if self.memory is not memory:  # the last mapping has just ended, and was looked at
                return False
            for number, page in memory.read(first, after, size):
                if page != self._pages[number]:
                    self._pages[number] = page
                    self.dirty.add(number)
                    found = True
        return found

    def dirtied(self, offset: int, data: bytes) -> None:
        """Take what was written but is not sent yet. Pages that it covers in part are here."""
        self.write(offset, data)
        self.dirty.update(self._touched(offset, offset + len(data)))

    def dirty_runs(self, first: int, after: int | None, most: int) -> Iterator[tuple[int, int]]:
        """Dirty pages in a row, at most so many: the number of the first, and how many.

        Pages from ``first`` on, before ``after``; None: to the end.
        """
        begin = count = 0
        for number in sorted(self.dirty):
            if number < first or (after is not None and number >= after):
                continue
            if count and (number != begin + count or count == most):
                yield begin, count
                count = 0
            if not count:
                begin = number
            count += 1
        if count:
            yield begin, count

    def take_dirty(self, number: int, count: int) -> bytes:
        """Return pages that are sent now: until `sent` they are neither dirty nor dropped."""
        numbers = range(number, number + count)
        self.dirty.difference_update(numbers)
        self.writing.update(numbers)
        return b"".join(self._pages[one] for one in numbers)

    def sent(self, number: int, count: int) -> None:
        """Note that the server has answered."""
        self.writing.difference_update(range(number, number + count))

    def write(self, offset: int, data: bytes) -> None:
        """Note what was written: in pages that are here, and in pages that were written whole."""
        self.version += 1
        end = offset + len(data)
        with self._lock():
            for number in self._touched(offset, end):
                start = number * PAGE_SIZE
                low, high = max(offset - start, 0), min(end - start, PAGE_SIZE)
                page = self._pages.get(number)
                part = data[start + low - offset : start + high - offset]
                if high - low == PAGE_SIZE:
                    self._set(number, part)
                elif page is not None:
                    self._set(number, page[:low] + part + page[high:], low, high)

    def store(self, offset: int, data: bytes, size: int) -> None:
        """Take content that the server gives unasked, of a file that has ``size`` bytes."""
        self.write(offset, data)
        end = offset + len(data)
        start = end - end % PAGE_SIZE
        if offset <= start < end == size:
            # The last page: nothing of the file follows in it.
            self.keep(start // PAGE_SIZE, data[start - offset :])

    def truncate(self, size: int) -> None:
        """Note that the file ends here: what comes after that is zeros, if it ever grows again."""
        self.version += 1
        last, used = divmod(size, PAGE_SIZE)
        with self._lock():
            for number in [number for number in self._pages if number >= last]:
                page = self._pages[number]
                if number == last and used:
                    self._set(number, page[:used].ljust(PAGE_SIZE, b"\0"), used)
                else:
                    self._pages.pop(number, None)
                    self.dirty.discard(number)
            if self.memory is not None:
                self.memory.truncate(size)

    def drop(self, offset: int = 0, length: int = 0) -> None:
        """Give up all pages with any of these bytes; 0: up to the end.

        Only those stay that the server does not have yet.
        """
        self.version += 1
        first = offset // PAGE_SIZE
        after = (offset + length - 1) // PAGE_SIZE + 1 if length else None
        if self.memory is not None:
            self.take_stores(first, after, self.memory.complete)
        kept = self.dirty | self.writing
        if not offset and not length and not kept and self.memory is None:
            self._pages.clear()
            return
        with self._lock():
            for number in list(self._pages):
                if number >= first and (after is None or number < after) and number not in kept:
                    self._pop(number)

    def zero(self, offset: int, length: int) -> None:
        """Note that these bytes are zeros now: whole pages go, parts of pages are changed."""
        self.version += 1
        end = offset + length
        with self._lock():
            for number in [one for one in self._pages if offset < (one + 1) * PAGE_SIZE]:
                start = number * PAGE_SIZE
                low, high = max(offset - start, 0), min(end - start, PAGE_SIZE)
                if high - low == PAGE_SIZE:
                    self.dirty.discard(number)
                    self._set(number, bytes(PAGE_SIZE))
                    self._pop(number)
                elif low < high:
                    page = self._pages[number]
                    self._set(number, page[:low] + bytes(high - low) + page[high:], low, high)

    def content(self, offset: int, size: int) -> bytes:
        """Return what is here from ``offset`` on, up to the first page that is not."""
        parts = []
        for number in self._touched(offset, offset + size):
            page = self._pages.get(number)
            if page is None:
                break
            parts.append(page)
        skipped = offset % PAGE_SIZE
        return b"".join(parts)[skipped : skipped + size]

    @staticmethod
    def _touched(start: int, end: int) -> Iterator[int]:
        """The numbers of the pages that have bytes of a range."""
        return iter(range(start // PAGE_SIZE, -(-end // PAGE_SIZE)))
