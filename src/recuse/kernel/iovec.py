"""The parts of a caller's memory that a read or write uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from recuse.kernel.caller import Memory
from recuse.kernel.connection.request import MAX_PAGES, MOST_PAGES, PAGE_SIZE

IoVec: TypeAlias = tuple[int, int]
"""Address and length in bytes of a part of a buffer in the caller's memory."""

MAX_TRANSFER = 0x7FFFF000
"""Most bytes that one read or write transfers (MAX_RW_COUNT)."""


def length_of(segments: Sequence[IoVec]) -> int:
    """Return how many bytes of the segments one read or write transfers."""
    return min(sum(length for _, length in segments), MAX_TRANSFER)


def part_of(segments: Sequence[IoVec], skip: int, limit: int) -> Sequence[IoVec]:
    """Return the parts of segments for one request, which starts ``skip`` bytes into them.

    The parts have at most ``limit`` bytes. They span at most as many pages as Linux takes
    (MAX_PAGES; fuse_get_user_pages). If the device asked for more than Linux would ever send it,
    they may span as many as ``limit`` bytes need, up to MOST_PAGES.
    """
    areas = []
    pages = min(max(MAX_PAGES, limit // PAGE_SIZE), MOST_PAGES)
    for address, length in segments:
        if skip >= length:
            skip -= length
            continue
        address += skip
        length = min(length - skip, limit, pages * PAGE_SIZE - address % PAGE_SIZE)
        skip = 0
        areas.append((address, length))
        limit -= length
        pages -= (address % PAGE_SIZE + length + PAGE_SIZE - 1) // PAGE_SIZE
        if not limit or not pages:
            break
    return areas


def load(memory: Memory, areas: Sequence[IoVec]) -> bytes:
    """Return what is in the areas, up to the first byte that cannot be read."""
    parts: list[bytes] = []
    try:
        if len(areas) == 1:
            return memory.read(*areas[0])
        for address, length in areas:
            part = memory.read(address, length)
            parts.append(part)
            if len(part) < length:
                break
    except OSError:
        pass
    return b"".join(parts)


def store(memory: Memory, areas: Sequence[IoVec], data: bytes | memoryview) -> int:
    """Put data into the areas; return how many bytes could be stored."""
    stored = 0
    try:
        if len(areas) == 1:
            return memory.write(areas[0][0], data)
        for address, length in areas:
            part = data[stored : stored + length]
            if not part:
                break
            count = memory.write(address, part)
            stored += count
            if count < len(part):
                break
    except OSError:
        pass
    return stored
