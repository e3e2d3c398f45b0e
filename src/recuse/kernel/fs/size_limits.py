"""How large a caller may make files (RLIMIT_FSIZE)."""

import errno
from typing import Final

from recuse.kernel.errors import os_error
from recuse.kernel.fs.credentials import FileCaller

MOST_POSITION: Final = (1 << 63) - 1


def check_write(caller: FileCaller, start: int, size: int) -> int:
    """Return how many of ``size`` bytes may be written at ``start``.

    Raises OSError: EFBIG if none may (fs/read_write.c, generic_write_check_limits).
    """
    limit = caller.size_limit()
    if limit is not None:
        if start >= limit:
            caller.signal_size_limit()
            raise os_error(errno.EFBIG)
        size = min(size, limit - start)
    if start >= MOST_POSITION:
        raise os_error(errno.EFBIG)
    return size


def check_growth(caller: FileCaller, size: int) -> None:
    """Check that a file may become that large. OSError: EFBIG (fs/attr.c, inode_newsize_ok)."""
    limit = caller.size_limit()
    if limit is not None and size > limit:
        caller.signal_size_limit()
        raise os_error(errno.EFBIG)
