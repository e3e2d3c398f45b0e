"""A small process that unmounts if its server is killed.

It watches the server by a pidfd, and a pipe from it. A server that ends in order unmounts by
itself, and says so. Its children may live longer, with copies of the pipe and of /dev/fuse: so the
pipe may not end with the server, and the connection has to be ended, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import Final

from recuse.channel.unmounting import Identity, end_mount
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
        server = os.pidfd_open(os.getpid())
        try:
            self._process = subprocess.Popen(
                [program, "-I", "-S", "-c", _RUN, _PACKAGES, path, f"{server}", *mounted],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[server],
                cwd="/",
                # Ctrl-C is for the server.
                start_new_session=True,
            )
        finally:
            os.close(server)

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
    path, server, *mounted = arguments
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if _ends_in_order(int(server)):
        return
    with contextlib.suppress(OSError):
        # Another one may be there by now, or none.
        end_mount(path, Identity(*mounted))


def _ends_in_order(server: int) -> bool:
    """Wait for the end of the server, or of what it serves; return whether it has unmounted."""
    pipe = sys.stdin.fileno()
    poll = select.poll()
    poll.register(server, select.POLLIN)
    poll.register(pipe, select.POLLIN)
    # If it has said so before its end, both are ready. The pipe ends alone at an execve.
    ready = [number for number, _ in poll.poll()]
    return pipe in ready and os.read(pipe, len(_DONE)) == _DONE
