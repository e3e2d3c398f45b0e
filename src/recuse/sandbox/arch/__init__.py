"""The one place where the architecture's numbers live.

A new architecture is a module like :mod:`recuse.sandbox.arch.x86_64` with the same names and a
row here.
"""

from __future__ import annotations

import platform

from recuse.sandbox.arch import i386, x86_64

MACHINE = platform.machine()
"""The architecture this interpreter runs on, as ``uname -m`` names it."""

SUPPORTED = MACHINE == "x86_64"
"""Whether the sandbox knows this architecture; :func:`recuse.sandbox.launch.launch` refuses
others before anything is started."""

arch = x86_64

compat = i386
"""The other system call interface that this kernel has, for 32-bit programs."""
