"""What /sys/fs/fuse/connections has of a filesystem (fs/fuse/control.c, Linux 6.18)."""

import errno
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from recuse.kernel.connection.connection import Connection
from recuse.kernel.errors import os_error

DIRECTORY: Final = "/sys/fs/fuse/connections"
"""There a filesystem has a directory, named by the minor number of its st_dev."""
MODE: Final = 0o500
"""Of that directory. It and what is in it belong to the user who has mounted the filesystem."""

_MOST: Final = (1 << 16) - 1
_UNLIMITED: Final = (1 << 32) - 1
"""What the abort sets (fs/fuse/dev.c, fuse_abort_conn)."""
_NUMBER: Final = re.compile(rb"\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|(0|[1-9][0-9]*))\n?")
_BASES: Final = (16, 8, 10)
_LONG: Final = 1 << 64


class ControlFile(NamedTuple):
    """A file there: permission bits, and what its reading and writing do.

    show is None if it cannot be read, store if it cannot be written. store raises OSError for data
    that it does not accept.
    """

    name: str
    mode: int
    show: Callable[[], bytes] | None
    store: Callable[[bytes], None] | None


def control_files(connection: Connection) -> Iterator[ControlFile]:
    """The files of a filesystem."""

    def set_max_background(data: bytes) -> None:
        connection.max_background = _limit(data)

    def set_congestion_threshold(data: bytes) -> None:
        connection.congestion_threshold = _limit(data)

    yield ControlFile("waiting", 0o400, lambda: b"%d\n" % connection.waiting, None)
    yield ControlFile("abort", 0o200, None, lambda _: connection.abort())

    def max_background() -> bytes:
        return b"%d\n" % (_UNLIMITED if connection.ended else connection.max_background)

    yield ControlFile("max_background", 0o600, max_background, set_max_background)
    yield ControlFile(
        "congestion_threshold",
        0o600,
        lambda: b"%d\n" % connection.congestion_threshold,
        set_congestion_threshold,
    )


def _limit(data: bytes) -> int:
    """A number as kstrtoul takes it (lib/kstrtox.c). OSError: EINVAL, ERANGE."""
    matched = _NUMBER.fullmatch(data)
    if matched is None:
        raise os_error(errno.EINVAL)
    digits = matched[matched.lastindex or 0]
    number = int(digits, _BASES[(matched.lastindex or 1) - 1])
    if number >= _LONG:
        raise os_error(errno.ERANGE)
    # Others than root may have a lower limit on Linux, by the machine's memory (max_user_bgreq).
    if number > _MOST:
        raise os_error(errno.EINVAL)
    return number
