"""Directories of filesystems with a method for each operation."""

import asyncio
import errno
import stat
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from recuse import (
    DirectoryEntry,
)
from recuse.wire import fuse

from ..conftest import Told
from .conftest import ServeFilesystem
from .small_inodes import Small, opened


class Listing(Small):
    """Lists as many entries as it is told to."""

    entries: Iterable[Any] = [
        DirectoryEntry(".", 1, ino=1, kind=stat.S_IFDIR),
        DirectoryEntry("first", 5, ino=8, kind=stat.S_IFREG),
        DirectoryEntry("second", 3, ino=9),
    ]

    def readdir(self, ino: int, fh: object, offset: int) -> Any:
        self.asked.append((ino, fh, offset))
        return self.entries

    def readdirplus(self, ino: int, fh: object, offset: int) -> Any:
        return self.plus()

    def plus(self) -> Iterator[DirectoryEntry]:
        for index in range(1, 100):
            yield DirectoryEntry(f"name{index}", index, entry=self.entry())


class ListingLater(Listing):
    """The same, asynchronously."""

    closed = False

    async def readdir(self, ino: int, fh: object, offset: int) -> Any:
        return self.entries

    def readdirplus(self, ino: int, fh: object, offset: int) -> Any:
        return self.plus_later()

    async def plus_later(self) -> AsyncIterator[DirectoryEntry]:
        try:
            entries = self.plus()
            while True:
                await asyncio.sleep(0)
                yield next(entries)
        finally:
            self.closed = True


@pytest.mark.parametrize("kind", [Listing, ListingLater])
def test_a_listing(serve_filesystem: ServeFilesystem, kind: type[Listing]) -> None:
    peer = serve_filesystem(inodes := kind())
    fh = opened(peer, fuse.FUSE_OPENDIR, 1)
    found = peer.list_page(fh, offset=7)
    assert [(one.name, one.ino, one.kind, one.offset) for one in found] == [
        (".", 1, stat.S_IFDIR >> 12, 1),
        ("first", 8, stat.S_IFREG >> 12, 5),
        ("second", 9, 0, 3),
    ]
    if kind is Listing:
        assert inodes.asked == [(1, "directory", 7)]


@pytest.mark.parametrize("kind", [Listing, ListingLater])
def test_entries_count_as_lookups(serve_filesystem: ServeFilesystem, kind: type[Listing]) -> None:
    """As many as were sent, though one more was made."""
    peer = serve_filesystem(inodes := kind())
    fh = opened(peer, fuse.FUSE_OPENDIR, 1)
    found = peer.list_page(fh, plus=True, size=1000)
    assert 3 < len(found) < 10
    for one in found:
        assert one.entry is not None
        assert (one.ino, one.kind, one.entry.nodeid) == (77, stat.S_IFREG >> 12, 2)
    assert inodes.lookups == len(found)
    assert getattr(inodes, "closed", True)
    peer.refuse = OSError(errno.ENOENT, "killed")
    peer.send(fuse.FUSE_READDIRPLUS, 1, fuse.fuse_read_in(fh=fh, offset=0, size=1000))
    peer.session.close()
    assert inodes.lookups == len(found)


def test_what_is_not_counted(serve_filesystem: ServeFilesystem, told: Told) -> None:
    class Dots(Listing):
        def plus(self) -> Iterator[DirectoryEntry]:
            yield DirectoryEntry(".", 1, entry=self.entry())
            yield DirectoryEntry("..", 2, ino=1)
            yield DirectoryEntry("a", 3, entry=self.entry())

    class Failing(Dots):
        def plus(self) -> Iterator[DirectoryEntry]:
            yield from super().plus()
            raise OSError(errno.EUCLEAN, "broken")

    class Wrong(Dots):
        def plus(self) -> Iterator[DirectoryEntry]:
            yield from super().plus()
            yield 5  # type: ignore[misc]

    for kind, count in ((Dots, 1), (Failing, 0), (Wrong, 0)):
        peer = serve_filesystem(inodes := kind())
        fh = opened(peer, fuse.FUSE_OPENDIR, 1)
        body = fuse.fuse_read_in(fh=fh, size=4096)
        if count:
            found = peer.list_page(fh, plus=True)
            assert [one.entry.nodeid for one in found if one.entry] == [0, 0, 2]
        else:
            number = errno.EUCLEAN if kind is Failing else errno.EIO
            assert peer.refuses(fuse.FUSE_READDIRPLUS, 1, body) == number
        assert inodes.lookups == count
    assert told.line() == ("Wrong.readdirplus listed 5, not a DirectoryEntry: EIO for the program")


@pytest.mark.parametrize("plus", [False, True])
def test_names_that_are_too_long_are_left_out(
    serve_filesystem: ServeFilesystem, told: Told, plus: bool
) -> None:
    """Their lookups are taken back."""

    class Long(Small):
        def readdir(self, ino: int, fh: object, offset: int) -> Iterator[DirectoryEntry]:
            for index, name in enumerate(("a", "x" * 256, "y" * 5000, "z" * 255), 1):
                yield DirectoryEntry(name, index, entry=self.entry() if plus else None)

        readdirplus = readdir

    peer = serve_filesystem(inodes := Long())
    fh = opened(peer, fuse.FUSE_OPENDIR, 1)
    assert [one.name for one in peer.list_page(fh, plus=plus)] == ["a", "z" * 255]
    assert inodes.lookups == (2 if plus else 0)
    assert told.line() == (
        f"Long.readdir listed {'x' * 16!r}..., a name of 256 bytes: "
        "what has more than 255 is left out"
    )


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(
    "entry",
    [
        DirectoryEntry("a\0b", 1),
        DirectoryEntry("a/b", 1),
        DirectoryEntry("", 1),
        DirectoryEntry(b"a", 1),  # type: ignore[arg-type]
        DirectoryEntry("a", -1),
        DirectoryEntry("a", 1, ino="a"),  # type: ignore[arg-type]
        DirectoryEntry("a", 1, kind="a"),  # type: ignore[arg-type]
    ],
)
def test_entries_that_cannot_be(
    serve_filesystem: ServeFilesystem, told: Told, entry: DirectoryEntry, plus: bool
) -> None:
    class Wrong(Small):
        def readdir(self, ino: int, fh: object, offset: int) -> list[DirectoryEntry]:
            return [entry]

        readdirplus = readdir

    peer = serve_filesystem(Wrong())
    fh = opened(peer, fuse.FUSE_OPENDIR, 1)
    opcode = fuse.FUSE_READDIRPLUS if plus else fuse.FUSE_READDIR
    assert peer.refuses(opcode, 1, fuse.fuse_read_in(fh=fh, size=4096)) == errno.EIO
    assert told.line().startswith("Wrong.readdir listed ")
