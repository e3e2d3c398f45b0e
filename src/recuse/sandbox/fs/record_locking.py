"""Locks of parts of a filesystem's file: F_GETLK, F_SETLK, F_SETLKW, F_OFD_... (fs/locks.c).

The kernel half keeps them, or the server. A lock of a process ends with its close of the file. But
the end of a process is not seen if it shares its open file with others, such as its parent. So
before a lock is refused, and while one waits, it is looked whether the process in the way still has
the file open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.errors import os_error
from recuse.kernel.fs.attributes import get_attributes
from recuse.kernel.fs.file_calls import get_lock, set_lock
from recuse.kernel.fs.inodes import STATX_SIZE
from recuse.runtime.records import NamedTuple
from recuse.sandbox.arch import compat
from recuse.sandbox.fs.caller import caller_of
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall
from recuse.wire.fuse import FUSE_POSIX_LOCKS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from recuse.kernel.fs.credentials import FileCaller
    from recuse.kernel.fs.files import FilesystemFile
    from recuse.sandbox.fs.running import Mounted

    class Lockable(Protocol):
        """An open file, as far as it is needed here."""

        link: str
        kernel_file: FilesystemFile
        lockers: dict[int, FileCaller]


_FLOCK: Final = struct.Struct("=hh4xqqi4x")
_FLOCK64_32: Final = struct.Struct("=hhqqi")
_FLOCK_32: Final = struct.Struct("=hhiii")
"""``struct flock``: of 64-bit programs, and the two of 32-bit ones (asm/compat.h)."""
_TO_THE_END: Final = (1 << 63) - 1

# linux/fcntl.h. Those of 32-bit programs for 64-bit positions are 7 more; F_OFD_ are 31 more.
_GETLK, _SETLK, _SETLKW = 5, 6, 7
_LONG, _OFD = 7, 31


class _Command(NamedTuple):
    """What a thread wants; ``kind`` as F_RDLCK, the other two in bytes from the beginning."""

    does: int
    ofd: bool
    layout: struct.Struct
    kind: int
    start: int
    length: int


class RecordLocking:
    """Does the lock commands of a filesystem's files."""

    def __init__(self, tree: Mounted, files: Iterable[Lockable]) -> None:
        """Prepare; ``files`` are all that programs have open."""
        self._tree = tree
        self._files = files

    def do(self, file: Lockable, call: TrappedCall, command: int, address: int) -> Outcome:
        """Do one.

        Raises:
            OSError: EAGAIN, EBADF, EDEADLK, EFAULT, EINVAL, EOVERFLOW, or the server's.
        """
        caller = caller_of(call)
        wanted = self._read(file.kernel_file, call, caller, command, address)
        return self._do(file, call, caller, wanted, address)

    def _read(
        self,
        file: FilesystemFile,
        call: TrappedCall,
        caller: FileCaller,
        command: int,
        address: int,
    ) -> _Command:
        """Read the ``struct flock`` (flock64_to_posix_lock)."""
        ofd = command >= _GETLK + _OFD
        layout = _FLOCK
        if call.arch == compat.AUDIT_ARCH:
            layout = _FLOCK_32 if command <= _SETLKW else _FLOCK64_32
        does = command - (_OFD if ofd else _LONG if command > _SETLKW else 0)
        data = caller.memory.read(address, layout.size)
        if len(data) < layout.size:
            raise os_error(errno.EFAULT)
        kind, whence, start, length, pid = layout.unpack(data)
        if ofd and pid:
            raise os_error(errno.EINVAL)
        if whence == os.SEEK_CUR:
            start += file.position
        elif whence == os.SEEK_END:
            start += self._tree.ask(
                call, ("size", file.inode), lambda: _size(self._tree, caller, file)
            )
        elif whence != os.SEEK_SET:
            raise os_error(errno.EINVAL)
        return _Command(does, ofd, layout, kind, start, length)

    def _do(
        self,
        file: Lockable,
        call: TrappedCall,
        caller: FileCaller,
        wanted: _Command,
        address: int,
    ) -> Steps[int]:
        tree, inner, ofd = self._tree, file.kernel_file, wanted.ofd
        bytes_ = wanted.kind, wanted.start, wanted.length
        yield tree.files.releases(tree)
        remote = tree.superblock.has(FUSE_POSIX_LOCKS)
        if wanted.kind != fcntl.F_UNLCK and not (remote and wanted.does != _GETLK):
            while True:
                found = yield OnDevice(tree, get_lock(inner, caller, *bytes_, ofd))
                if found is None or not (stale := self._stale(inner, found.pid)):
                    break
                for other, locker in stale:
                    yield OnDevice(tree, _closed(other, locker))
        if wanted.does == _GETLK:
            found = yield OnDevice(tree, get_lock(inner, caller, *bytes_, ofd))
            data = struct.pack("=h", fcntl.F_UNLCK)
            if found is not None:
                data = _packed(wanted.layout, found.type, found.start, found.end, found.pid)
            if caller.memory.write(address, data) < len(data):
                raise os_error(errno.EFAULT)
            return 0
        tgid = call.task.tgid
        if not ofd:
            file.lockers[tgid] = caller

        def closed() -> bool:
            with contextlib.suppress(OSError):  # nobody may look
                found = tree.files.find(call.tid, call.a0)
                return found is None or found.link != file.link
            return False

        waits = wanted.does == _SETLKW
        if waits:
            call.look_around(lambda: self._look(inner, caller, bytes_, ofd))
        while True:
            try:
                yield OnDevice(tree, set_lock(inner, caller, *bytes_, waits, ofd, closed))
            except OSError as error:
                # The server does not say whose lock is in the way.
                stale = self._stale(inner) if remote and error.errno == errno.EAGAIN else []
                if not stale:
                    raise
            else:
                return 0
            for other, locker in stale:
                yield OnDevice(tree, _closed(other, locker))

    def _stale(
        self, file: FilesystemFile, process: int | None = None
    ) -> list[tuple[Lockable, FileCaller]]:
        """By which files a process has locked this one, if it has none of them open any more.

        None: any process.
        """
        by: dict[int, list[tuple[Lockable, FileCaller]]] = {}
        for other in list(self._files):
            if other.kernel_file.inode is file.inode:
                for number, locker in list(other.lockers.items()):
                    if process in (None, number):
                        by.setdefault(number, []).append((other, locker))
        return [
            one
            for number, held in by.items()
            if not _has_open(number, {other.link for other, _ in held})
            for one in held
        ]

    def _look(
        self, file: FilesystemFile, caller: FileCaller, bytes_: tuple[int, int, int], ofd: bool
    ) -> None:
        """Find out if what a thread waits for is held by nobody; then take it away."""
        connection = self._tree.connection

        def take_away(stale: list[tuple[Lockable, FileCaller]]) -> None:
            for other, locker in stale:
                run(connection, _closed(other, locker), lambda *_: None)

        def done(found: object, error: OSError | None) -> None:
            if error is None and (pid := getattr(found, "pid", 0)):
                take_away(self._stale(file, pid))

        if self._tree.superblock.has(FUSE_POSIX_LOCKS):
            take_away(self._stale(file))
        else:
            run(connection, get_lock(file, caller, *bytes_, ofd), done)


def _size(tree: Mounted, caller: FileCaller, file: FilesystemFile) -> Operation[int]:
    attr = yield from get_attributes(tree.superblock, caller, file.inode, STATX_SIZE, file)
    return attr.size


def _closed(file: Lockable, locker: FileCaller) -> Operation[None]:
    """Do what the close of a process does that has locked something."""
    file.lockers.pop(locker.tgid, None)
    yield from file.kernel_file.flush(locker)


def _packed(layout: struct.Struct, kind: int, start: int, end: int, pid: int) -> bytes:
    """Encode a lock that is in the way. OSError: EOVERFLOW."""
    length = 0 if end >= _TO_THE_END else end - start + 1
    try:
        return layout.pack(kind, os.SEEK_SET, start, length, (pid ^ 1 << 31) - (1 << 31))
    except struct.error:
        raise os_error(errno.EOVERFLOW) from None


def _has_open(process: int, links: set[str]) -> bool:
    """Whether a process has one of these files open, as far as can be seen."""
    try:
        # A thread that has ended has none, such as the first one while others run on.
        for thread in os.listdir(f"/proc/{process}/task"):
            if numbers := _descriptors(process, thread):
                return any(_is_one_of(process, thread, number, links) for number in numbers)
    except PermissionError:
        return True
    except OSError:
        pass  # it has ended
    return False


def _descriptors(process: int, thread: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        try:
            return os.listdir(f"/proc/{process}/task/{thread}/fd")
        except PermissionError:
            if not ThreadStatus(thread).has_ended:
                raise
    return []


def _is_one_of(process: int, thread: str, number: str, links: set[str]) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{process}/task/{thread}/fd/{number}") in links
    return False
