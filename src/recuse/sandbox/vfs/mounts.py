"""Where trees of ours are seen: what Linux has in its mount table, and additions besides.

A native directory is known by its device and inode number, whatever path led there: a bind mount
of /dev is /dev, and so is the /dev of a chroot on which it is mounted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Addition, FileTree, Location, Mount

_KERNEL_FILESYSTEMS = (native_files.PROC_MAGIC, native_files.SYSFS_MAGIC)


class Mounts:
    """All mounts and additions of a sandbox.

    They come before what is found there, and stay. Thread-safe; reading needs no lock.
    """

    def __init__(self) -> None:
        self._lock = new_lock("Mounts")
        self._additions: dict[tuple[int, int], tuple[Addition, ...]] = {}
        self._kernel_additions: dict[tuple[int, int], tuple[Addition, ...]] = {}
        """Those in /proc and /sys, by f_type and inode number."""
        self._kernel_inodes: set[int] = set()
        self._quick: dict[bytes, Addition] = {}
        """By path those that hide what is there natively."""
        self._beginnings: tuple[bytes, ...] = ()
        """How paths begin that may lead there."""
        self._covers: dict[tuple[int, int], Mount] = {}
        """What is mounted on native directories."""
        self._on_ours: dict[Location, Mount] = {}
        """What is mounted on directories of ours."""
        self._mounted: tuple[bytes, ...] = ()
        """The paths of all mounts."""
        self.covered: Collection[tuple[int, int]] = self._covers.keys()
        """Native directories on which something is mounted."""
        self.covers_files = False
        """Whether there was something in one of them."""

    def add(self, addition: Addition) -> None:
        """Add a tree to a native directory.

        Raises:
            OSError: ENOTDIR if it is none; as stat.
        """
        path = addition.path
        native = native_files.status(path)
        if not stat.S_ISDIR(native.st_mode):
            raise os_error(errno.ENOTDIR)
        kind = native_files.filesystem_type_at(path)
        with self._lock:
            _append(self._additions, (native.st_dev, native.st_ino), addition)
            if kind in _KERNEL_FILESYSTEMS:
                _append(self._kernel_additions, (kind, native.st_ino), addition)
                self._kernel_inodes.add(native.st_ino)
            if addition.hides:
                self._quick[path] = addition
                beginning = path if path == b"/" else path + b"/"
                if not beginning.startswith(self._beginnings):
                    others = (one for one in self._beginnings if not one.startswith(beginning))
                    self._beginnings = (*others, beginning)

    def mount(self, tree: FileTree, path: bytes, point: Location | None) -> None:
        """Have a tree cover a directory.

        Args:
            tree: what is seen there from now on.
            path: the directory's, without links.
            point: the directory, if it is ours.

        Raises:
            OSError: ENOTDIR if it is none; as stat.
        """
        mount = Mount(tree, path, point)
        if point is not None:
            with self._lock:
                self._on_ours[point] = mount
                self._mounted = (*self._mounted, path)
            return
        native = native_files.status(path)
        if not stat.S_ISDIR(native.st_mode):
            raise os_error(errno.ENOTDIR)
        empty = native_files.is_empty(path)
        with self._lock:
            self.covers_files = self.covers_files or not empty
            self._covers[native.st_dev, native.st_ino] = mount
            self._mounted = (*self._mounted, path)

    def hiding_at(self, path: bytes) -> Addition | None:
        """What hides native files in the directory of that path."""
        return self._quick.get(path)

    def additions(self, directory: bytes, status: os.stat_result) -> tuple[Addition, ...]:
        """What is added to a native directory.

        A program may have a /proc or /sys mounted of its own, and there is one of each in a pid or
        network namespace: in all of them a directory has the same inode number (fs/proc/root.c,
        fs/kernfs/mount.c), and a new device is in all of them.

        Args:
            directory: a path by which it can be found.
            status: what it is.
        """
        found = self._additions.get((status.st_dev, status.st_ino), ())
        if not found and status.st_ino in self._kernel_inodes:
            kind = native_files.filesystem_type_at(directory)
            found = self._kernel_additions.get((kind, status.st_ino), ())
        return found

    def cover(self, file: int, status: os.stat_result, *, own_root: bool) -> Mount | None:
        """What is mounted on a native directory.

        Where it is by another path it is another mount (bind) of the same directory, on which
        nothing is mounted; but in other roots and mount namespaces paths say nothing.

        Args:
            file: a descriptor of it.
            status: what it is.
            own_root: whether it is seen from a root or mounts that may not be the supervisor's.
        """
        mount = self._covers.get((status.st_dev, status.st_ino))
        if mount is not None and not own_root and native_files.path_of(file) != mount.path:
            return None
        return mount

    def top(self, location: Location) -> Location:
        """What is seen at a place of ours: that, or the root of what is mounted on it."""
        while self._on_ours and (mount := self._on_ours.get(location)) is not None:
            location = Location(mount, mount.tree.root)
        return location

    def changes(self, status: os.stat_result) -> bool:
        """Whether names in a native directory may lead to something of ours."""
        return (key := (status.st_dev, status.st_ino)) in self._additions or key in self._covers

    def at(self, path: bytes, *, all_may_search: bool = False) -> Location | None:
        """What hides native files at that very path, with no link on the way.

        With ``all_may_search``, and with nothing on it that a thread or a mount may be in the way
        of: only directories that everybody may search, and no mounts.
        """
        if not path.startswith(self._beginnings):
            return None
        if all_may_search and path.startswith(self._mounted):
            return None
        names = []
        head = path
        while head:
            head, _, name = head.rpartition(b"/")
            names.append(name)
            addition = self._quick.get(head or b"/")
            if addition is not None:
                return _below(addition, names, all_may_search)
        return None


def _append(
    table: dict[tuple[int, int], tuple[Addition, ...]], key: tuple[int, int], addition: Addition
) -> None:
    """Add to those of one directory, in the order in which they are seen."""
    there = (*table.get(key, ()), addition)
    table[key] = tuple(sorted(there, key=lambda one: not one.hides))


def _below(addition: Addition, names: list[bytes], all_may_search: bool) -> Location | None:
    """What the names lead to, the first of which is the last."""
    dentry = addition.tree.root
    while names:
        child = dentry.children.get(names.pop())
        if child is None:
            return None
        dentry = child
        if all_may_search and names and dentry.node.mode & 0o111 != 0o111:
            return None
    return Location(addition, dentry)
