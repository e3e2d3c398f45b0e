"""Random calls on Linux's tmpfs and on filesystems in Python: they do the same."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..patience import LONGER
from .conftest import EXAMPLES, Server, is_mounted

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_OLD_NS = 10**12
"""Times before this one were set by a call; others are when something happened."""


LONG_S = 120 * LONGER


class Places(NamedTuple):
    """Two directories that have to stay equal."""

    mounted: Path
    tmpfs: Path


@pytest.fixture(scope="module", params=["memory", "mirror", "loopback"])
def kind(request: pytest.FixtureRequest) -> str:
    """The example that is served."""
    return str(request.param)


@pytest.fixture(scope="module")
def places(kind: str, transport: str) -> Iterator[Places]:
    if " /dev/shm tmpfs " not in Path("/proc/self/mounts").read_text(encoding="utf-8"):
        pytest.skip("/dev/shm is no tmpfs")
    with (
        tempfile.TemporaryDirectory(prefix="mounted-") as mounted,
        tempfile.TemporaryDirectory(prefix="tmpfs-", dir="/dev/shm") as tmpfs,
        tempfile.TemporaryDirectory(prefix="source-", dir="/dev/shm") as source,
    ):
        spec = f"{EXAMPLES}/{kind}fs.py"
        if kind != "memory":
            spec += f",source={source}"
        for directory in (mounted, tmpfs, source):
            os.chmod(directory, 0o755)
        options = transport if os.geteuid() else f"allow_other,{transport}"
        server = Server(spec, mounted, "-o", options, life_s=LONG_S)
        try:
            assert server.line() == mounted
            yield Places(Path(mounted), Path(tmpfs))
        finally:
            server.process.terminate()
            errors = server.end()[1]
            if is_mounted(Path(mounted)):
                subprocess.run(["umount", "-l", mounted], check=False)
        assert errors == ""


class Caller:
    """Makes the calls in one of the directories, and remembers the files that it has opened."""

    def __init__(self, top: Path) -> None:
        self.top = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        self.files: list[int] = []

    def close(self) -> None:
        for file in (*self.files, self.top):
            os.close(file)

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what a call returns, or the name of its error."""
        try:
            return getattr(self, name)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    @contextlib.contextmanager
    def opened(self, path: str, flags: int, mode: int = 0o644) -> Iterator[int]:
        file = os.open(path, flags | os.O_NONBLOCK, mode, dir_fd=self.top)
        try:
            yield file
        finally:
            os.close(file)

    def create(self, path: str, mode: int) -> None:
        with self.opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode):
            pass

    def open(self, path: str, flags: int) -> int:
        if len(self.files) < 3:
            self.files.append(os.open(path, flags | os.O_NONBLOCK, 0o600, dir_fd=self.top))
        return len(self.files)

    def write(self, path: str, data: bytes, offset: int) -> int:
        with self.opened(path, os.O_WRONLY | os.O_CREAT) as file:
            return os.pwrite(file, data, offset)

    def append(self, path: str, data: bytes) -> int:
        with self.opened(path, os.O_WRONLY | os.O_APPEND) as file:
            return os.write(file, data)

    def read(self, path: str, size: int, offset: int) -> bytes:
        with self.opened(path, os.O_RDONLY) as file:
            return os.pread(file, size, offset)

    def seek(self, path: str, offset: int, whence: int) -> int | None:
        with self.opened(path, os.O_RDONLY) as file:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None  # what directories say, each kernel's part decides by itself
            return os.lseek(file, offset, whence)

    def truncate(self, path: str, size: int) -> None:
        with self.opened(path, os.O_WRONLY) as file:
            os.ftruncate(file, size)

    def on_file(self, index: int, what: str, data: bytes, offset: int) -> Any:
        if index >= len(self.files):
            return None
        file = self.files[index]
        if what == "write":
            return os.pwrite(file, data, offset)
        if what == "read":
            return os.pread(file, 100, offset)
        if what == "truncate":
            return os.ftruncate(file, offset)
        if what == "chmod":
            return os.fchmod(file, offset & 0o777)
        if what == "close":
            return os.close(self.files.pop(index))
        return attributes(os.fstat(file))

    def allocate(self, path: str, mode: int, offset: int, length: int) -> None:
        with self.opened(path, os.O_WRONLY) as file:
            if _libc.fallocate(file, mode, ctypes.c_long(offset), ctypes.c_long(length)):
                raise OSError(ctypes.get_errno(), "fallocate")

    def rename(self, old: str, new: str, flags: int) -> None:
        names = os.fsencode(old), self.top, os.fsencode(new)
        if _libc.renameat2(self.top, names[0], self.top, names[2], flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def link(self, old: str, new: str) -> None:
        os.link(old, new, src_dir_fd=self.top, dst_dir_fd=self.top, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(path, dir_fd=self.top)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode, dir_fd=self.top)

    def rmdir(self, path: str) -> None:
        os.rmdir(path, dir_fd=self.top)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path, dir_fd=self.top)

    def readlink(self, path: str) -> str:
        return os.readlink(path, dir_fd=self.top)

    def mknod(self, path: str, mode: int) -> None:
        os.mknod(path, mode, dir_fd=self.top)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode, dir_fd=self.top)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, dir_fd=self.top, follow_symlinks=False)

    def utimens(self, path: str, atime: int, mtime: int, follow: bool) -> tuple[int, int]:
        os.utime(path, ns=(atime, mtime), dir_fd=self.top, follow_symlinks=follow)
        found = os.stat(path, dir_fd=self.top, follow_symlinks=follow)
        return found.st_atime_ns, found.st_mtime_ns

    def stat(self, path: str, follow: bool) -> Any:
        return attributes(os.stat(path, dir_fd=self.top, follow_symlinks=follow))

    def readdir(self, path: str) -> list[str]:
        with self.opened(path, os.O_RDONLY | os.O_DIRECTORY) as file:
            return sorted(os.listdir(file))

    def xattr(self, path: str, name: str, value: bytes, flags: int) -> Any:
        with self.opened(path, os.O_RDONLY) as file:
            os.setxattr(file, name, value, flags)
            return sorted(os.listxattr(file)), os.getxattr(file, name)

    def remove_xattr(self, path: str, name: str) -> Any:
        with self.opened(path, os.O_RDONLY) as file:
            os.removexattr(file, name)
            return sorted(os.listxattr(file))

    def tree(self) -> list[Any]:
        """All that can be seen."""
        found = []
        for directory, names, files, descriptor in os.fwalk(".", dir_fd=self.top):
            names.sort()
            for name in sorted([".", *names, *files]):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                content: Any = None
                if stat.S_ISREG(status.st_mode):
                    with self.opened(f"{directory}/{name}", os.O_RDONLY) as file:
                        content = os.read(file, 1 << 20)
                found.append((directory, name, attributes(status), content))
        return found


def attributes(status: os.stat_result) -> tuple[Any, ...]:
    """What has to be equal. (Directories have other sizes, short links have no blocks there.)"""
    regular = stat.S_ISREG(status.st_mode)
    return (
        oct(status.st_mode),
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        None if stat.S_ISDIR(status.st_mode) else status.st_size,
        status.st_blocks if regular else None,
        status.st_rdev,
        status.st_mtime_ns if status.st_mtime_ns < _OLD_NS else "changed",
    )


NAMES = st.sampled_from(
    [*("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/f", "a/x", "."), "n" * 255, "n" * 256]
)
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000])
OFFSETS = st.sampled_from([0, 1, 100, 4095, 4096, 5000, 8192, 20000])
DATA = st.sampled_from([b"", b"x", b"hello" * 20, bytes(5000), b"y" * 9000])
WHENCE = st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END])
TIMES = st.integers(min_value=0, max_value=_OLD_NS - 1)
FLAGS = st.sampled_from(
    [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC, os.O_DIRECTORY]
)
XATTRS = st.sampled_from(["user.a", "user.b"])
CALLS = st.one_of(
    st.tuples(st.just("create"), NAMES, MODES),
    st.tuples(st.just("open"), NAMES, FLAGS),
    st.tuples(st.just("write"), NAMES, DATA, OFFSETS),
    st.tuples(st.just("append"), NAMES, DATA),
    st.tuples(st.just("read"), NAMES, OFFSETS, OFFSETS),
    st.tuples(st.just("seek"), NAMES, st.one_of(OFFSETS, st.just(-5)), WHENCE),
    st.tuples(st.just("truncate"), NAMES, OFFSETS),
    # To reserve room, also beyond the end; to make a hole; what tmpfs refuses.
    st.tuples(st.just("allocate"), NAMES, st.sampled_from([0, 1, 3, 3, 2, 16]), OFFSETS,
              st.one_of(OFFSETS, st.just(1 << 42))),
    st.tuples(
        st.just("on_file"),
        st.integers(0, 2),
        st.sampled_from(["write", "read", "truncate", "chmod", "stat", "close"]),
        DATA,
        OFFSETS,
    ),
    st.tuples(st.just("rename"), NAMES, NAMES, st.sampled_from([0, 0, 0, 1, 2, 4])),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("unlink"), NAMES),
    st.tuples(st.just("mkdir"), NAMES, MODES),
    st.tuples(st.just("rmdir"), NAMES),
    st.tuples(st.just("symlink"), NAMES, NAMES),
    st.tuples(st.just("readlink"), NAMES),
    st.tuples(st.just("mknod"), NAMES, st.sampled_from([stat.S_IFIFO | 0o600, stat.S_IFSOCK])),
    st.tuples(st.just("chmod"), NAMES, MODES),
    st.tuples(st.just("utimens"), NAMES, TIMES, TIMES, st.booleans()),
    st.tuples(st.just("stat"), NAMES, st.booleans()),
    st.tuples(st.just("readdir"), NAMES),
    st.tuples(st.just("xattr"), NAMES, XATTRS, DATA.filter(lambda it: len(it) < 200),
              st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])),
    st.tuples(st.just("remove_xattr"), NAMES, XATTRS),
)  # fmt: skip


@contextlib.contextmanager
def as_user(number: int) -> Iterator[None]:
    """Make calls as another user, who is in a group of that number."""
    if number:
        os.setegid(number)
        os.seteuid(number)
    try:
        yield
    finally:
        if number:
            os.seteuid(0)
            os.setegid(0)


def compare(places: Places, calls: list[tuple[int, tuple[Any, ...]]]) -> None:
    """Make the calls in both, in new directories, each as some user (0: who runs the test)."""
    tops = [top / "here" for top in places]
    for top in tops:
        top.mkdir()
    callers = [Caller(top) for top in tops]
    try:
        for user, call in calls:
            with as_user(user):
                mounted, tmpfs = (caller.call(*call) for caller in callers)
            assert (user, call, mounted) == (user, call, tmpfs)
        mounted, tmpfs = (caller.tree() for caller in callers)
        assert mounted == tmpfs
    finally:
        for caller in callers:
            caller.close()
        for top in tops:
            shutil.rmtree(top)


STARTED = [("mkdir", "d", 0o755), ("mkdir", "d/e", 0o2755), ("write", "a", b"y" * 9000, 0)]


@settings(max_examples=40 * LONGER, suppress_health_check=[*HealthCheck])
@given(st.lists(CALLS, min_size=5, max_size=40))
@pytest.mark.timeout(LONG_S)
def test_as_tmpfs_does(places: Places, calls: list[tuple[Any, ...]]) -> None:
    compare(places, [(0, call) for call in STARTED + calls])


USERS = st.sampled_from([0, 1234, 1235])
OWNERS = st.sampled_from([-1, 0, 1234, 1235])


@settings(max_examples=40 * LONGER, suppress_health_check=[*HealthCheck])
@given(
    st.lists(
        st.tuples(USERS, st.one_of(CALLS, st.tuples(st.just("chown"), NAMES, OWNERS, OWNERS))),
        min_size=5,
        max_size=40,
    )
)
@pytest.mark.timeout(LONG_S)
@pytest.mark.usefixtures("root")
def test_as_tmpfs_does_for_several_users(
    places: Places, calls: list[tuple[int, tuple[Any, ...]]]
) -> None:
    """Two of them own files, and have no rights of root's; directories are sticky or not."""
    begin = [(0, call) for call in (*STARTED, ("chmod", ".", 0o1777), ("chmod", "d", 0o777))]
    compare(places, begin + calls)


@pytest.mark.parametrize(
    "calls",
    [
        [("rename", "d/e", "d", 0), ("rename", "d/e", "a", 0), ("rename", "a", "d/e", 0)],
        [("rename", "d", "a", 2), ("readdir", "a"), ("stat", ".", True), ("read", "d", 10, 0)],
        [("rename", "a", "d/a", 4), ("stat", "a", False), ("rename", "d/a", "d/e", 4),
         ("write", "b", b"x", 0), ("rename", "d/a", "b", 4), ("stat", "b", True)],
        [("link", "a", "b"), ("rename", "a", "b", 0), ("stat", "a", True), ("unlink", "b")],
        [("write", "b", b"x", 20000), ("seek", "b", 0, os.SEEK_DATA), ("truncate", "b", 100),
         ("truncate", "b", 8192), ("seek", "b", 1, os.SEEK_HOLE), ("stat", "b", True)],
        [("allocate", "b", 0, 0, 1), ("write", "b", b"x", 4096), ("allocate", "b", 0, 8000, 9000),
         ("seek", "b", 0, os.SEEK_DATA), ("allocate", "b", 1, 20000, 20000), ("stat", "b", True),
         ("allocate", "b", 3, 100, 8192), ("seek", "b", 0, os.SEEK_DATA), ("truncate", "b", 17000)],
        [("open", "a", os.O_RDWR), ("unlink", "a"), ("on_file", 0, "stat", b"", 0),
         ("on_file", 0, "truncate", b"", 5000), ("on_file", 0, "read", b"", 4090)],
        [("create", "d/e/f", 0o2755), ("mkdir", "d/e/g", 0o700), ("stat", "d/e/g", True)],
        [("truncate", "a", 0), ("utimens", "a", 0, 0, False), ("truncate", "a", 0)],
        [("symlink", "d", "b"), ("stat", "b", False), ("readdir", "b"), ("rmdir", "b"),
         ("create", "b/a", 0o600), ("unlink", "b")],
    ],
    ids=lambda calls: calls[0][0],
)  # fmt: skip
def test_these_do(places: Places, calls: list[tuple[Any, ...]]) -> None:
    compare(places, [(0, call) for call in STARTED + calls])
