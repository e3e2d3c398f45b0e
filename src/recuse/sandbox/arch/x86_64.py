"""Numbers of the x86-64 system call interface (arch/x86/entry/syscalls/syscall_64.tbl)."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.arch.status import Status
from recuse.sandbox.table import INJECTED as _INJECTED
from recuse.sandbox.table import X86_64, entries

AUDIT_ARCH: Final = 0xC000003E
"""What seccomp_data.arch says for a 64-bit system call (linux/audit.h)."""

FOREIGN_CALL_BIT: Final = 0x40000000
"""Set in the number of an x32 system call: the same architecture, but other argument layouts. It is
0 on architectures without such calls."""

CALLS: Final = entries(X86_64)
SYSCALLS: Final = {call.name: call.number for call in CALLS}
"""The number of every system call that recuse traps or makes, by name. Other architectures lack
some of them (aarch64 has no open, stat or fork), and do not trap these."""

ADDRESS_LIMIT: Final = 0x7FFFFFFFF000
"""The end of user space with four-level page tables (TASK_SIZE_MAX)."""

O_DIRECTORY: Final = 0o200000
O_NOFOLLOW: Final = 0o400000
O_DIRECT: Final = 0o40000
O_LARGEFILE: Final = 0o100000
"""These four differ between architectures (asm/fcntl.h)."""

INJECTED: Final = {name: SYSCALLS[name] for name in _INJECTED}
"""The calls that `tasks.inject` makes; mmap's offset is in units of MMAP_UNIT bytes."""

MMAP_UNIT: Final = 1

REGISTERS: Final = (
    Registers(
        ctypes.c_uint64 * 27,
        number=10,
        arguments=(14, 13, 12, 7, 9, 8),
        result=10,
        instruction=16,
        stack=19,
        original=15,
        instruction_size=2,
    ),
)
"""``struct user_regs_struct`` (sys/user.h): rax for number and result; the arguments are in rdi,
rsi, rdx, r10, r8 and r9."""

_STAT = struct.Struct("=QQQIIIIQqqqqQqQqQ24x")


def pack_stat(status: Status) -> bytes:
    """Encode a ``struct stat`` (144 bytes; asm/stat.h)."""
    return _STAT.pack(
        status.device,
        status.inode,
        status.links,
        status.mode,
        status.uid,
        status.gid,
        0,
        status.rdev,
        status.size,
        status.block_size,
        status.blocks,
        *status.stamps,
    )
