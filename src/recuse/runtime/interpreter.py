"""Which program runs Python code, for what needs a separate process."""

from __future__ import annotations

import functools
import os
import sys

NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
"""The name to look for if `sys.executable` is not Python."""


@functools.cache
def interpreter() -> str | None:
    """Return its path, None if there is none.

    If Python is embedded, ``sys.executable`` is the program that embeds it. That program would
    start again, and so on.
    """
    if "python" in os.path.basename(sys.executable or ""):
        return sys.executable
    prefixes = (os.path.join(prefix, "bin") for prefix in (sys.exec_prefix, sys.base_exec_prefix))
    for directory in (*prefixes, *os.get_exec_path()):
        if os.access(path := os.path.join(directory, NAME), os.X_OK):
            return path
    return None
