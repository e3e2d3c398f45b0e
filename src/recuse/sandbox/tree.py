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
import stat
import struct
from dataclasses import dataclass

from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.descriptors import Descriptors
from recuse.sandbox.nodes import Node, Nodes, native_node
from recuse.sandbox.permissions import MAY_EXECUTE, check, grants
from recuse.sandbox.shadows import Shadows
from recuse.sandbox.tasks import Tasks, own_numbers

AT_FDCWD = -100
_MAX_LINKS = 40

_RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
"""openat2(2)."""
_OPEN_HOW = struct.Struct("=QQQ")

_libc = ctypes.CDLL(None, use_errno=True)


def _names(path: bytes) -> list[bytes]:
    """A path's names, the first one last; a slash at the end is a name too, "."."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


def _place(tid: int, base: int) -> bytes:
    """The link to a thread's directory: the working one, or that of a descriptor."""
    return b"/proc/%d/cwd" % tid if base == AT_FDCWD else b"/proc/%d/fd/%d" % (tid, base)


def _top(root: bytes, scope: int) -> bytes:
    """Where an absolute path or link begins, and where ".." leads from the root.

    Raises:
        OSError: EXDEV if that is out of scope (fs/namei.c, nd_jump_root and follow_dotdot).
    """
    if scope & RESOLVE_BENEATH:
        raise os_error(errno.EXDEV)
    return root


def _open_path(directory: int, path: bytes, resolve: int) -> int:
    """openat2 with O_PATH: a descriptor, or a negative errno."""
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, resolve)
    result: int = _libc.syscall(arch.SYSCALLS["openat2"], directory, path, how, len(how))
    return result if result >= 0 else -ctypes.get_errno()


class AbsentError(FileNotFoundError):
    """A name is missing in a directory that exists only in the sandbox.

    Calls that would make it fail otherwise: nobody can make one there.
    """

    def __init__(self) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))


class OutsideError(FileNotFoundError):
    """A path leads through a directory or link of ours to a file that is there natively.

    The kernel cannot find it by that path. Calls that only look at a file are answered for it; for
    all others it is as if it were missing.
    """

    def __init__(self, path: bytes) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.path = path
        """Where it is, for the supervisor."""

    def node(self) -> Node:
        """The file as if it were a node; for looking only."""
        return native_node(self.path)


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
    """Finds the nodes of a sandbox by the paths that programs use."""

    def __init__(self, tasks: Tasks, descriptors: Descriptors) -> None:
        self._tasks = tasks
        self._descriptors = descriptors
        self.nodes = Nodes()
        self._by_path = self.nodes.by_path
        self.shadows = Shadows()
        self.many_roots = False
        """Whether some process may have a root or mounts of its own. Makes each lookup slower."""
        self.private_directories = False
        """Whether a directory of ours was made one that not everybody may search. So does this."""

    def find(
        self, tid: int, base: int, path: bytes, *, follow: bool = True, scope: int = 0
    ) -> Found | None:
        """Find what a path leads to.

        Args:
            tid: the thread that looks.
            base: the directory's descriptor for a relative path, or :data:`AT_FDCWD`.
            path: not empty.
            follow: whether a symbolic link in the last place is followed.
            scope: :data:`RESOLVE_BENEATH` or :data:`RESOLVE_IN_ROOT` if the path must not leave
                the directory that it starts from (openat2).

        Returns:
            None if it is nothing of ours: the kernel then gives the answer.

        Raises:
            AbsentError: if only the last name is missing, in a directory of ours.
            OutsideError: if it leads through ours to what is there natively.
            OSError: ENOTDIR if the path goes on after a file of ours, ENOENT if it goes on after
                what is missing in a directory of ours, EACCES if that may not be searched, ELOOP,
                EXDEV if it leaves its scope.
        """
        if not self.many_roots and not scope:
            node = None if self.private_directories else self._by_path.get(path)
            if node is not None and not (follow and node.target):
                return Found(node)
            if not self.nodes.hides_links and self._elsewhere(tid, base, path, follow):
                return None
        return self._walk(tid, base, path, follow, scope)

    def _elsewhere(self, tid: int, base: int, path: bytes, follow: bool) -> bool:
        """Whether the path, seen natively, cannot lead to one of our nodes.

        Seen by the supervisor, that is: what goes through ``/proc/self`` or through links like
        ``/proc/PID/fd/N``, which say what they lead to only when they are followed, is walked.
        """
        if path.startswith((b"/proc/self", b"/proc/thread-self", b"/dev/fd", b"/dev/std")):
            return False
        native = path if path.startswith(b"/") else _place(tid, base) + b"/" + path
        opened = len(self._descriptors) or (self.shadows.used and path.startswith(b"/proc/"))
        if opened and self._goes_through_magic(native, len(native) - len(path)):
            return False
        dots = self.shadows.used and path.startswith(b".")
        if dots and self._in_shadow(native[: -len(path) - 1]):
            return False  # a shadow's own "." and ".." are there natively
        # Of /proc/devices, which is hidden in every sandbox, the name is taken for a sign: a
        # symbolic link of another name leads to the native one.
        hides = self.nodes.hides_files or path.endswith(b"devices")
        if follow and not hides and os.access(native, os.F_OK):
            return True  # the quickest way to know that something is there
        try:
            found = os.stat(native) if follow else os.lstat(native)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return True
        else:
            return (found.st_dev, found.st_ino) not in self.nodes.hidden
        if native.endswith((b"/", b"/.", b"/..")):
            return False
        try:
            parent = os.stat(native.rpartition(b"/")[0] or b"/")
        except OSError:
            return False  # may lie in a directory of ours
        if (parent.st_dev, parent.st_ino) in self.nodes.extended_inodes:
            return False
        if self.shadows.used and not path.startswith(b"/"):
            return False  # the working directory may be a shadow
        return not (follow and os.path.islink(native))  # a dangling link may point to a node

    def _in_shadow(self, place: bytes) -> bool:
        try:
            return self.shadows.path_of(os.readlink(place)) is not None
        except OSError:
            return False

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

    def _walk(self, tid: int, base: int, path: bytes, follow: bool, scope: int) -> Found | None:
        mount = b""
        if self.many_roots:
            mount = b"/proc/%d/root" % tid
            try:
                if os.readlink(mount) != b"/":
                    return None  # a chroot has no devices but those that its own /dev has
            except OSError:
                return None
        here = b"/" if path.startswith(b"/") and not scope else self._directory(tid, base)
        if here is None:
            return None
        root = here if scope else b"/"
        if path.startswith(b"/"):
            here = _top(root, scope)
        names = _names(path)
        links, magic, through_ours = 0, False, False
        node = self._by_path.get(here)
        while names:
            name = names.pop()
            if node is not None:
                through_ours = True
                if not node.is_directory:
                    raise os_error(errno.ENOTDIR)
                check(node, self._tasks.get(tid).credentials, MAY_EXECUTE)
            if name == b".":
                continue
            if name == b"..":
                here = _top(root, scope) if here == root else here.rpartition(b"/")[0] or b"/"
                node = self._by_path.get(here)
                continue
            there = (b"" if here == b"/" else here) + b"/" + name
            ours, node = node, self._by_path.get(there)
            if node is not None:
                if node.target and (names or follow):
                    through_ours = True
                    links += 1
                    if links > _MAX_LINKS:
                        raise os_error(errno.ELOOP)
                    here = _top(root, scope) if node.target.startswith(b"/") else here
                    names += _names(node.target)
                    node = self._by_path.get(here)
                    continue
                here = there
                continue
            if ours is not None:
                # There is nothing in it but ours.
                raise os_error(errno.ENOENT) if any(n != b"." for n in names) else AbsentError()
            try:
                native = os.lstat(mount + there)
            except OSError:
                if through_ours:
                    raise  # from a directory's shadow, the kernel would get somewhere else
                return None
            if not stat.S_ISLNK(native.st_mode):
                if names and not self._searchable(tid, native):
                    if through_ours:
                        is_directory = stat.S_ISDIR(native.st_mode)
                        raise os_error(errno.EACCES if is_directory else errno.ENOTDIR)
                    return None
                here = there
                continue
            target = self._read_link(tid, mount, there)
            at_descriptor = self._descriptor_node(target)
            opened = self.shadows.path_of(target)
            if opened is not None:
                at_descriptor = self._present(opened)
            if not names and not follow:
                if at_descriptor is None and through_ours:
                    raise OutsideError(mount + there)
                return Found(at_descriptor, link=True) if at_descriptor else None
            links += 1
            if links > _MAX_LINKS:
                if through_ours:
                    raise os_error(errno.ELOOP)
                return None
            if at_descriptor is not None and scope:
                raise os_error(errno.EXDEV)
            if at_descriptor is not None:
                node, here, magic = at_descriptor, at_descriptor.path, True
                continue
            if target.startswith(b"/"):
                here = _top(root, scope)
            names += _names(target)
            node = self._by_path.get(here)
        if node is None and through_ours:
            raise OutsideError(mount + here)
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
        try:
            link = os.readlink(_place(tid, base))
        except OSError:
            return None
        opened = self.shadows.path_of(link)
        if opened is not None:
            self._present(opened)
            return opened
        return link if link.startswith(b"/") else None

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

    def directory(self, tid: int, number: int) -> Node | None:
        """The directory of ours that a descriptor refers to, None if it refers to something else.

        :data:`AT_FDCWD` stands for the working directory.

        Raises:
            OSError: ENOENT if it is not there any more.
        """
        if not self.shadows.used:
            return None
        try:
            link = os.readlink(_place(tid, number))
        except OSError:
            return None
        path = self.shadows.path_of(link)
        return None if path is None else self._present(path)

    def _present(self, path: bytes) -> Node:
        node = self._by_path.get(path)
        if node is None:
            raise os_error(errno.ENOENT)
        return node

    def close(self) -> None:
        """Let go of what stands for open directories."""
        self.shadows.close()
