"""The page cache: what is remembered of a file's content, and until when."""

import os
import stat

from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.fs.pages import Pages
from recuse.wire.declare import Structure
from recuse.wire.filesystem import fuse_attr_out
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FUSE_AUTO_INVAL_DATA,
    FUSE_EXPLICIT_INVAL_DATA,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_SETATTR,
    FUSE_WRITE,
    fuse_open_out,
    fuse_write_out,
)
from recuse.wire.notify import (
    fuse_notify_inval_inode_out,
    fuse_notify_retrieve_out,
    fuse_notify_store_out,
)

from .support import Asked, Scripted, attr, entry

PAGE = 4096


def test_part_of_a_page_that_is_gone_is_not_dirty() -> None:
    pages = Pages()
    pages.keep(0, bytes(PAGE))
    assert pages.dirtied(10, b"x")
    assert not pages.dirtied(PAGE + 10, b"x")
    assert pages.dirtied(PAGE, b"y" * PAGE)
    assert pages.dirty == {0, 1}
    pages.truncate(PAGE)
    assert pages.take_dirty(0, 2) == bytes(10) + b"x" + bytes(PAGE - 11)


def test_what_is_stale_is_not_kept() -> None:
    pages = Pages()
    version = pages.version
    pages.write(0, b"new")
    assert not pages.keep(0, b"old", version)
    assert pages.get(0) is None
    assert pages.keep(0, b"new", pages.version)


class OneFile(Scripted):
    """A server with one file, `a`; its content may also change there."""

    def __init__(self, content: bytes, open_flags: int = 0, flags: int = 0) -> None:
        super().__init__(flags)
        self.content = bytearray(content)
        self.mtime = 1
        self.answers |= {
            FUSE_OPEN: lambda _: fuse_open_out(fh=7, open_flags=open_flags),
            FUSE_READ: self._read,
            FUSE_WRITE: self._take,
            FUSE_SETATTR: self._setattr,
        }
        self.tell()

    def tell(self) -> None:
        """Show size and time as they are now."""
        self.names["a"] = entry(2, size=len(self.content), mtime=self.mtime)
        self.attrs[2] = attr(2, size=len(self.content), mtime=self.mtime)

    def change(self, content: bytes) -> None:
        self.content[:] = content
        self.mtime += 1
        self.tell()

    def _read(self, asked: Asked) -> bytes:
        return bytes(self.content[asked.body.offset :][: asked.body.size])

    def _take(self, asked: Asked) -> Structure:
        start = asked.body.offset
        self.content.extend(bytes(max(start - len(self.content), 0)))
        self.content[start : start + len(asked.payload)] = asked.payload
        self.tell()
        return fuse_write_out(size=len(asked.payload))

    def _setattr(self, asked: Asked) -> Structure:
        size = asked.body.size
        self.content[:] = self.content[:size].ljust(size, b"\0")
        self.tell()
        return fuse_attr_out(attr_valid=1, attr=self.attrs[2])

    @property
    def reads(self) -> list[tuple[int, int]]:
        """Offset and size of each READ."""
        return [(one.body.offset, one.body.size) for one in self.asked if one.name == "READ"]


def test_content_is_read_once_in_whole_pages() -> None:
    mount = OneFile(bytes(range(250)) * 50)
    with mount.open("a") as file:
        assert file.pread(10, 5000) == bytes(mount.content[5000:5010])
        assert mount.reads == [(4096, 4096)]
        assert file.pread(9000, 0) == bytes(mount.content[:9000])
        assert mount.reads == [(4096, 4096), (0, 4096), (8192, 4096)]
        assert file.read() == mount.content
        assert len(mount.reads) == 4
        assert file.pread(100000, 1) == mount.content[1:]
        assert len(mount.reads) == 4


def test_opening_gives_it_up_unless_the_server_wants_it_kept() -> None:
    for flags, times in [(0, 2), (FOPEN_KEEP_CACHE, 1), (FOPEN_DIRECT_IO, 4)]:
        mount = OneFile(b"content", flags)
        for _ in range(2):
            with mount.open("a") as file:
                assert file.pread(100, 0) == b"content"
                assert file.pread(4, 3) == b"tent"
        assert len(mount.reads) == times


def test_a_direct_read_is_made_as_it_is() -> None:
    mount = OneFile(b"content", FOPEN_DIRECT_IO)
    with mount.open("a") as file:
        assert file.pread(3, 2) == b"nte"
        assert file.pread(100, 7) == b""
    assert mount.reads == [(2, 3), (7, 100)]


def test_a_file_that_has_changed_is_read_anew() -> None:
    for flags, seen in [
        (FUSE_AUTO_INVAL_DATA, b"changed"),
        (0, b"content"),
        (FUSE_EXPLICIT_INVAL_DATA, b"content"),
    ]:
        mount = OneFile(b"content", FOPEN_KEEP_CACHE, flags)
        assert mount.read_bytes("a") == b"content"
        mount.change(b"changed")
        mount.now += 2 * 10**9
        assert mount.read_bytes("a") == seen
    mount = OneFile(b"content", FOPEN_KEEP_CACHE, FUSE_AUTO_INVAL_DATA)
    mount.read_bytes("a")
    mount.change(b"longer content")
    mount.now += 2 * 10**9
    assert mount.read_bytes("a") == b"longer content"


def test_the_server_says_that_content_is_out_of_date() -> None:
    mount = OneFile(bytes(3 * PAGE), FOPEN_KEEP_CACHE)
    mount.read_bytes("a")
    mount.content[:] = b"x" * 3 * PAGE

    def invalidate(offset: int, length: int) -> bytes:
        body = fuse_notify_inval_inode_out(ino=2, off=offset, len=length)
        mount.notify(FUSE_NOTIFY_INVAL_INODE, body)
        return mount.read_bytes("a")

    assert invalidate(-1, 0) == bytes(3 * PAGE)
    assert invalidate(PAGE + 5, 1) == bytes(PAGE) + b"x" * PAGE + bytes(PAGE)
    assert invalidate(2 * PAGE, 0) == bytes(PAGE) + b"x" * 2 * PAGE
    assert invalidate(0, 0) == mount.content


def test_what_is_written_is_there() -> None:
    mount = OneFile(bytes(2 * PAGE), FOPEN_KEEP_CACHE)
    with mount.open("a", os.O_RDWR) as file:
        file.read()
        mount.clear()
        file.pwrite(b"x" * PAGE, 100)
        assert file.pread(3 * PAGE, 0) == mount.content
        file.pwrite(b"y", 3 * PAGE)
        assert file.pread(4 * PAGE, 0) == mount.content
        assert mount.reads == [(2 * PAGE, 2 * PAGE)]
        file.truncate(10)
        file.truncate(PAGE)
        assert file.pread(PAGE, 0) == mount.content


def test_content_is_stored_and_retrieved() -> None:
    mount = OneFile(bytes(PAGE), FOPEN_KEEP_CACHE)
    mount.stat("a")

    def store(offset: int, data: bytes) -> None:
        body = fuse_notify_store_out(nodeid=2, offset=offset, size=len(data))
        mount.notify(FUSE_NOTIFY_STORE, body, data)

    def retrieve(offset: int, size: int) -> bytes:
        body = fuse_notify_retrieve_out(notify_unique=9, nodeid=2, offset=offset, size=size)
        mount.notify(FUSE_NOTIFY_RETRIEVE, body)
        asked = mount.asked[-1]
        assert (asked.name, asked.header.unique) == ("NOTIFY_REPLY", 9)
        assert asked.body.offset == offset
        return asked.payload

    assert retrieve(0, 100) == b""
    store(0, b"a" * PAGE + b"end")
    assert retrieve(1, 2 * PAGE) == b"a" * (PAGE - 1) + b"end"
    mount.tell()
    mount.clear()
    with mount.open("a") as file:
        assert file.read() == b"a" * PAGE + b"end"
    assert mount.reads == []
    store(5, b"in the middle")
    assert retrieve(5, 6) == b"in the"
    mount.drop_caches()
    assert not mount.superblock.inodes.all()[1:]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 3 * PAGE), st.integers(0, 2 * PAGE)),
        st.tuples(st.just("write"), st.integers(0, 3 * PAGE), st.integers(1, 2 * PAGE)),
        st.tuples(st.just("truncate"), st.integers(0, 3 * PAGE), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 3 * PAGE), st.integers(0, PAGE)),
    ),
    max_size=20,
)


@given(STEPS)
def test_reads_return_what_the_server_has(steps: list[tuple[str, int, int]]) -> None:
    mount = OneFile(bytes(range(256)) * 30, FOPEN_KEEP_CACHE)
    with mount.open("a", os.O_RDWR) as file:
        for index, (what, offset, size) in enumerate(steps):
            if what == "read":
                assert file.pread(size, offset) == mount.content[offset : offset + size]
            elif what == "write":
                file.pwrite(bytes([index]) * size, offset)
            elif what == "truncate":
                file.truncate(offset)
            else:
                body = fuse_notify_inval_inode_out(ino=2, off=offset, len=size)
                mount.notify(FUSE_NOTIFY_INVAL_INODE, body)
            assert file.pread(1 << 20, 0) == mount.content


def test_a_read_that_was_overtaken_is_not_kept() -> None:
    mount = OneFile(b"old", FOPEN_KEEP_CACHE)

    def slow(asked: Asked) -> bytes:
        content = bytes(mount.content)
        mount.answers[FUSE_READ] = mount._read
        mount.content[:] = b"new"
        mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=2))
        return content

    mount.answers[FUSE_READ] = slow
    with mount.open("a") as file:
        assert file.pread(3, 0) == b"old"
        assert file.pread(3, 0) == b"new"


def test_pages_are_only_for_regular_files() -> None:
    mount = Scripted()
    mount.names["d"] = entry(2, stat.S_IFDIR)
    mount.stat("d")
    assert len(Pages()) == 0
    assert all(len(inode.pages) == 0 for inode in mount.superblock.inodes.all())
