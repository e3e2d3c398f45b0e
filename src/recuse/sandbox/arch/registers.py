"""Where the registers of a stopped thread are, on any architecture."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple


class Registers(NamedTuple):
    """What ptrace(2) gives and takes as NT_PRSTATUS; the members are indices into it."""

    type: type[ctypes.Array[Any]]
    """All of them: unsigned numbers of the same size."""
    number: int
    """Has a call's number when a thread makes one."""
    arguments: tuple[int, ...]
    result: int
    instruction: int
    stack: int
    original: int | None
    """Has the number of the call that the kernel believes a thread to be in, -1 for none. None if
    that is no member: then it is NT_ARM_SYSTEM_CALL."""
    instruction_size: int
    """Bytes of the instruction that makes a call."""
