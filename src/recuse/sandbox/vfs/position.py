"""Where a walk is: in a tree of recuse's, or natively, where descriptors hold what it has reached.

The kernel itself says what a name is in a native directory, which mounts are on it, and what is
above it. It does so for the thread's own mount namespace and root. The descriptors open nothing
(O_PATH). What is mounted or added in the sandbox is found by what a directory *is*.
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
    """A native file that a walk has reached."""

    file: int
    """A descriptor, opened with O_PATH."""
    status: os.stat_result
    additions: tuple[Addition, ...]
    """What is added to it."""
    cover: Mount | None
    """What is mounted on it."""

    def shows(self, mount: Mount) -> bool:
        """Whether this mount covers it or is added to it."""
        return mount is self.cover or any(mount is addition for addition in self.additions)


class Position:
    """A position. It is used in a with statement, which closes what it holds."""

    def __init__(
        self,
        mounts: Mounts,
        placeholders: PlaceholderDirs,
        tid: Tid,
        *,
        own_root: bool,
        scope: int,
    ) -> None:
        """Start nowhere. The arguments are those of :class:`recuse.sandbox.vfs.walk.Walk`."""
        self.mounts = mounts
        self.placeholders = placeholders
        self.tid = tid
        self.own_root = own_root
        self.scope = scope
        self.here: Spot | None = None
        """Where it is natively. If ``at`` is set, where it left the native files."""
        self.at: Location | None = None
        """Where it is in a tree of recuse's, if it is in one."""
        self.through_ours = False
        """Whether it has been in a tree of recuse's."""
        self.above: os.stat_result | None = None
        """The directory in which the native file was found by a name, if it was."""
        self.callers = False
        """Whether it is natively in the /proc directory of the thread's own process."""
        self._root: Spot | Location | None = None
        self._out_of_reach = False
        """Whether the native directory is out of reach, except for what recuse has added there."""

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
        """Be nowhere again."""
        here, self.here, self.at = self.here, None, None
        if here is not None:
            os.close(here.file)

    def _spot(
        self, file: int, status: os.stat_result | None = None, *, is_start: bool = False
    ) -> Spot:
        """The file behind a descriptor, which is closed if this fails."""
        try:
            status = status or os.fstat(file)
            additions: tuple[Addition, ...] = ()
            if stat.S_ISDIR(status.st_mode):
                additions = self.mounts.additions(b"/proc/self/fd/%d" % file, status)
            cover = None
            if self.mounts.covers:
                cover = self.mounts.cover(file, status, own_root=self.own_root)
                if is_start and cover is not None and cover.late:
                    # It is held since before a program mounted something on it. So a server
                    # reaches what is below its own mount.
                    cover = None
            return Spot(file, status, additions, cover)
        except BaseException:
            os.close(file)
            raise

    def go(
        self, file: int, status: os.stat_result | None = None, *, is_start: bool = False
    ) -> None:
        """Go to the file behind a descriptor, which the position owns from now on.

        ``is_start``: the thread has that directory already, as its working directory, say.
        """
        spot = self._spot(file, status, is_start=is_start)
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

    def start_at(self, location: Location) -> None:
        """Begin at an open directory of recuse's."""
        self.through_ours = True
        self.at = location
        if self.scope:
            self._root = location

    def enter(self, location: Location) -> None:
        """Go to a location of recuse's, and to what is mounted there."""
        self.through_ours = True
        self.at = self.mounts.top(location)

    def go_to_root(self) -> None:
        """Go to the thread's root. Raises EXDEV if the path must not leave its scope."""
        if self.scope & RESOLVE_BENEATH:
            raise os_error(errno.EXDEV)  # fs/namei.c, nd_jump_root
        root = self.root()
        if isinstance(root, Location):
            self.at = root
        else:
            self.go(os.dup(root.file), root.status)

    def root(self) -> Spot | Location:
        """The thread's root, or where the path's scope starts."""
        if self._root is None:
            root = b"/proc/%d/root" % self.tid if self.own_root else b"/"
            spot = self._spot(native_files.look(root))
            self._root = spot
            if spot.cover is not None:
                os.close(spot.file)
                self._root = self.mounts.top(Location(spot.cover, spot.cover.tree.root))
        return self._root

    def _at_root(self) -> bool:
        """Whether ".." stays here.

        For the supervisor's own root, the kernel itself knows that.
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
        """Go to the directory above."""
        if self._at_root():
            if self.scope & RESOLVE_BENEATH:
                raise os_error(errno.EXDEV)  # fs/namei.c, follow_dotdot
            return
        at = self.at
        while at is not None and at.is_root:
            if at.mount.detached:
                return
            if at.mount.point is None:
                if self.here is None or self.here.cover is not at.mount:
                    self._go_by_path(at.mount)  # it was not reached through that native directory
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
        """Go to the native directory on which a mount is, or to which it is added."""
        if self.own_root:
            root = self.root()
            if isinstance(root, Spot):
                flags = native_files.RESOLVE_IN_ROOT | native_files.RESOLVE_NO_MAGICLINKS
                # Try a bind mount or a copy of /dev first, then the supervisor's path.
                below = native_files.below(native_files.path_of(root.file), mount.path)
                for path in dict.fromkeys((mount.path, below)):
                    file = native_files.open_path(root.file, path, flags)
                    if file >= 0:
                        self.go(file)
                        if self.here is not None and self.here.shows(mount):
                            return
        # The thread's root may not lead to it, except for what recuse has added there.
        self.go(native_files.look(mount.path))
        self._out_of_reach = self.own_root or bool(self.scope)

    def check_reach(self) -> None:
        """Raise ENOENT if the thread must not reach the native directory here."""
        if self._out_of_reach:
            raise os_error(errno.ENOENT)
