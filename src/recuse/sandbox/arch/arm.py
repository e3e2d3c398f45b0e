"""Numbers of the 32-bit ARM system call interface, which many arm64 kernels have too.

arch/arm/tools/syscall.tbl (EABI). 32-bit programs see no devices on arm64. These are the calls by
which they could reach a device whose descriptor they inherit, and calls that change what recuse
remembers of a process.
"""

from __future__ import annotations

from typing import Final

from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.table import ARM, entries

AUDIT_ARCH: Final = 0x40000028
"""What seccomp_data.arch says for a 32-bit system call (linux/audit.h)."""

CALLS: Final = entries(ARM)
SYSCALLS: Final = {call.name: call.number for call in CALLS}
"""The number of every system call that recuse traps, on this machine or others, by name."""

INJECTED: Final[dict[str, int]] = {}
REGISTERS: Final[tuple[Registers, ...]] = ()
MMAP_UNIT: Final = 4096
"""No thread of such a program is ever made to make a call."""
