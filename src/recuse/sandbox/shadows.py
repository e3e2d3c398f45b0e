"""Real, empty directories that stand for those that exist only in a sandbox, while they are open.

What a program holds when it has opened one of ours is a descriptor of its shadow, and the link
``/proc/PID/fd/N`` tells which it is. All that programs ask of it is answered from the sandbox's
nodes; there is nothing in it, so no name is found natively but "." and "..".
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading

from recuse.sandbox.nodes import Node


class Shadows:
    """All shadows of a sandbox; none before a program opens such a directory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: bytes | None = None
        self.used = False
        """Whether there are any."""
        self._paths: dict[bytes, bytes] = {}

    def of(self, node: Node) -> bytes:
        """The path of a directory's shadow."""
        with self._lock:
            if self._root is None:
                self._root = os.fsencode(os.path.realpath(tempfile.mkdtemp(prefix="recuse-")))
                os.chmod(self._root, 0o755)
                self.used = True
            shadow = self._root + b"/%d" % node.inode
            if shadow not in self._paths:
                os.mkdir(shadow, 0o755)
                self._paths[shadow] = node.path
        return shadow

    def path_of(self, link: bytes) -> bytes | None:
        """The path that a descriptor's or process's link stands for; None if it is no shadow's."""
        if self._root is None or not link.startswith(self._root):
            return None
        return self._paths.get(link)

    def close(self) -> None:
        """Remove them."""
        with self._lock:
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)
                self._root = None
