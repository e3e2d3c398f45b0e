"""A file's pages in memory that programs have mapped.

A kernel fills a page when a program touches it, and is told when a program changes one. The host of
this half can do neither. So pages are put into the memory before anybody can touch them, and what
programs have stored is found by comparing it with the page cache.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Final, Protocol

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.wire.descriptor import OwnedDescriptor

_AT_ONCE: Final = 256
"""How many pages are compared at a time."""


class Memory(Protocol):
    """Memory that the host can map into programs; whole pages. Offsets are those of the file."""

    def descriptor(self) -> OwnedDescriptor:
        """Return a descriptor of it, by which it is mapped. Raises OSError(ENFILE)."""

    def read(self, offset: int, size: int) -> bytes:
        """Return what is there now; zeros where nothing was written."""

    def write(self, offset: int, data: bytes) -> None:
        """Change it; it becomes longer if need be. Raises OSError(ENOMEM)."""

    def shorten(self, size: int) -> None:
        """Have it end there, if it is longer: programs get SIGBUS behind that."""

    def close(self) -> None:
        """Nobody has it mapped any more."""


class PagesInMemory:
    """The pages of one file that its mappings show.

    lock
        That of `recuse.kernel.fs.pages.Pages`.
    writable
        Programs may store something, so the memory has to be compared.
    stale
        Pages were dropped, so that those in the memory may be old.
    complete
        The size of the file when its pages were last put there.
    """

    def __init__(self, memory: Memory, lock: threading.Lock) -> None:
        self.memory: Final = memory
        self.lock: Final = lock
        self.writable = False
        self.stale = False
        self.complete = 0
        self._there: set[int] = set()
        """Pages that the page cache has too, the same but for what programs have stored."""
        self._dropped: dict[int, bytes] = {}
        """What was there of pages that the cache does not have any more."""
        self._mapped: list[range] = []

    def map(self, pages: range) -> bool:
        """Show these pages too, as far as the file has them; False if they are mapped anyway."""
        if any(one.start <= pages.start and pages.stop <= one.stop for one in self._mapped):
            return False
        self._mapped.append(pages)
        return True

    def unmap(self, pages: range) -> None:
        """Take it back that :meth:`map` has returned True."""
        self._mapped.remove(pages)

    def lacking(self, size: int) -> Iterator[tuple[int, int]]:
        """Mapped pages of a file of that size that are not there: as each is reached.

        With each, how many pages are mapped from it on.
        """
        after = -(-size // PAGE_SIZE)
        for pages in list(self._mapped):
            stop = min(pages.stop, after)
            for number in range(pages.start, stop):
                if number not in self._there:
                    yield number, stop - number

    def is_outdated(self, size: int) -> bool:
        """Whether the pages of a file of that size have to be looked through."""
        return self.stale or self.complete != size

    def __contains__(self, number: int) -> bool:
        return number in self._there

    # The lock is held.

    def put(self, number: int, page: bytes, low: int, high: int) -> None:
        """Take a page of the cache, in which the bytes from ``low`` to ``high`` are new.

        If there is no room for it, it is lacking.
        """
        with contextlib.suppress(OSError):
            if number in self._there:
                self.memory.write(number * PAGE_SIZE + low, page[low:high])
            elif any(number in pages for pages in self._mapped):
                self.show(number, page)

    def show(self, number: int, page: bytes) -> None:
        """Put a page there. Raises OSError(ENOMEM)."""
        start = number * PAGE_SIZE
        dropped = self._dropped.pop(number, None)
        if dropped is None:
            self.memory.write(start, page)
        else:
            # Programs may be storing something in it: write no byte that has not changed.
            for low, high in _differences(dropped, page):
                self.memory.write(start + low, page[low:high])
        self._there.add(number)

    def patch(self, number: int, low: int, part: bytes) -> None:
        """Bytes of a page from ``low`` on have changed, which the cache does not have."""
        page = self._dropped.get(number)
        if page is not None:
            with contextlib.suppress(OSError):
                self.memory.write(number * PAGE_SIZE + low, part)
            self._dropped[number] = page[:low] + part + page[low + len(part) :]

    def drop(self, number: int, page: bytes) -> None:
        """The cache does not have this page any more. Programs see it until it is there again."""
        if number in self._there:
            self._there.remove(number)
            self._dropped[number] = page
            self.stale = True

    def truncate(self, size: int) -> None:
        """The file ends there."""
        last, used = divmod(size, PAGE_SIZE)
        after = last + 1 if used else last
        if used:
            self.patch(last, used, bytes(PAGE_SIZE - used))
        self.memory.shorten(after * PAGE_SIZE)
        self._there = {number for number in self._there if number < after}
        self._dropped = {number: old for number, old in self._dropped.items() if number < after}

    def read(self, first: int, after: int | None, size: int) -> Iterator[tuple[int, bytes]]:
        """Pages that are there, from ``first`` on, before ``after``, as programs see them now.

        What was stored behind the end of a file of that size becomes zeros again, as in Linux when
        a page is written back (mm/page-writeback.c).
        """
        begin = count = 0
        for number in self._numbers(first, after):
            if count and (number != begin + count or count == _AT_ONCE):
                yield from self._read(begin, count, size)
                count = 0
            if not count:
                begin = number
            count += 1
        if count:
            yield from self._read(begin, count, size)

    def _numbers(self, first: int, after: int | None) -> list[int]:
        if after is not None and after - first < len(self._there):
            return [number for number in range(first, after) if number in self._there]
        return sorted(
            number
            for number in self._there
            if number >= first and (after is None or number < after)
        )

    def _read(self, first: int, count: int, size: int) -> Iterator[tuple[int, bytes]]:
        data = self.memory.read(first * PAGE_SIZE, count * PAGE_SIZE)
        for place in range(0, len(data), PAGE_SIZE):
            start = first * PAGE_SIZE + place
            page = data[place : place + PAGE_SIZE]
            left = max(size - start, 0)
            if left < PAGE_SIZE and any(page[left:]):
                self.memory.write(start + left, bytes(PAGE_SIZE - left))
                page = page[:left].ljust(PAGE_SIZE, b"\0")
            yield start // PAGE_SIZE, page


def _differences(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Where two pages differ: the first byte, and the one after the last."""
    if old == new:
        return
    low = None
    for place in range(len(new) + 1):
        differs = place < len(new) and old[place] != new[place]
        if differs and low is None:
            low = place
        elif low is not None and not differs:
            yield low, place
            low = None
