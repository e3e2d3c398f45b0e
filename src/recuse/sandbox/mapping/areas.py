"""What a thread has mapped, as the kernel lists it (``/proc/TID/maps``)."""

from __future__ import annotations

import os
from collections.abc import Iterator

from recuse.runtime.records import NamedTuple


class Area(NamedTuple):
    """A part of a thread's memory."""

    start: int
    end: int
    shared: bool
    offset: int
    """In bytes, of what is at ``start``."""
    inode: tuple[int, int]
    """The device and inode numbers of the file."""


def areas(tid: int, start: int, end: int) -> Iterator[Area]:
    """The parts of a thread's memory between two addresses; none if nobody may look into it."""
    try:
        with open(f"/proc/{tid}/maps", "rb") as maps:
            for line in maps:
                # "7f00-7f10 rw-s 00000000 00:01 1234   /memfd:name (deleted)"
                span, rights, offset, device, number = line.split(None, 5)[:5]
                first, after = (int(address, 16) for address in span.split(b"-"))
                if first < end and start < after:
                    major, minor = (int(part, 16) for part in device.split(b":"))
                    inode = os.makedev(major, minor), int(number)
                    yield Area(first, after, rights.endswith(b"s"), int(offset, 16), inode)
    except OSError:
        pass
