"""What only few open files support: ioctl, poll, locks (fs/fuse/ioctl.c, file.c)."""

import errno
import fcntl
from typing import Final, NoReturn, TypeVar

from recuse.kernel.caller import Caller
from recuse.kernel.char.ioctl import do_ioctl
from recuse.kernel.char.poll import do_poll
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Reply
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.attributes import allowed
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.fs.inodes import Inode
from recuse.wire.filesystem import fuse_file_lock, fuse_lk_in, fuse_lk_out
from recuse.wire.fuse import (
    FUSE_FLOCK_LOCKS,
    FUSE_GETLK,
    FUSE_LK_FLOCK,
    FUSE_POSIX_LOCKS,
    FUSE_SETLK,
    FUSE_SETLKW,
)

T = TypeVar("T")

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

    Raises OSError: EACCES, EIO, or as `recuse.kernel.char.ioctl.do_ioctl`.
    """
    file.inode.check()
    allowed(file.superblock, caller)
    call = do_ioctl(_IoctlFile(file), caller, command, argument, False)
    return (yield from file.running(_about(file.inode, call)))


def poll(file: FilesystemFile, caller: Caller, events: int, waiting: bool) -> Operation[int]:
    """Ask which of ``events`` a file is ready for; see `recuse.kernel.char.poll.do_poll`."""
    return file.running(_about(file.inode, do_poll(file, caller, events, waiting)))


def get_lock(
    file: FilesystemFile, caller: FileCaller, kind: int, start: int, length: int
) -> Operation[fuse_file_lock | None]:
    """Return a lock that is in the way of one of this kind (F_RDLCK, F_WRLCK); None if none is.

    Raises OSError: EOPNOTSUPP if the server leaves locks to this half, EINVAL, or the server's.
    """
    body = _lock(file, caller, kind, start, length, caller.owner, FUSE_POSIX_LOCKS)
    payload = yield from file.running(
        ask(caller, FUSE_GETLK, file.inode.nodeid, body, fuse_lk_out.SIZE)
    )
    found = fuse_lk_out.unpack(payload).lk
    if found.type == fcntl.F_UNLCK:
        return None
    if found.type not in (fcntl.F_RDLCK, fcntl.F_WRLCK) or found.start > found.end:
        raise os_error(errno.EIO)  # convert_fuse_file_lock
    return found


def set_lock(  # noqa: PLR0917 - the arguments of fcntl(2)
    file: FilesystemFile, caller: FileCaller, kind: int, start: int, length: int, wait: bool
) -> Operation[None]:
    """Lock or unlock (F_UNLCK) bytes for the caller's process; length 0: up to the end.

    Raises OSError: EAGAIN if another one is in the way, EBADF, EINTR; others as `get_lock`.
    """
    if (kind == fcntl.F_RDLCK and not file.readable) or (
        kind == fcntl.F_WRLCK and not file.writable
    ):
        raise os_error(errno.EBADF)
    body = _lock(file, caller, kind, start, length, caller.owner, FUSE_POSIX_LOCKS)
    opcode = FUSE_SETLKW if wait else FUSE_SETLK
    yield from file.running(ask(caller, opcode, file.inode.nodeid, body))


def flock(file: FilesystemFile, caller: FileCaller, operation: int) -> Operation[None]:
    """Lock or unlock the whole file for this open of it; operations are those of `fcntl.flock`.

    Raises OSError: EAGAIN if another one is in the way; others as `get_lock`.
    """
    kind = _LOCK_TYPES.get(operation & ~fcntl.LOCK_NB)
    if kind is None:
        raise os_error(errno.EINVAL)
    body = _lock(file, caller, kind, 0, 0, file.kh, FUSE_FLOCK_LOCKS)
    opcode = FUSE_SETLK if operation & fcntl.LOCK_NB else FUSE_SETLKW
    file.flocked = True
    yield from file.running(ask(caller, opcode, file.inode.nodeid, body))


def _lock(  # noqa: PLR0917 - the parts of a request
    file: FilesystemFile,
    caller: FileCaller,
    kind: int,
    start: int,
    length: int,
    owner: int,
    flag: int,
) -> bytes:
    # fs/fuse/file.c, fuse_lk_fill; fs/locks.c, flock64_to_posix_lock
    if start < 0 or length < 0 or kind not in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
        raise os_error(errno.EINVAL)
    if not file.superblock.has(flag):
        raise os_error(errno.EOPNOTSUPP)
    end = start + length - 1 if length else _TO_THE_END
    pid = 0 if kind == fcntl.F_UNLCK else caller.pid
    lock = fuse_file_lock(start=start, end=end, type=kind, pid=pid)
    flags = FUSE_LK_FLOCK if flag == FUSE_FLOCK_LOCKS else 0
    return fuse_lk_in(fh=file.handle, owner=owner, lk=lock, lk_flags=flags).pack()
