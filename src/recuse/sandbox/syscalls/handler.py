"""What every system call's handler is given and returns."""

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

What it needs of the call is in the call: who makes it, its arguments, whether it still waits, and
how to answer it. All else is the machine's.

It finds first what the call is about, and does nothing before: what it has to ask a server for on
the way makes it begin anew (`TrappedCall.ask`).

Returns the call's result (not negative), or PROCEED or ANSWERED; or it is a generator that returns
them, which waits for what it yields. An OSError is the call's error. Anything else that escapes is
a fault of recuse: the call fails with EIO, it never proceeds.
"""


def signed32(value: int) -> int:
    """An argument register as the kernel's ``int``."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def signed64(value: int) -> int:
    """An argument register as the kernel's ``long``."""
    return (value ^ 0x8000000000000000) - 0x8000000000000000
