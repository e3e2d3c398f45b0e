"""How much of a file is read at once, as long as it is read in order (mm/readahead.c, Linux 6.18).

Linux also reads on while a program still works on what it has got. Here the same is asked for, but
only when it is needed: a program that reads in order makes the same requests, a little later.
"""


class Readahead:
    """What is known of the way in which an open file is read. All numbers are those of pages."""

    __slots__ = ("_previous", "_size", "_start")

    def __init__(self) -> None:
        self._start = self._size = 0
        self._previous: int | None = None

    def pages_to_read(self, number: int, wanted: int, most: int, cached_before: int) -> int:
        """Return how many pages to ask for where one is missing (page_cache_sync_ra).

        Args:
            number: that page.
            wanted: how many the program asks for.
            most: the most that are read ahead.
            cached_before: how many pages right before it are known, as far as ``most``.
        """
        if not most:
            return wanted
        follows = self._previous is not None and 0 <= number - self._previous <= 1
        if number and self._size and number == self._start + self._size:
            size = _next_size(self._size, most)
        elif not number or wanted > most or follows:
            size = _initial_size(wanted, most)
        elif cached_before <= wanted:
            return wanted  # here and there
        else:
            traces = cached_before * 2 if cached_before == number else cached_before
            size = min(traces + wanted, most)
        self._start, self._size = number, size
        return size

    def done(self, position: int, page_size: int) -> None:
        """Note where the program has stopped reading, in bytes."""
        self._previous = position // page_size


def _initial_size(wanted: int, most: int) -> int:
    size = 1 << (wanted - 1).bit_length()
    if size <= most // 32:
        return size * 4
    if size <= most // 4:
        return size * 2
    return most


def _next_size(size: int, most: int) -> int:
    if size < most // 16:
        return size * 4
    return size * 2 if size <= most // 2 else most
