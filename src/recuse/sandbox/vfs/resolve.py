"""From a path to what is in the sandbox's trees of files.

A path is resolved as the calling thread sees it: with its root, mounts and working directory, its
descriptors, symbolic links, ``..`` and ``/proc/self``.

Most paths that programs use lead somewhere else, and must be recognised quickly. What exists
natively is not recuse's, unless a device hides it or a tree is mounted on it. What does not exist
can be recuse's only in three cases: its parent directory is added to or covered, its parent
directory does not exist either, or the name is a dangling link. One or two stat calls decide that,
by inode number. Only the remaining paths are walked name by name (:mod:`recuse.sandbox.vfs.walk`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from time import monotonic
from typing import TYPE_CHECKING

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.tasks.rights import Acting
from recuse.sandbox.tasks.tasks import Tasks
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Addition, FileTree, Location, Mount
from recuse.sandbox.vfs.device_files import ENDS_KNOWN, DeviceFiles
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.found import (
    AbsentError,
    Found,
    NativeFile,
    NativelyAbsentError,
    OutsideError,
)
from recuse.sandbox.vfs.inside import Inside, OpenFiles
from recuse.sandbox.vfs.mounts import Mounts
from recuse.sandbox.vfs.native_files import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    meets_magic,
    open_path,
    start_of,
)
from recuse.sandbox.vfs.placeholder_dirs import PlaceholderDirs
from recuse.sandbox.vfs.walk import Walk
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.sandbox.trap.call import TrappedCall

__all__ = [
    "AT_FDCWD",
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "AbsentError",
    "Found",
    "NativeFile",
    "NativelyAbsentError",
    "OutsideError",
    "Tree",
]


_ITSELF = contextlib.nullcontext()
"""Used if no rights have to be taken on."""

_OF_THE_READER = (b"/proc/self", b"/proc/thread-self", b"/dev/fd", b"/dev/std")
"""How paths begin that depend on who looks at them."""


LOOK_AGAIN_S = 0.01
"""How old the knowledge may be of which native files are hidden, for paths that are not a node's
very own: one through a symbolic link, say."""

Path = str | bytes | os.PathLike[str]

Listed = Location | tuple[Addition, ...]
"""A directory of recuse's, or what is added to a native directory."""


class Tree:
    """Finds what is in a sandbox's trees by the paths that programs use."""

    def __init__(self, tasks: Tasks, files: OpenFiles) -> None:
        self._tasks = tasks
        self._files = files
        self.mounts = Mounts()
        self.placeholders = PlaceholderDirs()
        self.devices = DeviceFiles(self.mounts)
        self._inside = Inside(files, self.mounts, self.placeholders)
        self.listings: dict[tuple[int, int], tuple[Listed, int, int]] = {}
        """How far each listing has come, by process and descriptor (`syscalls.listing`)."""
        self.many_roots = False
        """Whether some process may have a root or mounts of its own.

        Once true, it stays true: processes inherit these from their parents, and recuse does not
        see each of them. From then on each lookup asks the kernel for the thread's root, which
        takes 6 us."""
        self._own_root = native_files.place_of(b"/")
        self._look_again = 0.0
        """When to look again for native files that a device hides."""

    def find(
        self,
        call: TrappedCall,
        base: int,
        path: bytes,
        *,
        follow: bool = True,
        scope: int = 0,
        opening: bool = False,
        real: bool = False,
    ) -> Found | None:
        """Find what a path leads to.

        Args:
            call: the call that looks.
            base: the directory's descriptor for a relative path, or :data:`AT_FDCWD`.
            path: not empty.
            follow: whether a symbolic link in the last place is followed.
            scope: :data:`RESOLVE_BENEATH` or :data:`RESOLVE_IN_ROOT` if the path must not leave
                the directory that it starts from (openat2).
            opening: whether it will be opened: a native node with a device's number then leads to
                the device.
            real: whether to look it up with the thread's real IDs, as access(2) does.

        Returns:
            None if nothing of recuse's is there: the kernel then gives the answer.

        Raises:
            AbsentError: if only the last name is missing, in a directory of recuse's.
            OutsideError: if it leads through recuse's trees to a native file.
            NativelyAbsentError: if it leads through them to a missing name in a native directory.
            OSError: ENOTDIR if a file of recuse's is not the last name; ENOENT if a name before the
                last is missing in a directory of recuse's; EACCES if one may not be searched;
                ELOOP; EXDEV if it leaves its scope; ENFILE if the supervisor has no descriptors
                left.
            UnansweredError: if a tree has to ask its server (`TrappedCall.ask`).
        """
        tid = call.tid
        own_root = self.many_roots and self.has_own_root(tid)
        mounts = self.mounts
        if not scope and not own_root and path.startswith(mounts.beginnings):
            location = mounts.quickly(path)
            if location is not None and not (follow and location.dentry.node.is_link):
                return Found(location)
        if not scope and mounts.filesystems:
            inside = self._inside.find(call, base, path, real=real, own_root=own_root)
            if inside is not None:
                at, names = inside
                if not names and not (follow and at.node.is_link):
                    return Found(at)
                if not own_root and self._inside.may_go_on(call, real=real):
                    with self._walk(call, own_root=False, real=real) as walk:
                        return walk.go_on(at, names, follow=follow, opening=opening)
        if (now := monotonic()) >= self._look_again:
            self._look_again = now + LOOK_AGAIN_S
            self.devices.look_again()
        if not scope and not (self.devices.hides_links or mounts.covers_files):
            acting = None if self._tasks.alike else self._tasks.get(tid).acting
            if own_root or acting is not None:
                start = start_of(tid, base)
                if path.startswith(b"/"):
                    start = b"/proc/%d/root" % tid if own_root else b"/"
                if self._elsewhere_there(start, path, follow, opening, acting):
                    return None
            elif self._elsewhere(tid, base, path, follow, opening):
                return None
        with self._walk(call, own_root=own_root, scope=scope, real=real) as walk:
            return walk.find(base, path, follow=follow, opening=opening)

    def _walk(
        self, call: TrappedCall, *, own_root: bool, scope: int = 0, real: bool = False
    ) -> Walk:
        return Walk(
            call,
            mounts=self.mounts,
            devices=self.devices,
            tasks=self._tasks,
            files=self._files,
            placeholders=self.placeholders,
            own_root=own_root,
            scope=scope,
            real=real,
        )

    def place(self, call: TrappedCall, base: int, path: bytes) -> Location | NativeFile:
        """What a path leads to, whether it is recuse's or not. OSError as the walk."""
        own_root = self.many_roots and self.has_own_root(call.tid)
        with self._walk(call, own_root=own_root) as walk:
            walk.through_ours = True
            try:
                found = walk.find(base, path, follow=True, opening=False)
            except OutsideError as outside:
                return outside.file
        assert found is not None
        return found.location

    def has_own_root(self, tid: Tid) -> bool:
        """Whether a thread's root, and so its mounts, may differ from the supervisor's."""
        root = native_files.place_of(b"/proc/%d/root" % tid)
        return root is None or root != self._own_root

    def _elsewhere(self, tid: Tid, base: int, path: bytes, follow: bool, opening: bool) -> bool:
        """Whether the path, seen natively, cannot lead to one of recuse's nodes.

        The supervisor looks at it. So paths through ``/proc/self`` are walked, and so are paths
        through links like ``/proc/PID/fd/N``, which say where they lead only when followed.
        """
        of_self = False
        if not path.startswith(b"/"):
            native = start_of(tid, base) + b"/" + path
        else:
            if path.startswith(_OF_THE_READER):
                of_self = path.startswith(b"/proc/self/")
                if not of_self:
                    return False
                path = b"/proc/%d/" % self._tasks.get(tid).tgid + path[len(b"/proc/self/") :]
            native = path
        opened = self._files or of_self or (self.placeholders.used and path.startswith(b"/proc/"))
        start = len(native) - len(path)
        if opened and self._goes_through_magic(native, start):
            return False
        if (
            self.placeholders.used
            and path.startswith(b".")
            and self._in_shadow(native[: start - 1])
        ):
            return False  # a placeholder has a native "." and ".." of its own
        # A symbolic link with another name leads to the native file.
        devices = self.devices
        looks = (
            devices.hides_files
            or self.mounts.covers
            or (opening and devices.numbers_elsewhere)
            or path.endswith(ENDS_KNOWN)
        )
        try:
            if follow and not looks:
                if native_files.access(native, os.F_OK):
                    return True  # the quickest way to know that something exists
                # A dangling link may point to a node.
                return not stat.S_ISLNK(native_files.link_status(native).st_mode)
            found = (native_files.status if follow else native_files.link_status)(native)
            return not self._may_be_ours(found, opening)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return True
        if native.endswith((b"/", b"/.", b"/..")):
            return False
        above = native.rpartition(b"/")[0] or b"/"
        try:
            parent = native_files.status(above)
        except OSError:
            return False  # may be in a directory of recuse's
        if (parent.st_dev, parent.st_ino) in self.mounts.changed:
            return False
        if self._files and not stat.S_ISDIR(parent.st_mode):
            return False  # the descriptor of a directory of recuse's
        if parent.st_dev == self.devices.proc_device:
            return False  # /proc/self there is not the program's
        if self.placeholders.used and not path.startswith(b"/"):
            return False  # the working directory may be a placeholder
        if not opened and self._goes_through_magic(above, start):
            return False
        return not (follow and looks and native_files.is_link(native))

    def _elsewhere_there(
        self, start: bytes, path: bytes, follow: bool, opening: bool, acting: Acting | None
    ) -> bool:
        """Like `_elsewhere`, for a thread that may have its own root or mounts, or fewer rights.

        Only two cases are quick: a file exists, or is missing in a directory to which recuse has
        added nothing.
        """
        if path.startswith(_OF_THE_READER) or self.devices.hides_files or path.endswith(ENDS_KNOWN):
            return False
        if self.placeholders.used and path.startswith(b"."):
            return False
        is_absolute = path.startswith(b"/")
        try:
            directory = native_files.look(start)
        except OSError:
            return False
        resolve = RESOLVE_NO_MAGICLINKS | (RESOLVE_IN_ROOT if is_absolute else RESOLVE_BENEATH)
        try:
            with acting.brief if acting else _ITSELF:
                return self._elsewhere_in(directory, path, resolve, follow, opening)
        except OSError:
            return False
        finally:
            os.close(directory)

    def _elsewhere_in(
        self, directory: int, path: bytes, resolve: int, follow: bool, opening: bool
    ) -> bool:
        file = open_path(directory, path, resolve, 0 if follow else arch.O_NOFOLLOW)
        if file >= 0:
            try:
                return not self._may_be_ours(os.fstat(file), opening)
            finally:
                os.close(file)
        above, _, name = path.rpartition(b"/")
        if file != -errno.ENOENT or name in (b"", b".", b"..") or self.placeholders.used:
            return False
        parent = open_path(directory, above or b".", resolve)
        if parent < 0:
            return False
        try:
            found = os.fstat(parent)
            if found.st_dev == self.devices.proc_device or native_files.is_link_in(name, parent):
                return False
            if (found.st_dev, found.st_ino) in self.mounts.changed:
                return False
            return not self.mounts.additions(b"/proc/self/fd/%d" % parent, found)
        finally:
            os.close(parent)

    def _may_be_ours(self, found: os.stat_result, opening: bool) -> bool:
        """Whether a native file is hidden by a node, or has a device's number."""
        if opening and stat.S_ISCHR(found.st_mode) and found.st_rdev in self.devices.by_number:
            return True
        hidden = (found.st_dev, found.st_ino) in self.devices.hidden
        return hidden or self.mounts.is_covered(found)

    def _in_shadow(self, start: bytes) -> bool:
        try:
            return self.placeholders.standing_for(native_files.status(start)) is not None
        except OSError:
            return False

    @staticmethod
    def _goes_through_magic(native: bytes, start: int) -> bool:
        """Whether ``native``, followed from position ``start`` on, meets a magic link."""
        if not start:
            return meets_magic(AT_FDCWD, native)
        if len(native) <= start:
            return False
        directory = open_path(AT_FDCWD, native[:start], 0)
        try:
            return meets_magic(directory, native[start:])
        finally:
            if directory >= 0:
                os.close(directory)

    def merge(self, tree: FileTree, path: Path) -> None:
        """Add the entries of a tree's root to a native directory. Native names come first.

        Raises:
            OSError: ENOTDIR if it is no directory; EINVAL if something is mounted there or above;
                as stat.
        """
        real = native_files.real_path(os.fsencode(path))
        if self.mounts.is_mounted(real) or self.mounts.hides(real):
            raise os_error(errno.EINVAL)
        self.mounts.add(Addition(tree, real))

    def mount(self, tree: FileTree, path: Path, point: Location | None = None) -> Mount:
        """Cover a directory with a tree. If it does not exist, it is made in the sandbox only.

        ``point`` is the directory, if it is on a filesystem of recuse's.

        Raises:
            OSError: ENOTDIR if something else is there natively; EEXIST if that is recuse's; EINVAL
                inside a tree that is mounted.
        """
        real = native_files.real_path(os.fsencode(path))
        if point is not None:
            return self.mounts.mount(tree, real, point)
        if self.mounts.hides(real):
            raise os_error(errno.EINVAL)
        point = None if native_files.is_there(real) else self.devices.directory(real)
        return self.mounts.mount(tree, real, None if point is None else self.mounts.top(point))

    def mount_point(self, path: Path) -> Location | None:
        """The directory to mount on if it is on a filesystem of recuse's; None if it is native.

        Raises:
            OSError: ENOENT, ENOTDIR; EBUSY if something is mounted there.
        """
        real = native_files.real_path(os.fsencode(path))
        if self.mounts.is_mounted(real):
            raise os_error(errno.EBUSY)
        above = self.mounts.filesystem_above(real)
        filesystem = None if above is None else filesystem_of(Location(above, above.tree.root))
        if above is not None and filesystem is not None:
            directory = filesystem.directory_at(real[len(above.path) :])
            return Location(above, directory)
        if not stat.S_ISDIR(native_files.status(real).st_mode):
            raise os_error(errno.ENOTDIR)
        if self.mounts.hides(real):
            raise os_error(errno.EBUSY)
        return None

    def listed(self, tid: Tid, number: int) -> Listed:
        """What of recuse's a listing of an open directory shows.

        Returns:
            The directory's location, if it is recuse's; otherwise what is added to it, if anything.
        """
        start = start_of(tid, number)
        try:
            status = native_files.status(start)
        except OSError:
            return ()
        return self.placeholders.standing_for(status) or self.mounts.additions(start, status)

    def directory(self, tid: Tid, number: int) -> Location | None:
        """The directory of recuse's behind a descriptor; None if it is something else.

        :data:`AT_FDCWD` stands for the working directory.

        Raises:
            OSError: ENOENT if the directory has been removed.
        """
        if not self.placeholders.used:
            return None
        try:
            status = native_files.status(start_of(tid, number))
        except OSError:
            return None
        location = self.placeholders.standing_for(status)
        if location is not None and location.node.removed:
            raise os_error(errno.ENOENT)
        return location

    def shown_path(self, tid: Tid, location: Location) -> bytes:
        """The path of a location from a thread's root, as the thread is told it.

        Raises:
            OSError: ENOENT if the thread is gone.
        """
        path = location.path
        if self.many_roots and self.has_own_root(tid):
            return native_files.below(native_files.root_path(tid), path)
        return path

    @staticmethod
    def inode_above(location: Location) -> int:
        """The inode number of the directory that contains one of recuse's."""
        while location.is_root and location.mount.point is not None:
            location = location.mount.point
        parent = location.dentry.parent
        if parent is None:  # mounted on a native directory
            return native_files.status(os.path.dirname(location.mount.path)).st_ino
        # A tree that is added to a native directory has that directory's inode number.
        return parent.node.inode

    def close(self) -> None:
        """Close what stands for open directories, and what is covered."""
        self.placeholders.close()
        self.mounts.close()
