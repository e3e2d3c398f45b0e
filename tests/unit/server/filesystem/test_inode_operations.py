"""Each operation comes to its method, and what it returns goes back."""

import asyncio
import errno
import fcntl
import os
import select
import struct
from typing import Any, NamedTuple

import pytest

from recuse import (
    Inodes,
    Lock,
    current_request,
)
from recuse.wire import fuse
from recuse.wire.declare import Structure
from recuse.wire.filesystem import (
    fuse_access_in,
    fuse_attr_out,
    fuse_bmap_in,
    fuse_bmap_out,
    fuse_copy_file_range_in,
    fuse_copy_file_range_out,
    fuse_entry_out,
    fuse_fallocate_in,
    fuse_file_lock,
    fuse_getattr_in,
    fuse_getxattr_in,
    fuse_getxattr_out,
    fuse_link_in,
    fuse_lk_in,
    fuse_lk_out,
    fuse_lseek_in,
    fuse_lseek_out,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_rename2_in,
    fuse_rename_in,
    fuse_setxattr_in,
)
from recuse.wire.optable import OPERATIONS

from .conftest import FilesystemPeer, ServeFilesystem
from .small_inodes import ENTRY, FILE, Small, opened


class Asked(NamedTuple):
    """A request, what the method gets and returns, and the answer."""

    opcode: int
    body: Structure | bytes
    data: Any
    method: str
    arguments: tuple[Any, ...]
    returns: Any
    answer: bytes


def entry_out() -> bytes:
    peer = FilesystemPeer(Small())
    try:
        return peer.ask(fuse.FUSE_LOOKUP, 1, b"", "x")
    finally:
        peer.session.close()


ATTR_OUT = fuse_attr_out(attr_valid=1, attr=fuse_entry_out.unpack(entry_out()).attr).pack()
LK = fuse_lk_in(fh=1, owner=7, lk=fuse_file_lock(start=1, end=2, type=fcntl.F_WRLCK, pid=3))
FLOCK = fuse_lk_in(
    fh=1, owner=7, lk=fuse_file_lock(type=fcntl.F_RDLCK), lk_flags=fuse.FUSE_LK_FLOCK
)
LOCK = Lock(fcntl.F_WRLCK, 1, 2, 3)
COPY = fuse_copy_file_range_in(
    fh_in=1, off_in=10, nodeid_out=2, fh_out=1, off_out=20, len=1 << 33, flags=0
)
# The open file has handle 1, as it is opened first; the inode is 2.
ROWS = (
    Asked(fuse.FUSE_READLINK, b"", b"", "readlink", (2,), "to", b"to"),
    Asked(fuse.FUSE_SYMLINK, b"", b"name\0to\0", "symlink", (2, "name", "to"), ENTRY, entry_out()),
    Asked(fuse.FUSE_MKNOD, fuse_mknod_in(mode=0o10644, rdev=5), "n", "mknod", (2, "n", 0o10644, 5),
        ENTRY, entry_out()),
    Asked(fuse.FUSE_MKDIR, fuse_mkdir_in(mode=0o40751), "n", "mkdir", (2, "n", 0o751), ENTRY,
        entry_out()),
    Asked(fuse.FUSE_UNLINK, b"", "n", "unlink", (2, "n"), None, b""),
    Asked(fuse.FUSE_RMDIR, b"", "n", "rmdir", (2, "n"), None, b""),
    Asked(fuse.FUSE_RENAME, fuse_rename_in(newdir=3), b"a\0b\0", "rename", (2, "a", 3, "b", 0),
        None, b""),
    Asked(fuse.FUSE_RENAME2, fuse_rename2_in(newdir=3, flags=1), b"a\0b\0", "rename",
        (2, "a", 3, "b", 1), None, b""),
    Asked(fuse.FUSE_LINK, fuse_link_in(oldnodeid=5), "n", "link", (5, 2, "n"), ENTRY, entry_out()),
    Asked(fuse.FUSE_GETATTR, fuse_getattr_in(), b"", "getattr", (2, None), FILE, ATTR_OUT),
    Asked(fuse.FUSE_GETATTR, fuse_getattr_in(getattr_flags=1, fh=1), b"", "getattr", (2, "file"),
        FILE, ATTR_OUT),
    Asked(fuse.FUSE_ACCESS, fuse_access_in(mask=4), b"", "access", (2, 4), None, b""),
    Asked(fuse.FUSE_GETXATTR, fuse_getxattr_in(size=9), "user.a", "getxattr", (2, "user.a"),
        b"value", b"value"),
    Asked(fuse.FUSE_GETXATTR, fuse_getxattr_in(), "user.a", "getxattr", (2, "user.a"), b"value",
        fuse_getxattr_out(size=5).pack()),
    Asked(fuse.FUSE_LISTXATTR, fuse_getxattr_in(size=9), b"", "listxattr", (2,), ["a", "b"],
        b"a\0b\0"),
    Asked(fuse.FUSE_SETXATTR, fuse_setxattr_in(size=2, flags=1), b"user.a\0vv", "setxattr",
        (2, "user.a", b"vv", 1), None, b""),
    Asked(fuse.FUSE_REMOVEXATTR, b"", "user.a", "removexattr", (2, "user.a"), None, b""),
    Asked(fuse.FUSE_SYNCFS, bytes(8), b"", "syncfs", (2,), None, b""),
    Asked(fuse.FUSE_READ, fuse.fuse_read_in(fh=1, offset=3, size=4), b"", "read",
        (2, "file", 4, 3), memoryview(b"text"), b"text"),
    Asked(fuse.FUSE_WRITE, fuse.fuse_write_in(fh=1, offset=3, size=4), b"text", "write",
        (2, "file", b"text", 3), None, fuse.fuse_write_out(4).pack()),
    Asked(fuse.FUSE_FLUSH, fuse.fuse_flush_in(fh=1, lock_owner=7), b"", "flush", (2, "file", 7),
        None, b""),
    Asked(fuse.FUSE_FSYNC, fuse.fuse_fsync_in(fh=1, fsync_flags=1), b"", "fsync",
        (2, "file", True), None, b""),
    Asked(fuse.FUSE_FSYNCDIR, fuse.fuse_fsync_in(fh=1), b"", "fsyncdir", (2, "file", False), None,
        b""),
    Asked(fuse.FUSE_GETLK, LK, b"", "getlk", (2, "file", LOCK, 7), Lock(fcntl.F_UNLCK),
        fuse_lk_out(fuse_file_lock(end=(1 << 63) - 1, type=fcntl.F_UNLCK)).pack()),
    Asked(fuse.FUSE_SETLK, LK, b"", "setlk", (2, "file", LOCK, 7, False), None, b""),
    Asked(fuse.FUSE_SETLKW, LK, b"", "setlk", (2, "file", LOCK, 7, True), None, b""),
    Asked(fuse.FUSE_SETLK, FLOCK, b"", "flock", (2, "file", fcntl.LOCK_SH | fcntl.LOCK_NB, 7),
        None, b""),
    Asked(fuse.FUSE_SETLKW, FLOCK, b"", "flock", (2, "file", fcntl.LOCK_SH, 7), None, b""),
    Asked(fuse.FUSE_POLL, fuse.fuse_poll_in(fh=1, kh=8, events=1), b"", "poll",
        (2, "file", 1, None), select.POLLIN, struct.pack("=II", select.POLLIN, 0)),
    Asked(fuse.FUSE_FALLOCATE, fuse_fallocate_in(fh=1, offset=5, length=6, mode=1), b"",
        "fallocate", (2, "file", 1, 5, 6), None, b""),
    Asked(fuse.FUSE_LSEEK, fuse_lseek_in(fh=1, offset=5, whence=os.SEEK_HOLE), b"", "lseek",
        (2, "file", 5, os.SEEK_HOLE), 40, fuse_lseek_out(40).pack()),
    Asked(fuse.FUSE_COPY_FILE_RANGE, COPY, b"", "copy_file_range",
        (2, "file", 10, 2, "file", 20, 0x7FFFF000, 0), 9, fuse.fuse_write_out(9).pack()),
    Asked(fuse.FUSE_COPY_FILE_RANGE_64, COPY, b"", "copy_file_range",
        (2, "file", 10, 2, "file", 20, 1 << 33, 0), None,
        fuse_copy_file_range_out(1 << 33).pack()),
    Asked(fuse.FUSE_BMAP, fuse_bmap_in(block=3, blocksize=512), b"", "bmap", (2, 3, 512), 99,
        fuse_bmap_out(99).pack()),
    Asked(fuse.FUSE_IOCTL, fuse.fuse_ioctl_in(fh=1, cmd=6, arg=7, in_size=2, out_size=4), b"in",
        "ioctl", (2, "file", 6, 7, b"in", 4), (5, b"out"),
        struct.pack("=iIII", 5, 0, 0, 0) + b"out"),
    Asked(fuse.FUSE_IOCTL, fuse.fuse_ioctl_in(fh=1, cmd=6), b"", "ioctl", (2, "file", 6, 0, b"", 0),
        3, struct.pack("=iIII", 3, 0, 0, 0)),
)  # fmt: skip
OTHERS = {
    *(fuse.FUSE_LOOKUP, fuse.FUSE_FORGET, fuse.FUSE_BATCH_FORGET, fuse.FUSE_INIT),
    *(fuse.FUSE_DESTROY, fuse.FUSE_INTERRUPT, fuse.FUSE_NOTIFY_REPLY, fuse.FUSE_SETATTR),
    *(fuse.FUSE_STATX, fuse.FUSE_STATFS, fuse.FUSE_OPEN, fuse.FUSE_RELEASE, fuse.FUSE_OPENDIR),
    *(fuse.FUSE_READDIR, fuse.FUSE_READDIRPLUS, fuse.FUSE_RELEASEDIR, fuse.FUSE_CREATE),
    fuse.FUSE_TMPFILE,
}
"""Operations that other tests of this file are about."""
DAX = {fuse.FUSE_SETUPMAPPING, fuse.FUSE_REMOVEMAPPING}
"""Only for virtiofs."""


def test_all_operations_are_tested() -> None:
    operations = {row.opcode for row in OPERATIONS.values() if row.opcode < 100}
    assert operations - DAX == {row.opcode for row in ROWS} | OTHERS


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}-{row.opcode}")
def test_an_operation(serve_filesystem: ServeFilesystem, row: Asked, asynchronous: bool) -> None:
    given: list[Any] = []

    def method(self: Inodes, *arguments: Any) -> Any:
        given.append(arguments)
        assert current_request().pid == 77
        return row.returns

    async def later(self: Inodes, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return method(self, *arguments)

    kind = type("Kind", (Small,), {row.method: later if asynchronous else method})
    peer = serve_filesystem(kind())
    opened(peer)
    assert peer.ask(row.opcode, 2, row.body, row.data) == row.answer
    assert given == [row.arguments]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}-{row.opcode}")
def test_what_is_missing_is_enosys(serve_filesystem: ServeFilesystem, row: Asked) -> None:
    peer = serve_filesystem(Small())
    opened(peer)
    assert peer.refuses(row.opcode, 2, row.body, row.data) == errno.ENOSYS
