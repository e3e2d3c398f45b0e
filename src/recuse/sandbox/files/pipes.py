"""Pipes of programs that a splice(2) fills or empties (fs/fuse/dev.c; Linux 6.1)."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import termios
from typing import Final

from recuse.kernel.errors import os_error
from recuse.wire.ids import Tid

_F_GETPIPE_SZ: Final = 1032


def _open(tid: Tid, number: int, refused: int) -> int:
    """Open a thread's pipe once more, for reading and writing.

    ``refused``: how the thread must not have opened it (O_RDONLY or O_WRONLY).

    Raises:
        OSError: EINVAL if it is no pipe; EBADF.
    """
    try:
        if not stat.S_ISFIFO(os.stat(f"/proc/{tid}/fd/{number}").st_mode):
            raise os_error(errno.EINVAL)
        with open(f"/proc/{tid}/fdinfo/{number}", "rb") as lines:
            flags = next(int(line[6:], 8) for line in lines if line.startswith(b"flags:"))
        if flags & os.O_ACCMODE == refused:
            raise os_error(errno.EBADF)
        return os.open(f"/proc/{tid}/fd/{number}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise os_error(errno.EBADF) from None


def check_pipe(tid: Tid, number: int) -> None:
    """Raise OSError unless it is a pipe that can be written: EINVAL, EBADF."""
    os.close(_open(tid, number, os.O_RDONLY))


def _filled(pipe: int) -> int:
    """How many bytes are in it."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def fill_pipe(tid: Tid, number: int, message: bytes) -> None:
    """Put a whole message into a thread's pipe.

    Raises:
        OSError: EIO if there is no room for it (fuse_dev_splice_read); EINVAL; EBADF.
    """
    pipe = _open(tid, number, os.O_RDONLY)
    try:
        if _filled(pipe) or fcntl.fcntl(pipe, _F_GETPIPE_SZ) < len(message):
            raise os_error(errno.EIO)
        if os.write(pipe, message) < len(message):
            raise os_error(errno.EIO)
    finally:
        os.close(pipe)


def take_from_pipe(tid: Tid, number: int, size: int) -> bytes:
    """Take that many bytes out of a thread's pipe.

    Raises:
        OSError: EINVAL if there are fewer (fuse_dev_splice_write), or if it is no pipe; EBADF.
    """
    pipe = _open(tid, number, os.O_WRONLY)
    try:
        if _filled(pipe) < size:
            raise os_error(errno.EINVAL)
        parts = b""
        while len(parts) < size:
            part = os.read(pipe, size - len(parts))
            if not part:
                raise os_error(errno.EINVAL)
            parts += part
        return parts
    finally:
        os.close(pipe)
