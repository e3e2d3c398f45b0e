"""Filesystems with a method for each operation."""

import asyncio
import enum
import errno
import fcntl
import operator
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from recuse import (
    Attributes,
    Changes,
    DirectoryEntry,
    InodeEntry,
    Inodes,
    Opened,
    Statistics,
)
from recuse.wire import fuse
from recuse.wire.filesystem import (
    create_out,
    fuse_attr_out,
    fuse_batch_forget_in,
    fuse_create_in,
    fuse_forget_one,
    fuse_setattr_in,
    fuse_statfs_out,
    fuse_statx_in,
    fuse_statx_out,
)

from ..conftest import WAIT_S, Failure, Told
from .conftest import FilesystemPeer, ServeFilesystem
from .small_inodes import ENTRY, FILE, Small, opened


def test_a_lookup(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(Small())
    found = peer.lookup("file")
    assert (found.nodeid, found.generation) == (2, 9)
    assert (found.attr_valid, found.attr_valid_nsec) == (1, 500_000_000)
    assert (found.entry_valid, found.entry_valid_nsec) == (2, 250_000_000)
    assert (found.attr.ino, found.attr.mode, found.attr.size) == (77, FILE.mode, 12)
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "none") == errno.ENOENT
    never = peer.lookup("never")
    assert (never.nodeid, never.entry_valid, never.attr_valid) == (0, 4, 0)
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "x" * 256) == errno.ENAMETOOLONG


def test_what_is_missing_and_is_something_else(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(Inodes())
    for opcode in (fuse.FUSE_OPEN, fuse.FUSE_OPENDIR, fuse.FUSE_CREATE, fuse.FUSE_LOOKUP):
        assert peer.refuses(opcode, 1, bytes(16), "x") == errno.ENOSYS
    assert fuse_statfs_out.unpack(peer.ask(fuse.FUSE_STATFS, 1)).st.namelen == 255
    peer.ask(fuse.FUSE_RELEASE, 1, fuse.fuse_release_in())
    peer.ask(fuse.FUSE_RELEASEDIR, 1, fuse.fuse_release_in())
    peer.forget(1, 5)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        Inodes().lookup(1, "x")


def test_enosys_is_the_authors_to_say(serve_filesystem: ServeFilesystem) -> None:
    class Refusing(Small):
        def open(self, ino: int, flags: int) -> object:
            raise OSError(errno.ENOSYS, "always the same")

        def read(self, ino: int, fh: object, size: int, offset: int) -> bytes:
            assert fh is None
            return b"text"

    peer = serve_filesystem(Refusing())
    assert peer.refuses(fuse.FUSE_OPEN, 2, bytes(8)) == errno.ENOSYS
    assert peer.read_node(2, 0, 10) == b"text"


def test_setattr(serve_filesystem: ServeFilesystem) -> None:
    class Changing(Small):
        def setattr(self, ino: int, changes: Changes, fh: object) -> Any:
            told = changes.mode, changes.uid, changes.size, changes.mtime_ns, changes.atime_ns
            self.asked.append((ino, fh, *told))
            return ENTRY if fh else os.stat("/")

    peer = serve_filesystem(inodes := Changing())
    fh = opened(peer)
    inodes.asked.clear()
    body = fuse_setattr_in(
        valid=fuse.FATTR_MODE | fuse.FATTR_SIZE | fuse.FATTR_MTIME | fuse.FATTR_FH,
        fh=fh,
        mode=stat.S_IFREG | 0o600,
        size=5,
        mtime=7,
        mtimensec=8,
    )
    out = fuse_attr_out.unpack(peer.ask(fuse.FUSE_SETATTR, 2, body))
    assert (out.attr_valid, out.attr_valid_nsec, out.attr.ino) == (1, 500_000_000, 77)
    body = fuse_setattr_in(valid=fuse.FATTR_UID | fuse.FATTR_ATIME, uid=5)
    out = fuse_attr_out.unpack(peer.ask(fuse.FUSE_SETATTR, 2, body))
    assert (out.attr_valid, out.attr_valid_nsec, out.attr.ino) == (1, 0, os.stat("/").st_ino)
    assert inodes.asked == [
        (2, "file", 0o600, None, 5, 7 * 10**9 + 8, None),
        (2, None, None, 5, None, None, 0),
    ]


def test_statx_and_statfs(serve_filesystem: ServeFilesystem) -> None:
    class Born(Small):
        def statx(self, ino: int, fh: object, flags: int, mask: int) -> Any:
            self.asked.append((ino, fh, flags, mask))
            return ENTRY if fh else FILE

        def statfs(self, ino: int) -> Statistics:
            return Statistics(blocks=ino)

    peer = serve_filesystem(inodes := Born())
    fh = opened(peer)
    inodes.asked.clear()
    for body in (
        fuse_statx_in(sx_flags=1, sx_mask=0x800),
        fuse_statx_in(getattr_flags=fuse.FUSE_GETATTR_FH, fh=fh),
    ):
        told = fuse_statx_out.unpack(peer.ask(fuse.FUSE_STATX, 2, body)).stat
        assert (told.ino, told.btime.tv_sec, told.btime.tv_nsec) == (77, 5, 6)
    assert inodes.asked == [(2, None, 1, 0x800), (2, "file", 0, 0)]
    assert fuse_statfs_out.unpack(peer.ask(fuse.FUSE_STATFS, 9)).st.blocks == 9


def test_making_files(serve_filesystem: ServeFilesystem) -> None:
    class Temporary(Small):
        async def tmpfile(self, parent: int, mode: int, flags: int) -> Any:
            self.asked.append(("tmpfile", parent, mode, flags))
            return self.entry(), Opened(keep_cache=True, flushed=False, parallel_writes=True)

    peer = serve_filesystem(inodes := Temporary())
    body = fuse_create_in(flags=os.O_RDWR, mode=stat.S_IFREG | 0o640)
    made = create_out.unpack(peer.ask(fuse.FUSE_CREATE, 1, body, "new"))
    assert made.entry.nodeid == 2
    assert made.open.open_flags == fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE
    temporary = create_out.unpack(peer.ask(fuse.FUSE_TMPFILE, 1, body, "#"))
    assert temporary.open.open_flags == (
        fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES
    )
    for one in (made, temporary):
        peer.ask(fuse.FUSE_RELEASE, 2, fuse.fuse_release_in(fh=one.open.fh))
    assert inodes.asked == [
        ("create", 1, "new", 0o640, os.O_RDWR),
        ("tmpfile", 1, 0o640, os.O_RDWR),
        ("release", 2, "new"),
        ("release", 2, None),
    ]


def test_directories_may_be_cached(serve_filesystem: ServeFilesystem) -> None:
    class Cached(Small):
        def opendir(self, ino: int, flags: int) -> object:
            return Opened(cache_entries=True, keep_cache=True)

    peer = serve_filesystem(Cached())
    out = fuse.fuse_open_out.unpack(peer.ask(fuse.FUSE_OPENDIR, 1, bytes(8)))
    assert out.open_flags == fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE


# ---- listings


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


class Number(enum.IntEnum):
    """A number of a type of its own."""

    FILE = 2


class Index:
    """What is a number for Python, as NumPy's are, and no int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@pytest.mark.parametrize("ino", [Number.FILE, Index(2), True, (1 << 64) - 1])
def test_numbers_of_any_integer_type(serve_filesystem: ServeFilesystem, ino: Any) -> None:
    class Numbered(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry:
            return InodeEntry(ino, FILE)

    assert serve_filesystem(Numbered()).lookup("file").nodeid == operator.index(ino)


@pytest.mark.parametrize("ino", ["a", 1.5, None, -1, 1 << 64, Index(-1), Number])
def test_what_is_no_number(serve_filesystem: ServeFilesystem, told: Told, ino: Any) -> None:
    class Wrong(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry:
            return InodeEntry(ino, FILE)

    peer = serve_filesystem(Wrong())
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "file") == errno.EIO
    line = told.line()
    assert line.startswith("Wrong.lookup returned ")
    assert line.endswith(", not an InodeEntry with a number: EIO for the program")


@pytest.mark.parametrize(
    "entry",
    [
        InodeEntry(2, FILE, generation=-1),
        InodeEntry(2, FILE, generation="a"),  # type: ignore[arg-type]
        InodeEntry(2, Attributes(stat.S_IFREG, size="a")),  # type: ignore[arg-type]
        InodeEntry(2, Attributes(stat.S_IFREG, mtime_ns=1.5)),  # type: ignore[arg-type]
        InodeEntry(2, Attributes("file")),  # type: ignore[arg-type]
        InodeEntry(2, Attributes(-1)),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    serve_filesystem: ServeFilesystem, told: Told, entry: InodeEntry
) -> None:
    class Wrong(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry:
            return entry

    peer = serve_filesystem(Wrong())
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "file") == errno.EIO
    assert told.line().startswith("Wrong.lookup returned ")


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(
    "entry",
    [
        DirectoryEntry("a\0b", 1),
        DirectoryEntry("a/b", 1),
        DirectoryEntry("", 1),
        DirectoryEntry(b"a", 1),  # type: ignore[arg-type]
        DirectoryEntry("x" * 1025, 1),
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


# ---- lookups and open files, at the end and otherwise


def test_what_is_not_received_is_taken_back(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(inodes := Small())
    peer.refuse = OSError(errno.ENOENT, "killed")
    peer.send(fuse.FUSE_LOOKUP, 1, b"", "file")
    peer.send(fuse.FUSE_CREATE, 1, fuse_create_in(), "file")
    peer.send(fuse.FUSE_OPEN, 2, bytes(8))
    peer.send(fuse.FUSE_OPENDIR, 1, bytes(8))
    assert inodes.lookups == 0
    assert [one for one in inodes.asked if "release" in one[0]] == [
        ("release", 2, "new"),
        ("release", 2, "file"),
        ("releasedir", 1, "directory"),
    ]


def test_forgetting(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(inodes := Small())
    peer.forget(2, 3)
    records = fuse_forget_one(4, 5).pack() + fuse_forget_one(6, 7).pack()
    peer.send(fuse.FUSE_BATCH_FORGET, 0, fuse_batch_forget_in(count=2), records)
    assert inodes.asked == [("forget", [(2, 3)]), ("forget", [(4, 5), (6, 7)])]


def test_forgetting_later(serve_filesystem: ServeFilesystem) -> None:
    forgotten = threading.Event()

    class Later(Small):
        async def forget(self, inodes: list[tuple[int, int]]) -> None:
            assert inodes == [(2, 3)]
            forgotten.set()

    peer = serve_filesystem(Later())
    peer.forget(2, 3)
    assert forgotten.wait(WAIT_S)


def test_nothing_is_forgotten_after_the_end(serve_filesystem: ServeFilesystem) -> None:
    finding, go_on = threading.Event(), threading.Event()

    class Slow(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry | None:
            finding.set()
            assert go_on.wait(WAIT_S)
            return super().lookup(parent, name)

        async def forget(self, inodes: list[tuple[int, int]]) -> None:
            raise AssertionError

    peer = serve_filesystem(inodes := Slow())
    finder = threading.Thread(target=peer.send, args=(fuse.FUSE_LOOKUP, 1, b"", "file"))
    finder.start()
    assert finding.wait(WAIT_S)
    peer.session.close()
    peer.refuse = OSError(errno.ENODEV, "the connection has ended")
    go_on.set()
    finder.join(WAIT_S)
    assert inodes.asked == ["destroy"]


def test_the_end(serve_filesystem: ServeFilesystem) -> None:
    class Later(Small):
        async def release(self, ino: int, fh: object) -> None:
            await asyncio.sleep(0)
            self.asked.append(("release", ino, fh))

        async def destroy(self) -> None:
            self.asked.append("destroy")

    for kind in (Small, Later):
        peer = serve_filesystem(inodes := kind())
        first = opened(peer)
        opened(peer)
        opened(peer, fuse.FUSE_OPENDIR, 1)
        peer.ask(fuse.FUSE_RELEASE, 2, fuse.fuse_release_in(fh=first))
        body = fuse.fuse_read_in(fh=first, size=1)
        assert peer.refuses(fuse.FUSE_READ, 2, body) == errno.ENOSYS
        peer.session.close()
        assert inodes.asked[2:] == [
            ("release", 2, "file"),
            ("release", 2, "file"),
            ("releasedir", 1, "directory"),
            "destroy",
        ]
        assert peer.refuses(fuse.FUSE_OPEN, 2, bytes(8)) == errno.ENODEV


def test_an_open_that_ends_after_the_session(serve_filesystem: ServeFilesystem) -> None:
    opening, go_on = threading.Event(), threading.Event()

    class Slow(Small):
        def open(self, ino: int, flags: int) -> object:
            opening.set()
            assert go_on.wait(WAIT_S)
            return "late"

    peer = serve_filesystem(inodes := Slow())
    sent: list[int] = []
    opener = threading.Thread(target=lambda: sent.append(peer.send(fuse.FUSE_OPEN, 2, bytes(8))))
    opener.start()
    assert opening.wait(WAIT_S)
    peer.session.close()
    go_on.set()
    opener.join(WAIT_S)
    with pytest.raises(Failure) as caught:
        peer.answer(sent[0])
    assert caught.value.number == errno.ENODEV
    assert inodes.asked == ["destroy", ("release", 2, "late")]


def test_a_handle_that_there_is_not(serve_filesystem: ServeFilesystem) -> None:
    class Reading(Small):
        def read(self, ino: int, fh: object, size: int, offset: int) -> bytes:
            return b""

    peer = serve_filesystem(Reading())
    body = fuse.fuse_read_in(fh=99, size=1)
    assert peer.refuses(fuse.FUSE_READ, 2, body) == errno.EBADF


# ---- what the author does wrong


class Wrong(Small):
    """Returns what it is told to."""

    returns: Any = None

    def lookup(self, parent: int, name: str) -> Any:
        return self.returns

    def create(self, parent: int, name: str, mode: int, flags: int) -> Any:
        return self.returns

    def getattr(self, ino: int, fh: object) -> Any:
        return self.returns

    def ioctl(self, *arguments: Any) -> Any:
        return self.returns


@pytest.mark.parametrize(
    ("opcode", "returns", "complaint"),
    [
        (fuse.FUSE_LOOKUP, 5, "lookup returned 5, not an InodeEntry"),
        (fuse.FUSE_LOOKUP, InodeEntry(-1, FILE), "not an InodeEntry with a number"),
        (fuse.FUSE_LOOKUP, InodeEntry(2, None), "lookup returned None, not Attributes"),
        (fuse.FUSE_LOOKUP, InodeEntry(2, Attributes(0o644)), "whose mode has no type"),
        (fuse.FUSE_CREATE, ENTRY, "not an InodeEntry and what `open` returns"),
        (fuse.FUSE_CREATE, (5, 6), "create returned 5, not an InodeEntry"),
        (fuse.FUSE_CREATE, (InodeEntry(0, None), 6), "not an InodeEntry with a number"),
        (fuse.FUSE_GETATTR, "x", "getattr returned 'x', not Attributes"),
        (fuse.FUSE_IOCTL, b"too long", "returned 8 bytes, but the program takes 0"),
        (fuse.FUSE_IOCTL, "text", "not a result, bytes, or both"),
        (fuse.FUSE_IOCTL, (-1, b""), "returned -1, not a result"),
    ],
)
def test_mistakes_are_told(
    serve_filesystem: ServeFilesystem, told: Told, opcode: int, returns: Any, complaint: str
) -> None:
    inodes = Wrong()
    inodes.returns = returns
    peer = serve_filesystem(inodes)
    bodies = {fuse.FUSE_CREATE: fuse_create_in(), fuse.FUSE_IOCTL: fuse.fuse_ioctl_in()}
    body = bodies.get(opcode, b"" if opcode == fuse.FUSE_LOOKUP else bytes(16))
    assert peer.refuses(opcode, 2, body, "name" if opcode in bodies or not body else b"") == (
        errno.EIO
    )
    assert complaint in told.line()
    if isinstance(returns, tuple) and opcode == fuse.FUSE_CREATE:
        assert [one[0] for one in inodes.asked] == ["release"]


def test_other_exceptions_are_logged(serve_filesystem: ServeFilesystem, told: Told) -> None:
    class Raising(Small):
        def lookup(self, parent: int, name: str) -> Any:
            raise ZeroDivisionError

    peer = serve_filesystem(Raising())
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "x") == errno.EIO
    line, error = told.traceback()
    assert line == "Raising.lookup raised ZeroDivisionError"
    assert isinstance(error, ZeroDivisionError)


# ---- INIT


def agreed(inodes: Inodes) -> int:
    peer = FilesystemPeer(inodes)
    try:
        out = peer.init_filesystem()
        return out.flags | out.flags2 << 32
    finally:
        peer.session.close()


def test_capabilities_follow_from_methods() -> None:
    def method(*_: Any) -> None:
        """Never called."""

    flags = {
        ("open",): fuse.FUSE_ATOMIC_O_TRUNC,
        ("readdirplus",): fuse.FUSE_DO_READDIRPLUS,
        ("readdir", "readdirplus"): fuse.FUSE_DO_READDIRPLUS | fuse.FUSE_READDIRPLUS_AUTO,
        ("setlk",): fuse.FUSE_POSIX_LOCKS,
        ("flock",): fuse.FUSE_FLOCK_LOCKS,
    }
    everything = 0
    for wanted in flags.values():
        everything |= wanted
    assert not agreed(Inodes()) & (everything | fuse.FUSE_EXPORT_SUPPORT)
    for methods, wanted in flags.items():
        kind = type("Kind", (Inodes,), dict.fromkeys(methods, method))
        assert agreed(kind()) & everything == wanted
    exported = Inodes()
    exported.export = True
    assert agreed(exported) & fuse.FUSE_EXPORT_SUPPORT


def test_init_may_refuse() -> None:
    class Refusing(Inodes):
        def init(self) -> None:
            raise OSError(errno.ENOMEDIUM, "nothing there")

    peer = FilesystemPeer(Refusing())
    with pytest.raises(Failure) as caught:
        peer.init_filesystem()
    assert caught.value.number == errno.ENOMEDIUM
    peer.session.close()


# ---- waiting, and being woken


def test_poll_is_woken_once(serve_filesystem: ServeFilesystem) -> None:
    class Polled(Small):
        wake: Any = None

        def poll(self, ino: int, fh: object, events: int, wake: Any) -> int:
            self.wake = wake
            return 0

    peer = serve_filesystem(inodes := Polled())
    fh = opened(peer)
    body = fuse.fuse_poll_in(fh=fh, kh=8, flags=fuse.FUSE_POLL_SCHEDULE_NOTIFY, events=1)
    peer.ask(fuse.FUSE_POLL, 2, body)
    inodes.wake()
    inodes.wake()
    assert peer.notified == [fuse.FUSE_NOTIFY_POLL]


def test_an_interrupt(serve_filesystem: ServeFilesystem) -> None:
    begun = threading.Event()

    class Waiting(Small):
        async def read(self, ino: int, fh: object, size: int, offset: int) -> bytes:
            begun.set()
            await asyncio.sleep(1000)
            return b""

    peer = serve_filesystem(Waiting())
    fh = opened(peer)
    unique = peer.send(fuse.FUSE_READ, 2, fuse.fuse_read_in(fh=fh, size=1))
    assert begun.wait(WAIT_S)
    peer.send(fuse.FUSE_INTERRUPT, 0, fuse.fuse_interrupt_in(unique=unique))
    with pytest.raises(Failure) as caught:
        peer.answer(unique)
    assert caught.value.number == errno.EINTR


def test_flock_is_unlocked_before_release(serve_filesystem: ServeFilesystem) -> None:
    class Locked(Small):
        def flock(self, ino: int, fh: object, operation: int, owner: int) -> None:
            self.asked.append(("flock", ino, fh, operation, owner))

    peer = serve_filesystem(inodes := Locked())
    fh = opened(peer)
    body = fuse.fuse_release_in(fh=fh, release_flags=fuse.FUSE_RELEASE_FLOCK_UNLOCK, lock_owner=6)
    peer.ask(fuse.FUSE_RELEASE, 2, body)
    assert inodes.asked[1:] == [
        ("flock", 2, "file", fcntl.LOCK_UN, 6),
        ("release", 2, "file"),
    ]
