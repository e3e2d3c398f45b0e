"""Where recuse's trees are seen: mounts, as in Linux's mount table, and additions.

A native directory is known by its device and inode number, whatever path led there. So a bind mount
of /dev is /dev, and so is the /dev of a chroot on which it is mounted.
"""

from __future__ import annotations

import errno
import os
import stat

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Addition, Dentry, FileTree, Location, Mount
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree

_KERNEL_FILESYSTEMS = (native_files.PROC_MAGIC, native_files.SYSFS_MAGIC)


class Mounts:
    """All mounts and additions of a sandbox.

    Additions stay. Thread-safe; reading needs no lock.
    """

    def __init__(self) -> None:
        self._lock = new_lock("Mounts")
        self._additions: dict[tuple[int, int], tuple[Addition, ...]] = {}
        self._kernel_additions: dict[tuple[int, int], tuple[Addition, ...]] = {}
        """Those in /proc and /sys, by f_type and inode number."""
        self._kernel_inodes: set[int] = set()
        self._quick: dict[bytes, Addition] = {}
        """By path, the additions that hide native files."""
        self.beginnings: tuple[bytes, ...] = ()
        """How the paths begin that may lead to something that hides native files."""
        self._covers: dict[tuple[int, int], Mount] = {}
        """What is mounted on native directories and files."""
        self._on_ours: dict[Location, Mount] = {}
        """What is mounted on recuse's directories and files."""
        self._mounts: list[Mount] = []
        """All mounts, the oldest first."""
        self._mounted: tuple[bytes, ...] = ()
        """The paths of all mounts."""
        self._held: dict[Mount, int] = {}
        """Descriptors of what is covered: as long as somebody has it, nothing else gets its inode
        number, even if it is removed."""
        self._not_empty: set[Mount] = set()
        """The mounts that cover native directories with something in them."""
        self.covers = False
        """Whether something is mounted on a native directory or file."""
        self.covers_files = False
        """Whether there are directories among these that were not empty."""
        self.filesystems: tuple[Mount, ...] = ()
        """The mounts of filesystems."""
        self.entrances: tuple[bytes, ...] = ()
        """How the paths begin that may lead into a filesystem: at its native directory."""
        self.ways: frozenset[bytes] = frozenset()
        """The names in the paths of `entrances`: a relative path that enters begins with one."""
        self._entrances: list[tuple[bytes, bytes, tuple[int, int], Mount]] = []
        """All mounts on native directories and files, each with its path, how what is below it
        begins, and what it covers there.
        A path that leads to several comes to the one with the shortest path first."""
        self.changed: set[tuple[int, int]] = set()
        """Native directories that are added to or covered, by the supervisor's numbers."""

    def add(self, addition: Addition) -> None:
        """Add a tree to a native directory.

        Raises:
            OSError: ENOTDIR if it is not a directory; as stat.
        """
        path = addition.path
        native = native_files.status(path)
        if not stat.S_ISDIR(native.st_mode):
            raise os_error(errno.ENOTDIR)
        kind = native_files.filesystem_type_at(path)
        with self._lock:
            self.changed.add((native.st_dev, native.st_ino))
            _append(self._additions, (native.st_dev, native.st_ino), addition)
            if kind in _KERNEL_FILESYSTEMS:
                _append(self._kernel_additions, (kind, native.st_ino), addition)
                self._kernel_inodes.add(native.st_ino)
            if addition.hides:
                self._quick[path] = addition
                beginning = path if path == b"/" else path + b"/"
                if not beginning.startswith(self.beginnings):
                    others = (one for one in self.beginnings if not one.startswith(beginning))
                    self.beginnings = (*others, beginning)
                    self._note_entrances()

    def mount(
        self,
        tree: FileTree,
        path: bytes,
        point: Location | os.stat_result | None,
        *,
        late: bool = False,
    ) -> Mount:
        """Cover a directory with a tree, or a file with one whose root is a file.

        Args:
            tree: what is seen there from now on.
            path: the directory's or file's, without links.
            point: what is covered, if it is recuse's; or the status of what is native, if it was
                looked at.
            late: see `recuse.sandbox.vfs.dentry.Mount`.

        Raises:
            OSError: ENOTDIR if only one of the two is a directory; as stat.
        """
        if isinstance(point, Location):
            mount = Mount(tree, path, point, late=late)
            with self._lock:
                self._on_ours[point] = mount
                self._changed([*self._mounts, mount])
            return mount
        mount = Mount(tree, path, late=late)
        native = native_files.status(path) if point is None else point
        is_directory = stat.S_ISDIR(native.st_mode)
        if is_directory != tree.root.node.is_directory:
            raise os_error(errno.ENOTDIR)
        try:
            empty = not is_directory or native_files.is_empty(path)
        except PermissionError:
            empty = False
        held = native_files.hold(path, native)
        with self._lock:
            if held >= 0:
                self._held[mount] = held
            self.changed.add((native.st_dev, native.st_ino))
            self._covers[native.st_dev, native.st_ino] = mount
            if not empty:
                self._not_empty.add(mount)
            self._changed([*self._mounts, mount])
        return mount

    @property
    def covers_ours(self) -> bool:
        """Whether something is mounted on one of recuse's directories or files."""
        return bool(self._on_ours)

    def on(self, mount: Mount) -> list[Mount]:
        """The mounts on directories of this mount."""
        return [
            other
            for other in self._mounts
            if other.point is not None and other.point.mount is mount
        ]

    def shows(self, tree: FileTree) -> bool:
        """Whether a tree is mounted somewhere."""
        return any(one.tree is tree for one in self._mounts)

    def unmount(self, mount: Mount) -> list[Mount]:
        """Remove a mount, with all mounts on it; return those that were removed."""
        removed = [mount]
        for one in removed:
            removed += self.on(one)
        with self._lock:
            for one in removed:
                one.detached = True
                if one.point is not None and self._on_ours.get(one.point) is one:
                    del self._on_ours[one.point]
            for place in [place for place, one in self._covers.items() if one is mount]:
                del self._covers[place]
            if (held := self._held.pop(mount, -1)) >= 0:
                os.close(held)
            self._not_empty.discard(mount)
            self._changed([one for one in self._mounts if not one.detached])
        return removed

    def _changed(self, mounts: list[Mount]) -> None:
        """These are all mounts from now on. The lock is held."""
        self._mounts = mounts
        self._mounted = tuple(one.path for one in mounts)
        self.covers = bool(self._covers)
        self.covers_files = bool(self._not_empty)
        self.filesystems = tuple(one for one in mounts if isinstance(one.tree, FilesystemTree))
        self._note_entrances()

    def _note_entrances(self) -> None:
        entrances = [(one.path, one.path + b"/", place, one) for place, one in self._covers.items()]
        self._entrances = sorted(entrances, key=lambda entrance: len(entrance[0]))
        # What is added to a directory above may hide the native directory.
        self.entrances = tuple(
            path
            for path, below, _, one in entrances
            if one in self.filesystems and path != b"/" and not below.startswith(self.beginnings)
        )
        self.ways = frozenset(name for path in self.entrances for name in path.split(b"/"))

    def enter(
        self, path: bytes, start: bytes = b"", link: bytes = b""
    ) -> tuple[Mount, bytes] | None:
        """The first mount that a path comes to, and the rest of the path.

        None if it is not known from the path's text, or cannot be reached by that path now. The
        native directory is looked at each time: anybody may rename one above it, make it a link,
        mount something natively, or forbid the way.

        Args:
            path: an absolute path, seen with the supervisor's root and mounts.
            start: the native directory that it is followed from, which is how it begins; b"" is the
                root.
            link: a path that leads to that directory.
        """
        for top, below, place, mount in self._entrances:
            if (path.startswith(below) or path == top) and len(top) > len(start):
                if top not in self.entrances:
                    return None
                try:
                    found = native_files.status(link + top[len(start) :])
                except OSError:
                    return None
                if (found.st_dev, found.st_ino) == place:
                    return mount, path[len(top) :]
                return None
        return None

    def close(self) -> None:
        """Let go of everything that is covered."""
        with self._lock:
            while self._held:
                os.close(self._held.popitem()[1])

    def is_mounted(self, path: bytes) -> bool:
        """Whether a tree is mounted on the directory with that path."""
        return path in self._mounted

    def hides(self, path: bytes) -> bool:
        """Whether a tree is mounted on a directory above that path."""
        return path.startswith(tuple(one.rstrip(b"/") + b"/" for one in self._mounted))

    def filesystem_above(self, path: bytes) -> Mount | None:
        """The mount of a filesystem that is nearest above a path."""
        above = [one for one in self.filesystems if path.startswith(one.path.rstrip(b"/") + b"/")]
        return max(above, key=lambda one: len(one.path), default=None)

    def hiding(self) -> list[tuple[bytes, Addition]]:
        """The additions that hide native files, each with its directory's path."""
        return list(self._quick.items())

    def hiding_at(self, path: bytes) -> Addition | None:
        """What hides native files in the directory with that path."""
        return self._quick.get(path)

    def additions(self, directory: bytes, status: os.stat_result) -> tuple[Addition, ...]:
        """What is added to a native directory.

        A program may have mounted a /proc or /sys of its own, and each pid or network namespace has
        its own. In all of them a directory has the same inode number (fs/proc/root.c,
        fs/kernfs/mount.c), and a new device appears in all of them.

        Args:
            directory: a path that leads to it.
            status: its status.
        """
        found = self._additions.get((status.st_dev, status.st_ino), ())
        if not found and status.st_ino in self._kernel_inodes:
            kind = native_files.filesystem_type_at(directory)
            found = self._kernel_additions.get((kind, status.st_ino), ())
        return found

    def cover(self, file: int, status: os.stat_result, *, own_root: bool) -> Mount | None:
        """What is mounted on a native directory or file.

        If the directory has another path, that is another mount (bind) of the same directory, and
        nothing is mounted on it. But in other roots and mount namespaces, paths say nothing.

        Args:
            file: a descriptor of it.
            status: its status.
            own_root: whether its root or mounts may be others than the supervisor's.
        """
        mount = self._covers.get((status.st_dev, status.st_ino))
        if mount is None or own_root:
            return mount
        held = self._held.get(mount)
        # A directory above may have another name now.
        path = mount.path if held is None else native_files.path_of(held)
        return mount if native_files.path_of(file) == path else None

    def top(self, location: Location) -> Location:
        """What is seen at a place: the place itself, or the root of what is mounted on it."""
        while self._on_ours and (mount := self._on_ours.get(location)) is not None:
            location = Location(mount, mount.tree.root)
        return location

    def is_covered(self, status: os.stat_result) -> bool:
        """Whether something is mounted on a native directory."""
        return self.covers and (status.st_dev, status.st_ino) in self._covers

    def at(self, path: bytes) -> Location | None:
        """What hides native files at exactly that path, if no link is on the way."""
        if not path.startswith(self.beginnings):
            return None
        names = []
        head = path
        while head:
            head, _, name = head.rpartition(b"/")
            names.append(name)
            addition = self._quick.get(head or b"/")
            if addition is not None:
                return _below(addition, names)
        return None

    def quickly(self, path: bytes) -> Location | None:
        """Like `at`, for a path with one of the `beginnings`, if nothing can be in its way.

        In its way can be a mount, or a directory of recuse's that not everybody may search.
        """
        if path.startswith(self._mounted):
            return None
        head, _, name = path.rpartition(b"/")
        addition = self._quick.get(head)
        if addition is not None:
            dentry = addition.tree.root.children.get(name)
            return None if dentry is None else Location(addition, dentry)
        location = self.at(path)
        above = None if location is None else location.dentry.parent
        while above is not None and above.parent is not None:
            if above.node.mode & 0o111 != 0o111:
                return None
            above = above.parent
        return location


def _append(
    table: dict[tuple[int, int], tuple[Addition, ...]], key: tuple[int, int], addition: Addition
) -> None:
    """Add to the additions of one directory, in the order in which they are seen."""
    there = (*table.get(key, ()), addition)
    table[key] = tuple(sorted(there, key=lambda one: not one.hides))


def _below(addition: Addition, names: list[bytes]) -> Location | None:
    """What the names lead to. The first name is the last one in the list."""
    dentry: Dentry | None = addition.tree.root
    while names and dentry is not None:
        dentry = dentry.children.get(names.pop())
    return None if dentry is None else Location(addition, dentry)
