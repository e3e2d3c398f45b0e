"""A regular file that the kernel knows for as long as a mount lasts: the server can ask for nothing
of its content (RETRIEVE) at any time, which is a request like a program's, but waits for nobody.

It is in no directory's listing. Nobody but us finds it by its name, which is a secret. The watch of
inotify(7) has the kernel keep it: unlike a descriptor, it does not keep the mount busy.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from typing import Final

from recuse.channel.unmounting import call
from recuse.wire.filesystem import fuse_attr, fuse_attr_out, fuse_entry_out
from recuse.wire.fuse import (
    FUSE_GETATTR,
    FUSE_LOOKUP,
    FUSE_ROOT_ID,
    fuse_in_header,
    fuse_out_header,
)

NODE: Final = (1 << 64) - 2
"""The file's node; the session's nodes count from 1."""

_IN_DELETE_SELF: Final = 0x400
_VALID_S: Final = 1 << 30
_libc = ctypes.CDLL(None, use_errno=True)


class KnownFile:
    """The file of one mount."""

    def __init__(self) -> None:
        """Make all that could fail. Raises OSError: EMFILE, ENOMEM."""
        self._name = f".recuse-{os.urandom(16).hex()}"
        self._end = self._name.encode() + b"\0"
        self._inotify = call(_libc.inotify_init1(os.O_CLOEXEC))
        self._thread = 0

    def look_up(self, root: str) -> None:
        """Have the kernel know it, from now on. Raises OSError.

        ``root`` is a path to the mount's root directory. Another thread has to `answer` meanwhile.
        """
        self._thread = threading.get_native_id()
        try:
            path = os.fsencode(f"{root}/{self._name}")
            call(_libc.inotify_add_watch(self._inotify, path, _IN_DELETE_SELF))
        finally:
            self._thread = 0

    def answer(self, message: bytes) -> bytes | None:
        """Return the answer to a request of `look_up`, None if it is not one.

        No method of the filesystem is called for it: that might block, or refuse.
        """
        if not self._thread:
            return None
        request = fuse_in_header.unpack(message)
        if request.nodeid != FUSE_ROOT_ID:
            return None
        if request.opcode == FUSE_LOOKUP and message[fuse_in_header.SIZE :] == self._end:
            attr = fuse_attr(ino=NODE, mode=stat.S_IFREG | 0o444, nlink=1)
            body = fuse_entry_out(nodeid=NODE, attr_valid=_VALID_S, attr=attr).pack()
        elif request.opcode == FUSE_GETATTR and request.pid == self._thread:
            # Whether we may look names up. It is valid for nobody else.
            body = fuse_attr_out(
                attr=fuse_attr(ino=FUSE_ROOT_ID, mode=stat.S_IFDIR | 0o777, nlink=2)
            ).pack()
        else:
            return None
        size = fuse_out_header.SIZE + len(body)
        return fuse_out_header(len=size, unique=request.unique).pack() + body

    def close(self) -> None:
        """Let the kernel forget it."""
        number, self._inotify = self._inotify, -1
        if number >= 0:
            os.close(number)
