"""Serves `Inodes`: the operations on inodes, and their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from recuse.server.filesystem.encoding import Owner
from recuse.server.filesystem.inode_files import InodeFiles
from recuse.server.filesystem.inode_names import InodeNames
from recuse.server.filesystem.inode_state import InodeState
from recuse.server.filesystem.inodes import Inodes
from recuse.server.filesystem.level import Operation
from recuse.wire.fuse import (
    FUSE_ATOMIC_O_TRUNC,
    FUSE_DO_READDIRPLUS,
    FUSE_EXPORT_SUPPORT,
    FUSE_FLOCK_LOCKS,
    FUSE_POSIX_LOCKS,
    FUSE_READDIRPLUS_AUTO,
)

if TYPE_CHECKING:
    from recuse.server.filesystem.passthrough import Modes
    from recuse.server.filesystem.undelivered import Promises
    from recuse.server.runner import Runner, Step


class InodeLevel:
    """See `recuse.server.filesystem.level.Level`."""

    def __init__(self, inodes: Inodes, runner: Runner, owner: Owner) -> None:
        self._inodes = inodes
        self._runner = runner
        self.state = InodeState(inodes, runner, owner)
        self.modes: Modes = self.state.modes

    def operations(self) -> dict[int, Operation]:
        return {**InodeNames(self.state).operations(), **InodeFiles(self.state).operations()}

    def flags(self) -> int:
        defines, wanted = self.state.defines, 0
        if defines("open"):
            # Otherwise the kernel half opens files without asking, and nobody would truncate them.
            wanted |= FUSE_ATOMIC_O_TRUNC
        if defines("readdirplus"):
            wanted |= FUSE_DO_READDIRPLUS
            if defines("readdir"):
                wanted |= FUSE_READDIRPLUS_AUTO
        if defines("setlk"):
            wanted |= FUSE_POSIX_LOCKS
        if defines("flock"):
            wanted |= FUSE_FLOCK_LOCKS
        if self._inodes.export:
            wanted |= FUSE_EXPORT_SUPPORT
        return wanted

    def begin(self) -> None:
        self._inodes.init()

    def forget(self, forgotten: list[tuple[int, int]]) -> None:
        self.state.forget(forgotten)

    def undelivered(self, promises: Promises) -> None:
        if promises.handle is not None:
            self.state.drop(promises.handle)
        if promises.nodes:
            self.state.forget([(number, 1) for number in promises.nodes])

    def release_all(self) -> Iterator[Step]:
        for held in self.state.release_all():
            release = self.state.releasing(held)
            awaitable = self._runner.quietly(release, held.ino, held.fh)
            if awaitable is not None:
                yield release, awaitable

    def end(self) -> Iterator[Step]:
        awaitable = self._runner.quietly(self._inodes.destroy)
        if awaitable is not None:
            yield self._inodes.destroy, awaitable
