"""Where a walk is: in a tree of ours, or natively, where descriptors hold what it has come to.

The kernel itself says what a name is in a native directory, which mounts are on it and what is
above it, in whatever mount namespace and below whatever root the thread is: the descriptors open
nothing (O_PATH). What is mounted in the sandbox, or added, is told by what a directory *is*.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING

from recuse.kernel.errors import os_error
from recuse.runtime.records import record
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Addition, Location, Mount
from recuse.sandbox.vfs.native_files import RESOLVE_BENEATH
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from typing import Self

    from recuse.sandbox.vfs.mounts import Mounts
    from recuse.sandbox.vfs.placeholder_dirs import PlaceholderDirs


@record
class Spot:
    """A native file that a walk has come to."""

    file: int
    """A descriptor, opened with O_PATH."""
    status: os.stat_result
    additions: tuple[Addition, ...]
    """What is added to it."""
    cover: Mount | None
    """What is mounted on it."""

    def shows(self, mount: Mount) -> bool:
        """Whether that is mounted on it or added to it."""
        return mount is self.cover or any(mount is addition for addition in self.additions)


class Position:
    """To be used in a with statement, which closes what it holds."""

    def __init__(
        self,
        mounts: Mounts,
        placeholders: PlaceholderDirs,
        tid: Tid,
        *,
        own_root: bool,
        scope: int,
    ) -> None:
        """Be nowhere yet. Arguments as those of :class:`recuse.sandbox.vfs.walk.Walk`."""
        self.mounts = mounts
        self.placeholders = placeholders
        self.tid = tid
        self.own_root = own_root
        self.scope = scope
        self.here: Spot | None = None
        """Where it is natively; with ``at``, where it left what is native."""
        self.at: Location | None = None
        """Where it is in a tree of ours, if it is in one."""
        self.through_ours = False
        """Whether it has been in one."""
        self.above: os.stat_result | None = None
        """What the native file is in, if it was found there by a name."""
        self.callers = False
        """Whether it is natively in the directory of the thread's own process in a ``/proc``."""
        self._root: Spot | Location | None = None
        self._out_of_reach = False
        """Whether it is natively in a directory of the supervisor's for what is ours there."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what it holds."""
        self.leave()
        if isinstance(self._root, Spot):
            os.close(self._root.file)

    def leave(self) -> None:
        """Be nowhere."""
        here, self.here, self.at = self.here, None, None
        if here is not None:
            os.close(here.file)

    def _spot(self, file: int, status: os.stat_result | None = None) -> Spot:
        """What a descriptor leads to, which is closed if that fails."""
        try:
            status = status or os.fstat(file)
            if not stat.S_ISDIR(status.st_mode):
                return Spot(file, status, (), None)
            additions = self.mounts.additions(b"/proc/self/fd/%d" % file, status)
            cover = None
            if self.mounts.covers:
                cover = self.mounts.cover(file, status, own_root=self.own_root)
            return Spot(file, status, additions, cover)
        except BaseException:
            os.close(file)
            raise

    def go(self, file: int, status: os.stat_result | None = None) -> None:
        """Go to what a descriptor leads to, which is the position's from now on."""
        spot = self._spot(file, status)
        self.leave()
        self.here = spot
        self.callers = False
        self.above = None
        self._out_of_reach = False
        stands_for = self.placeholders.standing_for(spot.status)
        if stands_for is not None:
            self.leave()
            self.through_ours = True
            if stands_for.node.removed:
                raise os_error(errno.ENOENT)
            self.at = stands_for
        elif spot.cover is not None:
            self.enter(Location(spot.cover, spot.cover.tree.root))
        if self.scope and self._root is None:
            self._root = self.at or self._spot(os.dup(file), spot.status)

    def enter(self, location: Location) -> None:
        """Go to a place of ours, and to what is mounted there."""
        self.through_ours = True
        self.at = self.mounts.top(location)

    def go_to_root(self) -> None:
        """Go to the thread's root. Raises EXDEV if that leads out of the path's scope."""
        if self.scope & RESOLVE_BENEATH:
            raise os_error(errno.EXDEV)  # fs/namei.c, nd_jump_root
        root = self.root()
        if isinstance(root, Location):
            self.at = root
        else:
            self.go(os.dup(root.file), root.status)

    def root(self) -> Spot | Location:
        """The thread's root, or where the path's scope begins."""
        if self._root is None:
            root = b"/proc/%d/root" % self.tid if self.own_root else b"/"
            spot = self._spot(native_files.look(root))
            self._root = spot
            if spot.cover is not None:
                os.close(spot.file)
                self._root = self.mounts.top(Location(spot.cover, spot.cover.tree.root))
        return self._root

    def _at_root(self) -> bool:
        """Whether ".." leads nowhere else.

        Of the supervisor's own root the kernel knows that itself.
        """
        if not (self.scope or self.own_root):
            return False
        root = self.root()
        if isinstance(root, Location):
            return root == self.at
        here = self.here
        if here is None or self.at is not None:
            return False
        if not os.path.samestat(root.status, here.status):
            return False
        return native_files.mount_of(root.file) == native_files.mount_of(here.file)

    def up(self) -> None:
        """Go to what is above."""
        if self._at_root():
            if self.scope & RESOLVE_BENEATH:
                raise os_error(errno.EXDEV)  # fs/namei.c, follow_dotdot
            return
        at = self.at
        while at is not None and at.is_root:
            if at.mount.point is None:
                if self.here is None or self.here.cover is not at.mount:
                    self._go_by_path(at.mount)  # it was not reached through that directory
                break
            at = at.mount.point
        if at is None or at.is_root:
            self.check_reach()
            assert self.here is not None
            self.go(native_files.look(b"..", self.here.file))
            return
        parent = at.dentry.parent
        assert parent is not None
        if parent.parent is not None or not isinstance(at.mount, Addition):
            self.enter(Location(at.mount, parent))
            return
        self.at = None
        if self.here is None or not self.here.shows(at.mount):
            self._go_by_path(at.mount)

    def _go_by_path(self, mount: Mount) -> None:
        """Go to the native directory that a mount is on or that it is added to."""
        if self.own_root:
            root = self.root()
            if isinstance(root, Spot):
                flags = native_files.RESOLVE_IN_ROOT | native_files.RESOLVE_NO_MAGICLINKS
                # As in a bind mount or a copy of /dev, or else by the supervisor's path.
                below = native_files.below(native_files.path_of(root.file), mount.path)
                for path in dict.fromkeys((mount.path, below)):
                    file = native_files.open_path(root.file, path, flags)
                    if file >= 0:
                        self.go(file)
                        if self.here is not None and self.here.shows(mount):
                            return
        # From the thread's root it may be out of reach, but for what is ours in it.
        self.go(native_files.look(mount.path))
        self._out_of_reach = self.own_root or bool(self.scope)

    def check_reach(self) -> None:
        """Raise ENOENT if what is here natively is not to be reached."""
        if self._out_of_reach:
            raise os_error(errno.ENOENT)
