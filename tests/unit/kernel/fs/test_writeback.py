"""Files that are written back later: FUSE_WRITEBACK_CACHE."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from recuse.kernel.connection.operation import run
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.fs import writeback
from recuse.testing import TestFile
from recuse.wire.filesystem import fuse_attr_out
from recuse.wire.fuse import (
    FATTR_CTIME,
    FATTR_FH,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_SIZE,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FUSE_EXPLICIT_INVAL_DATA,
    FUSE_FLUSH,
    FUSE_FSYNC,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_SETATTR,
    FUSE_WRITE,
    FUSE_WRITE_CACHE,
    FUSE_WRITEBACK_CACHE,
    fuse_open_out,
    fuse_out_header,
    fuse_write_out,
)
from recuse.wire.notify import fuse_notify_inval_inode_out

from .support import FLAGS, Answer, Asked, Scripted, always, attr, entry


class Holding(Scripted):
    """A file "a" of 5000 bytes, node 5, which is written back later."""

    def __init__(self, flags: int = FUSE_WRITEBACK_CACHE) -> None:
        super().__init__(FLAGS | flags)
        self.content = bytearray(b"o" * 5000)
        self.names["a"] = entry(5, size=5000, valid_s=100)
        self.attrs[5] = attr(5, size=5000)
        self.answers |= {
            FUSE_READ: self._read,
            FUSE_WRITE: self.write_content,
            FUSE_FLUSH: always(b""),
            FUSE_FSYNC: always(b""),
            FUSE_SETATTR: self._setattr,
            FUSE_OPEN: always(fuse_open_out(fh=7, open_flags=FOPEN_KEEP_CACHE)),
        }

    def _read(self, asked: Asked) -> Answer:
        return bytes(self.content[asked.body.offset :][: asked.body.size])

    def write_content(self, asked: Asked) -> Answer:
        end = asked.body.offset + len(asked.payload)
        self.content.extend(bytes(max(end - len(self.content), 0)))
        self.content[asked.body.offset : end] = asked.payload
        return fuse_write_out(size=len(asked.payload))

    def _setattr(self, asked: Asked) -> Answer:
        if asked.body.valid & FATTR_SIZE:
            del self.content[asked.body.size :]
        known = attr(5, size=len(self.content))
        return fuse_attr_out(attr_valid=100, attr=known)

    def all_of(self, name: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.name == name]


def opened(mount: Holding, flags: int = os.O_RDWR) -> TestFile:
    file = mount.open("a", flags)
    mount.clear()
    return file


def error_of(file: TestFile, name: str, *arguments: object) -> str:
    try:
        getattr(file, name)(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_a_write_is_held_back_until_the_file_is_closed() -> None:
    mount = Holding()
    file = opened(mount)
    assert file.pwrite(b"x" * PAGE_SIZE, 0) == PAGE_SIZE
    assert file.pread(3, 0) == b"xxx"
    assert "WRITE" not in mount.sent
    mount.clear()
    file.close()
    assert mount.sent == ["WRITE", "SETATTR", "FLUSH", "RELEASE"]
    write = mount.asked[0]
    assert write.body.write_flags == FUSE_WRITE_CACHE
    assert write.body.fh == 7
    # Nobody asked for it just then.
    assert (write.header.uid, write.header.pid) == (0, 0)
    assert mount.content[: PAGE_SIZE + 1] == b"x" * PAGE_SIZE + b"o"
    times = mount.asked[1].body
    assert times.valid == FATTR_MTIME | FATTR_CTIME | FATTR_FH
    assert times.mtime


def test_fsync_sends_it_and_then_nothing_is_left() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.clear()
        file.fsync()
        assert mount.sent == ["WRITE", "SETATTR", "FSYNC"]
        mount.clear()
        file.fsync()
        file.flush()
        assert mount.sent == ["FSYNC", "FLUSH"]


def test_part_of_a_page_is_read_before_it_is_changed() -> None:
    mount = Holding()
    with opened(mount, os.O_WRONLY) as file:
        file.pwrite(b"x", 10)
        file.pwrite(b"y", 20000)  # beyond the end: nothing to read
        assert [asked.body.offset for asked in mount.all_of("READ")] == [0]
    assert mount.content[9:12] == b"oxo"
    assert mount.content[20000] == ord("y")
    assert [asked.body.offset for asked in mount.all_of("WRITE")] == [0, 4 * 4096]


def test_what_is_between_is_zeros() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"y", 20000)
        assert file.pread(5, 4998) == b"oo\0\0\0"
        assert file.pread(3, 12000) == bytes(3)
        assert file.stat().st_size == 20001


def test_a_page_that_the_server_does_not_have_yet_is_changed_in_part() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"end", 20000)
        file.pwrite(b"part", 8192 + 10)
        assert file.pread(16, 8192) == bytes(10) + b"part" + bytes(2)
    assert mount.content[8192 + 10 :][:5] == b"part\0"
    assert mount.content[20000:] == b"end"


def test_large_content_is_split_and_sent_at_once() -> None:
    mount = Holding()
    later: list[Asked] = []
    size = 300_000 // PAGE_SIZE * PAGE_SIZE
    file = opened(mount)
    file.pwrite(bytes(size), 0)
    mount.clear()
    mount.answers[FUSE_WRITE] = later.append
    operation = writeback.write_back(mount.superblock, file._file.inode)
    run(mount.superblock.connection, operation, ended_in([]))
    # None of them has been answered.
    mount.superblock.connection.abort()
    assert error_of(file, "close") == "EIO"
    most = 131072 // PAGE_SIZE * PAGE_SIZE
    assert [asked.body.size for asked in later] == [most, most, size - 2 * most]


def test_the_server_does_not_know_better() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"z" * 10, 9000)
        mtime = file.stat().st_mtime_ns
        mount.now += 10**12
        found = file.stat()
        assert "GETATTR" in mount.sent
        assert found.st_size == 9010
        assert found.st_mtime_ns == mtime > 0
        # Without its answer having made anybody forget the content.
        assert file.pread(3, 9000) == b"zzz"


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, "ENOSPC"), (errno.EACCES, "EIO")])
def test_close_says_that_content_was_lost(number: int, told: str) -> None:
    mount = Holding()
    with opened(mount) as file:
        mount.answers[FUSE_WRITE] = always(-number)
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.clear()
        assert error_of(file, "flush") == told
        assert mount.sent == ["WRITE", "SETATTR"]
        file.flush()


def test_fsync_says_it_once_to_each_file() -> None:
    mount = Holding()
    with opened(mount) as file, opened(mount) as other:
        mount.answers[FUSE_WRITE] = always(-errno.EDQUOT)
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.clear()
        assert error_of(file, "fsync") == "EDQUOT"
        assert mount.sent == ["WRITE"]
        assert error_of(other, "fsync") == "EDQUOT"
        with opened(mount) as third:
            for each in (file, other, third):
                each.fsync()


def test_truncating_forgets_what_is_behind_and_sends_the_rest() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * 5 * PAGE_SIZE, 0)
        mount.clear()
        file.truncate(PAGE_SIZE + 10)
        setattr_, *writes = mount.asked
        assert setattr_.body.valid & (FATTR_SIZE | FATTR_MTIME | FATTR_CTIME) == (
            FATTR_SIZE | FATTR_MTIME | FATTR_CTIME
        )
        assert [asked.body.size for asked in writes] == [PAGE_SIZE, 10]
        assert file.stat().st_size == PAGE_SIZE + 10
    assert bytes(mount.content) == b"x" * (PAGE_SIZE + 10)


def test_it_is_written_back_before_its_mode_changes() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.clear()
        file.chmod(0o600)
        assert mount.sent == ["WRITE", "SETATTR", "SETATTR"]
        assert mount.asked[2].body.valid == FATTR_MODE | FATTR_CTIME


def test_too_much_is_written_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "MOST_DIRTY", 4)
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(bytes(4 * PAGE_SIZE), 0)
        assert "WRITE" not in mount.sent
        file.pwrite(bytes(PAGE_SIZE), 4 * PAGE_SIZE)
        assert [asked.body.size for asked in mount.all_of("WRITE")] == [5 * PAGE_SIZE]


def test_invalidation_loses_nothing() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * 2 * PAGE_SIZE, 0)
        mount.clear()
        mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=5, off=0, len=0))
        assert [asked.body.size for asked in mount.all_of("WRITE")] == [PAGE_SIZE, PAGE_SIZE]
        mount.clear()
        assert file.pread(3, 0) == b"xxx"
        assert "READ" in mount.sent
        file.pwrite(b"y" * PAGE_SIZE, 0)
        mount.drop_caches()
        assert file.pread(3, 0) == b"yyy"


def test_opening_without_the_cache_writes_it_back_first() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.answers[FUSE_OPEN] = always(fuse_open_out(fh=8))
        mount.clear()
        with mount.open("a") as other:
            assert mount.sent == ["OPEN", "WRITE"]
            assert other.pread(3, 0) == b"xxx"


@pytest.mark.parametrize(
    ("mode", "flags"), [(0, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE), (os.O_DIRECT, FOPEN_KEEP_CACHE)]
)
def test_reading_past_the_cache_writes_it_back_first(mode: int, flags: int) -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.answers[FUSE_OPEN] = always(fuse_open_out(fh=8, open_flags=flags))
        with mount.open("a", mode) as other:
            mount.clear()
            assert other.pread(PAGE_SIZE, 0) == b"x" * PAGE_SIZE
            assert mount.sent == ["WRITE", "READ"]


def test_a_release_waits_for_what_names_its_file() -> None:
    mount = Holding()
    held: list[Asked] = []
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        second = mount.open("a", os.O_RDWR)
        second.closed = True  # by hand
        other = second._file
        mount.answers[FUSE_WRITE] = held.append
        mount.clear()
        connection = mount.superblock.connection
        ended: list[object] = []
        run(connection, writeback.write_back(mount.superblock, other.inode), ended_in(ended))
        run(connection, other.release(), ended_in(ended))
        assert mount.sent == ["WRITE"]
        mount.answers[FUSE_WRITE] = mount.write_content
        answer = fuse_out_header(len=24, unique=held[0].header.unique).pack()
        connection.write(answer + fuse_write_out(size=PAGE_SIZE).pack())
        assert mount.sent == ["WRITE", "SETATTR", "RELEASE"]
        assert ended == [None, None]


def test_a_write_waits_for_its_pages_that_are_being_sent() -> None:
    mount = Holding(0)
    with opened(mount) as file, file.mmap() as mapped:
        mapped[:2] = b"MM"
        held: list[Asked] = []
        mount.answers[FUSE_WRITE] = held.append
        mount.clear()
        connection, regular = mount.superblock.connection, file._file
        ended: list[object] = []
        run(connection, writeback.write_back(mount.superblock, regular.inode), ended_in(ended))
        run(connection, regular.write(mount._caller, b"ww", 2), ended_in(ended))
        assert len(mount.all_of("WRITE")) == 1
        mount.answers[FUSE_WRITE] = mount.write_content
        mount.write_content(held[0])
        answer = fuse_out_header(len=24, unique=held[0].header.unique).pack()
        connection.write(answer + fuse_write_out(size=held[0].body.size).pack())
        assert len(mount.all_of("WRITE")) == 2
        assert ended == [None, None]
        assert mount.content[:5] == b"MMwwo"
        assert mapped[:5] == b"MMwwo"


def ended_in(results: list[object]) -> Callable[[object, OSError | None], None]:
    return lambda _, error: results.append(error)


def test_a_file_that_is_written_back_keeps_its_content_when_the_server_changes_it() -> None:
    mount = Holding(FUSE_WRITEBACK_CACHE | FUSE_EXPLICIT_INVAL_DATA)
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.attrs[5] = attr(5, size=3)
        mount.now += 10**12
        assert file.stat().st_size == 5000


def test_all_files_are_written_back() -> None:
    mount = Holding()
    with opened(mount) as file:
        file.pwrite(b"x" * PAGE_SIZE, 0)
        mount.clear()
        mount._driver.run(writeback.write_back_all(mount.superblock))
        assert mount.sent == ["WRITE", "SETATTR"]
        assert not mount.superblock.dirty
