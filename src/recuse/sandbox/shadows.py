"""Real, empty directories that stand for those that exist only in a sandbox, while they are open.

What a program holds when it has opened one of ours is a descriptor of its shadow, and the link
``/proc/PID/fd/N`` tells which it is. All that programs ask of it is answered from the sandbox's
nodes; there is nothing in it, so no name is found natively but "." and "..".

They are removed with the sandbox; should its process be killed, by the programs' first process
(:mod:`recuse.sandbox.init`), which is told of :attr:`Shadows.root` before it is there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading

from recuse.sandbox.nodes import Node


class Shadows:
    """All shadows of a sandbox; none before a program opens such a directory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        directory = os.fsencode(os.path.realpath(tempfile.gettempdir()))
        self.root = directory + b"/recuse-" + secrets.token_hex(8).encode()
        self.used = False
        """Whether there are any."""
        self._paths: dict[bytes, bytes] = {}

    def of(self, node: Node) -> bytes:
        """The path of a directory's shadow."""
        with self._lock:
            if not self.used:
                _make_directory(self.root)
                self.used = True
            shadow = self.root + b"/%d" % node.inode
            if shadow not in self._paths:
                _make_directory(shadow)
                self._paths[shadow] = node.path
        return shadow

    def path_of(self, link: bytes) -> bytes | None:
        """The path that a descriptor's or process's link stands for; None if it is no shadow's."""
        if not self.used or not link.startswith(self.root):
            return None
        return self._paths.get(link)

    def close(self) -> None:
        """Remove them."""
        with self._lock:
            if self.used:
                shutil.rmtree(self.root, ignore_errors=True)
                self.used = False


def _make_directory(path: bytes) -> None:
    """Make one that all may search, whatever the umask; OSError as mkdir."""
    os.mkdir(path, 0o700)
    os.chmod(path, 0o755)
