"""Runs unmodified programs against the kernel half, by seccomp user notification.

:mod:`~recuse.sandbox.launch.parent` starts a program under the :mod:`~recuse.sandbox.trap.filter`;
its trapped calls arrive at the :mod:`~recuse.sandbox.trap.listener`; the
:mod:`~recuse.sandbox.supervisor` gives each to its handler in :mod:`recuse.sandbox.syscalls`, which
asks the :mod:`~recuse.sandbox.machine`'s tree and descriptors whether it is about a device, and
calls the kernel half if it is.
"""

from recuse.sandbox.api import Sandbox
from recuse.sandbox.foreground import supervise
from recuse.sandbox.launch.parent import Program, SandboxError

__all__ = ["Program", "Sandbox", "SandboxError", "supervise"]
