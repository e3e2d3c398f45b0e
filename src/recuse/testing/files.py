"""What a test has open: a descriptor's calls, without a descriptor."""

from __future__ import annotations

import errno
import mmap
import os
import select
import threading
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from recuse.kernel.fs import file_calls
from recuse.kernel.fs.attributes import get_attributes
from recuse.kernel.fs.changes import NOW, Changes, change_attributes
from recuse.kernel.fs.directories import Directory, DirectoryEntry
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.fs.mapping import map_pages
from recuse.kernel.fs.regular import RegularFile
from recuse.server.filesystem.attributes import Lock
from recuse.testing.mapping import TestMapping
from recuse.testing.memory import ArgumentMemory
from recuse.testing.status import stat_result

if TYPE_CHECKING:
    from recuse.kernel.connection.operation import Operation
    from recuse.kernel.fs.credentials import FileCaller
    from recuse.testing.driver import Driver, Path

T = TypeVar("T")

_READ_SIZE = 1 << 17
_MOST_ALIKE: Final = 1000
"""As often may the same come behind the end that a file's size says."""


class Endless(AssertionError):
    """Reading would not end, as it would not on a mount."""


class OpenedFile:
    """What files and directories have when they are open. A context manager, which closes it."""

    __test__ = False

    def __init__(
        self, driver: Driver, caller: FileCaller, file: FilesystemFile, path: Path, device: int
    ) -> None:
        self._driver = driver
        self._caller = caller
        self._file = file
        self._device = device
        self.path = path
        """What it was opened by."""
        self.closed = False
        driver.opened(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}{' closed' if self.closed else ''}>"

    def __del__(self) -> None:
        if not self.closed:
            self.closed = True
            self._driver.lost(self._file, self._caller)
            # Last of all: it may raise.
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2)

    def __getattr__(self, name: str) -> Any:
        # Only what is missing is looked for here.
        if name == "_file":
            raise ValueError(f"{self!r}: a call on a closed file")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _run(self, operation: Operation[T]) -> T:
        return self._driver.run(operation, self.path)

    def flush(self) -> None:
        """Do what closing a copy of the descriptor does. Raises the filesystem's OSError."""
        self._run(self._file.flush(self._caller))

    def close(self) -> None:
        """Flush and release it, once; it is closed even if that raises the OSError of flush."""
        if self.closed:
            return
        self.closed = True
        try:
            self.flush()
        finally:
            release = self._file.release()
            del self._file  # its node is forgotten if nothing else uses it
            self._run(release)

    def stat(self) -> os.stat_result:
        """Return its attributes (fstat)."""
        superblock, file = self._file.superblock, self._file
        # Linux does not say which open file it was (fs/fuse/dir.c, fuse_getattr).
        operation = get_attributes(superblock, self._caller, file.inode)
        return stat_result(self._run(file.running(operation)), self._device)

    def chmod(self, mode: int) -> None:
        """Change its permission bits."""
        self._change(Changes(mode=mode & 0o7777))

    def chown(self, uid: int = -1, gid: int = -1) -> None:
        """Change its owner and group; -1: not."""
        self._change(Changes(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid))

    def utime(self, ns: tuple[int, int] | None = None) -> None:
        """Set its times of access and change, in nanoseconds; by default to the present."""
        atime, mtime = (NOW, NOW) if ns is None else ns
        self._change(Changes(atime_ns=atime, mtime_ns=mtime))

    def _change(self, changes: Changes) -> None:
        file = self._file
        operation = change_attributes(file.superblock, self._caller, file.inode, changes)
        self._run(file.running(operation))

    def fsync(self) -> None:
        """Have the filesystem make it safe."""
        self._run(self._file.sync(self._caller))


class TestDirectory(OpenedFile):
    """An open directory, as `PathCalls.open_directory` returns it."""

    _file: Directory

    def read_entries(self) -> list[DirectoryEntry]:
        """Return the next entries, as many as the filesystem gives at once; none at the end."""
        return self._run(self._file.read_entries(self._caller))

    def __iter__(self) -> Iterator[DirectoryEntry]:
        """Go through what follows, with "." and "..". Raises Endless if that has no end."""
        left_s = self._driver.timeout_s
        seen: set[int] = set()
        position = self._file.position
        while True:
            if self._file.position != position:
                seen.clear()  # by `seek`
            began = time.monotonic()
            entries = self.read_entries()
            left_s -= time.monotonic() - began
            if not entries:
                return
            position = self._file.position
            for entry in entries:
                if not entry.offset or entry.offset in seen:
                    raise Endless(
                        f"{self.path!r}: after {entry.name!r} the listing goes on at offset "
                        f"{entry.offset}, where it was before, and so would not end on a mount "
                        "either: does readdir ignore its offset?"
                    )
                seen.add(entry.offset)
                yield entry
            if left_s < 0:
                raise Endless(
                    f"{self.path!r}: the listing has no end after {self._driver.timeout_s:g} s "
                    f"and {len(seen)} entries"
                )

    def seek(self, offset: int) -> None:
        """Go to the `DirectoryEntry.offset` of an entry, and so behind it; 0: to the beginning."""
        self._file.seek(offset)


class TestFile(OpenedFile):
    """An open regular file, as `PathCalls.open` returns it."""

    _file: RegularFile

    def read(self, size: int = -1) -> bytes:
        """Read at the position, which then moves: up to ``size`` bytes, or all that follows.

        Raises Endless if all has no end.
        """
        if size >= 0:
            return self._run(self._file.read(self._caller, size))
        return b"".join(self._parts())

    def _parts(self) -> Iterator[bytes]:
        before, alike = b"", 0
        end = time.monotonic() + self._driver.timeout_s
        while part := self.read(_READ_SIZE):
            yield part
            alike = alike + 1 if part == before and self._is_past_end() else 0
            before = part
            if alike == _MOST_ALIKE or time.monotonic() > end:
                raise Endless(
                    f"{self.path!r}: its content has no end at offset {self._file.position}, and "
                    "cat(1) would not end on a mount either: does read ignore its offset?"
                )

    def _is_past_end(self) -> bool:
        """Whether this is not expected, as far as the size is known."""
        return self._file.position > self._file.inode.attr.size

    def pread(self, size: int, offset: int) -> bytes:
        """Read up to ``size`` bytes from ``offset`` on."""
        return self._run(self._file.read(self._caller, size, offset))

    def write(self, data: bytes) -> int:
        """Write at the position, which then moves; return how many bytes were taken."""
        return self._run(self._file.write(self._caller, bytes(data)))

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write at ``offset``; return how many bytes were taken."""
        return self._run(self._file.write(self._caller, bytes(data), offset))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position and return it; SEEK_DATA and SEEK_HOLE ask the filesystem."""
        return self._run(self._file.seek(self._caller, offset, whence))

    def truncate(self, size: int) -> None:
        """Change its size. Raises OSError: EINVAL if it is not open for writing."""
        self._run(self._file.truncate(self._caller, size))

    def lock(
        self,
        kind: int,
        start: int = 0,
        length: int = 0,
        *,
        wait: bool = False,
        ofd: bool = False,
    ) -> None:
        """Lock bytes for this user's process (F_RDLCK, F_WRLCK) or unlock them (F_UNLCK).

        Length 0: up to the end. `TestMount.as_user` gives another process; ``ofd`` locks belong to
        this open file (F_OFD_SETLK). Raises OSError: EAGAIN, EDEADLK, EINTR.
        """
        self._run(file_calls.set_lock(self._file, self._caller, kind, start, length, wait, ofd))

    def conflicting_lock(
        self, kind: int, start: int = 0, length: int = 0, *, ofd: bool = False
    ) -> Lock | None:
        """Return the lock that is in the way of one like that; None if none is (F_GETLK)."""
        operation = file_calls.get_lock(self._file, self._caller, kind, start, length, ofd)
        found = self._run(operation)
        if found is None:
            return None
        pid = -1 if found.pid == 0xFFFFFFFF else found.pid
        return Lock(found.type, found.start, found.end, pid)

    def flock(self, operation: int) -> None:
        """Lock or unlock the whole file for this open of it, as `fcntl.flock` does."""
        self._run(file_calls.flock(self._file, self._caller, operation))

    def ioctl(self, command: int, argument: int | bytes = 0) -> int | bytes:
        """Make a command of the filesystem's own, as `fcntl.ioctl` does.

        With bytes it returns what has become of them.
        """
        if isinstance(argument, int):
            return self._run(file_calls.ioctl(self._file, self._caller, command, argument))
        memory = ArgumentMemory(argument)
        caller = self._caller.with_memory(memory)
        self._run(file_calls.ioctl(self._file, caller, command, ArgumentMemory.ADDRESS))
        return bytes(memory.data)

    def poll(self, events: int, timeout_s: float = 0) -> int:
        """Return which of ``events`` (`select.POLLIN`...) it is ready for; maybe others too.

        If it is ready for none, wait for that, at most ``timeout_s`` seconds; then return 0.
        """
        woken = threading.Event()
        self._file.wake_pollers = woken.set
        end = time.monotonic() + timeout_s
        while True:
            left = end - time.monotonic()
            ready = self._run(file_calls.poll(self._file, self._caller, events, left > 0))
            ready &= events | select.POLLERR | select.POLLHUP
            if ready or left <= 0:
                return ready
            woken.wait(left)
            woken.clear()

    @property
    def backing_descriptor(self) -> int | None:
        """The descriptor of the file that is read and written instead of it; None: it is itself."""
        backing = self._file.backing
        if backing is None or self._file.is_direct:
            return None
        return backing.fileno()

    def mmap(self, size: int = 0, *, private: bool = False, offset: int = 0) -> TestMapping:
        """Map it into memory; 0: up to its end. It can be written if the file can, or privately.

        Raises OSError: EACCES if it is not open for reading; ENODEV; EINVAL for an empty file.
        """
        size = size or self.stat().st_size - offset
        if size <= 0 or offset < 0 or offset % mmap.PAGESIZE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path)
        writable = private or self._file.writable
        mapping = self._run(map_pages(self._file, shared=not private, writable=writable))
        return TestMapping(self._driver, self._caller, mapping, self.path, offset, size)

    def fdatasync(self) -> None:
        """Have the filesystem make its content safe."""
        self._run(self._file.sync(self._caller, data_only=True))

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Reserve room, or with a mode (FALLOC_FL_) make holes or zeros."""
        self._run(self._file.allocate(self._caller, mode, offset, length))

    def copy_file_range(self, other: TestFile, size: int, offset: int, other_offset: int) -> int:
        """Copy bytes to another file; return how many were copied."""
        operation = self._file.copy_to(self._caller, offset, other._file, other_offset, size)
        return self._run(operation)
