"""May this thread do that to this node? (fs/namei.c generic_permission, fs/attr.c; Linux 6.1)"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.tasks.tasks import Credentials

if TYPE_CHECKING:
    from recuse.sandbox.vfs.nodes import Node

MAY_EXECUTE: Final = 1
MAY_WRITE: Final = 2
MAY_READ: Final = 4


def grants(mode: int, uid: int, gid: int, who: Credentials, wanted: int) -> bool:
    """Whether a file's mode and owner give ``who`` all of ``wanted``."""
    if who.overrides and (not wanted & MAY_EXECUTE or stat.S_ISDIR(mode) or mode & 0o111):
        return True
    if who.searches and not wanted & ~(MAY_READ | MAY_EXECUTE if stat.S_ISDIR(mode) else MAY_READ):
        return True
    if who.uid == uid:
        granted = mode >> 6
    elif who.gid == gid or gid in who.groups:
        granted = mode >> 3
    else:
        granted = mode
    return granted & wanted == wanted


def check(node: Node, who: Credentials, wanted: int) -> None:
    """Raise EACCES unless ``who`` has all the ``wanted`` permissions."""
    if not grants(node.mode, node.uid, node.gid, who, wanted):
        raise os_error(errno.EACCES)


def check_owner(node: Node, who: Credentials) -> None:
    """Raise EPERM unless ``who`` may change the node's attributes."""
    if who.uid != node.uid and not who.owner_rights:
        raise os_error(errno.EPERM)
