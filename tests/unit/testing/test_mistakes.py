"""What a test is told of the common mistakes of filesystems, and of its own."""

import errno
import gc
import itertools
import os
import stat
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import recuse
from recuse import Attributes, Directory, DirectoryEntry, Filesystem, InodeEntry, RegularFile
from recuse.testing import Endless, TestMount

DIRECTORY = Attributes(stat.S_IFDIR | 0o755, nlink=2)


class Listing(recuse.Inodes):
    """A directory of inodes, with nothing but names."""

    def getattr(self, ino: int, fh: object) -> Attributes:
        return DIRECTORY

    def lookup(self, parent: int, name: str) -> InodeEntry | None:
        return None


class IgnoresOffset(Listing):
    def readdir(self, ino: int, fh: object, offset: int) -> list[DirectoryEntry]:
        return [DirectoryEntry(f"f{index}", index, ino=5) for index in (1, 2, 3)]


class SaysZero(Listing):
    def readdir(self, ino: int, fh: object, offset: int) -> list[DirectoryEntry]:
        return [DirectoryEntry("a", 1, ino=5), DirectoryEntry("b", 0, ino=6)][offset:]


class IgnoresOffsetLater(Listing):
    async def readdir(self, ino: int, fh: object, offset: int) -> AsyncIterator[DirectoryEntry]:
        for index in itertools.count(1):
            yield DirectoryEntry(f"f{index}", index, ino=5)


@pytest.mark.parametrize("kind", [IgnoresOffset, SaysZero, IgnoresOffsetLater])
def test_a_listing_that_ignores_the_offset(kind: Callable[[], Listing]) -> None:
    again = r"'\.': after b'.*' the listing goes on at offset \d"
    with TestMount(kind()) as mount, pytest.raises(Endless, match=again):
        mount.listdir()


def test_a_listing_without_end() -> None:
    class Counting(Directory):
        async def entries(self) -> AsyncIterator[Any]:
            for index in itertools.count():
                yield recuse.Entry(str(index), stat.S_IFREG)

    with (
        # Each answer has this long, too, on a busy machine.
        TestMount(Filesystem(Counting()), timeout_s=1.0) as mount,
        pytest.raises(Endless, match=r"no end after 1 s"),
    ):
        mount.listdir()


def test_going_back_is_no_mistake() -> None:
    names = Directory({str(index): RegularFile(b"") for index in range(3)})
    with TestMount(Filesystem(names)) as mount, mount.open_directory(".") as directory:
        found = []
        for entry in directory:
            found.append(entry.name)
            if len(found) == 5:
                directory.seek(0)
        assert found == [b".", b"..", b"0", b"1", b"2"] * 2


class SameAgain(RegularFile):
    """Its size is not known, and what it returns does not depend on the offset."""

    size = None

    def __init__(self, part: Callable[[int], bytes]) -> None:
        self.part = part

    def read(self, size: int, offset: int) -> bytes:
        return self.part(size)


@pytest.mark.parametrize("part", [lambda _: b"content\n", bytes], ids=["short", "whole"])
def test_a_file_that_ignores_the_offset(part: Callable[[int], bytes]) -> None:
    with (
        TestMount(Filesystem(Directory({"file": SameAgain(part)}))) as mount,
        pytest.raises(Endless, match="'file': its content has no end at offset"),
    ):
        mount.read_bytes("file")


def test_a_file_of_zeros_is_no_mistake() -> None:
    """As long as its size says so, or it is not very long."""

    class Zeros(RegularFile):
        def read(self, size: int, offset: int) -> bytes:
            return bytes(size)

    known = Zeros()
    known.size = 1001 << 17
    with TestMount(Filesystem(Directory({"file": known}))) as mount:
        assert len(mount.read_bytes("file")) == known.size


class Closing(recuse.OpenFile):
    released = 0

    def read(self, size: int, offset: int) -> bytes:
        return b""

    def release(self) -> None:
        Closing.released += 1


class Opened(RegularFile):
    def open(self, request: recuse.OpenRequest) -> Closing:
        return Closing()


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_was_not_closed_is_the_tests_mistake(
    monkeypatch: pytest.MonkeyPatch, action: Any
) -> None:
    """And not a leak of the filesystem's."""
    monkeypatch.setattr(Closing, "released", 0)
    raised: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda told: raised.append(told.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with TestMount(Filesystem(Directory({"file": Opened(), "other": Opened()}))) as mount:
            mount.open("file")
            gc.collect()
            mount.stat("file")
            assert Closing.released == 1
            mount.open("other")
            gc.collect()
        assert Closing.released == 2
    assert raised == ([ResourceWarning] * 2 if action == "error" else [])


def calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each with a NUL in one of its arguments."""
    bad = "a\0b"
    for name in ("listdir", "read_bytes", "stat", "mkdir", "mknod", "unlink", "rmdir", "readlink"):
        yield name, (bad,)
    for name in ("open", "open_directory", "statvfs", "listxattr", "lstat"):
        yield name, (bad,)
    for name in ("rename", "link", "symlink"):
        yield name, (bad, "new")
        yield name, ("old", bad)
    for name in ("getxattr", "removexattr"):
        yield name, ("file", bad)
    yield "setxattr", ("file", bad, b"")
    yield "access", (bad, os.R_OK)


@pytest.mark.parametrize(("name", "arguments"), list(calls()))
def test_a_nul_in_a_path_is_refused_as_os_does(name: str, arguments: tuple[Any, ...]) -> None:
    with TestMount(Filesystem(Directory({"file": RegularFile(b"")}))) as mount:
        with mount.recording() as requests, pytest.raises(ValueError, match="embedded null byte"):
            getattr(mount, name)(*arguments)
        assert requests == []


def test_a_path_with_a_nul_does_not_exist() -> None:
    with TestMount(Filesystem(Directory())) as mount:
        assert not mount.exists("a\0b")


def test_a_method_that_uses_its_own_mount_waits_for_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Own(Directory):
        def create(self, name: str, mode: int) -> Any:
            mount.mkdir("other")

    with TestMount(Filesystem(Own()), timeout_s=0.05) as mount:
        with pytest.raises(ConnectionAbortedError):
            mount.write_bytes("new", b"")
        assert "Own.create raised TimeoutError" in caplog.text
        assert "this call has waited for another one for 0.05 s" in caplog.text


def test_a_name_with_a_nul_fails_as_one_with_a_slash(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a\0b", "a/b"):
        with TestMount(Filesystem(Directory({name: RegularFile(b"")}))) as mount:
            with pytest.raises(OSError, match="Input/output") as caught:
                mount.listdir()
            assert caught.value.errno == errno.EIO
            assert repr(name) in caplog.text
