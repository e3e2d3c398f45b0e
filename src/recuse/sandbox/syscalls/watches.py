"""inotify_add_watch and fanotify_mark (fs/notify; Linux 6.18).

What happens to files of recuse's is not reported. So they cannot be watched, and programs are told
so. A native file can, also by a path through a filesystem: the thread is then made to make its call
again with the native path (`recuse.sandbox.syscalls.elsewhere`). These calls are trapped in
sandboxes with filesystems only.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import AT_SYMLINK_NOFOLLOW, held, named
from recuse.sandbox.vfs.resolve import AT_FDCWD

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

_IN_DONT_FOLLOW: Final = 0x02000000
"""linux/inotify.h"""
_FAN_MARK_DONT_FOLLOW: Final = 4
"""linux/fanotify.h"""


def inotify_add_watch(call: TrappedCall, machine: Machine) -> int:
    """``inotify_add_watch(fd, path, mask)``.

    Raises:
        OSError: ENOSPC for a file of recuse's, as if there could be no more watches: programs that
            can do without look at the file from time to time then.
    """
    flags = AT_SYMLINK_NOFOLLOW if call.a2 & _IN_DONT_FOLLOW else 0
    if named(call, machine, AT_FDCWD, call.a1, flags) is not None:
        raise os_error(errno.ENOSPC)
    return PROCEED


def fanotify_mark(call: TrappedCall, machine: Machine) -> int:
    """``fanotify_mark(fd, flags, mask, dirfd, path)``.

    Raises:
        OSError: ENODEV for a file of recuse's, as for a filesystem that fanotify does not support.
    """
    base = signed32(call.a3)
    if call.a4:
        flags = AT_SYMLINK_NOFOLLOW if call.a1 & _FAN_MARK_DONT_FOLLOW else 0
        found = named(call, machine, base, call.a4, flags)
    else:
        found = held(call, machine, base)
    if found is not None:
        raise os_error(errno.ENODEV)
    return PROCEED


HANDLERS: Final[dict[str, Handler]] = {
    "inotify_add_watch": inotify_add_watch,
    "fanotify_mark": fanotify_mark,
}
