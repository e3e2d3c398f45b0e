"""What a handler can find out about the request that it answers."""

from __future__ import annotations

import os
import struct
from contextvars import ContextVar

from recuse.server.dispatch import pick_open
from recuse.server.pending_reply import PendingReply
from recuse.wire.cuse import RECUSE_MMAP, RECUSE_MMAP_COMMIT, RECUSE_MUNMAP, RECUSE_SHOW
from recuse.wire.fuse import (
    FUSE_INVALID_UIDGID,
    FUSE_IOCTL,
    FUSE_IOCTL_COMPAT,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_ioctl_in,
)

_pick_caller = struct.Struct("=24xIII").unpack_from
"""uid, gid and pid, of the header."""

CURRENT: ContextVar[PendingReply] = ContextVar("recuse.request")
"""The request whose handler runs; set by the session."""

# Not from wire's table of all operations, which is imported only where it is needed, as what is for
# filesystems alone: building it would delay each start of a program.
_OPERATIONS = {
    FUSE_OPEN: "open",
    FUSE_READ: "read",
    FUSE_WRITE: "write",
    FUSE_IOCTL: "ioctl",
    FUSE_POLL: "poll",
    FUSE_RELEASE: "release",
    RECUSE_SHOW: "show",
    RECUSE_MMAP: "mmap",
    RECUSE_MMAP_COMMIT: "mmap_commit",
    RECUSE_MUNMAP: "munmap",
}


class Request:
    """Who asks, and for what.

    Numbers are read from the request's bytes only on demand: most handlers never need them.
    """

    __slots__ = ("_pending",)

    def __init__(self, pending: PendingReply) -> None:
        self._pending = pending

    @property
    def operation(self) -> str:
        """The operation: "open", "read", "write", "ioctl", "poll" or "release".

        For devices also "mmap", "mmap_commit" (in `File.mapped`), "munmap" or "show" (a file in
        sysfs). On a FUSE mount, areas are asked for in "open", and given up in "release". For
        filesystems the protocol's name in small letters: "lookup", "readdirplus"...
        """
        opcode = self._pending.opcode
        if opcode in _OPERATIONS:
            return _OPERATIONS[opcode]
        from recuse.wire.optable import OPERATIONS  # noqa: PLC0415  # as said above

        name = OPERATIONS[opcode].name.removeprefix("FUSE_").lower()
        return _OPERATIONS.setdefault(opcode, name)

    @property
    def unique(self) -> int:
        """The request's number, unique among the requests that are being answered."""
        return self._pending.unique

    @property
    def uid(self) -> int | None:
        """The program's user ID (fsuid), None if it has none in the server's user namespace."""
        return _identity(_pick_caller(self._pending.message)[0])

    @property
    def gid(self) -> int | None:
        """The program's group ID (fsgid), None if it has none in the server's user namespace."""
        return _identity(_pick_caller(self._pending.message)[1])

    @property
    def pid(self) -> int:
        """The calling *thread's* ID, 0 if it has none in the server's pid namespace."""
        pid: int = _pick_caller(self._pending.message)[2]
        return pid

    @property
    def interrupted(self) -> bool:
        """Whether a signal has interrupted the program, so that the call should end soon.

        A plain method that takes long should check this from time to time, and raise
        ``InterruptedError(errno.EINTR, ...)``.  An ``async def`` method is cancelled instead.
        """
        return self._pending.interrupted

    @property
    def compat(self) -> bool:
        """Whether an ioctl comes from a 32-bit program, whose pointers and longs have 4 bytes.

        False for other operations, whose requests do not say.
        """
        if self._pending.opcode != FUSE_IOCTL:
            return False
        call = fuse_ioctl_in.unpack(self._pending.message, fuse_in_header.SIZE)
        return bool(call.flags & FUSE_IOCTL_COMPAT)

    @property
    def umask(self) -> int:
        """The program's umask, if a filesystem makes something for it; otherwise 0.

        The modes that methods get do not have its bits any more, unless `Served.posix_acls` is set.
        """
        from recuse.server.filesystem import extensions  # noqa: PLC0415  # as said above

        return extensions.umask(self._pending.opcode, self._pending.message)

    @property
    def kill_suidgid(self) -> bool:
        """Whether the file loses set-user-ID and set-group-ID if what is asked for succeeds.

        The latter only if the group may execute it. Always False without `Served.handle_killpriv`,
        except where an access control list is set (`Served.posix_acls`): that takes set-group-ID
        away from the file of a program that is not in its group.
        """
        from recuse.server.filesystem import extensions  # noqa: PLC0415  # as said above

        return extensions.kill_suidgid(self._pending.opcode, self._pending.message)

    @property
    def groups(self) -> tuple[int, ...]:
        """Supplementary groups of the program, if a filesystem makes something for it.

        It is only the directory's group, if it is one of the program's (Linux 6.4): whoever makes a
        file with set-group-ID there may keep that.
        """
        from recuse.server.filesystem import extensions  # noqa: PLC0415  # as said above

        return extensions.groups(self._pending.message)

    @property
    def security_contexts(self) -> dict[str, bytes]:
        """The extended attributes with security contexts that what is made must have.

        Always empty without `Served.security_contexts`, or if Linux uses nothing such as SELinux.
        """
        from recuse.server.filesystem import extensions  # noqa: PLC0415  # as said above

        return extensions.security_contexts(self._pending.message)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.unique}: {self.operation} by {self.pid}>"


class OpenRequest(Request):
    """The request that `Device.open` answers."""

    __slots__ = ()

    @property
    def flags(self) -> int:
        """The flags of open(2), without those used up by the open itself (O_CREAT, O_NOCTTY...)."""
        flags: int = pick_open(self._pending.message)[0]
        return flags

    @property
    def nonblocking(self) -> bool:
        """Whether O_NONBLOCK is set."""
        return bool(self.flags & os.O_NONBLOCK)


def current_request() -> Request:
    """Return the request that the running handler answers.

    It works in handlers, in what they call, and in asyncio tasks that they start.
    Elsewhere it raises LookupError.
    """
    try:
        return Request(CURRENT.get())
    except LookupError:
        raise LookupError("current_request() works only in code that a handler runs") from None


def _identity(number: int) -> int | None:
    return None if number == FUSE_INVALID_UIDGID else number
