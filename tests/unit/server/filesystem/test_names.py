"""Lookups, listings and what changes names, by messages."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.server.filesystem.attributes import Attributes, Entry
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.nodes import (
    Directory,
    Entries,
    Listed,
    Node,
    RegularFile,
    Special,
    Symlink,
)
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.filesystem import (
    fuse_batch_forget_in,
    fuse_entry_out,
    fuse_forget_one,
    fuse_link_in,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_rename2_in,
    fuse_rename_in,
)
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_IOCTL,
    FUSE_IOCTL_DIR,
    FUSE_LINK,
    FUSE_LOOKUP,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPENDIR,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_READLINK,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_RMDIR,
    FUSE_SYMLINK,
    FUSE_UNLINK,
    fuse_ioctl_in,
    fuse_open_out,
    fuse_read_in,
)

from ..conftest import Told
from .conftest import FilesystemPeer, ServeFilesystem


class Watched(RegularFile):
    """Says when it is forgotten."""

    gone = 0

    def forgotten(self) -> None:
        self.gone += 1


def tree(**children: Node) -> Filesystem:
    return Filesystem(Directory(children))


def test_a_name_is_found_with_its_attributes(serve_filesystem: ServeFilesystem) -> None:
    file = RegularFile(b"some text")
    file.mode, file.uid, file.gid, file.nlink = 0o4640, 12, 34, 3
    file.atime_ns, file.mtime_ns, file.ctime_ns = 1_500_000_001, 2_000_000_002, 3_999_999_999
    peer = serve_filesystem(tree(file=file))
    found = peer.lookup("file")
    attr = found.attr
    assert found.nodeid > 1
    assert attr.ino == found.nodeid
    assert (attr.mode, attr.size, attr.blocks, attr.nlink) == (0o104640, 9, 1, 3)
    assert (attr.uid, attr.gid) == (12, 34)
    assert (attr.atime, attr.atimensec, attr.mtime, attr.mtimensec) == (1, 500_000_001, 2, 2)
    assert (attr.ctime, attr.ctimensec) == (3, 999_999_999)
    assert peer.getattr(found.nodeid).attr == attr


def test_what_is_not_there_is_enoent_or_remembered(serve_filesystem: ServeFilesystem) -> None:
    filesystem = tree()
    assert serve_filesystem(filesystem).refuses(FUSE_LOOKUP, 1, b"", "none") == errno.ENOENT
    filesystem = tree()
    filesystem.negative_cache_s = 2.5
    found = serve_filesystem(filesystem).lookup("none")
    assert (found.nodeid, found.entry_valid, found.entry_valid_nsec) == (0, 2, 500_000_000)


def test_how_long_things_may_be_believed(serve_filesystem: ServeFilesystem) -> None:
    file, other = RegularFile(b""), RegularFile(b"")
    other.cache_s = 0
    filesystem = tree(file=file, other=other)
    filesystem.cache_s = 1e30
    peer = serve_filesystem(filesystem)
    assert peer.lookup("file").attr_valid == peer.lookup("file").entry_valid == 1 << 31
    assert peer.lookup("other").attr_valid == peer.lookup("other").entry_valid_nsec == 0
    assert peer.getattr(peer.lookup("other").nodeid).attr_valid == 0


def test_a_node_is_forgotten_when_all_lookups_are_taken_back(
    serve_filesystem: ServeFilesystem,
) -> None:
    file = Watched(b"")
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    assert peer.lookup("file").nodeid == number
    peer.forget(number, 1)
    assert file.gone == 0
    peer.forget(number, 1)
    assert file.gone == 1
    assert peer.refuses(FUSE_LOOKUP, number, b"", "x") == errno.ESTALE
    assert peer.lookup("file").nodeid == number  # it is the same file


def test_many_are_forgotten_at_once(serve_filesystem: ServeFilesystem) -> None:
    files = {f"f{index}": Watched(b"") for index in range(50)}
    peer = serve_filesystem(Filesystem(Directory(files)))
    numbers = [peer.lookup(name).nodeid for name in files]
    body = fuse_batch_forget_in(count=50).pack()
    body += b"".join(fuse_forget_one(nodeid=number, nlookup=1).pack() for number in numbers)
    peer.send(FUSE_BATCH_FORGET, 0, body)
    assert all(file.gone == 1 for file in files.values())


def test_the_root_stays(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=RegularFile(b"")))
    peer.forget(1, 1)
    assert peer.lookup("file").nodeid


def test_an_answer_that_nobody_takes_counts_not(serve_filesystem: ServeFilesystem) -> None:
    file = Watched(b"")
    peer = serve_filesystem(tree(file=file))
    peer.refuse = OSError(errno.ENOENT, "gone")
    peer.send(FUSE_LOOKUP, 1, b"", "file")
    assert file.gone == 1
    peer.refuse = None
    number = peer.lookup("file").nodeid
    peer.forget(number, 1)
    assert file.gone == 2


def test_long_names_are_refused_and_bad_ones_malformed(
    serve_filesystem: ServeFilesystem, told: Told
) -> None:
    peer = serve_filesystem(tree())
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "x" * 256) == errno.ENAMETOOLONG
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "x" * 255) == errno.ENOENT
    for body in (b"name", b"\0", b"a/b\0", b""):
        assert peer.refuses(FUSE_LOOKUP, 1, body) == errno.EIO
        assert "malformed" in told.line()


def test_names_are_bytes_of_any_kind(serve_filesystem: ServeFilesystem) -> None:
    name = os.fsdecode(b"\xff\xfe\x80")
    peer = serve_filesystem(Filesystem(Directory({name: RegularFile(b"")})))
    assert peer.lookup(name).nodeid
    assert [one.name for one in peer.list_all()] == [".", "..", name]


class Strange(Directory):
    """Answers what it must not."""

    def lookup(self, name: str) -> Node | None:
        if name == "text":
            return "text"  # type: ignore[return-value]
        if name == "enosys":
            raise OSError(errno.ENOSYS, "")
        raise ZeroDivisionError


@pytest.mark.parametrize("name", ["text", "enosys", "other"])
def test_mistakes_of_authors_are_eio(
    serve_filesystem: ServeFilesystem, told: Told, name: str
) -> None:
    peer = serve_filesystem(Filesystem(Strange()))
    assert peer.refuses(FUSE_LOOKUP, 1, b"", name) == errno.EIO
    line = told.traceback()[0] if name == "other" else told.line()
    assert line.startswith("Strange.lookup")


class Later(Directory):
    """Takes its time for everything."""

    async def lookup(self, name: str) -> Node | None:
        return LaterFile(b"abc") if name == "file" else None

    async def attributes(self) -> Attributes:
        return Attributes(stat.S_IFDIR | 0o711)

    def entries(self) -> AsyncIterator[Listed]:
        return self._entries()

    async def _entries(self) -> AsyncIterator[Listed]:
        for index in range(40):
            yield f"f{index}", LaterFile(b"x")
        yield Entry("last", stat.S_IFIFO, 7)


class LaterFile(RegularFile):
    async def attributes(self) -> Attributes:
        return Attributes(stat.S_IFREG | 0o600, size=3, uid=5)


def test_all_may_be_asynchronous(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(Filesystem(Later()))
    assert peer.getattr(1).attr.mode == stat.S_IFDIR | 0o711
    found = peer.lookup("file")
    assert (found.attr.mode, found.attr.size, found.attr.uid) == (stat.S_IFREG | 0o600, 3, 5)
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "other") == errno.ENOENT
    for plus in (False, True):
        names = [one.name for one in peer.list_all(600, plus)]
        assert names == [".", "..", *(f"f{index}" for index in range(40)), "last"]


@pytest.mark.parametrize("kind", ["mapping", "pairs", "later"])
def test_entries_may_be_waited_for(serve_filesystem: ServeFilesystem, kind: str) -> None:
    """An `async def` that returns the entries is no less usual than one that yields them."""
    file = RegularFile(b"123")

    async def later() -> AsyncIterator[Listed]:
        yield "file", file

    class Awaited(Directory):
        async def entries(self) -> Entries:
            await asyncio.sleep(0)
            if kind == "mapping":
                return {"file": file}
            return [("file", file)] if kind == "pairs" else later()

    peer = serve_filesystem(Filesystem(Awaited()))
    assert peer.lookup("file").attr.size == 3
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "other") == errno.ENOENT
    for plus in (False, True):
        for size in (200, 4096):
            assert [one.name for one in peer.list_all(size, plus)] == [".", "..", "file"]


def test_entries_that_fail_later(serve_filesystem: ServeFilesystem) -> None:
    class Awaited(Directory):
        async def entries(self) -> Entries:
            raise OSError(errno.EHOSTDOWN, "away")

    peer = serve_filesystem(Filesystem(Awaited()))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    assert peer.refuses(FUSE_READDIR, 1, fuse_read_in(fh=fh, size=4096)) == errno.EHOSTDOWN
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "file") == errno.EHOSTDOWN


def test_the_default_lookup_goes_through_entries(serve_filesystem: ServeFilesystem) -> None:
    class Iterating(Directory):
        def entries(self) -> Iterator[Listed]:
            yield Entry("none", stat.S_IFREG)
            yield "file", RegularFile(b"12")

    class Asynchronous(Later):
        lookup = Directory.lookup  # type: ignore[assignment]

    peer = serve_filesystem(Filesystem(Iterating()))
    assert peer.lookup("file").attr.size == 2
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "none") == errno.ENOENT
    peer = serve_filesystem(Filesystem(Asynchronous()))
    assert peer.lookup("f39").attr.size == 3
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "none") == errno.ENOENT


def test_attributes_from_stat(serve_filesystem: ServeFilesystem) -> None:
    class Real(RegularFile):
        def attributes(self) -> os.stat_result:
            return os.stat(__file__)

    here = os.stat(__file__)
    attr = serve_filesystem(tree(file=Real())).lookup("file").attr
    assert (attr.mode, attr.size, attr.blocks) == (here.st_mode, here.st_size, here.st_blocks)
    assert attr.ino == here.st_ino
    assert attr.mtime * 10**9 + attr.mtimensec == here.st_mtime_ns


def test_attributes_that_do_not_fit_are_eio(serve_filesystem: ServeFilesystem, told: Told) -> None:
    file = Watched(b"")
    file.size = -1
    peer = serve_filesystem(tree(file=file))
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "file") == errno.EIO
    assert "does not fit" in told.line()
    file.size = 1
    peer.forget(peer.lookup("file").nodeid, 1)
    assert file.gone == 1  # the one that failed was not counted


# Listings


@given(
    st.lists(st.text("abc", min_size=1, max_size=40), unique=True, max_size=30),
    st.integers(200, 2000),
    st.booleans(),
)
def test_listings_show_each_name_once(names: list[str], size: int, plus: bool) -> None:
    peer = FilesystemPeer(Filesystem(Directory({name: RegularFile(b"") for name in names})))
    peer.init_filesystem()
    listed = peer.list_all(max(size, 400), plus)
    assert [one.name for one in listed] == [".", "..", *names]
    assert all(one.ino for one in listed)
    assert [one.offset for one in listed] == list(range(1, len(listed) + 1))
    known = [one.entry.nodeid for one in listed[2:] if one.entry is not None]
    assert len(set(known)) == len(known) == (len(names) if plus else 0)
    for number in known:
        peer.forget(number, 1)
    assert len(peer.session._level.state.known) == 1


def test_offsets_stay_and_the_beginning_reads_anew(serve_filesystem: ServeFilesystem) -> None:
    directory = Directory({f"f{index}": RegularFile(b"") for index in range(9)})
    peer = serve_filesystem(Filesystem(directory))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    first = peer.list_page(fh, 0, 130)
    del directory.children["f0"]
    directory.children["new"] = RegularFile(b"")
    assert peer.list_page(fh, first[2].offset)[0].name == "f1"
    assert [one.name for one in peer.list_page(fh, 8)] == ["f6", "f7", "f8"]
    again = [one.name for one in peer.list_page(fh, 0)]
    assert "new" in again
    assert "f0" not in again


class Snapshot(Directory):
    """A directory that lists a copy of its children."""

    def entries(self) -> dict[str, Node]:
        return dict(self.children)


class Generated(Directory):
    """One that lists them one by one."""

    def entries(self) -> Iterator[tuple[str, Node]]:
        yield from self.children.items()


@pytest.mark.parametrize("kind", [Directory, Snapshot, Generated])
def test_names_that_were_removed_do_not_come_back(
    serve_filesystem: ServeFilesystem, kind: type[Directory]
) -> None:
    """Between two requests for entries a program may remove those that were read before."""
    directory = kind({f"f{index}": RegularFile(b"") for index in range(9)})
    peer = serve_filesystem(Filesystem(directory))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    first = peer.list_page(fh, 0, 160 * 5, plus=True)
    assert all(one.entry is not None and one.entry.nodeid for one in first[2:])
    if kind is Generated:
        directory.children = {}
    else:
        del directory.children["f2"], directory.children["f8"]
    for offset in (2, first[-1].offset):
        for one in peer.list_page(fh, offset, 160 * 20, plus=True):
            is_new = kind is Generated and one.name > first[-1].name
            believed = one.entry is not None and one.entry.nodeid
            assert not believed or one.name in directory.children or is_new


def test_what_does_not_fit_is_not_counted(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(**{f"f{index}": RegularFile(b"") for index in range(9)}))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    shown = peer.list_page(fh, 0, 160 * 4 + 8, plus=True)
    assert len(peer.session._level.state.known) == 1 + len(shown) - 2


# Changes


class Changing(Directory):
    """Keeps what is made in it, and notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[object] = []

    def _keep(self, name: str, node: Node) -> Node:
        self.children[name] = node
        return node

    def create(self, name: str, mode: int) -> Node:
        file = RegularFile(b"")
        file.mode = mode
        return self._keep(name, file)

    def mkdir(self, name: str, mode: int) -> Node:
        made = Changing()
        made.mode = mode
        return self._keep(name, made)

    def symlink(self, name: str, target: str) -> Node:
        return self._keep(name, Symlink(target))

    def mknod(self, name: str, mode: int, rdev: int) -> Node:
        return self._keep(name, Special(mode, rdev))

    def link(self, name: str, node: Node) -> None:
        self._keep(name, node)

    def unlink(self, name: str) -> None:
        self.asked.append(("unlink", name))

    def rmdir(self, name: str) -> None:
        self.asked.append(("rmdir", name))

    def rename(self, name: str, directory: Directory, new_name: str, flags: int) -> None:
        self.asked.append((name, directory, new_name, flags))


def entry(payload: bytes) -> fuse_entry_out:
    return fuse_entry_out.unpack(payload)


def test_what_is_made_is_known(serve_filesystem: ServeFilesystem) -> None:
    root = Changing()
    peer = serve_filesystem(Filesystem(root))
    made = entry(peer.ask(FUSE_MKDIR, 1, fuse_mkdir_in(mode=stat.S_IFDIR | 0o1750), "d"))
    assert made.attr.mode == stat.S_IFDIR | 0o1750
    link = entry(peer.ask(FUSE_SYMLINK, 1, b"", b"s\0to/where\0"))
    assert peer.ask(FUSE_READLINK, link.nodeid) == b"to/where"
    body = fuse_mknod_in(mode=stat.S_IFCHR | 0o600, rdev=0x105)
    node = entry(peer.ask(FUSE_MKNOD, 1, body, "n"))
    assert (node.attr.mode, node.attr.rdev) == (stat.S_IFCHR | 0o600, 0x105)
    file = entry(peer.ask(FUSE_MKNOD, 1, fuse_mknod_in(mode=stat.S_IFREG | 0o640), "f"))
    assert file.attr.mode == stat.S_IFREG | 0o640
    again = entry(peer.ask(FUSE_LINK, 1, fuse_link_in(oldnodeid=file.nodeid), "g"))
    assert again.nodeid == file.nodeid
    created = peer.create("c", 0o604)
    assert created.entry.attr.mode == stat.S_IFREG | 0o604
    assert peer.read_node(created.entry.nodeid, created.open.fh, 10) == b""
    assert set(root.children) == set("dsnfgc")


def test_what_takes_away_and_moves(serve_filesystem: ServeFilesystem) -> None:
    root = Changing()
    peer = serve_filesystem(Filesystem(root))
    other = entry(peer.ask(FUSE_MKDIR, 1, fuse_mkdir_in(mode=0o755), "d")).nodeid
    peer.ask(FUSE_UNLINK, 1, b"", "a")
    peer.ask(FUSE_RMDIR, 1, b"", "b")
    peer.ask(FUSE_RENAME, 1, fuse_rename_in(newdir=other), b"old\0new\0")
    peer.ask(FUSE_RENAME2, 1, fuse_rename2_in(newdir=1, flags=2), b"x\0y\0")
    there = root.children["d"]
    assert root.asked == [
        ("unlink", "a"),
        ("rmdir", "b"),
        ("old", there, "new", 0),
        ("x", root, "y", 2),
    ]


CHANGES = [
    (FUSE_MKDIR, fuse_mkdir_in(), "n"),
    (FUSE_UNLINK, b"", "n"),
    (FUSE_RMDIR, b"", "n"),
    (FUSE_SYMLINK, b"", b"n\0t\0"),
    (FUSE_MKNOD, fuse_mknod_in(mode=stat.S_IFREG), "n"),
    (FUSE_MKNOD, fuse_mknod_in(mode=stat.S_IFIFO), "n"),
    (FUSE_LINK, fuse_link_in(oldnodeid=1), "n"),
    (FUSE_RENAME, fuse_rename_in(newdir=1), b"n\0t\0"),
    (FUSE_RENAME2, fuse_rename2_in(newdir=1), b"n\0t\0"),
]


@pytest.mark.parametrize(("opcode", "body", "data"), CHANGES)
def test_what_is_not_defined_is_eperm(
    serve_filesystem: ServeFilesystem, opcode: int, body: object, data: object
) -> None:
    assert serve_filesystem(tree()).refuses(opcode, 1, body, data) == errno.EPERM


@pytest.mark.parametrize(("opcode", "body", "data"), CHANGES)
def test_nothing_changes_in_a_filesystem_that_is_read_only(
    serve_filesystem: ServeFilesystem, opcode: int, body: object, data: object
) -> None:
    filesystem = Filesystem(Changing())
    filesystem.read_only = True
    assert serve_filesystem(filesystem).refuses(opcode, 1, body, data) == errno.EROFS


def test_operations_of_directories_on_files_are_enotdir(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=RegularFile(b"")))
    number = peer.lookup("file").nodeid
    assert peer.refuses(FUSE_LOOKUP, number, b"", "x") == errno.ENOTDIR
    assert peer.refuses(FUSE_OPENDIR, number, bytes(8)) == errno.ENOTDIR
    assert peer.refuses(FUSE_READLINK, 1) == errno.EINVAL


def test_a_listing_that_is_not_taken(serve_filesystem: ServeFilesystem) -> None:
    """The kernel half sends no FORGET for it, as for a LOOKUP."""
    peer = serve_filesystem(Filesystem(Directory({"a": RegularFile(b""), "bcd": RegularFile(b"")})))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    peer.refuse = OSError(errno.ENOENT, "killed")
    peer.send(FUSE_READDIRPLUS, 1, fuse_read_in(fh=fh, size=4096))
    peer.refuse = None
    known = peer.session._level.state.known
    assert len(known) == 1
    assert len(peer.list_page(fh, plus=True)) == 4
    assert len(known) == 3


def test_a_directory_that_is_not_opened(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(Filesystem(Directory()))
    peer.refuse = OSError(errno.ENOENT, "killed")
    peer.send(FUSE_OPENDIR, 1, bytes(8))
    peer.refuse = None
    assert peer.session._level.state.listings == {}


def test_a_directory_has_no_ioctls(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(Filesystem(Directory()))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    body = fuse_ioctl_in(fh=fh, flags=FUSE_IOCTL_DIR, cmd=6)
    assert peer.refuses(FUSE_IOCTL, 1, body) == errno.ENOTTY


def test_listings_have_the_inode_numbers_that_stat_has(serve_filesystem: ServeFilesystem) -> None:
    """Also those without attributes: programs compare them (getdents(2) with stat(2))."""

    class Numbered(RegularFile):
        def attributes(self) -> Attributes:
            return Attributes(stat.S_IFREG | 0o644, ino=77)

    class Stated(RegularFile):
        def attributes(self) -> os.stat_result:
            return os.stat(__file__)

    class Vanished(RegularFile):
        def attributes(self) -> Attributes:
            raise FileNotFoundError

    class Root(Directory):
        def attributes(self) -> Attributes:
            return Attributes(stat.S_IFDIR | 0o755, ino=79)

    children = {"a": Numbered(b""), "b": Stated(b""), "c": RegularFile(b""), "d": LaterFile(b"")}
    peer = serve_filesystem(Filesystem(Root(children)))
    listed = {one.name: one.ino for one in peer.list_all()}
    assert listed["c"] == peer.lookup("c").nodeid
    assert listed["d"] == peer.lookup("d").nodeid
    assert (listed["."], listed["a"], listed["b"]) == (79, 77, os.stat(__file__).st_ino)
    assert {one.name: one.ino for one in peer.list_all(plus=True)} == listed
    peer = serve_filesystem(Filesystem(Directory({"gone": Vanished(b"")})))
    assert [one.name for one in peer.list_all()] == [".", "..", "gone"]


@pytest.mark.parametrize("later", [False, True])
def test_dots_are_listed_once(serve_filesystem: ServeFilesystem, later: bool) -> None:
    """The kernel does not count what is said about them (fs/fuse/readdir.c), and so nobody does."""
    here, above = Watched(b""), Watched(b"")
    content: list[Listed] = [(".", here), ("..", above), ("a", RegularFile(b"")), ("..", above)]

    class Habit(Directory):
        def entries(self) -> Iterator[Listed]:
            return iter(content)

    class LaterHabit(Directory):
        async def entries(self) -> AsyncIterator[Listed]:
            for entry in content:
                yield entry

    peer = serve_filesystem(Filesystem(LaterHabit() if later else Habit()))
    for plus in (False, True):
        for size in (300, 4096):
            assert [one.name for one in peer.list_all(size, plus)] == [".", "..", "a"]
    peer.forget(peer.list_all(plus=True)[-1].ino, 3)
    assert [one.split()[0] for one in peer.session.left() if "Watched" in one] == []


@pytest.mark.parametrize("name", ["a\0b", "a/b", "", "\ud800"], ids=ascii)
@pytest.mark.parametrize("made", [False, True])
def test_names_that_cannot_be_are_eio(
    serve_filesystem: ServeFilesystem, told: Told, name: str, made: bool
) -> None:
    class Wrong(Directory):
        def entries(self) -> list[Listed]:
            return [(name, RegularFile(b"")) if made else Entry(name, stat.S_IFREG)]

    peer = serve_filesystem(Filesystem(Wrong()))
    fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
    for opcode in (FUSE_READDIR, FUSE_READDIRPLUS):
        assert peer.refuses(opcode, 1, fuse_read_in(fh=fh, size=4096)) == errno.EIO
        line = told.line()
        assert line.startswith("Wrong.entries listed ")
        assert line.endswith(": EIO for the program")


@pytest.mark.parametrize("made", [False, True])
def test_names_that_are_too_long_are_left_out(
    serve_filesystem: ServeFilesystem, told: Told, made: bool
) -> None:
    class Long(Directory):
        def entries(self) -> Iterator[Listed]:
            for name in ("a", "x" * 256, "y" * 5000, "ä" * 128, "z" * 255):
                yield (name, RegularFile(b"")) if made else Entry(name, stat.S_IFREG)

    peer = serve_filesystem(Filesystem(Long()))
    for plus in (False, True):
        fh = fuse_open_out.unpack(peer.ask(FUSE_OPENDIR, 1, bytes(8))).fh
        names = [one.name for one in peer.list_page(fh, plus=plus)]
        assert names == [".", "..", "a", "z" * 255]
        assert told.line() == (
            f"Long.entries listed {'x' * 16!r}..., a name of 256 bytes: "
            "what has more than 255 is left out"
        )


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("a\0b", "'a\\x00b', which has a NUL in it"),
        ("", "a path of 0 bytes, not of 1 to 4095"),
        ("x" * 4096, "a path of 4096 bytes, not of 1 to 4095"),
    ],
    ids=["nul", "empty", "long"],
)
def test_a_target_that_cannot_be_is_eio(
    serve_filesystem: ServeFilesystem, told: Told, target: str, complaint: str
) -> None:
    peer = serve_filesystem(tree(link=Symlink(target)))
    number = peer.lookup("link").nodeid
    assert peer.refuses(FUSE_READLINK, number, b"") == errno.EIO
    assert told.line() == f"Symlink.readlink returned {complaint}: EIO for the program"


@pytest.mark.parametrize("mode", [stat.S_IFDIR | 0o755, -1, 1 << 32, "rw"])
def test_modes_that_are_no_permissions_are_eio(
    serve_filesystem: ServeFilesystem, told: Told, mode: Any
) -> None:
    file = RegularFile(b"")
    file.mode = mode
    peer = serve_filesystem(tree(file=file))
    assert peer.refuses(FUSE_LOOKUP, 1, b"", "file") == errno.EIO
    assert "mode" in told.line() or mode == "rw"
    file.mode = stat.S_IFREG | 0o604
    assert peer.lookup("file").attr.mode == stat.S_IFREG | 0o604


def test_the_argument_that_is_wrong_is_named() -> None:
    with pytest.raises(TypeError, match="target: None is not a str"):
        Symlink(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'a' is 'text', not a Node such as RegularFile"):
        Directory({"a": "text"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="the root of Filesystem is None, not a Directory"):
        FilesystemSession(Filesystem())
    with pytest.raises(TypeError, match="the root of Filesystem is 5, not a Directory"):
        FilesystemSession(Filesystem(5))  # type: ignore[arg-type]
