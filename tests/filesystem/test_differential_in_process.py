"""Random calls on Linux's tmpfs and, without a mount, on the examples: they do the same."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse.testing import TestDirectory, TestFile, TestMount

from ..patience import LONGER
from .conftest import EXAMPLES
from .test_differential import CALLS, LONG_S, STARTED, Caller, attributes

_ACCESS = os.O_ACCMODE


@functools.cache
def _example(name: str) -> Any:
    spec = util.spec_from_file_location(f"{name}_in_process", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKERS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: _example("memoryfs").MemoryFilesystem(),
    "mirror": lambda source: _example("mirrorfs").Mirror(str(source)),
    "loopback": lambda source: _example("loopbackfs").Loopback(str(source)),
}
"""What is compared with a tmpfs; the last two show a directory of one."""


class InProcess(Caller):
    """Makes the calls without a kernel."""

    def __init__(self, mount: TestMount) -> None:
        self.mount = mount
        self.opened_files: list[TestFile | TestDirectory] = []

    def close(self) -> None:
        for file in self.opened_files:
            file.close()

    def _open(self, path: str, flags: int, mode: int = 0o644) -> TestFile | TestDirectory:
        try:
            return self.mount.open(path, flags, mode)
        except IsADirectoryError:
            if flags & (_ACCESS | os.O_CREAT | os.O_TRUNC):
                raise
        return self.mount.open_directory(path)

    @contextlib.contextmanager
    def file(self, path: str, flags: int, mode: int = 0o644) -> Iterator[TestFile]:
        with self._open(path, flags, mode) as file:
            if not isinstance(file, TestFile):
                raise IsADirectoryError(errno.EISDIR, "a directory")
            yield file

    def create(self, path: str, mode: int) -> None:
        with self.file(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode):
            pass

    def open(self, path: str, flags: int) -> int:
        if len(self.opened_files) < 3:
            self.opened_files.append(self._open(path, flags, 0o600))
        return len(self.opened_files)

    def write(self, path: str, data: bytes, offset: int) -> int:
        with self.file(path, os.O_WRONLY | os.O_CREAT) as file:
            return file.pwrite(data, offset)

    def append(self, path: str, data: bytes) -> int:
        with self.file(path, os.O_WRONLY | os.O_APPEND) as file:
            return file.write(data)

    def read(self, path: str, size: int, offset: int) -> bytes:
        with self.file(path, os.O_RDONLY) as file:
            return file.pread(size, offset)

    def seek(self, path: str, offset: int, whence: int) -> int | None:
        with self._open(path, os.O_RDONLY) as file:
            return file.seek(offset, whence) if isinstance(file, TestFile) else None

    def truncate(self, path: str, size: int) -> None:
        with self.file(path, os.O_WRONLY) as file:
            file.truncate(size)

    def on_file(self, index: int, what: str, data: bytes, offset: int) -> Any:
        if index >= len(self.opened_files):
            return None
        file = self.opened_files[index]
        if what == "chmod":
            return file.chmod(offset & 0o777)
        if what == "close":
            return self.opened_files.pop(index).close()
        if what == "stat":
            return attributes(file.stat())
        if isinstance(file, TestDirectory):
            errors = {
                "read": IsADirectoryError(21, ""),
                "write": OSError(9, ""),
                "truncate": OSError(22, ""),
            }
            raise errors[what]
        if what == "write":
            return file.pwrite(data, offset)
        if what == "read":
            return file.pread(100, offset)
        return file.truncate(offset)

    def allocate(self, path: str, mode: int, offset: int, length: int) -> None:
        with self.file(path, os.O_WRONLY) as file:
            file.fallocate(mode, offset, length)

    def rename(self, old: str, new: str, flags: int) -> None:
        self.mount.rename(old, new, flags)

    def link(self, old: str, new: str) -> None:
        self.mount.link(old, new)

    def unlink(self, path: str) -> None:
        self.mount.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        self.mount.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self.mount.rmdir(path)

    def symlink(self, target: str, path: str) -> None:
        self.mount.symlink(target, path)

    def readlink(self, path: str) -> str:
        return self.mount.readlink(path)

    def mknod(self, path: str, mode: int) -> None:
        self.mount.mknod(path, mode)

    def chmod(self, path: str, mode: int) -> None:
        self.mount.chmod(path, mode)

    def utimens(self, path: str, atime: int, mtime: int, follow: bool) -> tuple[int, int]:
        self.mount.utime(path, (atime, mtime), follow_symlinks=follow)
        found = self.mount.stat(path, follow_symlinks=follow)
        return found.st_atime_ns, found.st_mtime_ns

    def stat(self, path: str, follow: bool) -> Any:
        return attributes(self.mount.stat(path, follow_symlinks=follow))

    def readdir(self, path: str) -> list[str]:
        return sorted(self.mount.listdir(path))

    def xattr(self, path: str, name: str, value: bytes, flags: int) -> Any:
        with self._open(path, os.O_RDONLY):
            self.mount.setxattr(path, name, value, flags)
            return sorted(self.mount.listxattr(path)), self.mount.getxattr(path, name)

    def remove_xattr(self, path: str, name: str) -> Any:
        with self._open(path, os.O_RDONLY):
            self.mount.removexattr(path, name)
            return sorted(self.mount.listxattr(path))

    def tree(self) -> list[Any]:
        return list(self._tree("."))

    def _tree(self, directory: str) -> Iterator[Any]:
        names = sorted(self.mount.listdir(directory))
        for name in sorted([".", *names]):
            path = f"{directory}/{name}"
            status = self.mount.lstat(path)
            content = self.mount.read_bytes(path) if stat.S_ISREG(status.st_mode) else None
            yield directory, name, attributes(status), content
        for name in names:
            path = f"{directory}/{name}"
            if stat.S_ISDIR(self.mount.lstat(path).st_mode):
                yield from self._tree(path)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """What TestMount has, too."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root may look at all files that the calls make")
    if " /dev/shm tmpfs " not in Path("/proc/self/mounts").read_text(encoding="utf-8"):
        pytest.skip("/dev/shm is no tmpfs")
    with tempfile.TemporaryDirectory(prefix="tmpfs-", dir="/dev/shm") as made:
        yield Path(made)


def compare(tmpfs: Path, maker: str, calls: list[tuple[Any, ...]]) -> None:
    """Make the calls in both, in new directories."""
    top, source = tmpfs / "here", tmpfs / "source"
    top.mkdir()
    source.mkdir()
    native = Caller(top)
    try:
        with TestMount(MAKERS[maker](source)) as mount:
            ours = InProcess(mount)
            for call in calls:
                assert (call, ours.call(*call)) == (call, native.call(*call))
            assert ours.tree() == native.tree()
            ours.close()
    finally:
        native.close()
        shutil.rmtree(top)
        shutil.rmtree(source)


def has_no_fifo(call: tuple[Any, ...]) -> bool:
    """FIFOs are opened by the kernel, which there is not."""
    return call[0] != "mknod" or not stat.S_ISFIFO(call[2])


@pytest.mark.parametrize("maker", MAKERS)
@settings(max_examples=100 * LONGER, suppress_health_check=[*HealthCheck])
@given(st.lists(CALLS.filter(has_no_fifo), min_size=5, max_size=60))
@pytest.mark.timeout(LONG_S)
def test_as_tmpfs_does(tmpfs: Path, maker: str, calls: list[tuple[Any, ...]]) -> None:
    compare(tmpfs, maker, STARTED + calls)
