"""What a child of this process does not keep, if it is made by `os.fork` or `multiprocessing`.

A copy of /dev/fuse there has the connection last when this process has ended, and programs wait.
Children that execute a program keep nothing anyway (O_CLOEXEC); those made by C, everything.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Left(Protocol):
    """Something that only the parent uses."""

    def leave_to_parent(self) -> None:
        """Give up what the child has of it: it is called there, where no other thread runs."""


_left: weakref.WeakSet[Left] = weakref.WeakSet()


def not_for_children(left: Left) -> None:
    """Have children give it up, as long as it exists."""
    _left.add(left)


def _leave_to_parent() -> None:
    for left in list(_left):
        left.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)
