"""What every system call's handler is given and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

PROCEED: Final = -1
"""A handler's result: the call has nothing to do with devices; let the kernel run it."""

ANSWERED: Final = -2
"""A handler's result: the call was answered, or will be when its operation ends."""

Handler = Callable[["Supervisor", "Notification"], int]
"""Handles one trapped call.

Returns the call's result (not negative), or PROCEED or ANSWERED. An OSError is the call's error.
Anything else that escapes is a fault of recuse: the call fails with EIO, it never proceeds.
"""


def signed32(value: int) -> int:
    """An argument register as the kernel's ``int``."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def signed64(value: int) -> int:
    """An argument register as the kernel's ``long``."""
    return (value ^ 0x8000000000000000) - 0x8000000000000000
