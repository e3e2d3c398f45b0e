"""Who makes a system call on files: the part of ``struct cred`` that permission checks look at."""

import errno
from collections.abc import Collection
from typing import Final

from recuse.kernel.caller import Caller, Memory
from recuse.kernel.errors import os_error
from recuse.wire.declare import Buffer

# linux/capability.h, as bits.
CAP_CHOWN: Final = 1 << 0
CAP_DAC_OVERRIDE: Final = 1 << 1
CAP_DAC_READ_SEARCH: Final = 1 << 2
CAP_FOWNER: Final = 1 << 3
CAP_FSETID: Final = 1 << 4
CAP_SYS_ADMIN: Final = 1 << 21
CAP_MKNOD: Final = 1 << 27
ALL_CAPABILITIES: Final = (1 << 41) - 1


class _NoMemory:
    """Memory of a caller whose system calls have no pointers."""

    def read(self, address: int, size: int) -> bytes:
        del address, size
        raise os_error(errno.EFAULT)

    def write(self, address: int, data: Buffer) -> int:
        del address, data
        raise os_error(errno.EFAULT)

    def writable(self, address: int, size: int) -> int:
        del address, size
        return 0


class FileCaller(Caller):
    """A thread in a system call on files.

    tgid is its process's ID, which owners of locks are told. groups are its supplementary groups,
    capabilities the effective ones (CAP_ bits), umask what the permissions of new files lack.
    """

    __slots__ = ("capabilities", "groups", "tgid", "umask")

    def __init__(
        self,
        pid: int,
        uid: int,
        gid: int,
        *,
        groups: Collection[int] = (),
        capabilities: int = 0,
        umask: int = 0o022,
        owner: int = 0,
        memory: Memory | None = None,
        tgid: int | None = None,
    ) -> None:
        keeps_suid = bool(capabilities & CAP_FSETID)
        super().__init__(pid, uid, gid, memory or _NoMemory(), owner, keeps_suid)
        self.tgid = pid if tgid is None else tgid
        self.groups = frozenset(groups)
        self.capabilities = capabilities
        self.umask = umask

    def with_memory(self, memory: Memory) -> "FileCaller":
        """The same caller, in a system call that has pointers into this memory."""
        kind = type(self)
        other = kind.__new__(kind)
        other.pid, other.uid, other.gid = self.pid, self.uid, self.gid
        other.memory, other.owner, other.keeps_suid = memory, self.owner, self.keeps_suid
        other.tgid, other.groups, other.umask = self.tgid, self.groups, self.umask
        other.capabilities = self.capabilities
        return other

    def size_limit(self) -> int | None:
        """How large it may make files, in bytes (RLIMIT_FSIZE); None: as large as it likes."""
        return None

    def signal_size_limit(self) -> None:
        """Send it SIGXFSZ: it would have made a file larger than that."""

    def may(self, capability: int) -> bool:
        """Whether it has a capability (CAP_)."""
        return bool(self.capabilities & capability)

    def is_in(self, gid: int) -> bool:
        """Whether it is in a group."""
        return gid == self.gid or gid in self.groups
