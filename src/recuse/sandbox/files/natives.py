"""What a program's descriptor is natively, as /proc tells."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.wire.ids import Tid

_O_PATH: Final = 0o10000000


class Native(NamedTuple):
    """An open file of the kernel's."""

    mode: int
    """Its node's, as stat(2) has it."""
    flags: int
    """As F_GETFL returns them."""

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    @property
    def is_pipe(self) -> bool:
        """Whether it is a pipe or FIFO."""
        return stat.S_ISFIFO(self.mode)


def native(tid: Tid, number: int) -> Native:
    """What a thread has open under a number.

    Raises:
        OSError: EBADF if nothing is, or it was opened with O_PATH.
    """
    try:
        mode = os.stat(f"/proc/{tid}/fd/{number}").st_mode
        with open(f"/proc/{tid}/fdinfo/{number}", "rb") as lines:
            flags = next(int(line[6:], 8) for line in lines if line.startswith(b"flags:"))
    except FileNotFoundError:
        raise os_error(errno.EBADF) from None
    if flags & _O_PATH:
        raise os_error(errno.EBADF)
    return Native(mode, flags)
