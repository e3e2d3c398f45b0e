"""Locks that the filesystem keeps: Linux leaves it to the server to unlock what is closed."""

import errno
import fcntl
from typing import Any

import pytest

from recuse import Directory, Filesystem, Lock, OpenFile, OpenRequest, RegularFile
from recuse.wire.fuse import (
    FOPEN_NOFLUSH,
    FUSE_FLUSH,
    FUSE_RELEASE,
    FUSE_RELEASE_FLOCK_UNLOCK,
    fuse_flush_in,
    fuse_release_in,
)

from ..conftest import Told
from .conftest import ServeFilesystem


class Locked(OpenFile):
    """Says what is asked of it."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.asked: list[object] = []

    def ask(self, what: object) -> None:
        self.asked.append(what)
        if self.fails:
            raise OSError(errno.ENOLCK, "no")

    def flush(self) -> Any:
        self.ask("flush")

    def set_lock(self, lock: Lock, owner: int, wait: bool) -> Any:
        self.ask((lock, owner, wait))

    def release(self) -> Any:
        self.asked.append("release")


class LockedLater(Locked):
    """The same, asynchronously."""

    async def flush(self) -> None:
        self.ask("flush")

    async def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
        self.ask((lock, owner, wait))

    async def release(self) -> None:
        self.asked.append("release")


class LockedPartly(Locked):
    """The same, with both kinds of methods."""

    async def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
        self.ask((lock, owner, wait))


class Opened(RegularFile):
    """Opens one file."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file

    def open(self, request: OpenRequest) -> OpenFile:
        return self.file


@pytest.mark.parametrize("kind", [Locked, LockedLater, LockedPartly])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_closed_is_unlocked(
    serve_filesystem: ServeFilesystem, kind: type[Locked], fails: bool, told: Told
) -> None:
    filesystem = Filesystem(Directory({"file": Opened(kind(fails))}))
    filesystem.posix_locks = filesystem.flock_locks = True
    peer = serve_filesystem(filesystem)
    number = peer.lookup("file").nodeid
    file = filesystem.root.children["file"].file  # type: ignore[attr-defined]
    opened = peer.open_node(number)
    assert not opened.open_flags & FOPEN_NOFLUSH
    flush = fuse_flush_in(fh=opened.fh, lock_owner=7)
    if fails:
        assert peer.refuses(FUSE_FLUSH, number, flush) == errno.ENOLCK
    else:
        peer.ask(FUSE_FLUSH, number, flush)
    assert file.asked == ["flush", (Lock(fcntl.F_UNLCK), 7, False)]
    file.asked.clear()
    release = fuse_release_in(fh=opened.fh, lock_owner=8, release_flags=FUSE_RELEASE_FLOCK_UNLOCK)
    if fails:
        assert peer.refuses(FUSE_RELEASE, number, release) == errno.ENOLCK
        line, _ = told.traceback()
        assert line == f"{kind.__name__}.release raised OSError"
    else:
        peer.ask(FUSE_RELEASE, number, release)
    assert file.asked == [(Lock(fcntl.F_UNLCK, flock=True), 8, False), "release"]


def test_without_locks_nothing_is_unlocked(serve_filesystem: ServeFilesystem) -> None:
    file = Locked(False)
    peer = serve_filesystem(Filesystem(Directory({"file": Opened(file)})))
    number = peer.lookup("file").nodeid
    fh = peer.open_node(number).fh
    peer.ask(FUSE_FLUSH, number, fuse_flush_in(fh=fh, lock_owner=7))
    peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=fh, lock_owner=8))
    assert file.asked == ["flush", "release"]


def test_a_file_without_flush_is_flushed_for_its_locks(serve_filesystem: ServeFilesystem) -> None:
    class Plain(OpenFile):
        owners: list[int] = []  # noqa: RUF012  # one file

        def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
            self.owners.append(owner)

    filesystem = Filesystem(Directory({"file": Opened(Plain())}))
    filesystem.posix_locks = True
    peer = serve_filesystem(filesystem)
    number = peer.lookup("file").nodeid
    opened = peer.open_node(number)
    assert not opened.open_flags & FOPEN_NOFLUSH
    peer.ask(FUSE_FLUSH, number, fuse_flush_in(fh=opened.fh, lock_owner=9))
    assert Plain.owners == [9]
