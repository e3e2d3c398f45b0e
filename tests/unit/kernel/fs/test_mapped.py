"""Files that are mapped into memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_PASSTHROUGH,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_INIT_EXT,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_OPEN,
    FUSE_WRITE_CACHE,
    fuse_open_out,
)
from recuse.wire.notify import fuse_notify_inval_inode_out

from .support import always
from .test_passthrough import File, mounted, opens_with
from .test_writeback import Holding


def error_of(function: Callable[..., object], *arguments: object, **named: object) -> str:
    try:
        function(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_a_mapping_and_the_file_are_one() -> None:
    mount = Holding(0)
    with mount.open("a", os.O_RDWR) as file, file.mmap() as mapped:
        assert len(mapped) == 5000
        assert mapped[:3] == b"ooo"
        mapped[4094:4098] = b"wxyz"
        assert file.pread(6, 4093) == b"owxyzo"
        file.pwrite(b"!!", 4090)
        assert mapped[4089:4094] == b"o!!oo"
        assert [asked.body.write_flags for asked in mount.all_of("WRITE")] == [0]
    # At its end, only what the file has.
    last = mount.all_of("WRITE")[-1]
    assert last.body.write_flags == FUSE_WRITE_CACHE
    assert (last.body.offset, last.body.size) == (0, 5000)
    assert mount.content[4089:4098] == b"o!!oowxyz"


def test_it_is_written_back_by_msync_and_survives_the_descriptor() -> None:
    mount = Holding(0)
    file = mount.open("a", os.O_RDWR)
    mapped = file.mmap()
    file.close()
    assert "RELEASE" not in mount.sent
    mapped[0:1] = b"1"
    mount.clear()
    mapped.flush()
    assert mount.sent == ["WRITE", "FSYNC"]
    assert mount.asked[1].body.fsync_flags == 1
    mapped[0:1] = b"2"
    mount.clear()
    mapped.close()
    assert mount.sent == ["WRITE", "RELEASE"]
    assert mount.content[:2] == b"2o"


def test_a_private_mapping_changes_nothing() -> None:
    mount = Holding(0)
    with mount.open("a") as file, file.mmap(private=True) as mapped:
        mapped[1:3] = b"ab"
        assert mapped[0:4] == b"oabo"
        assert file.pread(4, 0) == b"oooo"
    assert "WRITE" not in mount.sent


def test_invalidation_is_seen() -> None:
    mount = Holding(0)
    with mount.open("a") as file, file.mmap() as mapped:
        assert mapped[0:1] == b"o"
        mount.content[0:1] = b"n"
        assert mapped[0:1] == b"o"
        mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=5, off=0, len=0))
        assert mapped[0:1] == b"n"


def test_behind_the_end_is_nothing() -> None:
    mount = Holding(0)
    with mount.open("a", os.O_RDWR) as file, file.mmap(4 * PAGE_SIZE) as mapped:
        assert mapped[5000:5001] == b"\0"
        assert error_of(mapped.__getitem__, slice(2 * PAGE_SIZE, 2 * PAGE_SIZE + 1)) == "EFAULT"
        file.truncate(10)
        assert error_of(mapped.__getitem__, slice(PAGE_SIZE, PAGE_SIZE + 1)) == "EFAULT"


def test_who_may_map() -> None:
    mount = Holding(0)
    with mount.open("a", os.O_WRONLY) as file:
        assert error_of(file.mmap) == "EACCES"
    with mount.open("a") as file:
        assert error_of(file.mmap, offset=1) == "EINVAL"
        with file.mmap() as mapped:
            assert error_of(mapped.__setitem__, slice(0, 1), b"x") == "EACCES"


@pytest.mark.parametrize("flags", [0, FUSE_DIRECT_IO_ALLOW_MMAP | FUSE_INIT_EXT])
def test_direct_files_are_mapped_if_that_is_agreed_on(flags: int) -> None:
    mount = Holding(flags)
    mount.answers[FUSE_OPEN] = always(fuse_open_out(fh=7, open_flags=FOPEN_DIRECT_IO))
    with mount.open("a") as file:
        assert error_of(lambda: file.mmap().close()) == ("" if flags else "ENODEV")
        assert error_of(lambda: file.mmap(private=True).close()) == ""


def test_a_backing_file_is_mapped() -> None:
    mount, backing = mounted(), File()
    number = mount.superblock.backing.open(backing)
    opens_with(mount, number, FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO)
    with mount.open("a", os.O_RDWR) as file, file.mmap() as mapped:
        assert mapped[:] == b"backing"
        mapped[0:4] = b"BACK"
        assert backing.content == b"BACKing"
        assert file._file.backing is not None
