"""What a file loses when it is written, truncated or given away: set-user-ID and capabilities.

fs/inode.c, file_remove_privs; security/commoncap.c, cap_inode_need_killpriv; fs/attr.c.
"""

import errno
import stat
from typing import Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.fs.asking import ask, named
from recuse.kernel.fs.attributes import refresh
from recuse.kernel.fs.credentials import CAP_FSETID, FileCaller
from recuse.kernel.fs.inodes import Inode
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.filesystem import fuse_getxattr_in, fuse_getxattr_out
from recuse.wire.fuse import (
    FUSE_GETXATTR,
    FUSE_HANDLE_KILLPRIV,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_REMOVEXATTR,
)

_SETGID_GROUP: Final = stat.S_ISGID | stat.S_IXGRP
_CAPABILITY: Final = b"security.capability"


def without_privileges(mode: int) -> int:
    """A mode after a write: without set-user-ID and, if the group may execute, set-group-ID."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & _SETGID_GROUP == _SETGID_GROUP else mode


def lose_privileges(
    superblock: Superblock, caller: FileCaller, inode: Inode, given_away: bool = False
) -> Operation[int | None]:
    """Take the capabilities of a file away; return the mode that it has to have, None if as it is.

    ``given_away``: it gets another owner, so even those with CAP_FSETID do not keep the bits.
    """
    if inode.is_directory or inode.is_plain:
        return None
    capable = stat.S_ISREG(inode.attr.mode) and (
        yield from _has_capability(superblock, caller, inode)
    )
    if capable:
        yield from ask(caller, FUSE_REMOVEXATTR, inode.nodeid, named(_CAPABILITY))
    mode = inode.attr.mode
    keeps = caller.may(CAP_FSETID) and not given_away
    if keeps or without_privileges(mode) == mode:
        # Linux remembers that (S_NOSEC) if the server promises to do the rest.
        inode.is_plain = not capable and superblock.has(FUSE_HANDLE_KILLPRIV_V2)
        return None
    if superblock.has(FUSE_HANDLE_KILLPRIV | FUSE_HANDLE_KILLPRIV_V2):
        return None
    yield from refresh(superblock, caller, inode)
    return stat.S_IMODE(without_privileges(inode.attr.mode))


def _has_capability(superblock: Superblock, caller: FileCaller, inode: Inode) -> Operation[bool]:
    if FUSE_GETXATTR in superblock.lacks:
        return False
    body = named(_CAPABILITY, fuse_getxattr_in())
    size = fuse_getxattr_out.SIZE
    try:
        payload = yield from ask(caller, FUSE_GETXATTR, inode.nodeid, body, size)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            superblock.lacks.add(FUSE_GETXATTR)
        return False
    return fuse_getxattr_out.unpack(payload).size > 0
