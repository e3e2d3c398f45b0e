"""Filesystems with a method for each operation."""

import asyncio
import errno
import fcntl
import os
import stat
import threading
from typing import Any

import pytest

from recuse import (
    Changes,
    Inodes,
    Opened,
    Statistics,
)
from recuse.wire import fuse
from recuse.wire.filesystem import (
    create_out,
    fuse_attr_out,
    fuse_create_in,
    fuse_setattr_in,
    fuse_statfs_out,
    fuse_statx_in,
    fuse_statx_out,
)

from ..conftest import WAIT_S, Failure
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
