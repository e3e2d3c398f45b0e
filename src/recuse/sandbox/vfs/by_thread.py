"""Native files that a program's thread is made to open itself, with all its own rights.

This takes a fifth of a millisecond, and needs ptrace(2).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.tasks.memory import PAGE, write_memory
from recuse.sandbox.trap.filter import MAP_ANONYMOUS
from recuse.sandbox.vfs.native_files import AT_FDCWD
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.sandbox.trap.inject import Injection
    from recuse.sandbox.vfs.found import NativeFile

_READ_WRITE: Final = 3
_PRIVATE: Final = 2
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800


def look_by_thread(thread: Injection, tid: Tid, file: NativeFile, flags: int) -> int:
    """Have a thread open a file with O_PATH, by a call that is not trapped.

    Args:
        thread: makes the call.
        tid: its ID.
        file: what is to be opened.
        flags: O_CLOEXEC or 0.

    Returns:
        The number of the thread's new descriptor.

    Raises:
        OSError: as the thread's call; ENOENT if the path leads elsewhere from its root, or now.
    """
    page = thread.call("mmap", 0, PAGE, _READ_WRITE, _PRIVATE | MAP_ANONYMOUS, 0xFFFFFFFF, 0)
    try:
        data = file.path + b"\0"
        if write_memory(tid, page, data) < len(data):
            raise os_error(errno.EFAULT)
        flags |= _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
        number = thread.call("open_tree", AT_FDCWD & 0xFFFFFFFF, page, flags)
    finally:
        thread.call("munmap", page, PAGE)
    found = os.stat(f"/proc/{tid}/fd/{number}")
    if not os.path.samestat(found, file.status):
        thread.take_back(number)
        raise os_error(errno.ENOENT)
    return number
