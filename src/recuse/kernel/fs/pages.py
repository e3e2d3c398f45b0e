"""The page cache of one file: content that the server need not be asked for again.

What is written goes to the server at once, and into pages that are here. With FUSE_WRITEBACK_CACHE,
and through mappings, it only goes into pages, which are then dirty: `recuse.kernel.fs.writeback`.
"""

from collections.abc import Iterator

from recuse.kernel.connection.request import PAGE_SIZE


class Pages:
    """Pages by their number, each PAGE_SIZE bytes: after the end of the file they are zeros.

    version changes whenever something is written or invalidated: what was read before that is not
    to be kept. dirty are the pages that the server does not have yet, writing those that are on
    their way to it.
    """

    __slots__ = ("_pages", "dirty", "version", "writing")

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}
        self.version = 0
        self.dirty: set[int] = set()
        self.writing: set[int] = set()

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
        """Keep what was read from the server: whole pages, or less at the end of the file."""
        for start in range(0, len(data), PAGE_SIZE):
            page = data[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
            self._pages[number + start // PAGE_SIZE] = page

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
        for number in self._touched(offset, end):
            start = number * PAGE_SIZE
            low, high = max(offset, start), min(end, start + PAGE_SIZE)
            page = self._pages.get(number)
            part = data[low - offset : high - offset]
            if high - low == PAGE_SIZE:
                self._pages[number] = part
            elif page is not None:
                self._pages[number] = page[: low - start] + part + page[high - start :]

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
        for number in [number for number in self._pages if number >= last]:
            page = self._pages.pop(number, b"")
            if number == last and used:
                self._pages[number] = page[:used].ljust(PAGE_SIZE, b"\0")
            else:
                self.dirty.discard(number)

    def drop(self, offset: int = 0, length: int = 0) -> None:
        """Give up all pages with any of these bytes; 0: up to the end.

        Only those stay that the server does not have yet.
        """
        self.version += 1
        kept = self.dirty | self.writing
        if not offset and not length and not kept:
            self._pages.clear()
            return
        first = offset // PAGE_SIZE
        after = (offset + length - 1) // PAGE_SIZE + 1 if length else None
        for number in list(self._pages):
            if number >= first and (after is None or number < after) and number not in kept:
                self._pages.pop(number, None)

    def zero(self, offset: int, length: int) -> None:
        """Note that these bytes are zeros now: whole pages go, parts of pages are changed."""
        self.version += 1
        end = offset + length
        for number in [one for one in self._pages if offset < (one + 1) * PAGE_SIZE]:
            start = number * PAGE_SIZE
            low, high = max(offset, start), min(end, start + PAGE_SIZE)
            if high - low == PAGE_SIZE:
                self._pages.pop(number, None)
                self.dirty.discard(number)
            elif low < high:
                page = self._pages[number]
                self._pages[number] = page[: low - start] + bytes(high - low) + page[high - start :]

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
