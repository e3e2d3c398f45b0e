"""An open directory. It remembers the entries read so far, so that offsets stay the same."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from typing import Any, Final, NamedTuple

from recuse.server.errors import Misuse, brief
from recuse.server.filesystem.answers import is_too_long, listed_name, log_too_long
from recuse.server.filesystem.attributes import Entry
from recuse.server.filesystem.nodes import Directory, Node

DOTS: Final = (b".", b"..")
"""The directory itself and the one above."""


class Item(NamedTuple):
    """One entry, as it was listed."""

    name: bytes
    node: Node | None
    kind: int
    ino: int


class Listing:
    """One open directory.

    The kernel half asks for entries starting at an offset, as many as it has room for. It may go
    back (seekdir). The entries from the author's iterator are kept until the beginning is read
    again (rewinddir).
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.items: list[Item] = []
        self._iterator: Iterator[Any] | None = None
        self._later: AsyncIterator[Any] | None = None
        """One of the two, until the end is reached."""
        self._live: Mapping[str, Node] | None = None
        self._is_snapshot = False
        self.is_asynchronous = False
        """Whether `advance_later` has to be awaited instead of `advance`."""
        self._lacks = False
        """Whether names were left out."""
        self._old = 0
        """How many of the items an earlier request may have read."""

    def begin(self, entries: Any) -> None:
        """Read the directory from the start: what `Directory.entries` has returned."""
        is_live = entries is getattr(self.directory, "children", None)
        self._live = entries if is_live else None
        self._is_snapshot = isinstance(entries, Mapping)
        if isinstance(entries, Mapping):
            entries = list(entries.items())
        self.items = []
        self._old = 0
        self.is_asynchronous = isinstance(entries, AsyncIterable)
        self._later = aiter(entries) if isinstance(entries, AsyncIterable) else None
        self._iterator = None if isinstance(entries, AsyncIterable) else iter(entries)

    def resume(self) -> None:
        """Read on, in another request: programs may have changed the directory meanwhile."""
        self._old = sys.maxsize if self._is_snapshot else len(self.items)

    def is_current(self, index: int) -> bool:
        """Whether an item's name means its node now.

        The kernel half lets no program change the directory during one request for entries, but
        does so between two. It believes the entries of READDIRPLUS: with an old one, a name that
        was removed would be there again.
        """
        if self._live is not None:
            item = self.items[index]
            return self._live.get(os.fsdecode(item.name)) is item.node
        return index >= self._old

    def advance(self) -> bool:
        """Take one more entry; return False at the end."""
        if self._iterator is None:
            return False
        for entry in self._iterator:
            if self._take(entry):
                return True
        self._iterator = None
        return False

    async def advance_later(self) -> bool:
        """Like `advance`, for an asynchronous iterator."""
        if self._later is None:
            return False
        async for entry in self._later:
            if self._take(entry):
                return True
        self._later = None
        return False

    def _take(self, entry: Any) -> bool:
        """Add what is listed, except "." and "..", which are there already, and names too long."""
        item = _item(entry)
        if item.name in DOTS:
            return False
        if is_too_long(item.name):
            if not self._lacks:
                log_too_long(self.directory.entries, item.name)
            self._lacks = True
            return False
        self.items.append(item)
        return True


def _item(entry: Any) -> Item:
    if isinstance(entry, Entry):
        return Item(listed_name(entry.name), None, stat.S_IFMT(entry.kind), entry.ino)
    try:
        name, node = entry
    except (TypeError, ValueError):
        raise Misuse(f"listed {brief(entry)}, not a name and a node, or an Entry") from None
    if not isinstance(node, Node) or not isinstance(name, str):
        raise Misuse(f"listed {brief(entry)}, not a name and a node, or an Entry")
    return Item(listed_name(name), node, node.kind, 0)
