"""Filesystems of inodes in a test: their numbers and counts are the author's."""

import errno
import os
import stat
from pathlib import Path

import pytest

import recuse
from recuse import Attributes, DirectoryEntry, InodeEntry
from recuse.testing import TestMount

from .support import error_of, example


class Counted(recuse.Inodes):
    """A directory with one file, and how often the kernel half knows it."""

    def __init__(self) -> None:
        self.lookups: dict[int, int] = {}

    def getattr(self, ino: int, fh: object) -> Attributes:
        kind = stat.S_IFDIR | 0o755 if ino == recuse.ROOT_INODE else stat.S_IFREG | 0o644
        return Attributes(kind, size=4)

    def lookup(self, parent: int, name: str) -> InodeEntry | None:
        if name != "a":
            return None
        self.lookups[7] = self.lookups.get(7, 0) + 1
        return InodeEntry(7, self.getattr(7, None))

    def forget(self, inodes: list[tuple[int, int]]) -> None:
        for ino, count in inodes:
            self.lookups[ino] -= count

    def readdir(self, ino: int, fh: object, offset: int) -> list[DirectoryEntry]:
        return [] if offset else [DirectoryEntry("a", 1, ino=7, kind=stat.S_IFREG)]

    def open(self, ino: int, flags: int) -> str:
        return "handle"

    def read(self, ino: int, fh: object, size: int, offset: int) -> bytes:
        assert fh == "handle"
        return b"text"[offset : offset + size]


def test_lookups_are_taken_back() -> None:
    filesystem = Counted()
    with TestMount(filesystem) as mount:
        assert mount.listdir() == ["a"]
        assert mount.read_text("a") == "text"
        mount.advance(2)
        mount.stat("a")
        assert filesystem.lookups == {7: 2}
        mount.drop_caches()
        assert filesystem.lookups == {7: 0}
        mount.stat("a")
    assert filesystem.lookups == {7: 0}


def test_what_is_left_out_is_not_asked_for_again() -> None:
    with TestMount(Counted()) as mount:
        with mount.recording() as requests:
            for _ in range(2):
                assert error_of(mount.setxattr, "a", "user.a", b"") == "ENOTSUP"
                assert error_of(mount.getxattr, "a", "user.a") == "ENOTSUP"
                assert error_of(mount.listxattr, "a") == "ENOTSUP"
                with mount.open("a") as file:
                    file.fsync()
                    file.flush()
                    assert error_of(file.fallocate, 0, 0, 1) == "EBADF"
                    assert file.seek(1, os.SEEK_HOLE) == 4
        names = [request.name for request in requests]
        for once in ("SETXATTR", "GETXATTR", "LISTXATTR", "FSYNC", "FLUSH", "LSEEK"):
            assert names.count(once) == 1, once
        assert error_of(mount.mkdir, "d") == "ENOSYS"


def test_the_loopback_shows_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with TestMount(example("loopbackfs").Loopback(str(tmp_path))) as mount:
        assert mount.read_text("a") == "text"
        mount.mkdir("d")
        mount.rename("a", "d/b")
        mount.link("d/b", "c")
        assert (tmp_path / "c").read_text() == "text"
        with mount.open("c", os.O_RDWR) as one, mount.open("new", os.O_CREAT | os.O_WRONLY) as two:
            assert one.copy_file_range(two, 10, 1, 0) == 3
            one.truncate(100)
        assert mount.read_text("new") == "ext"
        assert mount.stat("c").st_size == 100
        with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
            mount.rmdir("d")
