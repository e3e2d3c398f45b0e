"""The way of one path, name by name, as one thread sees it (fs/namei.c; Linux 6.1).

What is there natively is held by descriptors that open nothing (O_PATH), so the kernel itself says
what a name is in a directory, which mounts are on it and what is above it, in whatever mount
namespace and below whatever root the thread is. A directory has nodes of ours in it if it *is* one
of those that we add to, whatever path led there: a bind mount of /dev is /dev, and so is the /dev
of a chroot on which it is mounted; a filesystem of its own that is mounted on /dev is not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple

from recuse.kernel.errors import os_error
from recuse.runtime.records import record
from recuse.sandbox.arch import arch
from recuse.sandbox.nodes import Node, Nodes, native_node
from recuse.sandbox.permissions import MAY_EXECUTE, check, grants
from recuse.sandbox.tasks import Credentials, numbers_in

if TYPE_CHECKING:
    from recuse.sandbox.descriptors import Descriptors
    from recuse.sandbox.shadows import Shadows
    from recuse.sandbox.tasks import Tasks

AT_FDCWD: Final = -100

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
"""openat2(2)."""
_OPEN_HOW = struct.Struct("=QQQ")

_MAX_LINKS: Final = 40

O_PATH: Final = 0o10000000
_LOOK: Final = O_PATH | os.O_CLOEXEC
_LOOK_AT_LINK: Final = _LOOK | arch.O_NOFOLLOW

_PROC_ROOT_INODE: Final = 1
"""The inode number of every /proc (linux/proc_fs.h, PROC_ROOT_INO)."""

_OWN_LACKS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the supervisor lacks; of the path it says nothing."""

_ST_NODEV: Final = 4
"""statvfs(3): device nodes of that mount cannot be opened."""

_libc = ctypes.CDLL(None, use_errno=True)


def open_path(directory: int, path: bytes, resolve: int, flags: int = 0) -> int:
    """openat2 with O_PATH: a descriptor, or a negative errno."""
    how = _OPEN_HOW.pack(_LOOK | flags, 0, resolve)
    result: int = _libc.syscall(arch.SYSCALLS["openat2"], directory, path, how, len(how))
    return result if result >= 0 else -ctypes.get_errno()


def meets_magic(directory: int, path: bytes) -> bool:
    """Whether following ``path`` meets a link of the magic kind, as ``/proc/PID/fd/N`` is one."""
    file = open_path(directory, path, RESOLVE_NO_MAGICLINKS)
    if file >= 0:
        os.close(file)
    return file == -errno.ELOOP


def start_of(tid: int, base: int) -> bytes:
    """The link to a thread's directory: the working one, or that of a descriptor."""
    return b"/proc/%d/cwd" % tid if base == AT_FDCWD else b"/proc/%d/fd/%d" % (tid, base)


def _names(path: bytes) -> list[bytes]:
    """A path's names, the first one last; a slash at the end is a name too, "."."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


def _mount_of(file: int) -> bytes:
    """The line of ``/proc/self/fdinfo`` that tells which mount a descriptor was opened on."""
    with open(f"/proc/self/fdinfo/{file}", "rb") as lines:
        return next(line for line in lines if line.startswith(b"mnt_id:"))


class AbsentError(FileNotFoundError):
    """A name is missing in a directory that exists only in the sandbox.

    Calls that would make it fail otherwise: nobody can make one there.
    """

    def __init__(self) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))


class OutsideError(FileNotFoundError):
    """A path leads through a directory or link of ours to a file that is there natively.

    The kernel cannot find it by that path. Calls that only look at a file are answered for it; for
    all others it is as if it were missing. It holds a descriptor of that file, as long as it lives.
    """

    def __init__(self, file: int) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self._file = os.dup(file)

    @property
    def path(self) -> bytes:
        """A path to the file, for the supervisor; the link itself is of the magic kind."""
        return b"/proc/self/fd/%d" % self._file

    @property
    def in_proc(self) -> bool:
        """Whether it is one of ``/proc``, whose content depends on who opens it."""
        return Nodes.is_proc(self._file)

    def node(self) -> Node:
        """The file as if it were a node; for looking only."""
        return native_node(self._file)

    def __del__(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class Found(NamedTuple):
    """What a path leads to."""

    node: Node
    link: bool = False
    """The path names not the node but a ``/proc/PID/fd`` link to it, and was not to be followed."""
    links: int = 0
    """How many symbolic links were followed."""
    magic: bool = False
    """One of them was a ``/proc/PID/fd`` link."""


@record
class _Spot:
    """A native file that a walk has come to."""

    file: int
    """A descriptor, opened with O_PATH."""
    status: os.stat_result
    place: bytes | None
    """Under which path our nodes in it are known, if it is a directory with any."""


class Walk:
    """One walk. To be used in a with statement, which closes what it holds."""

    def __init__(
        self,
        nodes: Nodes,
        tasks: Tasks,
        descriptors: Descriptors,
        shadows: Shadows,
        tid: int,
        *,
        own_root: bool,
        scope: int,
    ) -> None:
        """Prepare.

        Args:
            nodes: the sandbox's.
            tasks: the sandbox's.
            descriptors: the sandbox's.
            shadows: the sandbox's.
            tid: the thread that looks.
            own_root: whether its root or mounts may be other ones than the supervisor's.
            scope: see :meth:`recuse.sandbox.tree.Tree.find`.
        """
        self._nodes = nodes
        self._by_path = nodes.by_path
        self._tasks = tasks
        self._descriptors = descriptors
        self._shadows = shadows
        self._tid = tid
        self._own_root = own_root
        self._scope = scope
        self._root: _Spot | Node | None = None
        self._here: _Spot | None = None
        """Where the walk is natively; with ``_node``, where it left what is native."""
        self._node: Node | None = None
        """The node of ours that it is at, if it is at one."""
        self._through_ours = False
        self._links = 0
        self._magic = False
        self._who: Credentials | None = None

    def __enter__(self) -> Walk:
        """Do nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what it holds."""
        self._leave()
        if isinstance(self._root, _Spot):
            os.close(self._root.file)

    def find(self, base: int, path: bytes, *, follow: bool, opening: bool) -> Found | None:
        """Go along a path; see :meth:`recuse.sandbox.tree.Tree.find`."""
        try:
            return self._find(base, path, follow, opening)
        except OSError as error:
            if error.errno in _OWN_LACKS:
                raise os_error(errno.ENFILE) from None  # it may be ours
            if self._through_ours:
                raise  # from a directory's shadow, the kernel would get somewhere else
            return None

    def _find(self, base: int, path: bytes, follow: bool, opening: bool) -> Found | None:
        if not path.startswith(b"/") or self._scope:
            self._go(os.open(start_of(self._tid, base), _LOOK))
        if path.startswith(b"/"):
            self._go_to_root()
        names = _names(path)
        while names:
            name = names.pop()
            self._check_search()
            if name == b".":
                continue
            if name == b"..":
                self._up()
                continue
            node = self._node_named(name)
            if node is None:
                if self._node is not None:
                    # There is nothing in it but ours.
                    missing = any(n != b"." for n in names)
                    raise os_error(errno.ENOENT) if missing else AbsentError()
                found = self._step(name, names, follow)
                if found is not None:
                    return found
            elif node.target and (names or follow):
                self._through_ours = True
                self._follow(node.target, names)
            else:
                self._node = node
        return self._result(opening)

    def _result(self, opening: bool) -> Found | None:
        if self._node is not None:
            return Found(self._node, links=self._links, magic=self._magic)
        here = self._here
        assert here is not None
        if opening:
            node = self._nodes.by_number.get(here.status.st_rdev)
            if node is not None and stat.S_ISCHR(here.status.st_mode):
                # The number decides, not the name (fs/char_dev.c, chrdev_open).
                if os.fstatvfs(here.file).f_flag & _ST_NODEV:
                    return None  # EACCES
                second = native_node(here.file)
                second.device = node.device
                return Found(second, links=self._links, magic=self._magic)
        if self._through_ours:
            raise OutsideError(here.file)
        return None

    def _credentials(self) -> Credentials:
        if self._who is None:
            self._who = self._tasks.get(self._tid).credentials
        return self._who

    def _check_search(self) -> None:
        """Raise ENOTDIR or EACCES unless a name may be looked up here.

        The supervisor may have more rights than the program.
        """
        node = self._node
        if node is not None:
            self._through_ours = True
            if not node.is_directory:
                raise os_error(errno.ENOTDIR)
            check(node, self._credentials(), MAY_EXECUTE)
            return
        assert self._here is not None
        status = self._here.status
        if not stat.S_ISDIR(status.st_mode):
            raise os_error(errno.ENOTDIR)
        who = self._credentials()
        if not grants(status.st_mode, status.st_uid, status.st_gid, who, MAY_EXECUTE):
            raise os_error(errno.EACCES)

    def _node_named(self, name: bytes) -> Node | None:
        if self._node is not None:
            place = self._node.path
        elif self._here is not None and self._here.place is not None:
            place = self._here.place
        else:
            return None
        return self._by_path.get((b"" if place == b"/" else place) + b"/" + name)

    def _spot(self, file: int, status: os.stat_result | None = None) -> _Spot:
        """What a descriptor leads to, which is closed if that fails."""
        try:
            status = status or os.fstat(file)
            place = None
            if stat.S_ISDIR(status.st_mode):
                place = self._nodes.place(b"/proc/self/fd/%d" % file, status)
            return _Spot(file, status, place)
        except BaseException:
            os.close(file)
            raise

    def _go(self, file: int, status: os.stat_result | None = None) -> None:
        """Go to what a descriptor leads to, which is the walk's from now on."""
        spot = self._spot(file, status)
        self._leave()
        self._here = spot
        path = self._shadows.standing_for(spot.status)
        if path is not None:
            self._leave()
            self._go_to_node(path)
        if self._scope and self._root is None:
            if self._here is not None and self._node is None:
                self._root = self._spot(os.dup(file), spot.status)
            else:
                self._root = self._node

    def _go_to_node(self, path: bytes) -> None:
        """Go to a node by the path under which it is known. Raises ENOENT if it is gone."""
        self._through_ours = True
        self._node = self._by_path.get(path)
        if self._node is None:
            raise os_error(errno.ENOENT)

    def _go_to_root(self) -> None:
        if self._scope & RESOLVE_BENEATH:
            raise os_error(errno.EXDEV)  # fs/namei.c, nd_jump_root
        root = self._root_now()
        if isinstance(root, Node):
            self._node = root
        else:
            self._go(os.dup(root.file), root.status)

    def _root_now(self) -> _Spot | Node:
        if self._root is None:
            root = b"/proc/%d/root" % self._tid if self._own_root else b"/"
            self._root = self._spot(os.open(root, _LOOK))
        return self._root

    def _at_root(self) -> bool:
        """Whether ".." leads nowhere else.

        Of the supervisor's own root the kernel knows that itself.
        """
        if not (self._scope or self._own_root):
            return False
        root = self._root_now()
        if isinstance(root, Node) or self._node is not None:
            return root is self._node
        assert self._here is not None
        if not os.path.samestat(root.status, self._here.status):
            return False
        return _mount_of(root.file) == _mount_of(self._here.file)

    def _up(self) -> None:
        if self._at_root():
            if self._scope & RESOLVE_BENEATH:
                raise os_error(errno.EXDEV)  # fs/namei.c, follow_dotdot
            return
        node, here = self._node, self._here
        if node is None:
            assert here is not None
            self._go(os.open(b"..", _LOOK, dir_fd=here.file))
            return
        above = node.path.rpartition(b"/")[0] or b"/"
        self._node = self._by_path.get(above)
        if self._node is None and (here is None or here.place != above):
            # It was not reached through the directory that it is in.
            self._go(os.open(above, _LOOK))

    def _leave(self) -> None:
        here, self._here, self._node = self._here, None, None
        if here is not None:
            os.close(here.file)

    def _follow(self, target: bytes, names: list[bytes]) -> None:
        self._count_link()
        if target.startswith(b"/"):
            self._go_to_root()
        names += _names(target)

    def _count_link(self) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise os_error(errno.ELOOP)

    def _step(self, name: bytes, names: list[bytes], follow: bool) -> Found | None:
        """Go to what is natively there by that name, or where that leads.

        Returns:
            None, or the end of the walk: a link of the magic kind that is not to be followed.
        """
        here = self._here
        assert here is not None
        file = os.open(name, _LOOK_AT_LINK, dir_fd=here.file)
        try:
            status = os.fstat(file)
            is_link = stat.S_ISLNK(status.st_mode)
            # Quickly, if it is the supervisor's own.
            in_proc = is_link and (status.st_dev == self._nodes.proc_device or Nodes.is_proc(file))
            target = self._target(name, here, file, in_proc) if is_link else b""
        except BaseException:
            os.close(file)
            raise
        if not is_link:
            self._go(file, status)
            return None
        in_root = here.status.st_ino == _PROC_ROOT_INODE  # where there are none
        is_magic = in_proc and not in_root and meets_magic(here.file, name)
        if not names and not follow:
            ours = self._at_magic_link(here, name, target) if is_magic else None
            if ours is not None:
                os.close(file)
                return Found(ours, link=True)
            self._go(file, status)
            return None
        os.close(file)
        if not is_magic:
            self._follow(target, names)
            return None
        self._count_link()
        if self._scope:
            raise os_error(errno.EXDEV)
        self._magic = True
        node = self._descriptor_node(target)
        if node is None:
            self._go(os.open(name, _LOOK, dir_fd=here.file))
        else:
            self._leave()
            self._node = node
        return None

    def _target(self, name: bytes, here: _Spot, link: int, in_proc: bool) -> bytes:
        """What a link says to the thread."""
        if in_proc and here.status.st_ino == _PROC_ROOT_INODE:
            if name == b"self":
                return b"%d" % self._numbers(here)[0]
            if name == b"thread-self":
                return b"%d/task/%d" % self._numbers(here)
        return os.readlink(b"", dir_fd=link)

    def _numbers(self, proc: _Spot) -> tuple[int, int]:
        """The process's and the thread's numbers in a ``/proc``."""
        if proc.status.st_dev == self._nodes.proc_device:
            return self._tasks.get(self._tid).tgid, self._tid
        return numbers_in(proc.file, self._tid)

    def _at_magic_link(self, here: _Spot, name: bytes, target: bytes) -> Node | None:
        """The node that a link of the magic kind leads to."""
        node = self._descriptor_node(target)
        if node is not None or not self._shadows.used:
            return node
        path = self._shadows.standing_for(os.stat(name, dir_fd=here.file))
        return None if path is None else self._by_path.get(path)

    def _descriptor_node(self, target: bytes) -> Node | None:
        if not target.startswith((b"socket:[", b"pipe:[")):
            return None
        descriptor = self._descriptors.by_link(target.decode())
        return descriptor.node if descriptor is not None else None
