"""The page cache of one file: content that the server need not be asked for again.

What is written goes to the server at once, and into pages that are here. (Linux can also hold it
back, FUSE_WRITEBACK_CACHE, which this half does not offer.)
"""

from collections.abc import Iterator

from recuse.kernel.connection.request import PAGE_SIZE


class Pages:
    """Pages by their number, each PAGE_SIZE bytes: after the end of the file they are zeros.

    version changes whenever something is written or invalidated: what was read before that is not
    to be kept.
    """

    __slots__ = ("_pages", "version")

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}
        self.version = 0

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

    def keep(self, number: int, data: bytes) -> None:
        """Keep what was read from the server: whole pages, or less at the end of the file."""
        for start in range(0, len(data), PAGE_SIZE):
            page = data[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
            self._pages[number + start // PAGE_SIZE] = page

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

    def drop(self, offset: int = 0, length: int = 0) -> None:
        """Give up all pages with any of these bytes; 0: up to the end."""
        self.version += 1
        if not offset and not length:
            self._pages.clear()
            return
        first = offset // PAGE_SIZE
        after = (offset + length - 1) // PAGE_SIZE + 1 if length else None
        for number in list(self._pages):
            if number >= first and (after is None or number < after):
                self._pages.pop(number, None)

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
