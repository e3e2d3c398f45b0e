"""May this thread do that to this node? (fs/namei.c generic_permission, fs/attr.c; Linux 6.1)"""

from __future__ import annotations

import errno
import os
from typing import Final

from recuse.sandbox.tasks import Credentials
from recuse.sandbox.tree import Node

MAY_EXECUTE: Final = 1
MAY_WRITE: Final = 2
MAY_READ: Final = 4


def allowed(node: Node, who: Credentials, wanted: int) -> bool:
    """Whether ``who`` has all the ``wanted`` permissions."""
    if who.overrides and (wanted & MAY_EXECUTE == 0 or node.is_directory or node.mode & 0o111):
        return True
    if who.uid == node.uid:
        granted = node.mode >> 6
    elif who.gid == node.gid or node.gid in who.groups:
        granted = node.mode >> 3
    else:
        granted = node.mode
    return granted & wanted == wanted


def check(node: Node, who: Credentials, wanted: int) -> None:
    """Raise EACCES unless ``who`` has all the ``wanted`` permissions."""
    if not allowed(node, who, wanted):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def check_owner(node: Node, who: Credentials) -> None:
    """Raise EPERM unless ``who`` may change the node's attributes."""
    if who.uid != node.uid and not who.owner_rights:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
