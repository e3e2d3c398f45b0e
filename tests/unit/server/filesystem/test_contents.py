"""Open files, attributes and extended attributes, by messages."""

import asyncio
import errno
import fcntl
import os
import select
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from recuse import IO, File, current_request, ioctl
from recuse.server.filesystem.attributes import Changes, Lock, Statistics
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.nodes import Directory, Node, RegularFile, Symlink
from recuse.server.filesystem.open_file import OpenFile
from recuse.server.request import OpenRequest
from recuse.wire.filesystem import (
    fuse_attr_out,
    fuse_copy_file_range_in,
    fuse_fallocate_in,
    fuse_file_lock,
    fuse_getxattr_in,
    fuse_getxattr_out,
    fuse_lk_in,
    fuse_lk_out,
    fuse_lseek_in,
    fuse_lseek_out,
    fuse_setattr_in,
    fuse_setxattr_in,
    fuse_statfs_out,
    fuse_statx_out,
)
from recuse.wire.fuse import (
    FATTR_ATIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_CREATE,
    FUSE_FALLOCATE,
    FUSE_FLUSH,
    FUSE_FSYNC,
    FUSE_FSYNC_FDATASYNC,
    FUSE_GETATTR,
    FUSE_GETLK,
    FUSE_GETXATTR,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_LISTXATTR,
    FUSE_LK_FLOCK,
    FUSE_LSEEK,
    FUSE_NOTIFY_POLL,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_REMOVEXATTR,
    FUSE_SETATTR,
    FUSE_SETLK,
    FUSE_SETLKW,
    FUSE_SETXATTR,
    FUSE_STATFS,
    FUSE_STATX,
    FUSE_SYNCFS,
    FUSE_WRITE,
    fuse_flush_in,
    fuse_fsync_in,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_ioctl_out,
    fuse_open_in,
    fuse_poll_in,
    fuse_poll_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
)

from ..conftest import Failure, Told
from .conftest import FilesystemPeer, ServeFilesystem


def tree(**children: Node) -> Filesystem:
    return Filesystem(Directory(children))


class Kept(RegularFile):
    """A file in memory."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(content)
        self.kept = bytearray(content)

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.kept[offset : offset + size])

    def write(self, data: bytes, offset: int) -> int:
        self.kept[offset : offset + len(data)] = data
        self.size = len(self.kept)
        return len(data)

    def truncate(self, size: int) -> None:
        self.kept = self.kept[:size].ljust(size, b"\0")
        self.size = size


def test_a_file_is_read_and_written_by_its_node(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=Kept(b"some text")))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    assert peer.read_node(number, fh, 4, 5) == b"text"
    assert peer.read_node(number, fh, 4, 100) == b""
    assert peer.write_node(number, fh, b"other", 5) == 5
    assert peer.read_node(number, fh, 100) == b"some other"
    assert peer.getattr(number).attr.size == 10
    peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=fh))
    assert peer.refuses(FUSE_READ, number, fuse_read_in(fh=fh, size=1)) == errno.EBADF
    assert peer.refuses(FUSE_WRITE, number, fuse_write_in(fh=fh, size=1), b"x") == errno.EBADF
    assert peer.refuses(FUSE_RELEASE, number, fuse_release_in(fh=fh)) == errno.EBADF


def test_content_that_is_given_is_read_only(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=RegularFile(b"text")))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    assert peer.read_node(number, fh, 100) == b"text"
    body = fuse_write_in(fh=fh, size=1)
    assert peer.refuses(FUSE_WRITE, number, body, b"x") == errno.EBADF


class Noting(OpenFile):
    """Says what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def flush(self) -> None:
        self.asked.append("flush")

    def sync(self, data_only: bool) -> None:
        self.asked.append(("sync", data_only))

    def allocate(self, mode: int, offset: int, length: int) -> None:
        self.asked.append(("allocate", mode, offset, length))

    def seek(self, offset: int, whence: int) -> int:
        return offset + whence

    def copy_to(self, offset: int, other: OpenFile, other_offset: int, length: int) -> int:
        self.asked.append(("copy", offset, other is self, other_offset, length))
        return 3

    def get_lock(self, lock: Lock, owner: int) -> Lock:
        self.asked.append((lock, owner))
        return Lock(fcntl.F_WRLCK, 1, 2, 33)

    def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
        self.asked.append((lock, owner, wait))

    def release(self) -> None:
        self.asked.append("release")


class Opened(RegularFile):
    """Opens what it is given."""

    def __init__(self, file: File) -> None:
        self.file = file

    def open(self, request: OpenRequest) -> File:
        return self.file


def test_what_only_filesystems_ask_of_files(serve_filesystem: ServeFilesystem) -> None:
    file = Noting()
    peer = serve_filesystem(tree(file=Opened(file)))
    number = peer.lookup("file").nodeid
    opened = peer.open_node(number)
    assert opened.open_flags == 0
    fh = opened.fh
    peer.ask(FUSE_FLUSH, number, fuse_flush_in(fh=fh))
    peer.ask(FUSE_FSYNC, number, fuse_fsync_in(fh=fh))
    peer.ask(FUSE_FSYNC, number, fuse_fsync_in(fh=fh, fsync_flags=FUSE_FSYNC_FDATASYNC))
    peer.ask(FUSE_FALLOCATE, number, fuse_fallocate_in(fh=fh, offset=5, length=6, mode=1))
    body = fuse_lseek_in(fh=fh, offset=10, whence=os.SEEK_HOLE)
    assert fuse_lseek_out.unpack(peer.ask(FUSE_LSEEK, number, body)).offset == 14
    copy = fuse_copy_file_range_in(
        fh_in=fh, off_in=1, nodeid_out=number, fh_out=fh, off_out=2, len=9
    )
    assert peer.ask(FUSE_COPY_FILE_RANGE, number, copy) == b"\3" + bytes(7)
    copy.len = 1 << 40
    assert peer.ask(FUSE_COPY_FILE_RANGE, number, copy) == b"\3" + bytes(7)
    assert peer.ask(FUSE_COPY_FILE_RANGE_64, number, copy) == b"\3" + bytes(7)
    peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=fh))
    assert file.asked == [
        "flush",
        ("sync", False),
        ("sync", True),
        ("allocate", 1, 5, 6),
        ("copy", 1, True, 2, 9),
        ("copy", 1, True, 2, 0x7FFFF000),
        ("copy", 1, True, 2, 1 << 40),
        "release",
    ]


def test_locks(serve_filesystem: ServeFilesystem) -> None:
    file = Noting()
    peer = serve_filesystem(tree(file=Opened(file)))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    lock = fuse_file_lock(start=5, end=9, type=fcntl.F_RDLCK, pid=44)
    told = fuse_lk_out.unpack(peer.ask(FUSE_GETLK, number, fuse_lk_in(fh=fh, owner=7, lk=lock)))
    assert told.lk == fuse_file_lock(start=1, end=2, type=fcntl.F_WRLCK, pid=33)
    peer.ask(FUSE_SETLK, number, fuse_lk_in(fh=fh, owner=8, lk=lock))
    flock = fuse_lk_in(fh=fh, owner=9, lk=lock, lk_flags=FUSE_LK_FLOCK)
    peer.ask(FUSE_SETLKW, number, flock)
    asked = Lock(fcntl.F_RDLCK, 5, 9, 44)
    assert file.asked == [
        (asked, 7),
        (asked, 8, False),
        (asked._replace(flock=True), 9, True),
    ]


def test_a_device_file_does_too(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=Opened(File())))
    number = peer.lookup("file").nodeid
    opened = peer.open_node(number)
    assert opened.open_flags == FOPEN_NOFLUSH
    peer.ask(FUSE_FLUSH, number, fuse_flush_in(fh=opened.fh))
    peer.ask(FUSE_FSYNC, number, fuse_fsync_in(fh=opened.fh))
    allocate = fuse_fallocate_in(fh=opened.fh)
    assert peer.refuses(FUSE_FALLOCATE, number, allocate) == errno.EOPNOTSUPP


def test_without_seek_all_is_data(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=Kept(b"12345")))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh

    def seek(offset: int, whence: int) -> int:
        body = fuse_lseek_in(fh=fh, offset=offset, whence=whence)
        return fuse_lseek_out.unpack(peer.ask(FUSE_LSEEK, number, body)).offset

    assert seek(3, os.SEEK_DATA) == 3
    assert seek(3, os.SEEK_HOLE) == 5
    body = fuse_lseek_in(fh=fh, offset=5, whence=os.SEEK_DATA)
    assert peer.refuses(FUSE_LSEEK, number, body) == errno.ENXIO
    before = fuse_lseek_in(fh=fh, offset=(1 << 64) - 1, whence=os.SEEK_DATA)
    assert peer.refuses(FUSE_LSEEK, number, before) == errno.ENXIO


@pytest.mark.parametrize(
    ("direct", "keep", "size", "flags"),
    [
        (False, False, 1, 0),
        (True, True, 1, FOPEN_DIRECT_IO),
        (False, True, 1, FOPEN_KEEP_CACHE),
        (False, False, None, FOPEN_DIRECT_IO),
    ],
)
def test_how_a_file_is_cached(
    serve_filesystem: ServeFilesystem, direct: bool, keep: bool, size: int | None, flags: int
) -> None:
    file = OpenFile()
    file.direct, file.keep_cache = direct, keep
    node = Opened(file)
    node.size = size
    peer = serve_filesystem(tree(file=node))
    assert peer.open_node(peer.lookup("file").nodeid).open_flags == flags | FOPEN_NOFLUSH


def test_an_open_that_nobody_takes_is_released(serve_filesystem: ServeFilesystem) -> None:
    file = Noting()
    peer = serve_filesystem(tree(file=Opened(file)))
    number = peer.lookup("file").nodeid
    peer.refuse = OSError(errno.ENOENT, "gone")
    peer.send(FUSE_OPEN, number, fuse_open_in(flags=os.O_RDONLY))
    assert file.asked == ["release"]


def test_the_end_releases_and_forgets(serve_filesystem: ServeFilesystem) -> None:
    class Closing(Filesystem):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    file = Noting()
    filesystem = Closing(Directory({"file": Opened(file)}))
    peer = serve_filesystem(filesystem)
    number = peer.lookup("file").nodeid
    peer.open_node(number)
    peer.session.close()
    peer.session.close()
    assert file.asked == ["release"]
    assert filesystem.closed == 1
    assert peer.refuses(FUSE_OPEN, number, fuse_open_in()) == errno.ENODEV


def test_truncation_at_open(serve_filesystem: ServeFilesystem) -> None:
    file = Kept(b"text")
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    before = time.time_ns()
    peer.open_node(number, os.O_RDWR | os.O_TRUNC)
    assert file.kept == b""
    assert file.mtime_ns >= before


class KeptLater(Kept):
    """Truncates when it has waited."""

    async def truncate(self, size: int) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().truncate(size)


def test_a_truncation_that_is_waited_for(serve_filesystem: ServeFilesystem) -> None:
    file = KeptLater(b"text")
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    body = fuse_setattr_in(valid=FATTR_SIZE | FATTR_MODE, size=2, mode=0o100600)
    changed = fuse_attr_out.unpack(peer.ask(FUSE_SETATTR, number, body)).attr
    assert (bytes(file.kept), changed.size, changed.mode & 0o777) == (b"te", 2, 0o600)
    peer.open_node(number, os.O_RDWR | os.O_TRUNC)
    assert file.kept == b""


# Attributes


def change(peer: FilesystemPeer, number: int, **fields: int) -> fuse_attr_out:
    return fuse_attr_out.unpack(peer.ask(FUSE_SETATTR, number, fuse_setattr_in(**fields)))


def test_changes_are_kept_on_the_node(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree(file=Kept(b"text")))
    number = peer.lookup("file").nodeid
    valid = FATTR_MODE | FATTR_UID | FATTR_GID
    attr = change(peer, number, valid=valid, mode=0o100600, uid=5, gid=6).attr
    assert (attr.mode, attr.uid, attr.gid) == (0o100600, 5, 6)
    attr = change(peer, number, valid=FATTR_SIZE, size=6).attr
    assert attr.size == 6
    attr = change(peer, number, valid=FATTR_ATIME, atime=7, atimensec=8).attr
    assert (attr.atime, attr.atimensec) == (7, 8)
    now = time.time()
    attr = change(peer, number, valid=FATTR_MTIME | FATTR_MTIME_NOW).attr
    assert abs(attr.mtime - now) < 3600
    assert peer.getattr(number).attr == attr


def test_times_before_1970(serve_filesystem: ServeFilesystem) -> None:
    """The protocol's seconds are unsigned, the kernel's are not (fs/fuse/inode.c)."""
    file = Kept(b"text")
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    valid = FATTR_ATIME | FATTR_MTIME
    seconds = 2**64 - 1000
    change(peer, number, valid=valid, atime=seconds, atimensec=5, mtime=seconds, mtimensec=6)
    assert (file.atime_ns, file.mtime_ns) == (5 - 1000 * 10**9, 6 - 1000 * 10**9)
    attr = peer.getattr(number).attr
    assert (attr.atime, attr.atimensec, attr.mtime, attr.mtimensec) == (seconds, 5, seconds, 6)
    answer = fuse_statx_out.unpack(peer.ask(FUSE_STATX, number, bytes(24)))
    assert (answer.stat.atime.tv_sec, answer.stat.mtime.tv_nsec) == (-1000, 6)


def test_times_before_1970_of_a_stat_result(
    serve_filesystem: ServeFilesystem, tmp_path: Path
) -> None:
    class Told(Kept):
        def attributes(self) -> os.stat_result:
            return os.stat(tmp_path)

    os.utime(tmp_path, ns=(-1, -2))
    peer = serve_filesystem(tree(file=Told()))
    attr = peer.lookup("file").attr
    assert (attr.atime, attr.atimensec) == (2**64 - 1, 999999999)
    assert (attr.mtime, attr.mtimensec) == (2**64 - 1, 999999998)


def test_blocks(serve_filesystem: ServeFilesystem) -> None:
    file = Kept(b"x" * 513)
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    assert peer.getattr(number).attr.blocks == 2
    file.blocks = 7
    assert peer.getattr(number).attr.blocks == 7


def test_a_change_by_an_open_file_names_it(serve_filesystem: ServeFilesystem) -> None:
    class Asked(Kept):
        by: list[object]

        def change(self, changes: Changes) -> None:
            self.by = [changes.file, changes.size]

    file = Asked()
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    change(peer, number, valid=FATTR_SIZE | FATTR_FH, fh=fh, size=3)
    opened, size = file.by
    assert isinstance(opened, OpenFile)
    assert size == 3


def test_ftruncate_changes_the_time_and_truncate_need_not(
    serve_filesystem: ServeFilesystem,
) -> None:
    file = Kept(b"text")
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    file.mtime_ns = 0
    assert change(peer, number, valid=FATTR_SIZE, size=4).attr.mtime == 0
    assert change(peer, number, valid=FATTR_SIZE | FATTR_FH, fh=fh, size=4).attr.mtime > 0


def test_a_directory_has_no_size_to_change(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree())
    body = fuse_setattr_in(valid=FATTR_SIZE, size=3)
    assert peer.refuses(FUSE_SETATTR, 1, body) == errno.EINVAL


def test_read_only(serve_filesystem: ServeFilesystem) -> None:
    filesystem = tree(file=Kept(b"text"))
    filesystem.read_only = True
    peer = serve_filesystem(filesystem)
    number = peer.lookup("file").nodeid
    peer.open_node(number, os.O_RDONLY)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert peer.refuses(FUSE_OPEN, number, fuse_open_in(flags=flags)) == errno.EROFS
    body = fuse_setattr_in(valid=FATTR_MODE)
    assert peer.refuses(FUSE_SETATTR, number, body) == errno.EROFS
    assert peer.refuses(FUSE_CREATE, 1, bytes(16), "new") == errno.EROFS


def test_statx_has_the_time_of_birth(serve_filesystem: ServeFilesystem) -> None:
    file = Kept(b"text")
    file.mode, file.rdev = 0o600, os.makedev(3, 4)
    peer = serve_filesystem(tree(file=file))
    number = peer.lookup("file").nodeid
    stat_ = fuse_statx_out.unpack(peer.ask(FUSE_STATX, number, bytes(24))).stat
    assert (stat_.mask & 0x800, stat_.size, stat_.mode) == (0, 4, stat.S_IFREG | 0o600)
    assert (stat_.rdev_major, stat_.rdev_minor) == (3, 4)
    file.btime_ns = 5_000_000_006
    stat_ = fuse_statx_out.unpack(peer.ask(FUSE_STATX, number, bytes(24))).stat
    assert (stat_.mask & 0x800, stat_.btime.tv_sec, stat_.btime.tv_nsec) == (0x800, 5, 6)


def test_statistics_and_syncfs(serve_filesystem: ServeFilesystem) -> None:
    class Known(Filesystem):
        synced = 0

        def statistics(self) -> Statistics | os.statvfs_result:
            if self.synced:
                return os.statvfs("/")
            return Statistics(blocks=100, free=50, available=40, files=9, free_files=8)

        def sync(self) -> None:
            self.synced += 1

    filesystem = Known(Directory())
    peer = serve_filesystem(filesystem)
    told = fuse_statfs_out.unpack(peer.ask(FUSE_STATFS, 1)).st
    assert (told.blocks, told.bfree, told.bavail, told.files, told.ffree) == (100, 50, 40, 9, 8)
    peer.ask(FUSE_SYNCFS, 1, bytes(8))
    assert filesystem.synced == 1
    assert fuse_statfs_out.unpack(peer.ask(FUSE_STATFS, 1)).st.namelen == 255


# Extended attributes


class Attributed(RegularFile):
    def __init__(self) -> None:
        super().__init__(b"")
        self.xattrs: dict[str, bytes] = {"user.a": b"value"}

    def get_xattr(self, name: str) -> bytes:
        if name not in self.xattrs:
            raise OSError(errno.ENODATA, "")
        return self.xattrs[name]

    def list_xattr(self) -> Iterable[str]:
        return self.xattrs

    def set_xattr(self, name: str, value: bytes, flags: int) -> None:
        assert flags == os.XATTR_CREATE
        self.xattrs[name] = value

    def remove_xattr(self, name: str) -> None:
        del self.xattrs[name]


def test_extended_attributes(serve_filesystem: ServeFilesystem) -> None:
    file = Attributed()
    filesystem = tree(file=file, none=RegularFile(b""))
    filesystem.xattrs = True
    peer = serve_filesystem(filesystem)
    number = peer.lookup("file").nodeid

    def get(size: int, name: str) -> bytes:
        return peer.ask(FUSE_GETXATTR, number, fuse_getxattr_in(size=size), name)

    assert get(100, "user.a") == b"value"
    assert fuse_getxattr_out.unpack(get(0, "user.a")).size == 5
    body = fuse_getxattr_in(size=4)
    assert peer.refuses(FUSE_GETXATTR, number, body, "user.a") == errno.ERANGE
    assert peer.refuses(FUSE_GETXATTR, number, body, "user.b") == errno.ENODATA
    value = fuse_setxattr_in(size=3, flags=os.XATTR_CREATE)
    peer.ask(FUSE_SETXATTR, number, value, b"user.b\0new")
    listed = peer.ask(FUSE_LISTXATTR, number, fuse_getxattr_in(size=100))
    assert listed == b"user.a\0user.b\0"
    peer.ask(FUSE_REMOVEXATTR, number, b"", "user.a")
    assert file.xattrs == {"user.b": b"new"}
    other = peer.lookup("none").nodeid
    assert peer.refuses(FUSE_GETXATTR, other, body, "user.a") == errno.ENODATA
    assert peer.ask(FUSE_LISTXATTR, other, fuse_getxattr_in(size=9)) == b""
    assert peer.refuses(FUSE_SETXATTR, other, value, b"user.b\0new") == errno.EOPNOTSUPP


def test_the_kernel_is_told_once_that_there_are_none(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(tree())
    for opcode in (FUSE_GETXATTR, FUSE_LISTXATTR, FUSE_SETXATTR, FUSE_REMOVEXATTR):
        assert peer.refuses(opcode, 1, bytes(16), "user.a") == errno.ENOSYS


def test_the_shorter_request_of_older_kernels(serve_filesystem: ServeFilesystem) -> None:
    file = Attributed()
    filesystem = tree(file=file)
    filesystem.xattrs = True
    peer = FilesystemPeer(filesystem)
    peer.init_filesystem(flags=0, minor=31)
    number = peer.lookup("file").nodeid
    value = fuse_setxattr_in(size=3, flags=os.XATTR_CREATE).pack()[:8]
    peer.ask(FUSE_SETXATTR, number, value, b"user.b\0new")
    assert file.xattrs["user.b"] == b"new"


# What devices have too


class Asked(OpenFile):
    @ioctl(IO(ord("x"), 1))
    def one(self) -> int:
        return 42

    def poll(self, events: int) -> int:
        return select.POLLPRI


def test_ioctl_and_poll(serve_filesystem: ServeFilesystem) -> None:
    file = Asked()
    peer = serve_filesystem(tree(file=Opened(file), plain=Kept()))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    command = fuse_ioctl_in(fh=fh, cmd=IO(ord("x"), 1))
    assert fuse_ioctl_out.unpack(peer.ask(FUSE_IOCTL, number, command)).result == 42
    unknown = fuse_ioctl_in(fh=fh, cmd=5)
    assert peer.refuses(FUSE_IOCTL, number, unknown) == errno.ENOTTY
    asked = fuse_poll_in(fh=fh, kh=5, flags=1, events=select.POLLIN)
    assert fuse_poll_out.unpack(peer.ask(FUSE_POLL, number, asked)).revents == select.POLLPRI
    file.wake_pollers()
    assert peer.notified == [FUSE_NOTIFY_POLL]
    plain = peer.lookup("plain").nodeid
    asked = fuse_poll_in(fh=peer.open_node(plain).fh, events=select.POLLIN)
    revents = fuse_poll_out.unpack(peer.ask(FUSE_POLL, plain, asked)).revents
    assert revents & select.POLLIN


def test_who_asks_and_interrupts(serve_filesystem: ServeFilesystem) -> None:
    begun = threading.Event()
    over = threading.Event()

    class Slow(OpenFile):
        async def read(self, size: int, offset: int) -> bytes:
            begun.set()
            try:
                await asyncio.sleep(100)
            finally:
                over.set()
            return b""

        def write(self, data: bytes, offset: int) -> None:
            request = current_request()
            assert (request.uid, request.gid, request.pid) == (1000, 100, 77)
            assert request.operation == "write"

    class Asked(Opened):
        def attributes(self) -> Node:
            assert current_request().operation in ("lookup", "getattr")
            assert repr(current_request()).endswith(" by 77>")
            return self

    peer = serve_filesystem(tree(file=Asked(Slow())))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    assert peer.write_node(number, fh, b"x") == 1
    peer.ask(FUSE_GETATTR, number, bytes(16))
    unique = peer.send(FUSE_READ, number, fuse_read_in(fh=fh, size=1))
    assert begun.wait(20)
    peer.send(FUSE_INTERRUPT, 0, fuse_interrupt_in(unique=unique))
    assert over.wait(20)
    with pytest.raises(Failure) as caught:
        peer.answer(unique)
    assert caught.value.number == errno.EINTR


def test_mistakes_are_told(serve_filesystem: ServeFilesystem, told: Told) -> None:
    class Wrong(RegularFile):
        def open(self, request: OpenRequest) -> File:
            return "file"  # type: ignore[return-value]

    class Odd(Symlink):
        def readlink(self) -> str:
            return 5  # type: ignore[return-value]

    peer = serve_filesystem(tree(file=Wrong(b""), link=Odd("x")))
    number = peer.lookup("file").nodeid
    assert peer.refuses(FUSE_OPEN, number, fuse_open_in()) == errno.EIO
    assert told.line().startswith("Wrong.open returned 'file'")
    assert peer.refuses(5, peer.lookup("link").nodeid) == errno.EIO
    assert told.line().startswith("Odd.readlink returned 5")
    assert peer.refuses(FUSE_WRITE, number, fuse_write_in(size=9), b"x") == errno.EIO
    assert "malformed" in told.line()


@pytest.mark.parametrize("minor", [30, 45])
def test_the_version(minor: int, told: Told) -> None:
    peer = FilesystemPeer(tree())
    if minor < 31:
        with pytest.raises(Failure):
            peer.init_filesystem(minor=minor)
        assert "7.30" in told.line()
    else:
        out = peer.init_filesystem()
        assert (out.major, out.minor, out.max_pages, out.time_gran) == (7, 45, 256, 1)
        assert out.max_write == 1 << 20
