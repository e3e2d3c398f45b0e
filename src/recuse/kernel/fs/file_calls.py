"""What only few open files support: ioctl, poll, locks (fs/fuse/ioctl.c, file.c)."""

import errno
import fcntl
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar, cast

from recuse.kernel.caller import Caller
from recuse.kernel.char.ioctl import do_ioctl
from recuse.kernel.char.poll import do_poll
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Reply, Request
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import allowed
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.fs.inodes import Inode
from recuse.kernel.fs.locks import FlockTurn, Record, RecordTurn, wait_for
from recuse.wire.filesystem import fuse_file_lock, fuse_lk_in, fuse_lk_out
from recuse.wire.fuse import (
    FUSE_GETLK,
    FUSE_LK_FLOCK,
    FUSE_POSIX_LOCKS,
    FUSE_SETLK,
    FUSE_SETLKW,
)

T = TypeVar("T")

_DIRECTORY_MINOR: Final = 18
"""Older servers know no ioctls of directories (fuse_dir_ioctl)."""
_TO_THE_END: Final = (1 << 63) - 1
_LOCK_TYPES: Final = {
    fcntl.LOCK_SH: fcntl.F_RDLCK,
    fcntl.LOCK_EX: fcntl.F_WRLCK,
    fcntl.LOCK_UN: fcntl.F_UNLCK,
}


class _Restricted:
    """How ioctls of files are, unlike those of some devices."""

    unrestricted = False
    new_files = False
    file_flags = False


class _IoctlFile:
    """A file, as far as an ioctl needs it."""

    device = _Restricted()

    def __init__(self, file: FilesystemFile) -> None:
        self.fh = file.fh
        self.flags = file.flags

    def sibling(self, fh: int, flags: int) -> NoReturn:
        """Only ioctls of devices make files."""
        raise AssertionError((fh, flags))


def _about(inode: Inode, operation: Operation[T]) -> Operation[T]:
    """Have all requests of an operation name a node: those of devices have none."""
    reply: Reply | None = None
    while True:
        try:
            request = operation.send(reply)  # type: ignore[arg-type]  # None starts it
        except StopIteration as stop:
            result: T = stop.value
            return result
        request.nodeid = inode.nodeid
        reply = yield request


def ioctl(file: FilesystemFile, caller: FileCaller, command: int, argument: int) -> Operation[int]:
    """Make a command of the server's own; ``argument`` may point into the caller's memory.

    Raises OSError: EACCES, EIO, ENOTTY, or as `recuse.kernel.char.ioctl.do_ioctl`.
    """
    directory = file.inode.is_directory
    if directory and file.superblock.agreed.minor < _DIRECTORY_MINOR:
        raise os_error(errno.ENOTTY)
    file.inode.check()
    allowed(file.superblock, caller)
    call = do_ioctl(_IoctlFile(file), caller, command, argument, compat=False, directory=directory)
    return (yield from file.running(_about(file.inode, call)))


def poll(file: FilesystemFile, caller: Caller, events: int, waiting: bool) -> Operation[int]:
    """Ask which of ``events`` a file is ready for; see `recuse.kernel.char.poll.do_poll`."""
    return file.running(_about(file.inode, do_poll(file, caller, events, waiting)))


def get_lock(  # noqa: PLR0917 - the arguments of fcntl(2)
    file: FilesystemFile,
    caller: FileCaller,
    kind: int,
    start: int,
    length: int,
    ofd: bool = False,
) -> Operation[fuse_file_lock | None]:
    """Return a lock that is in the way of one of this kind (F_RDLCK, F_WRLCK); None if none is.

    Its pid is -1 if it is an OFD lock that is kept here. Raises OSError: EINVAL, or the server's.
    """
    return file.running(_get_lock(file, caller, _wanted(file, caller, kind, start, length, ofd)))


def _get_lock(
    file: FilesystemFile, caller: FileCaller, wanted: Record
) -> Operation[fuse_file_lock | None]:
    # fuse_file_lock, fuse_getlk
    if wanted.kind == fcntl.F_UNLCK:
        raise os_error(errno.EINVAL)
    if not file.superblock.has(FUSE_POSIX_LOCKS):
        blocker = None if file.inode.records is None else file.inode.records.conflicting(wanted)
        if blocker is None:
            return None
        return fuse_file_lock(
            start=blocker.start,
            end=blocker.end,
            type=blocker.kind,
            pid=blocker.pid & 0xFFFFFFFF,
        )
    body = _request(file, caller, wanted, _owner(wanted))
    payload = yield from ask(caller, FUSE_GETLK, file.inode.nodeid, body, fuse_lk_out.SIZE)
    found = fuse_lk_out.unpack(payload).lk
    if found.type == fcntl.F_UNLCK:
        return None
    if found.type not in (fcntl.F_RDLCK, fcntl.F_WRLCK) or found.start > found.end:
        raise os_error(errno.EIO)  # convert_fuse_file_lock
    return found


def set_lock(  # noqa: PLR0917 - the arguments of fcntl(2)
    file: FilesystemFile,
    caller: FileCaller,
    kind: int,
    start: int,
    length: int,
    wait: bool,
    ofd: bool = False,
    closed: Callable[[], bool] | None = None,
) -> Operation[None]:
    """Lock or unlock (F_UNLCK) bytes for the caller's process, or for the open file (``ofd``).

    ``length`` 0: up to the end; negative: the bytes before ``start``. If the server leaves locks
    to this half, they end with the process's first close (`FilesystemFile.flush`), or with the
    open file. ``closed`` says whether the process has closed the file meanwhile.

    Raises OSError: EAGAIN if another one is in the way, EDEADLK, EBADF, EINTR; others as
    `get_lock`.
    """
    if (kind == fcntl.F_RDLCK and not file.readable) or (
        kind == fcntl.F_WRLCK and not file.writable
    ):
        raise os_error(errno.EBADF)
    wanted = _wanted(file, caller, kind, start, length, ofd)
    return file.running(_set_lock_while_open(file, caller, wanted, wait, closed))


def _set_lock_while_open(
    file: FilesystemFile,
    caller: FileCaller,
    wanted: Record,
    wait: bool,
    closed: Callable[[], bool] | None,
) -> Operation[None]:
    """Lock, but give the lock up if the process's close came first (fcntl_setlk)."""
    yield from _set_lock(file, caller, wanted, wait)
    if closed is None or wanted.kind == fcntl.F_UNLCK or not wanted.of_process or not closed():
        return
    unlock = wanted._replace(kind=fcntl.F_UNLCK)
    if file.superblock.has(FUSE_POSIX_LOCKS):
        body = _request(file, caller, unlock, _owner(unlock))
        # Whoever is killed leaves no lock behind.
        yield Request(FUSE_SETLK, body, nodeid=file.inode.nodeid, force=True)
    else:
        yield from _set_lock(file, caller, unlock, False)
    raise os_error(errno.EBADF)


def _set_lock(
    file: FilesystemFile, caller: FileCaller, wanted: Record, wait: bool
) -> Operation[None]:
    superblock, inode = file.superblock, file.inode
    if superblock.has(FUSE_POSIX_LOCKS):
        body = _request(file, caller, wanted, _owner(wanted))
        yield from ask(caller, FUSE_SETLKW if wait else FUSE_SETLK, inode.nodeid, body)
        return
    records = superblock.inodes.records_of(inode)
    if records.set(wanted, superblock.connection.grant):
        return
    if not wait:
        raise os_error(errno.EAGAIN)
    yield from wait_for(RecordTurn(records, wanted), superblock.connection.grant)


def flock(file: FilesystemFile, caller: FileCaller, operation: int) -> Operation[None]:
    """Lock or unlock the whole file for this open of it; operations are those of `fcntl.flock`.

    Raises OSError: EAGAIN if another one is in the way; others as `get_lock`.
    """
    kind = _LOCK_TYPES.get(operation & ~fcntl.LOCK_NB)
    if kind is None:
        raise os_error(errno.EINVAL)
    return file.running(_flock(file, caller, kind, not operation & fcntl.LOCK_NB))


def _flock(file: FilesystemFile, caller: FileCaller, kind: int, wait: bool) -> Operation[None]:
    # fuse_file_flock
    superblock, inode = file.superblock, file.inode
    if superblock.has_flock:
        pid = 0 if kind == fcntl.F_UNLCK else caller.tgid
        wanted = Record(kind, 0, _TO_THE_END, file, pid)
        file.flocked = True
        body = _request(file, caller, wanted, file.kh, FUSE_LK_FLOCK)
        yield from ask(caller, FUSE_SETLKW if wait else FUSE_SETLK, inode.nodeid, body)
        return
    flocks = superblock.inodes.locks_of(inode)
    if kind == fcntl.F_UNLCK:
        flocks.unlock(file)
    elif wait:
        grant = superblock.connection.grant
        yield from wait_for(FlockTurn(flocks, file, kind, grant), grant)
    elif not flocks.lock(file, exclusive=kind == fcntl.F_WRLCK):
        raise os_error(errno.EAGAIN)


def _wanted(  # noqa: PLR0917 - the parts of a lock
    file: FilesystemFile, caller: FileCaller, kind: int, start: int, length: int, ofd: bool
) -> Record:
    # fs/locks.c, flock64_to_posix_lock
    if length < 0:
        start, length = start + length, -length
    if start < 0 or kind not in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
        raise os_error(errno.EINVAL)
    end = start + length - 1 if length else _TO_THE_END
    if end > _TO_THE_END:
        raise os_error(errno.EOVERFLOW)
    owner, pid = (file, -1) if ofd else (caller.owner, caller.tgid)
    return Record(kind, start, end, owner, pid)


def _owner(wanted: Record) -> int:
    """What the server is told of a lock's owner."""
    return wanted.owner.kh if isinstance(wanted.owner, FilesystemFile) else cast(int, wanted.owner)


def _request(
    file: FilesystemFile, caller: FileCaller, wanted: Record, owner: int, flags: int = 0
) -> bytes:
    # fs/fuse/file.c, fuse_lk_fill
    pid = 0 if wanted.kind == fcntl.F_UNLCK else caller.tgid
    lock = fuse_file_lock(start=wanted.start, end=wanted.end, type=wanted.kind, pid=pid)
    return fuse_lk_in(fh=file.handle, owner=owner, lk=lock, lk_flags=flags).pack()
