"""Lookups and open files of inodes, until they are given back or the session ends."""

import asyncio
import errno
import threading

import pytest

from recuse import (
    InodeEntry,
)
from recuse.wire import fuse
from recuse.wire.filesystem import (
    fuse_batch_forget_in,
    fuse_create_in,
    fuse_forget_one,
)

from ..conftest import WAIT_S, Failure
from .conftest import ServeFilesystem
from .small_inodes import Small, opened


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
