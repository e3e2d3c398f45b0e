"""What a session needs of a level: a way to write filesystems, with nodes or with inodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from recuse.server.pending_reply import PendingReply

if TYPE_CHECKING:
    from recuse.server.filesystem.passthrough import Modes
    from recuse.server.filesystem.undelivered import Promises
    from recuse.server.runner import Step

Operation = Callable[[PendingReply, int], None]
"""Answers a request about the node with a number, or makes sure that it is answered."""


class LevelState(Protocol):
    """What the operations of one session have in common."""

    setxattr_size: int
    """How long a request to set an extended attribute is up to the name."""


class Level(Protocol):
    """Serves one filesystem to one session."""

    modes: Modes

    @property
    def state(self) -> LevelState:
        """What its operations have in common."""

    def operations(self) -> dict[int, Operation]:
        """By opcode; the session answers ENOSYS to others."""

    def flags(self) -> int:
        """Return the capabilities (INIT) that are to be taken for its operations."""

    def begin(self) -> None:
        """Tell the filesystem that requests come after this.

        Raises:
            OSError: the filesystem cannot be served.
        """

    def forget(self, forgotten: list[tuple[int, int]]) -> None:
        """Take back some of the times that the kernel half was told about nodes, by number."""

    def undelivered(self, promises: Promises) -> None:
        """Take back what an answer promised that the kernel half has not received."""

    def release_all(self) -> Iterator[Step]:
        """Release all that is open, and forget all nodes. Each step is something to wait for."""

    def end(self) -> Iterator[Step]:
        """Tell the filesystem that this is the end."""
