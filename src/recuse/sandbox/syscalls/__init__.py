"""The trapped system calls, one module for each family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recuse.sandbox.arch import MACHINE, arch
from recuse.sandbox.syscalls.families import FAMILIES
from recuse.sandbox.syscalls.handler import Handler

if TYPE_CHECKING or MACHINE != "aarch64":
    from recuse.sandbox.syscalls.compat import i386 as narrow
else:
    from recuse.sandbox.syscalls.compat import arm as narrow


def handlers() -> dict[int, Handler]:
    """The handlers of this architecture's calls, by number."""
    return {
        call.number: FAMILIES[call.family].HANDLERS[call.name]
        for call in arch.CALLS
        if call.trapped
    }


def compat_handlers() -> dict[int, Handler]:
    """The handlers of 32-bit programs' calls, by number."""
    return narrow.handlers()
