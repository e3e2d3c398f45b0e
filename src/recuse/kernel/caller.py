"""Who makes a system call, and the memory that its arguments point into."""

from __future__ import annotations

from typing import Protocol

from recuse.wire.declare import Buffer


class Memory(Protocol):
    """The memory of a calling process, by address.

    Addresses are 0 to 2**64 - 1, and areas may extend beyond that. If memory ends in the middle of
    an area, a method does what it can up to there and returns how much that was, like the kernel's
    copy_from_user.
    """

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes, or fewer if readable memory ends earlier.

        Raises OSError(EFAULT) if not even one byte can be read.
        """

    def write(self, address: int, data: Buffer) -> int:
        """Store ``data``; return how many bytes were stored, fewer if writable memory ends.

        Raises OSError(EFAULT) if not even one byte can be written.
        """

    def writable(self, address: int, size: int) -> int:
        """Return how many of the ``size`` bytes from ``address`` on can be written, 0 if none."""


class Caller:
    """A thread in a system call.

    pid is the thread's ID, as in a request's header (fs/fuse/dev.c, fuse_get_req). uid and gid are
    those used for file access (fsuid, fsgid). owner is 64 bits that identify its descriptor table:
    the lock owner of its reads and writes, which means nothing else to a server. keeps_suid says
    whether it has CAP_FSETID: then a file that it writes to may keep its set-user-ID bit.
    """

    __slots__ = ("gid", "keeps_suid", "memory", "owner", "pid", "uid")

    def __init__(  # noqa: PLR0917 - by position, on the way of every read
        self,
        pid: int,
        uid: int,
        gid: int,
        memory: Memory,
        owner: int = 0,
        keeps_suid: bool = True,
    ) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.memory = memory
        self.owner = owner
        self.keeps_suid = keeps_suid
