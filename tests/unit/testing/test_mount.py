"""Filesystems in a test, without a mount: the calls, and what becomes of them."""

import asyncio
import errno
import os
import stat
import threading
import time
from pathlib import Path
from random import Random

import pytest

from recuse import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Directory,
    Filesystem,
    OpenFile,
    OpenRequest,
    RegularFile,
)
from recuse.testing import Leak, TestMount

from .support import error_of, example


def memory(**options: object) -> TestMount:
    return TestMount(example("memoryfs").MemoryFilesystem(), **options)  # type: ignore[arg-type]


def test_hello_is_listed_and_read() -> None:
    with TestMount(example("hellofs").Hello()) as mount:
        assert mount.listdir() == ["hello", "clock"]
        assert mount.read_text("hello") == "Hello, world!\n"
        assert mount.stat("/hello").st_size == 14
        # Its size is not known before.
        assert len(mount.read_bytes("clock")) == 9
        assert mount.stat("clock").st_size == 0
        assert error_of(mount.write_bytes, "hello", b"x") == "EPERM"


def test_a_tree_may_be_shown_by_several_filesystems() -> None:
    """A root that is an attribute of the class is the same for all its objects."""

    class Shared(Filesystem):
        root = Directory({"a": RegularFile(b"a"), "b": RegularFile(b"b")})

    with TestMount(Shared()) as first, TestMount(Shared()) as second:
        assert first.read_text("a") == "a"
        for mount in (second, first):
            assert mount.read_text("b") == "b"
            assert mount.read_text("a") == "a"
            assert mount.stat("a").st_ino != mount.stat("b").st_ino
        assert first.stat("a").st_ino == second.stat("a").st_ino


def test_what_is_written_is_read() -> None:
    with memory() as mount:
        mount.mkdir("d")
        data = bytes(range(256)) * 5000
        mount.write_bytes("d/a", data)
        assert mount.read_bytes("d/a") == data
        mount.append_bytes("d/a", b"end")
        with mount.open("d/a", os.O_RDWR) as file:
            assert file.seek(-3, os.SEEK_END) == len(data)
            assert file.read(10) == b"end"
            assert file.read(10) == b""
            assert file.pread(2, 1) == data[1:3]
            file.truncate(2)
            assert file.pwrite(b"z", 9000) == 1
            assert file.stat().st_size == 9001
            file.fsync()
            file.fdatasync()
        assert mount.read_bytes("d/a") == data[:2] + bytes(8998) + b"z"
        mount.truncate("d/a", 1)
        assert mount.read_bytes("d/a") == data[:1]


def test_names_are_made_moved_and_removed() -> None:
    with memory() as mount:
        mount.write_text("a", "text")
        mount.symlink("a", "link")
        assert mount.readlink("link") == "a"
        assert mount.read_text("link") == "text"
        assert stat.S_ISLNK(mount.lstat("link").st_mode)
        mount.link("a", "b")
        assert mount.stat("b").st_nlink == 2
        assert mount.stat("b").st_ino == mount.stat("a").st_ino
        mount.mkdir("d", 0o700)
        assert mount.stat("d").st_mode == stat.S_IFDIR | 0o700
        mount.rename("b", "d/c")
        mount.rename("d/c", "e", RENAME_NOREPLACE)
        assert error_of(mount.rename, "a", "e", RENAME_NOREPLACE) == "EEXIST"
        mount.rename("d", "link", RENAME_EXCHANGE)
        assert stat.S_ISDIR(mount.stat("link").st_mode)
        assert mount.readlink("d") == "a"
        mount.mknod("fifo", stat.S_IFIFO | 0o600)
        assert error_of(mount.open, "fifo") == "ENXIO"
        for name in ("a", "d", "e", "fifo"):
            mount.unlink(name)
        mount.rmdir("link")
        assert mount.listdir() == []
        assert not mount.exists("a")


def test_an_open_file_outlives_its_name() -> None:
    with memory() as mount:
        mount.write_text("a", "old")
        mount.write_text("b", "new")
        with mount.open("a", os.O_RDWR) as file:
            mount.rename("b", "a")
            assert file.read() == b"old"
            assert file.stat().st_nlink == 0
        with mount.open("a") as file:
            mount.unlink("a")
            assert file.read() == b"new"


def test_a_file_without_a_name() -> None:
    with memory() as mount, mount.open(".", os.O_TMPFILE | os.O_RDWR) as file:
        file.write(b"temporary")
        assert file.pread(20, 0) == b"temporary"
        assert mount.listdir() == []


def test_attributes_are_changed() -> None:
    with memory() as mount:
        mount.write_text("a", "text")
        mount.chmod("a", 0o640)
        mount.utime("a", ns=(1_000_000_001, 2_000_000_002))
        status = mount.stat("a")
        assert status.st_mode == stat.S_IFREG | 0o640
        assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
        mount.utime("a")
        assert mount.stat("a").st_mtime_ns > 10**18
        with mount.open("a", os.O_RDWR) as file:
            file.chmod(0o600)
            file.utime((5, 6))
            assert file.stat().st_mtime_ns == 6
        mount.setxattr("a", "user.x", b"value")
        assert mount.listxattr("a") == ["user.x"]
        assert mount.getxattr("a", "user.x") == b"value"
        mount.removexattr("a", "user.x")
        assert error_of(mount.getxattr, "a", "user.x") == "ENODATA"
        mount.as_user(0).chown("a", 1000, 1001)
        assert (mount.stat("a").st_uid, mount.stat("a").st_gid) == (1000, 1001)
        assert mount.statvfs().f_namemax == 255


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", "ENOENT"),
        ("nothing", "ENOENT"),
        ("nothing/below", "ENOENT"),
        ("file/", "ENOTDIR"),
        ("file/below", "ENOTDIR"),
        ("file/..", "ENOTDIR"),
        ("loop", "ELOOP"),
        ("loop/below", "ELOOP"),
        ("dangling", "ENOENT"),
        ("n" * 256, "ENAMETOOLONG"),
        ("n" * 5000, "ENAMETOOLONG"),
        ("tofile/", "ENOTDIR"),
        ("d//./../file", ""),
        ("todirectory/", ""),
        ("todirectory/../d/up/file", ""),
        ("../../file", ""),
        ("absolute/file", ""),
    ],
)
def test_paths_are_walked_as_linux_does(path: str, error: str) -> None:
    with memory() as mount:
        mount.write_text("file", "")
        mount.mkdir("d")
        mount.symlink("loop", "loop")
        mount.symlink("nowhere", "dangling")
        mount.symlink("file", "tofile")
        mount.symlink("d/", "todirectory")
        mount.symlink("/", "absolute")
        mount.symlink("..", "d/up")
        assert error_of(mount.stat, path) == error


def test_forty_links_are_followed_and_no_more() -> None:
    with memory() as mount:
        mount.write_text("link0", "end")
        for number in range(1, 42):
            mount.symlink(f"link{number - 1}", f"link{number}")
        assert mount.read_text("link40") == "end"
        assert error_of(mount.read_text, "link41") == "ELOOP"


@pytest.mark.parametrize(
    ("call", "arguments", "error"),
    [
        ("mkdir", ("d",), "EEXIST"),
        ("mkdir", (".",), "EEXIST"),
        ("mkdir", ("new/",), ""),
        ("mkdir", ("file/new",), "ENOTDIR"),
        ("mknod", ("new/",), "ENOENT"),
        ("symlink", ("", "new"), "ENOENT"),
        ("link", ("d", "new"), "EPERM"),
        ("link", ("nothing", "new"), "ENOENT"),
        ("unlink", ("d",), "EISDIR"),
        ("unlink", ("file/",), "ENOTDIR"),
        ("unlink", ("/",), "EISDIR"),
        ("rmdir", ("full",), "ENOTEMPTY"),
        ("rmdir", ("file",), "ENOTDIR"),
        ("rmdir", ("d/.",), "EINVAL"),
        ("rmdir", ("full/d/..",), "ENOTEMPTY"),
        ("rmdir", ("/",), "EBUSY"),
        ("rename", ("file", "d"), "EISDIR"),
        ("rename", ("d", "file"), "ENOTDIR"),
        ("rename", ("d", "full"), "ENOTEMPTY"),
        ("rename", ("full", "full/d/new"), "EINVAL"),
        ("rename", ("full/d", "full"), "ENOTEMPTY"),
        ("rename", ("file", "new/"), "ENOTDIR"),
        ("rename", ("file", "new", RENAME_EXCHANGE), "ENOENT"),
        ("rename", ("file", "file"), ""),
        ("rename", (".", "new"), "EBUSY"),
        ("open", ("d",), "EISDIR"),
        ("open", ("d", os.O_RDWR), "EISDIR"),
        ("open", ("new/", os.O_CREAT | os.O_RDWR), "EISDIR"),
        ("open", ("file", os.O_CREAT | os.O_EXCL | os.O_RDWR), "EEXIST"),
        ("open", ("link", os.O_NOFOLLOW), "ELOOP"),
        ("open", ("file", os.O_DIRECTORY), "ENOTDIR"),
        ("truncate", ("d", 0), "EISDIR"),
        ("truncate", ("file", -1), "EINVAL"),
        ("readlink", ("file",), "EINVAL"),
        ("setxattr", ("link", "user.a", b""), ""),
        ("setxattr", ("file", "user." + "a" * 300, b""), "ERANGE"),
        ("setxattr", ("file", "user.a", bytes(70000)), "E2BIG"),
    ],
)
def test_errors_are_those_of_linux(call: str, arguments: tuple[object, ...], error: str) -> None:
    with memory() as mount:
        mount.write_text("file", "")
        mount.mkdir("d")
        mount.mkdir("full")
        mount.mkdir("full/d")
        mount.symlink("file", "link")
        assert error_of(getattr(mount, call), *arguments) == error


def test_an_error_names_the_paths() -> None:
    with memory() as mount:
        with pytest.raises(FileNotFoundError) as one:
            mount.stat("nothing")
        assert (one.value.filename, one.value.filename2) == ("nothing", None)
        with pytest.raises(FileNotFoundError) as two:
            mount.rename("nothing", "new")
        assert (two.value.filename, two.value.filename2) == ("nothing", "new")


def test_users_have_different_rights() -> None:
    with memory() as mount:
        root = mount.as_user(0)
        root.chmod("/", 0o1777)
        alice, bob = mount.as_user(1000, 1000, groups=[50]), mount.as_user(1001)
        alice.write_text("hers", "text")
        assert mount.stat("hers").st_uid == 1000
        assert mount.stat("hers").st_mode == stat.S_IFREG | 0o644
        assert bob.read_text("hers") == "text"
        assert error_of(bob.write_text, "hers", "x") == "EACCES"
        assert error_of(bob.unlink, "hers") == "EPERM"  # the directory is sticky
        assert error_of(bob.rename, "hers", "his") == "EPERM"
        assert error_of(bob.chmod, "hers", 0o777) == "EPERM"
        assert error_of(bob.chown, "hers", 1001) == "EPERM"
        assert error_of(alice.chown, "hers", 1001) == "EPERM"
        alice.chown("hers", gid=50)
        assert error_of(alice.chown, "hers", gid=51) == "EPERM"
        assert error_of(bob.utime, "hers", ns=(1, 1)) == "EPERM"
        assert error_of(bob.utime, "hers") == "EACCES"
        alice.mkdir("private", 0o700)
        assert error_of(bob.listdir, "private") == "EACCES"
        assert error_of(bob.stat, "private/x") == "EACCES"
        assert error_of(root.stat, "private/x") == "ENOENT"
        assert not bob.access("private", os.X_OK)
        assert bob.access("hers", os.R_OK)
        assert error_of(bob.mknod, "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)) == "EPERM"
        assert error_of(bob.link, "hers", "another") == "EPERM"
        assert error_of(bob.setxattr, "hers", "user.a", b"") == "EACCES"
        assert error_of(bob.setxattr, "hers", "trusted.a", b"") == "EPERM"
        root.chmod("hers", 0o4777)
        bob.write_text("hers", "changed")
        assert mount.stat("hers").st_mode == stat.S_IFREG | 0o777


def test_others_may_be_kept_out() -> None:
    with memory(allow_other=False) as mount:
        mount.write_text("a", "")
        other = mount.as_user(os.geteuid() + 1)
        assert error_of(other.stat, "a") == "EACCES"
        assert error_of(other.listdir) == "EACCES"


def test_a_mount_may_be_read_only() -> None:
    with memory(read_only=True) as mount:
        assert error_of(mount.mkdir, "d") == "EROFS"
        assert error_of(mount.write_text, "a", "") == "EROFS"
        assert error_of(mount.chmod, ".", 0o777) == "EROFS"
        assert error_of(mount.setxattr, ".", "user.a", b"") == "EROFS"


def test_the_umask_is_taken_off() -> None:
    with memory(umask=0o077) as mount:
        mount.write_text("a", "")
        mount.mkdir("d")
        assert mount.stat("a").st_mode == stat.S_IFREG | 0o600
        assert mount.stat("d").st_mode == stat.S_IFDIR | 0o700


class Slow(RegularFile):
    """Its content comes from coroutines."""

    size = None

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.interrupted = False

    async def read(self, size: int, offset: int) -> bytes:
        self.begun.set()
        if size == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.interrupted = True
                raise
        await asyncio.sleep(0)
        return b"at last"[offset : offset + size]


def test_methods_may_be_asynchronous() -> None:
    with TestMount(Filesystem(Directory({"slow": Slow()}))) as mount:
        assert mount.read_bytes("slow") == b"at last"


def test_a_signal_interrupts_a_call() -> None:
    slow = Slow()
    with TestMount(Filesystem(Directory({"slow": slow}))) as mount:
        failed: list[str] = []
        with mount.open("slow") as file:
            thread = threading.Thread(target=lambda: failed.append(error_of(file.read, 1)))
            thread.start()
            assert slow.begun.wait(30)
            assert mount.interrupt() == 1
            thread.join(30)
        assert failed == ["EINTR"]
        assert slow.interrupted


def test_a_call_that_takes_too_long_fails() -> None:
    slow = Slow()
    with TestMount(Filesystem(Directory({"slow": slow})), timeout_s=0.05) as mount:
        file = mount.open("slow")
        with pytest.raises(TimeoutError, match=r"no answer to READ in 0\.05 s") as caught:
            file.read(1)
        assert type(caught.value) is TimeoutError
        assert error_of(mount.listdir) == "ENOTCONN"
        file.closed = True


def test_calls_fail_when_the_connection_is_gone() -> None:
    with memory() as mount:
        mount.write_text("a", "")
        mount.abort()
        assert error_of(mount.mkdir, "d") == "ENOTCONN"


def test_what_raises_is_an_error_for_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RegularFile):
        def read(self, size: int, offset: int) -> bytes:
            raise RuntimeError("it is broken")

        size = None

    with TestMount(Filesystem(Directory({"broken": Broken()}))) as mount:
        assert error_of(mount.read_bytes, "broken") == "EIO"
    assert "it is broken" in caplog.text


def test_closing_reports_what_flush_says() -> None:
    class Full(OpenFile):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

        def release(self) -> None:
            released.append(self)

    released: list[Full] = []

    class File(RegularFile):
        def open(self, request: OpenRequest) -> Full:
            return Full()

    with TestMount(Filesystem(Directory({"a": File()}))) as mount:
        file = mount.open("a")
        assert error_of(file.close) == "ENOSPC"
        assert len(released) == 1
        assert error_of(file.close) == ""
        with pytest.raises(ValueError, match="closed"):
            file.stat()


def test_nodes_are_forgotten() -> None:
    class File(RegularFile):
        gone = 0

        def forgotten(self) -> None:
            File.gone += 1

    with TestMount(Filesystem(Directory({"a": File(b"a"), "b": File(b"b")}))) as mount:
        mount.listdir()
        mount.stat("a")
        with mount.open("b") as file:
            mount.drop_caches()
            assert File.gone == 1
            assert file.read() == b"b"
        mount.drop_caches()
        assert File.gone == 2


def test_a_leak_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = TestMount(example("hellofs").Hello())
    mount.stat("hello")
    monkeypatch.setattr(mount._superblock, "forget", lambda nodeid, lookups: None)
    with pytest.raises(Leak, match=r"RegularFile.* is known"):
        mount.close()
    mount.close()


def test_files_left_open_are_closed() -> None:
    released: list[int] = []

    class File(RegularFile):
        def open(self, request: OpenRequest) -> OpenFile:
            file = OpenFile()
            file.release = lambda: released.append(1)  # type: ignore[method-assign]
            return file

    with TestMount(Filesystem(Directory({"a": File()}))) as mount:
        file = mount.open("a")
    assert released == [1]
    assert file.closed


def test_many_threads_change_one_directory() -> None:
    """The filesystem has no locks: the kernel half calls for one change at a time."""

    class Counting(example("memoryfs").MemoryDirectory):  # type: ignore[misc]
        inside = 0
        worst = 0

        def create(self, name: str, mode: int) -> object:
            Counting.inside += 1
            Counting.worst = max(Counting.worst, Counting.inside)
            time.sleep(0)
            made = super().create(name, mode)
            Counting.inside -= 1
            return made

    with TestMount(Filesystem(Counting(0o755))) as mount:

        def work(who: int) -> None:
            for number in range(20):
                mount.write_text(f"{who}-{number}", "text")

        threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(mount.listdir()) == 160
    assert Counting.worst == 1


def test_threads_move_everything_everywhere() -> None:
    """Locks are taken in an order in which nobody waits for himself, and all are given back."""
    with memory() as mount:
        for directory in ("a", "b", "a/c"):
            mount.mkdir(directory)

        def work(seed: int) -> None:
            random = Random(seed)
            places = ["a/x", "b/x", "a/c/x", "a/y", "b/y", "a/c/y", "a/c", "b/c"]
            for _ in range(150):
                one, other = random.choice(places), random.choice(places)
                name, *arguments = random.choice([
                    ("rename", one, other),
                    ("rename", one, other, RENAME_EXCHANGE),
                    ("mkdir", one),
                    ("rmdir", one),
                    ("write_text", one, "text"),
                    ("unlink", one),
                    ("link", one, other),
                    ("listdir", "a"),
                    ("drop_caches",),
                ])  # fmt: skip
                error_of(getattr(mount, str(name)), *arguments)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert not any(inode.lock.held for inode in mount._superblock.inodes.all())
        assert set(mount.listdir()) == {"a", "b"}


def test_the_mirror_shows_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with TestMount(example("mirrorfs").Mirror(str(tmp_path))) as mount:
        assert mount.read_text("a") == "text"
        mount.mkdir("d")
        mount.write_text("d/b", "new")
        assert (tmp_path / "d/b").read_text() == "new"
        mount.rename("d/b", "b")
        mount.truncate("b", 1)
        mount.symlink("b", "link")
        assert mount.read_text("link") == "n"
        (tmp_path / "b").write_text("longer")
        mount.advance(2)
        assert mount.read_text("b") == "longer"
        assert sorted(mount.listdir()) == ["a", "b", "d", "link"]
