"""Runs unmodified programs against the kernel half, by seccomp user notification.

:mod:`~recuse.sandbox.launch.parent` starts a program under the :mod:`~recuse.sandbox.trap.filter`.
The program's trapped calls arrive at the :mod:`~recuse.sandbox.trap.listener`, and the
:mod:`~recuse.sandbox.supervisor` gives each to its handler in :mod:`recuse.sandbox.syscalls`. The
handler uses the :mod:`~recuse.sandbox.machine`'s tree and descriptors to find out whether the call
is about a device. If it is, the handler calls the kernel half.
"""

from recuse.sandbox.api import Sandbox
from recuse.sandbox.foreground import supervise
from recuse.sandbox.launch.parent import Program, SandboxError

__all__ = ["Program", "Sandbox", "SandboxError", "supervise"]
