"""Answers that cannot be true: EIO for who asked, and no harm to anybody else (fs/fuse/dir.c)."""

import contextlib
import errno
import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.fs.directories import parse
from recuse.wire.filesystem import (
    create_out,
    fuse_attr_out,
    fuse_dirent,
    fuse_direntplus,
    fuse_entry_out,
    fuse_getxattr_out,
)
from recuse.wire.fuse import (
    FUSE_CREATE,
    FUSE_GETATTR,
    FUSE_GETXATTR,
    FUSE_LINK,
    FUSE_LISTXATTR,
    FUSE_LOOKUP,
    FUSE_LSEEK,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_OPENDIR,
    FUSE_READ,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_READLINK,
    FUSE_RENAME,
    FUSE_ROOT_ID,
    FUSE_SETATTR,
    FUSE_STATFS,
    FUSE_SYMLINK,
    FUSE_WRITE,
    fuse_open_out,
    fuse_write_out,
)

from .support import Scripted, always, attr, entry

LONG = 1 << 63


def error_of(call: object, *arguments: object) -> str:
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@pytest.mark.parametrize(
    "answer",
    [
        entry(2, kind=0),
        entry(2, kind=0o150000),
        entry(2, size=LONG),
        entry(FUSE_ROOT_ID, stat.S_IFDIR),
        b"",
        entry(2).pack() + b"x",
        entry(2).pack()[:-1],
    ],
)
def test_a_lookup_with_impossible_attributes(answer: fuse_entry_out | bytes) -> None:
    mount = Scripted()
    mount.answers[FUSE_LOOKUP] = lambda asked: answer if asked.text == "a" else entry(3)
    assert error_of(mount.stat, "a") == "EIO"
    assert mount.stat("b").st_ino == 3


@pytest.mark.parametrize(
    "answer",
    [
        entry(0, stat.S_IFDIR),
        entry(FUSE_ROOT_ID, stat.S_IFDIR),
        entry(2, stat.S_IFREG),
        entry(2, stat.S_IFDIR, size=LONG),
        entry(2, kind=0),
    ],
)
def test_what_was_made_cannot_be_that(answer: fuse_entry_out) -> None:
    mount = Scripted()
    mount.answers[FUSE_MKDIR] = lambda _: answer
    assert error_of(mount.mkdir, "d") == "EIO"
    assert not mount.exists("d")


@pytest.mark.parametrize(
    "made", [entry(0), entry(FUSE_ROOT_ID), entry(2, stat.S_IFDIR), entry(2, size=LONG)]
)
def test_a_file_that_was_made_cannot_be_that(made: fuse_entry_out) -> None:
    mount = Scripted()
    mount.answers[FUSE_CREATE] = lambda _: create_out(made, fuse_open_out(fh=9))
    assert error_of(mount.open, "a", 0o101) == "EIO"


@pytest.mark.parametrize("told", [attr(2, stat.S_IFDIR), attr(2, size=LONG), attr(2, kind=0)])
@pytest.mark.parametrize("opcode", [FUSE_GETATTR, FUSE_SETATTR])
def test_attributes_cannot_be_that(told: object, opcode: int) -> None:
    mount = Scripted()
    mount.names |= {"a": entry(2), "b": entry(3)}
    mount.stat("a")
    mount.answers[opcode] = lambda asked: fuse_attr_out(
        attr_valid=1,
        attr=told if asked.header.nodeid == 2 else attr(1, stat.S_IFDIR),  # type: ignore[arg-type]
    )
    mount.now += 2 * 10**9
    del mount.names["a"]
    mount.names["a"] = entry(2, valid_s=0) if opcode == FUSE_GETATTR else entry(2)
    assert error_of(mount.chmod, "a", 0o600) in ("EIO", "ENOSYS")
    assert error_of(mount.stat, "a") == "EIO" if opcode == FUSE_GETATTR else True
    assert mount.stat("b").st_ino == 3


def test_more_was_written_than_there_was() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2)
    mount.answers[FUSE_WRITE] = lambda asked: fuse_write_out(size=asked.body.size + 1)
    with mount.open("a", 1) as file:
        assert error_of(file.write, b"data") == "EIO"


def test_more_is_read_than_was_asked_for() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, size=100)
    mount.answers[FUSE_READ] = lambda asked: bytes(asked.body.size + 1)
    with mount.open("a") as file:
        assert error_of(file.read, 10) == "EIO"


def test_a_size_that_was_a_lie_is_corrected() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2, size=100)
    mount.answers[FUSE_READ] = lambda asked: b"short"
    with mount.open("a") as file:
        assert file.read() == b"short"
        assert file.seek(0, 2) == 5


def test_an_empty_link_leads_to_its_directory() -> None:
    """fs/namei.c, pick_link."""
    mount = Scripted()
    mount.names |= {"d": entry(2, stat.S_IFDIR), "link": entry(3, stat.S_IFLNK)}
    mount.answers[FUSE_READLINK] = always(b"")
    for path, ino in (("link", 1), ("d/link", 2), ("d/link/", 2), ("d/link/link", 2)):
        assert mount.stat(path).st_ino == ino
    assert mount.readlink("link") == ""
    assert error_of(mount.open, "link", os.O_RDWR | os.O_CREAT) == "EISDIR"
    assert error_of(mount.mkdir, "link") == "EEXIST"


def test_lists_of_attributes_have_no_empty_names() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2)
    for listed in (b"user.a", b"user.a\0\0", b"\0"):
        mount.answers[FUSE_LISTXATTR] = always(listed)
        assert error_of(mount.listxattr, "a") == "EIO"
    mount.answers[FUSE_LISTXATTR] = lambda _: b"user.a\0user.b\0"
    assert mount.listxattr("a") == ["user.a", "user.b"]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("name", [b"a/b", b"/", b"", b"x" * 4096])
def test_listed_names_cannot_be_that(plus: bool, name: bytes) -> None:
    mount = Scripted() if plus else Scripted(0)
    opcode = FUSE_READDIRPLUS if plus else FUSE_READDIR
    mount.answers[opcode] = lambda _: dirent(name, 1, plus)
    with mount.open_directory(".") as directory:
        assert error_of(directory.read_entries) == "EIO"
    assert mount.lookups == {}


def dirent(name: bytes, offset: int, plus: bool, nodeid: int = 0, kind: int = 8) -> bytes:
    entry_out = b""
    if plus:
        entry_out = entry(nodeid, kind << 12).pack() if nodeid else bytes(fuse_entry_out.SIZE)
    packed = fuse_dirent(ino=nodeid or 5, off=offset, namelen=len(name), type=kind).pack()
    size = len(packed) + len(name) + 7 & ~7
    return entry_out + (packed + name).ljust(size, b"\0")


NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name)


@given(st.lists(st.tuples(NAMES, st.integers(0, (1 << 64) - 1), st.integers(0, 15))), st.booleans())
def test_entries_are_read_as_they_were_written(
    entries: list[tuple[bytes, int, int]], plus: bool
) -> None:
    payload = b"".join(dirent(name, offset, plus, 0, kind) for name, offset, kind in entries)
    read = [(one.name, one.offset, one.kind >> 12) for one, _ in parse(payload, plus)]
    assert read == entries
    # What is incomplete at the end is left out.
    shorter = [one.name for one, _ in parse(payload[:-1], plus)]
    assert shorter == [name for name, _, _ in entries[:-1]]


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_are_entries_or_an_error(payload: bytes, plus: bool) -> None:
    entries = parse(payload, plus)
    with contextlib.suppress(OSError):
        for one, linked in entries:
            assert 0 < len(one.name) <= 4095
            assert b"/" not in one.name
            assert (linked is not None) == plus


def test_listed_nodes_are_known_and_those_that_cannot_be_are_forgotten() -> None:
    mount = Scripted()
    answers = iter([
        dirent(b".", 1, True, 1, 4)
        + dirent(b"a", 2, True, 2)
        + dirent(b"b", 3, True, 3, 13)  # no such type
        + dirent(b"c", 4, True)
        + dirent(b"d", 5, True, FUSE_ROOT_ID),
        b"",
    ])  # fmt: skip
    mount.answers[FUSE_READDIRPLUS] = lambda _: next(answers)
    mount.answers[FUSE_READDIR] = lambda _: next(answers)
    # What READDIRPLUS gives away counts, except for ".".
    mount.lookups |= {2: 1, 3: 1, FUSE_ROOT_ID: 1}
    assert mount.listdir() == ["a", "b", "c", "d"]
    assert mount.lookups == {2: 1}
    mount.clear()
    assert mount.stat("a").st_ino == 2
    assert mount.sent == []
    mount.drop_caches()
    assert mount.lookups == {}


def test_attributes_are_asked_for_in_listings_as_long_as_they_are_used() -> None:
    """READDIRPLUS_AUTO: the first part of a listing, and further parts if names are looked up."""
    mount = Scripted()
    mount.answers[FUSE_READDIR] = lambda asked: (
        dirent(b"n%d" % asked.body.offset, asked.body.offset + 1, False)
        if asked.body.offset < 4
        else b""
    )
    mount.answers[FUSE_READDIRPLUS] = lambda asked: (
        dirent(b"n%d" % asked.body.offset, asked.body.offset + 1, True, 10 + asked.body.offset)
        if asked.body.offset < 4
        else b""
    )
    mount.lookups |= {10: 1, 11: 1, 12: 1, 13: 1}
    with mount.open_directory(".") as directory:
        directory.read_entries()
        directory.read_entries()
        mount.stat("n0")  # it comes from a listing
        directory.read_entries()
        directory.read_entries()
    listings = [name for name in mount.sent if name.startswith("READDIR")]
    assert listings == ["READDIRPLUS", "READDIR", "READDIRPLUS", "READDIR"]


OPCODES = st.sampled_from([
    *(FUSE_LOOKUP, FUSE_GETATTR, FUSE_SETATTR, FUSE_READLINK, FUSE_SYMLINK, FUSE_MKNOD),
    *(FUSE_MKDIR, FUSE_RENAME, FUSE_LINK, FUSE_OPEN, FUSE_READ, FUSE_WRITE, FUSE_STATFS),
    *(FUSE_GETXATTR, FUSE_LISTXATTR, FUSE_OPENDIR, FUSE_READDIR, FUSE_READDIRPLUS),
    *(FUSE_CREATE, FUSE_LSEEK),
])  # fmt: skip
ENTRIES = st.builds(
    entry,
    st.integers(0, 5),
    st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, 0]),
    valid_s=st.integers(0, (1 << 64) - 1),
    generation=st.integers(0, 1),
    size=st.integers(0, (1 << 64) - 1),
)
ANSWERS = st.one_of(
    st.binary(max_size=200),
    ENTRIES,
    st.builds(create_out, ENTRIES, st.builds(fuse_open_out, open_flags=st.integers(0, 255))),
    st.builds(lambda told: fuse_attr_out(attr_valid=1, attr=told.attr), ENTRIES),
    st.integers(-40, -1),
)


def init_of(rest: bytes) -> bytes:
    return struct.pack("=II", 7, 45) + rest


@given(st.dictionaries(OPCODES, ANSWERS, max_size=3))
def test_no_answer_harms_anybody(answers: dict[int, object]) -> None:
    """Calls end with a result or an OSError, and the nodes stay counted."""
    mount = Scripted()
    mount.names |= {"a": entry(2), "d": entry(3, stat.S_IFDIR), "l": entry(4, stat.S_IFLNK)}
    for opcode, answer in answers.items():
        mount.answers[opcode] = lambda asked, answer=answer: (  # type: ignore[misc]
            # A root that is no directory is bad for ever.
            mount.root_attributes
            if asked.header.nodeid == FUSE_ROOT_ID and asked.opcode in (FUSE_GETATTR, FUSE_SETATTR)
            else answer
        )
    mount.counts = False  # these answers tell of nodes in all possible ways
    for call, arguments in [
        ("stat", ("a",)), ("listdir", ("d",)), ("read_bytes", ("a",)), ("readlink", ("l",)),
        ("mkdir", ("new",)), ("mknod", ("new",)), ("symlink", ("a", "new")), ("link", ("a", "new")),
        ("rename", ("a", "new")), ("write_bytes", ("new", b"data")), ("write_bytes", ("a", b"x")),
        ("truncate", ("a", 5)), ("statvfs", ()), ("listxattr", ("a",)), ("chmod", ("d", 0)),
        ("getxattr", ("a", "user.x")), ("stat", ("d/x",)), ("listdir", ()),
    ]:  # fmt: skip
        error_of(getattr(mount, call), *arguments)
    assert not mount.superblock.connection.ended
    assert mount.superblock.connection.waiting == 0
    assert not any(inode.lock.held for inode in mount.superblock.inodes.all())
    mount.answers.clear()
    mount.drop_caches()
    mount.now += 1 << 70
    mount.names = {"fine": entry(77)}
    assert mount.stat("fine").st_ino == 77


@given(st.one_of(st.binary(max_size=80), st.builds(init_of, st.binary(max_size=56))))
def test_no_answer_to_init_harms_anybody(payload: bytes) -> None:
    mount = Scripted(init=payload)
    major, minor = struct.unpack_from("=II", payload.ljust(8, b"\0"))
    fits = major == 7 and minor >= 12 and len(payload) <= 64
    mount.names["a"] = entry(2)
    assert error_of(mount.stat, "a") == ("" if fits else "ECONNREFUSED")


def test_sizes_of_attributes_are_not_believed() -> None:
    mount = Scripted()
    mount.names["a"] = entry(2)
    mount.answers[FUSE_GETXATTR] = lambda _: fuse_getxattr_out(size=1 << 31)
    assert len(mount.getxattr("a", "user.x")) == 8
    assert fuse_direntplus.SIZE == 152
