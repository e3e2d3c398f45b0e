"""The page cache of one file: content that the server need not be asked for again.

What is written goes to the server at once, and into pages that are here. With FUSE_WRITEBACK_CACHE,
and through mappings, it only goes into pages, which are then dirty: `recuse.kernel.fs.writeback`.
"""

from collections.abc import Iterator
from typing import Final

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.fs.memory import PagesInMemory
from recuse.runtime.locks import new_lock


class Pages:
    """Pages by their number, each PAGE_SIZE bytes: after the end of the file they are zeros.

    Thread-safe. version changes whenever something is written or invalidated: what was read before
    that is not to be kept. dirty are the pages that the server does not have yet, writing those
    that are on their way to it. memory is what programs have mapped, if they have and the host has
    memory.
    """

    __slots__ = ("_pages", "dirty", "lock", "memory", "version", "writing")

    def __init__(self) -> None:
        self.lock: Final = new_lock("Pages")
        """Held while pages change, and while it is found out whether mapped ones have."""
        self._pages: dict[int, bytes] = {}
        self.version = 0
        self.dirty: set[int] = set()
        self.writing: set[int] = set()
        self.memory: PagesInMemory | None = None

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def may_be_dirty(self) -> bool:
        """Whether some may be, or are just being sent."""
        return bool(self.dirty or self.writing or self.memory)

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

    def keep(self, number: int, data: bytes, version: int | None = None) -> bool:
        """Keep what was read from the server: whole pages, or less at the end of the file.

        A page that is here already and mapped stays: programs may have stored something in it.
        Return False if the pages are not of that ``version`` any more: nothing is kept then.
        """
        with self.lock:
            if version not in (None, self.version):
                return False
            for start in range(0, len(data), PAGE_SIZE):
                here = number + start // PAGE_SIZE
                if self.memory is None or here not in self.memory:
                    self._set(here, data[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))
            return True

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
        with self.lock:
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
        with self.lock:
            if self.memory is not memory:  # the last mapping has just ended, and was looked at
                return False
            for number, page in memory.read(first, after, size):
                if page != self._pages[number]:
                    self._pages[number] = page
                    self.dirty.add(number)
                    found = True
        return found

    def dirtied(self, offset: int, data: bytes) -> bool:
        """Take what was written in one page but is not sent yet.

        Return False if that page is changed in part, and is not here (any more).
        """
        number = offset // PAGE_SIZE
        with self.lock:
            if len(data) < PAGE_SIZE and number not in self._pages:
                return False
            self._write(offset, data)
            self.dirty.add(number)
            return True

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
        """Return pages that are sent now: until `sent` they are neither dirty nor dropped.

        Those are left out that another thread has just cut off.
        """
        numbers = range(number, number + count)
        with self.lock:
            self.dirty.difference_update(numbers)
            self.writing.update(numbers)
            return b"".join(self._pages[one] for one in numbers if one in self._pages)

    def sent(self, number: int, count: int) -> None:
        """Note that the server has answered."""
        with self.lock:
            self.writing.difference_update(range(number, number + count))

    def write(self, offset: int, data: bytes) -> None:
        """Note what was written: in pages that are here, and in pages that were written whole."""
        with self.lock:
            self._write(offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        self.version += 1
        end = offset + len(data)
        for number in self._touched(offset, end):
            start = number * PAGE_SIZE
            low, high = max(offset - start, 0), min(end - start, PAGE_SIZE)
            page = self._pages.get(number)
            part = data[start + low - offset : start + high - offset]
            if high - low == PAGE_SIZE:
                self._set(number, part)
            elif page is not None:
                self._set(number, page[:low] + part + page[high:], low, high)
            elif self.memory is not None:
                self.memory.patch(number, low, part)

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
        last, used = divmod(size, PAGE_SIZE)
        with self.lock:
            self.version += 1
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
        first = offset // PAGE_SIZE
        after = (offset + length - 1) // PAGE_SIZE + 1 if length else None
        if (memory := self.memory) is not None:
            self.take_stores(first, after, memory.complete)
        with self.lock:
            self.version += 1
            kept = self.dirty | self.writing
            if not offset and not length and not kept and self.memory is None:
                self._pages.clear()
                return
            for number in list(self._pages):
                if number >= first and (after is None or number < after) and number not in kept:
                    self._pop(number)

    def zero(self, offset: int, length: int) -> None:
        """Note that these bytes are zeros now: whole pages go, parts of pages are changed."""
        end = offset + length
        with self.lock:
            self.version += 1
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
