"""A small process that unmounts if its server is killed.

It holds the reading end of a pipe, whose other end only the server has: the pipe ends with it,
however that ends. A server that ends in order unmounts by itself, and says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Final

from recuse.channel.unmounting import Identity, unmount_only
from recuse.runtime.interpreter import interpreter

_RUN: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1));"
    "from recuse.channel.guard import main; main(sys.argv[1:])"
)
_PACKAGES: Final = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
_DONE: Final = b"done"
_END_S: Final = 10.0


class Guard:
    """The server's end."""

    def __init__(self, path: str, mounted: Identity) -> None:
        """Start the process, for what is mounted at a path. Raises OSError."""
        program = interpreter()
        if program is None:
            raise FileNotFoundError("no Python to watch over the mount")
        self._process = subprocess.Popen(
            [program, "-I", "-S", "-c", _RUN, _PACKAGES, path, *mounted],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C is for the server.
            start_new_session=True,
        )

    def close(self) -> None:
        """End it: the server has unmounted."""
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it was killed
            process.stdin.write(_DONE)
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: list[str]) -> None:
    """What the process does."""
    path, *mounted = arguments
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == _DONE:
        return
    with contextlib.suppress(OSError):
        # Another one may be there by now, or none.
        unmount_only(path, Identity(*mounted))
