"""Numbers of the i386 system call interface, as 32-bit programs use it on an x86-64 kernel.

arch/x86/entry/syscalls/syscall_32.tbl. The kernel's numbers for open flags, poll events and errors
are those of x86-64.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from recuse.sandbox.arch import x86_64
from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.arch.status import Status
from recuse.sandbox.table import I386, entries
from recuse.sandbox.table import INJECTED as _INJECTED

AUDIT_ARCH: Final = 0x40000003
"""What seccomp_data.arch says for a 32-bit system call (linux/audit.h)."""

CALLS: Final = entries(I386)
SYSCALLS: Final = {call.name: call.number for call in CALLS}
"""The number of every system call that recuse traps or makes, by name."""

INJECTED: Final = {name: SYSCALLS[name] for name in _INJECTED} | {"mmap": SYSCALLS["mmap2"]}
"""The calls that `tasks.inject` makes; mmap's offset is in units of MMAP_UNIT bytes."""

MMAP_UNIT: Final = 4096

REGISTERS: Final = (
    Registers(
        ctypes.c_uint32 * 17,
        number=6,
        arguments=(0, 1, 2, 3, 4, 5),
        result=6,
        instruction=12,
        stack=15,
        original=11,
        instruction_size=2,
    ),
    x86_64.REGISTERS[0]._replace(arguments=(5, 11, 12, 13, 14, 4)),
)
"""``struct user_regs_struct32`` (asm/user32.h): eax for number and result; the arguments are in
ebx, ecx, edx, esi, edi and ebp. A 64-bit program can make 32-bit calls too (``int $0x80``), and
then has its own registers."""

_STAT = struct.Struct("=IIHHHHIIIIIIIIIIxxxxxxxx")
_STAT64 = struct.Struct("=QxxxxIIIIIQxxxxqIQIIIIIIQ")
_LOW: Final = 0xFFFFFFFF


def pack_stat(status: Status) -> bytes:
    """Encode a ``compat_stat`` (64 bytes; arch/x86/include/asm/compat.h), for stat and others.

    Bits that do not fit are cut off.
    """
    return _STAT.pack(
        status.device & _LOW,
        status.inode & _LOW,
        status.mode,
        status.links,
        status.uid & 0xFFFF,
        status.gid & 0xFFFF,
        status.rdev & _LOW,
        status.size,
        status.block_size,
        status.blocks & _LOW,
        *_stamps(status),
    )


def pack_stat64(status: Status) -> bytes:
    """Encode an i386 ``struct stat64`` (96 bytes; arch/x86/include/asm/stat.h)."""
    return _STAT64.pack(
        status.device,
        status.inode & _LOW,
        status.mode,
        status.links,
        status.uid,
        status.gid,
        status.rdev,
        status.size,
        status.block_size,
        status.blocks,
        *_stamps(status),
        status.inode,
    )


def _stamps(status: Status) -> list[int]:
    return [part & _LOW for part in status.stamps]
