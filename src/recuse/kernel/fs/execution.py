"""execve(2) of a regular file: who may do that, and what it has (fs/exec.c)."""

import errno
import stat
from collections.abc import Callable

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.opening import open_file
from recuse.kernel.fs.permission import MAY_EXEC, permission
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.superblock import Superblock

_FMODE_EXEC = 0x20
"""A flag that OPEN carries (linux/fs.h, __FMODE_EXEC)."""
_PIECE = 1 << 20
"""How much is read at once."""


def read_program(
    superblock: Superblock, caller: FileCaller, found: Dentry, take: Callable[[bytes], None]
) -> Operation[None]:
    """Give all that a file has to ``take``, for a caller who executes it.

    Raises OSError: EACCES if it is no regular file or the caller may not; ENOENT; what ``take``
    raises, or the server answers.
    """
    # fs/exec.c, do_open_execat; fs/namei.c, may_open
    inode = found.inode
    if inode is None:
        raise os_error(errno.ENOENT)
    if not stat.S_ISREG(inode.attr.mode):
        raise os_error(errno.EACCES)
    yield from permission(superblock, caller, inode, MAY_EXEC)
    file = yield from open_file(superblock, caller, found, inode, _FMODE_EXEC)
    assert isinstance(file, RegularFile)
    try:
        while data := (yield from file.read(caller, _PIECE)):
            take(data)
    finally:
        yield from file.release()
