"""The way of one path, name by name, as one thread sees it (fs/namei.c; Linux 6.1).

What is there natively is held by descriptors that open nothing (O_PATH), so the kernel itself says
what a name is in a directory, which mounts are on it and what is above it, in whatever mount
namespace and below whatever root the thread is. A directory has nodes of ours in it if it *is* one
of those that we add to, whatever path led there: a bind mount of /dev is /dev, and so is the /dev
of a chroot on which it is mounted; a filesystem of its own that is mounted on /dev is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import record
from recuse.sandbox.tasks.tasks import Credentials, in_our_namespace, numbers_in
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.found import AbsentError, Found, NativeFile, OutsideError
from recuse.sandbox.vfs.native_files import PROC_ROOT_INODE, RESOLVE_BENEATH, start_of
from recuse.sandbox.vfs.nodes import Node, Nodes, native_node
from recuse.sandbox.vfs.permissions import MAY_EXECUTE, check

if TYPE_CHECKING:
    from recuse.sandbox.files.table import FileTable
    from recuse.sandbox.tasks.rights import Acting
    from recuse.sandbox.tasks.tasks import Tasks
    from recuse.sandbox.vfs.placeholder_dirs import PlaceholderDirs

_MAX_LINKS: Final = 40

_OWN_IN_PROC: Final = frozenset((b"task", b"fd", b"cwd", b"root", b"exe"))
"""What everybody may follow in the directory of his own process, besides numbers, whatever else
that lets nobody look into it (fs/proc/base.c, proc_fd_access_allowed)."""

_OWN_LACKS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the supervisor lacks; of the path it says nothing."""


def _names(path: bytes) -> list[bytes]:
    """A path's names, the first one last; a slash at the end is a name too, "."."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


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
        descriptors: FileTable,
        placeholders: PlaceholderDirs,
        tid: int,
        *,
        own_root: bool,
        scope: int,
        real: bool,
    ) -> None:
        """Prepare.

        Args:
            nodes: the sandbox's.
            tasks: the sandbox's.
            descriptors: the sandbox's.
            placeholders: the sandbox's.
            tid: the thread that looks.
            own_root: whether its root or mounts may be other ones than the supervisor's.
            scope: see :meth:`recuse.sandbox.vfs.resolve.Tree.find`.
            real: likewise.
        """
        self._nodes = nodes
        self._by_path = nodes.by_path
        self._tasks = tasks
        self._descriptors = descriptors
        self._placeholders = placeholders
        self._tid = tid
        self._own_root = own_root
        self._scope = scope
        self._real = real
        self._root: _Spot | Node | None = None
        self._here: _Spot | None = None
        """Where the walk is natively; with ``_node``, where it left what is native."""
        self._node: Node | None = None
        """The node of ours that it is at, if it is at one."""
        self._through_ours = False
        self._links = 0
        self._magic = False
        self._who: Credentials | None = None
        self._acting: Acting | None = None
        self._callers = False
        """Whether it is natively in the directory of the thread's own process in a ``/proc``."""
        self._out_of_reach = False
        """Whether it is natively in a directory of the supervisor's for what is ours there."""
        self._above: os.stat_result | None = None
        """What it came from to where it is natively, by a name."""

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
        """Go along a path; see :meth:`recuse.sandbox.vfs.resolve.Tree.find`."""
        try:
            self._begin(base, path)
            if self._acting is None:
                return self._find(path, follow, opening)
            with self._acting:
                return self._find(path, follow, opening)
        except OSError as error:
            if error.errno in _OWN_LACKS:
                raise os_error(errno.ENFILE) from None  # it may be ours
            if self._through_ours:
                raise  # from a directory's shadow, the kernel would get somewhere else
            return None

    def _begin(self, base: int, path: bytes) -> None:
        """Go to where the path begins.

        This, and the thread's root, it has, whoever might look into it otherwise.
        """
        task = self._tasks.get(self._tid)
        self._who, self._acting = task.credentials, task.acting
        if self._real:
            self._who, self._acting = task.real_credentials, self._tasks.acting_as(task.real_rights)
        # A thread that has made itself mounts by clone3(2) is not known to have them.
        self._own_root = self._own_root or not in_our_namespace(self._tid, "mnt")
        if not path.startswith(b"/") or self._scope:
            self._go(native_files.look(start_of(self._tid, base)))
        if self._own_root:
            self._root_now()

    def _find(self, path: bytes, follow: bool, opening: bool) -> Found | None:
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
        self._check_reach()
        if opening:
            node = self._nodes.by_number.get(here.status.st_rdev)
            if node is not None and stat.S_ISCHR(here.status.st_mode):
                # The number decides, not the name (fs/char_dev.c, chrdev_open).
                if native_files.opens_no_devices(here.file):
                    return None  # EACCES
                second = native_node(here.file)
                second.device = node.device
                native = NativeFile(here.file, here.status, self._above)
                return Found(second, links=self._links, magic=self._magic, native=native)
        if self._through_ours:
            native = NativeFile(here.file, here.status, self._above)
            raise OutsideError(native, self._links, self._magic)
        return None

    @contextlib.contextmanager
    def _own_rights(self) -> Iterator[None]:
        """The supervisor's rights in a ``with`` block, for what is the thread's own."""
        acting = self._acting
        if acting is None:
            yield
            return
        self._acting = None
        try:
            with acting.paused():
                yield
        finally:
            self._acting = acting

    def _check_search(self) -> None:
        """Raise ENOTDIR or EACCES unless a name may be looked up here."""
        node = self._node
        if node is not None:
            self._through_ours = True
            if not node.is_directory:
                raise os_error(errno.ENOTDIR)
            assert self._who is not None
            check(node, self._who, MAY_EXECUTE)
            return
        assert self._here is not None
        if not stat.S_ISDIR(self._here.status.st_mode):
            raise os_error(errno.ENOTDIR)
        if self._callers:
            with self._own_rights():
                native_files.check_search(self._here.file)
        else:
            native_files.check_search(self._here.file)

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
        self._callers = False
        self._above = None
        self._out_of_reach = False
        path = self._placeholders.standing_for(spot.status)
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
            self._root = self._spot(native_files.look(root))
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
        return native_files.mount_of(root.file) == native_files.mount_of(self._here.file)

    def _up(self) -> None:
        if self._at_root():
            if self._scope & RESOLVE_BENEATH:
                raise os_error(errno.EXDEV)  # fs/namei.c, follow_dotdot
            return
        node, here = self._node, self._here
        if node is None:
            assert here is not None
            self._check_reach()
            self._go(native_files.look(b"..", here.file))
            return
        above = node.path.rpartition(b"/")[0] or b"/"
        self._node = self._by_path.get(above)
        if self._node is None and (here is None or here.place != above):
            # It was not reached through the directory that it is in.
            self._go_by_path(above)

    def _go_by_path(self, path: bytes) -> None:
        """Go to a native directory by the path under which our nodes in it are known."""
        if self._own_root:
            root = self._root_now()
            if isinstance(root, _Spot):
                flags = native_files.RESOLVE_IN_ROOT | native_files.RESOLVE_NO_MAGICLINKS
                file = native_files.open_path(root.file, path, flags)
                if file >= 0:
                    self._go(file)
                    if self._here is not None and self._here.place == path:
                        return
        # From the thread's root it may be out of reach, but for what is ours in it.
        self._go(native_files.look(path))
        self._out_of_reach = self._own_root or bool(self._scope)

    def _check_reach(self) -> None:
        """Raise ENOENT if what is here natively is not to be reached."""
        if self._out_of_reach:
            raise os_error(errno.ENOENT)

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
        self._check_reach()
        if self._acting is None or not self._is_callers(here, name):
            return self._step_from(here, name, names, follow)
        with self._own_rights():
            found = self._step_from(here, name, names, follow)
        # Not where a link leads.
        self._callers = self._above is here.status
        return found

    def _is_callers(self, here: _Spot, name: bytes) -> bool:
        """Whether that is the directory of the thread's own process in a ``/proc``, or in that."""
        if here.status.st_ino == PROC_ROOT_INODE and native_files.is_proc(here.file):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    return int(name) in self._numbers(here)
            return False
        return self._callers and (name.isdigit() or name in _OWN_IN_PROC)

    def _step_from(
        self, here: _Spot, name: bytes, names: list[bytes], follow: bool
    ) -> Found | None:
        file = native_files.look(name, here.file, follow=False)
        try:
            status = os.fstat(file)
            is_link = stat.S_ISLNK(status.st_mode)
            # Quickly, if it is the supervisor's own.
            in_proc = is_link and (
                status.st_dev == self._nodes.proc_device or native_files.is_proc(file)
            )
            target = self._target(name, here, file, in_proc) if is_link else b""
            if is_link and not in_proc and (names or follow):
                assert self._who is not None
                native_files.check_follow(file, status, here.status, self._who.uid)
        except BaseException:
            os.close(file)
            raise
        if not is_link:
            self._go(file, status)
            self._above = here.status
            return None
        in_root = here.status.st_ino == PROC_ROOT_INODE  # where there are none
        is_magic = in_proc and not in_root and native_files.meets_magic(here.file, name)
        if is_magic and native_files.is_supervisors(here.file):
            # Whatever it acts as, a thread may follow all links to what its own process has.
            os.close(file)
            raise os_error(errno.EACCES)
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
            self._go(native_files.look(name, here.file))
        else:
            self._leave()
            self._node = node
        return None

    def _target(self, name: bytes, here: _Spot, link: int, in_proc: bool) -> bytes:
        """What a link says to the thread."""
        if in_proc and here.status.st_ino == PROC_ROOT_INODE:
            if name == b"self":
                return b"%d" % self._numbers(here)[0]
            if name == b"thread-self":
                return b"%d/task/%d" % self._numbers(here)
        return native_files.target_of(link)

    def _numbers(self, proc: _Spot) -> tuple[int, int]:
        """The process's and the thread's numbers in a ``/proc``."""
        with self._own_rights():
            if proc.status.st_dev == self._nodes.proc_device:
                return self._tasks.get(self._tid).tgid, self._tid
            return numbers_in(proc.file, self._tid)

    def _at_magic_link(self, here: _Spot, name: bytes, target: bytes) -> Node | None:
        """The node that a link of the magic kind leads to."""
        node = self._descriptor_node(target)
        if node is not None or not self._placeholders.used:
            return node
        path = self._placeholders.standing_for(native_files.status(name, dir_fd=here.file))
        return None if path is None else self._by_path.get(path)

    def _descriptor_node(self, target: bytes) -> Node | None:
        if not target.startswith((b"socket:[", b"pipe:[")):
            return None
        descriptor = self._descriptors.by_link(target.decode())
        return descriptor.node if descriptor is not None else None
