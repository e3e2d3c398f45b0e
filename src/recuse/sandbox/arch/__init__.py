"""The only place for the numbers of an architecture.

A new architecture is a module like :mod:`recuse.sandbox.arch.x86_64` with the same names, and one
for its 32-bit programs like :mod:`recuse.sandbox.arch.arm`, and a row here.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

MACHINE = os.uname().machine
"""The architecture of this kernel, as ``uname -m`` names it."""

if TYPE_CHECKING or MACHINE != "aarch64":
    from recuse.sandbox.arch import i386 as compat
    from recuse.sandbox.arch import x86_64 as arch
else:
    from recuse.sandbox.arch import aarch64 as arch
    from recuse.sandbox.arch import arm as compat

__all__ = ["DESCRIPTION", "MACHINE", "SUPPORTED", "arch", "compat", "name_of"]

_WIDE = struct.calcsize("P") == 8

SUPPORTED = MACHINE in ("x86_64", "aarch64") and _WIDE
"""Whether the sandbox knows this architecture and the interpreter is a 64-bit one. Otherwise
:class:`recuse.sandbox.launch.parent.Launch` refuses to start anything."""

DESCRIPTION = MACHINE if _WIDE else f"{MACHINE} with a 32-bit Python"
"""For messages."""


def name_of(audit_arch: int, number: int) -> str:
    """The name of a trapped call, for messages; its number if it is not known."""
    calls = arch.CALLS if audit_arch == arch.AUDIT_ARCH else compat.CALLS
    return next((call.name for call in calls if call.number == number), str(number))
