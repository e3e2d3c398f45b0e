"""The devices' places in the tree of files, and the way from a path to them.

A device's node, and a directory above it that does not exist natively (``/dev/input`` where there
is none), exist only here. A path is resolved as the calling thread sees it: its root and working
directory, its descriptors, symbolic links, ``..`` and ``/proc/self``.

Most paths that programs use lead somewhere else, and must be told apart quickly. What exists
natively is not ours, unless a device hides it; what does not exist can be ours only if its parent
directory is one that we add to, does not exist either, or the name is a dangling link. Both are
decided by inode numbers with one or two stat calls. Only the rest is walked name by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from recuse.kernel.connection import os_error
from recuse.kernel.devices import CharDevice
from recuse.sandbox.arch import arch
from recuse.sandbox.descriptors import Descriptors
from recuse.sandbox.nodes import Node
from recuse.sandbox.permissions import MAY_EXECUTE, grants
from recuse.sandbox.tasks import Tasks, own_numbers

AT_FDCWD = -100
CUSE_NUMBER = (10, 203)
"""Major and minor number of /dev/cuse (linux/miscdevice.h)."""

_MAX_LINKS = 40
_FIRST_INODE = 0x7EC00000


_RESOLVE_NO_MAGICLINKS = 0x02
_OPEN_HOW = struct.Struct("=QQQ")

_libc = ctypes.CDLL(None, use_errno=True)


def _names(path: bytes) -> list[bytes]:
    """A path's names, the first one last; a slash at the end is a name too, "."."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


def _open_path(directory: int, path: bytes, resolve: int) -> int:
    """openat2 with O_PATH: a descriptor, or a negative errno."""
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    result: int = _libc.syscall(arch.SYSCALLS["openat2"], directory, path, how, len(how))
    return result if result >= 0 else -ctypes.get_errno()


@dataclass(slots=True, frozen=True)
class Found:
    """What a path leads to."""

    node: Node
    link: bool = False
    """The path names not the node but a ``/proc/PID/fd`` link to it, and was not to be followed."""
    links: int = 0
    """How many symbolic links were followed."""
    magic: bool = False
    """One of them was a ``/proc/PID/fd`` link."""


class Tree:
    """All nodes of a sandbox."""

    def __init__(self, tasks: Tasks, descriptors: Descriptors) -> None:
        self._tasks = tasks
        self._descriptors = descriptors
        self._nodes: dict[bytes, Node] = {}
        self._anonymous: dict[int, Node] = {}
        self._lock = threading.Lock()
        self._extended: dict[bytes, dict[bytes, Node]] = {}
        self._extended_inodes: set[tuple[int, int]] = set()
        self._hidden: dict[tuple[int, int], Node] = {}
        self._hides_links = False
        self._next_inode = _FIRST_INODE
        self._shadow: bytes | None = None
        self.many_roots = False
        """Whether some process may have a root or mounts of its own. Makes each lookup slower."""
        try:
            self.filesystem = os.stat("/dev").st_dev
        except OSError:
            self.filesystem = 0

    def add(self, device: CharDevice) -> None:
        """Make the node ``/dev/NAME`` and the directories it needs."""
        node = self._add_character(device.name, device.mode, device.major, device.minor)
        node.uid = node.uid if device.uid is None else device.uid
        node.gid = node.gid if device.gid is None else device.gid
        node.device = device

    def add_channel(self) -> None:
        """Make ``/dev/cuse``, by whose opening a program begins to serve a device."""
        self._add_character("cuse", 0o600, *CUSE_NUMBER)

    def anonymous(self, device: CharDevice) -> Node:
        """The node of the files that the device's ioctls make, as anon_inode files have one.

        Like theirs (fs/anon_inodes.c) it has mode 0600 and no type, and all of them share it.
        """
        with self._lock:
            node = self._anonymous.get(device.serial)
            if node is None:
                path = b"anon_inode:" + os.fsencode(device.name)
                node = Node(path, self._next_inode, 0o600, os.geteuid(), os.getegid())
                node.device, node.anonymous = device, True
                self._next_inode += 1
                self._anonymous[device.serial] = node
        return node

    def anonymous_or_none(self, device: CharDevice) -> Node | None:
        """The same, None if the device's ioctls have not made any files yet."""
        return self._anonymous.get(device.serial)

    def _add_character(self, name: str, mode: int, major: int, minor: int) -> Node:
        path = b"/dev/" + os.fsencode(name)
        with self._lock:
            self._add_directories(path.rpartition(b"/")[0])
            node = self._make(path, stat.S_IFCHR | mode & 0o7777)
            node.rdev = os.makedev(major, minor)
            with contextlib.suppress(OSError):
                native = os.lstat(path)
                self._hidden[native.st_dev, native.st_ino] = node
                self._hides_links = self._hides_links or stat.S_ISLNK(native.st_mode)
        return node

    def remove(self, device: CharDevice) -> None:
        """Take the device's node away, and the directories that only it needed."""
        with self._lock:
            self._anonymous.pop(device.serial, None)
            node = self._nodes.get(b"/dev/" + os.fsencode(device.name))
            if node is None or node.device is not device:
                return
            for identity in [key for key, hidden in self._hidden.items() if hidden is node]:
                del self._hidden[identity]
            self._unlink(node)

    def _make(self, path: bytes, mode: int) -> Node:
        node = Node(path, self._next_inode, mode, os.geteuid(), os.getegid())
        self._next_inode += 1
        parent, _, name = path.rpartition(b"/")
        self._extended.setdefault(parent or b"/", {})[name] = node
        self._nodes[path] = node
        return node

    def _add_directories(self, path: bytes) -> None:
        if path in self._nodes:
            return
        try:
            native = os.stat(path)
        except OSError:
            self._add_directories(path.rpartition(b"/")[0] or b"/")
            self._make(path, stat.S_IFDIR | 0o755)
        else:
            self._extended_inodes.add((native.st_dev, native.st_ino))

    def _unlink(self, node: Node) -> None:
        del self._nodes[node.path]
        parent, _, name = node.path.rpartition(b"/")
        siblings = self._extended[parent]
        del siblings[name]
        if not siblings:
            del self._extended[parent]
            if (directory := self._nodes.get(parent)) is not None:
                self._unlink(directory)

    def find(self, tid: int, base: int, path: bytes, *, follow: bool = True) -> Found | None:
        """Find what a path leads to.

        Args:
            tid: the thread that looks.
            base: the directory's descriptor for a relative path, or :data:`AT_FDCWD`.
            path: not empty.
            follow: whether a symbolic link in the last place is followed.

        Returns:
            None if it is nothing of ours: the kernel then gives the answer.

        Raises:
            OSError: ENOTDIR if the path goes on after a device.
        """
        if not self.many_roots:
            if (node := self._nodes.get(path)) is not None:
                return Found(node)
            if not self._hides_links and self._elsewhere(tid, base, path, follow):
                return None
        return self._walk(tid, base, path, follow)

    def _elsewhere(self, tid: int, base: int, path: bytes, follow: bool) -> bool:
        """Whether the path, seen natively, cannot lead to one of our nodes.

        Seen by the supervisor, that is: what goes through ``/proc/self`` or through links like
        ``/proc/PID/fd/N``, which say what they lead to only when they are followed, is walked.
        """
        if path.startswith((b"/proc/self", b"/proc/thread-self", b"/dev/fd", b"/dev/std")):
            return False
        if path.startswith(b"/"):
            native = path
        elif base == AT_FDCWD:
            native = b"/proc/%d/cwd/%b" % (tid, path)
        else:
            native = b"/proc/%d/fd/%d/%b" % (tid, base, path)
        if len(self._descriptors) and self._goes_through_magic(native, len(native) - len(path)):
            return False
        if follow and not self._hidden and os.access(native, os.F_OK):
            return True  # the quickest way to know that something is there
        try:
            found = os.stat(native) if follow else os.lstat(native)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return True
        else:
            return (found.st_dev, found.st_ino) not in self._hidden
        if native.endswith((b"/", b"/.", b"/..")):
            return False
        try:
            parent = os.stat(native.rpartition(b"/")[0] or b"/")
        except OSError:
            return False  # may lie in a directory of ours
        if (parent.st_dev, parent.st_ino) in self._extended_inodes:
            return False
        if self._shadow is not None and not path.startswith(b"/"):
            return False  # the working directory may be a shadow
        return not (follow and os.path.islink(native))  # a dangling link may point to a node

    @staticmethod
    def _goes_through_magic(native: bytes, start: int) -> bool:
        """Whether following ``native`` from ``start`` on meets a link of the magic kind."""
        directory = _open_path(AT_FDCWD, native[:start], 0) if start else AT_FDCWD
        try:
            file = _open_path(directory, native[start:], _RESOLVE_NO_MAGICLINKS)
            if file >= 0:
                os.close(file)
            return file == -errno.ELOOP
        finally:
            if directory >= 0:
                os.close(directory)

    def _walk(self, tid: int, base: int, path: bytes, follow: bool) -> Found | None:
        mount = b""
        if self.many_roots:
            mount = b"/proc/%d/root" % tid
            try:
                if os.readlink(mount) != b"/":
                    return None  # a chroot has no devices but those that its own /dev has
            except OSError:
                return None
        here = b"/" if path.startswith(b"/") else self._directory(tid, base)
        if here is None:
            return None
        names = _names(path)
        links, magic = 0, False
        node = self._nodes.get(here)
        while names:
            name = names.pop()
            if node is not None and not node.is_directory:
                raise os_error(errno.ENOTDIR)
            if name == b".":
                continue
            if name == b"..":
                here = here.rpartition(b"/")[0] or b"/"
                node = self._nodes.get(here)
                continue
            there = (b"" if here == b"/" else here) + b"/" + name
            node = self._nodes.get(there)
            if node is not None:
                here = there
                continue
            try:
                native = os.lstat(mount + there)
            except OSError:
                return None
            if not stat.S_ISLNK(native.st_mode):
                if names and not self._searchable(tid, native):
                    return None
                here = there
                continue
            target = self._read_link(tid, mount, there)
            at_descriptor = self._descriptor_node(target)
            if not names and not follow:
                return Found(at_descriptor, link=True) if at_descriptor else None
            links += 1
            if links > _MAX_LINKS:
                return None
            if at_descriptor is not None:
                node, here, magic = at_descriptor, at_descriptor.path, True
                continue
            if target.startswith(b"/"):
                here = b"/"
            names += _names(target)
            node = self._nodes.get(here)
        return Found(node, links=links, magic=magic) if node is not None else None

    def _searchable(self, tid: int, directory: os.stat_result) -> bool:
        """Whether a name may be looked up in it: it is a directory, and the thread has the right.

        The supervisor may have more rights than the program.
        """
        return stat.S_ISDIR(directory.st_mode) and grants(
            directory.st_mode,
            directory.st_uid,
            directory.st_gid,
            self._tasks.get(tid).credentials,
            MAY_EXECUTE,
        )

    def _directory(self, tid: int, base: int) -> bytes | None:
        """The path of the directory that a relative path starts from."""
        place = b"cwd" if base == AT_FDCWD else b"fd/%d" % base
        try:
            link = os.readlink(b"/proc/%d/%b" % (tid, place))
        except OSError:
            return None
        return self.unshadowed(link) if link.startswith(b"/") else None

    def _read_link(self, tid: int, mount: bytes, path: bytes) -> bytes:
        """A link's target as the thread sees it; empty for one that cannot be read."""
        if path in (b"/proc/self", b"/proc/thread-self"):
            tgid, tid = self._numbers(tid, mount)
            return b"%d" % tgid if path == b"/proc/self" else b"%d/task/%d" % (tgid, tid)
        try:
            return os.readlink(mount + path)
        except OSError:
            return b""

    def _numbers(self, tid: int, mount: bytes) -> tuple[int, int]:
        """The process's and the thread's numbers in the ``/proc`` that the thread sees."""
        if mount:
            with contextlib.suppress(OSError):
                if os.stat(mount + b"/proc").st_dev != os.stat("/proc").st_dev:
                    return own_numbers(tid)
        return self._tasks.get(tid).tgid, tid

    def _descriptor_node(self, target: bytes) -> Node | None:
        if not target.startswith(b"socket:["):
            return None
        descriptor = self._descriptors.by_link(target.decode())
        return descriptor.node if descriptor is not None else None

    def children(self, path: bytes) -> Iterator[Node]:
        """The nodes that a listing of the directory must show besides what is there natively."""
        for name, node in list(self._extended.get(path, {}).items()):
            if path in self._nodes or not os.path.lexists(path + b"/" + name):
                yield node

    def extends(self, path: bytes) -> bool:
        """Whether a listing of the directory must show more than is there natively."""
        return path in self._extended

    def shadow_of(self, node: Node) -> bytes:
        """A real, empty directory that stands for one of ours when a program opens it."""
        if self._shadow is None:
            self._shadow = os.fsencode(tempfile.mkdtemp(prefix="recuse-"))
        path = self._shadow + node.path
        os.makedirs(path, mode=0o755, exist_ok=True)
        return path

    def unshadowed(self, path: bytes) -> bytes:
        """The path in the programs' view of a path that may lie in a shadow directory."""
        if self._shadow is not None and path.startswith(self._shadow + b"/"):
            return path[len(self._shadow) :]
        return path

    def shadowed_directory(self, tid: int, number: int) -> Node | None:
        """The directory of ours that a descriptor refers to, if it does."""
        if self._shadow is None:
            return None
        try:
            link = os.readlink(b"/proc/%d/fd/%d" % (tid, number))
        except OSError:
            return None
        return self._nodes.get(self.unshadowed(link)) if link.startswith(self._shadow) else None

    def close(self) -> None:
        """Remove the shadow directories."""
        if self._shadow is not None:
            shutil.rmtree(self._shadow, ignore_errors=True)
            self._shadow = None
