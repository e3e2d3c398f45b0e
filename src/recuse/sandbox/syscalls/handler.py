"""What every system call's handler gets and returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from recuse.sandbox.trap.answers import ANSWERED, PROCEED
from recuse.sandbox.trap.call import Outcome, TrappedCall

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

__all__ = ["ANSWERED", "PROCEED", "Handler", "signed32", "signed64"]

Handler = Callable[[TrappedCall, "Machine"], Outcome]
"""Handles one trapped call of a program on a machine.

The call has what the handler needs of it: who makes it, its arguments, whether it still waits, and
how to answer it. Everything else is the machine's.

A handler first finds out what the call is about, and does nothing before. If it has to ask a server
on the way, it starts again (`TrappedCall.ask`).

It returns the call's result (not negative), PROCEED or ANSWERED. Or it is a generator that returns
one of these, and waits for what it yields. An OSError is the call's error. Any other exception is a
bug in recuse: the call fails with EIO, and never proceeds.
"""


def signed32(value: int) -> int:
    """An argument register as the kernel's ``int``."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def signed64(value: int) -> int:
    """An argument register as the kernel's ``long``."""
    return (value ^ 0x8000000000000000) - 0x8000000000000000
