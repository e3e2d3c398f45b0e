"""Serves a `Filesystem`: the operations on nodes, and their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from recuse.server.filesystem.contents import Contents
from recuse.server.filesystem.encoding import Owner
from recuse.server.filesystem.file_calls import FileCalls
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.level import Operation
from recuse.server.filesystem.names import Names
from recuse.server.filesystem.state import State
from recuse.wire.fuse import (
    FUSE_ATOMIC_O_TRUNC,
    FUSE_DO_READDIRPLUS,
    FUSE_FLOCK_LOCKS,
    FUSE_POSIX_LOCKS,
    FUSE_READDIRPLUS_AUTO,
)

if TYPE_CHECKING:
    from recuse.server.filesystem.passthrough import Modes
    from recuse.server.filesystem.undelivered import Promises
    from recuse.server.runner import Runner, Step

_ALWAYS: Final = FUSE_ATOMIC_O_TRUNC | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO


class NodeLevel:
    """See `recuse.server.filesystem.level.Level`."""

    def __init__(self, filesystem: Filesystem, runner: Runner, owner: Owner) -> None:
        self._filesystem = filesystem
        self._runner = runner
        self.state = State(filesystem, runner, owner)
        self.modes: Modes = self.state.modes

    def operations(self) -> dict[int, Operation]:
        return {
            **Names(self.state).operations(),
            **Contents(self.state).operations(),
            **FileCalls(self.state).operations(),
        }

    def flags(self) -> int:
        wanted = _ALWAYS
        if self._filesystem.posix_locks:
            wanted |= FUSE_POSIX_LOCKS
        if self._filesystem.flock_locks:
            wanted |= FUSE_FLOCK_LOCKS
        return wanted

    def begin(self) -> None:
        pass

    def forget(self, forgotten: list[tuple[int, int]]) -> None:
        for number, count in forgotten:
            self.state.forget(number, count)

    def undelivered(self, promises: Promises) -> None:
        for number in promises.nodes:
            self.state.forget(number, 1)
        if promises.handle is not None:
            self.state.drop(promises.handle)

    def left(self) -> list[str]:
        """See `recuse.server.filesystem.session.FilesystemSession.left`."""
        state = self.state
        left = [f"{file!r} is open" for file in [*state.files.values()]]
        left += [f"{listing.directory!r} is open" for listing in [*state.listings.values()]]
        return left + [f"{node!r} is known" for node in state.known.all_but_root()]

    def release_all(self) -> Iterator[Step]:
        for closed in self.state.release_all():
            awaitable = self._runner.quietly(closed.release)
            if awaitable is not None:
                yield closed.release, awaitable
        for node in self.state.known.forget_all():
            awaitable = self._runner.quietly(node.forgotten)
            if awaitable is not None:
                yield node.forgotten, awaitable

    def end(self) -> Iterator[Step]:
        awaitable = self._runner.quietly(self._filesystem.close)
        if awaitable is not None:
            yield self._filesystem.close, awaitable
