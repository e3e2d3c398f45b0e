"""Where the registers of a stopped thread are, on any architecture."""

from __future__ import annotations

import ctypes
from typing import Any

from recuse.runtime.records import NamedTuple


class Registers(NamedTuple):
    """What ptrace(2) reads and writes as NT_PRSTATUS; the members are indices into it."""

    type: type[ctypes.Array[Any]]
    """All of them: unsigned numbers of the same size."""
    number: int
    """Holds the number of a call when a thread makes it."""
    arguments: tuple[int, ...]
    result: int
    instruction: int
    stack: int
    original: int | None
    """Holds the number of the call in which the kernel believes the thread to be, or -1. None if it
    is not a member: it is NT_ARM_SYSTEM_CALL then."""
    instruction_size: int
    """The size in bytes of the instruction that makes a call."""
