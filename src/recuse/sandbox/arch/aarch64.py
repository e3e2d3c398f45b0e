"""Numbers of the arm64 system call interface (asm-generic/unistd.h; arch/arm64)."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.arch.status import Status
from recuse.sandbox.table import ARM64, entries
from recuse.sandbox.table import INJECTED as _INJECTED

AUDIT_ARCH: Final = 0xC00000B7
"""What seccomp_data.arch says for a 64-bit system call (linux/audit.h)."""

FOREIGN_CALL_BIT: Final = 0
"""There are no calls of the same architecture with other layouts."""

CALLS: Final = entries(ARM64)
SYSCALLS: Final = {call.name: call.number for call in CALLS}
"""The number of every system call that recuse traps or makes, by name. The old calls without ``at``
are missing, and so are poll, select and epoll_wait: the C library makes the newer calls instead."""

ADDRESS_LIMIT: Final = 1 << 48
"""The end of user space for programs that do not ask for more (DEFAULT_MAP_WINDOW)."""

O_DIRECTORY: Final = 0o40000
O_NOFOLLOW: Final = 0o100000
O_DIRECT: Final = 0o200000
O_LARGEFILE: Final = 0o400000
"""These four differ between architectures (asm/fcntl.h)."""

INJECTED: Final = {name: SYSCALLS[name] for name in _INJECTED}
"""The calls that `tasks.inject` makes; mmap's offset is in units of MMAP_UNIT bytes."""

MMAP_UNIT: Final = 1

REGISTERS: Final = (
    Registers(
        ctypes.c_uint64 * 34,
        number=8,
        arguments=(0, 1, 2, 3, 4, 5),
        result=0,
        instruction=32,
        stack=31,
        original=None,
        instruction_size=4,
    ),
)
"""``struct user_pt_regs`` (asm/ptrace.h): x0 to x30, sp, pc, pstate."""

_STAT = struct.Struct("=QQIIIIQQqiiqqQqQqQII")


def pack_stat(status: Status) -> bytes:
    """Encode a ``struct stat`` (128 bytes; asm-generic/stat.h)."""
    return _STAT.pack(
        status.device,
        status.inode,
        status.mode,
        status.links,
        status.uid,
        status.gid,
        status.rdev,
        0,
        status.size,
        status.block_size,
        0,
        status.blocks,
        *status.stamps,
        0,
        0,
    )
