"""A walk along one path, name by name, as one thread sees it (fs/namei.c; Linux 6.1)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.tasks.tasks import Credentials, numbers_in
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import SERVER_GONE, Location, lone
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.found import (
    AbsentError,
    Found,
    NativeFile,
    NativelyAbsentError,
    OutsideError,
)
from recuse.sandbox.vfs.inside import OpenFiles, behind, go_along, names_of, opened_at
from recuse.sandbox.vfs.native_files import PROC_ROOT_INODE, start_of
from recuse.sandbox.vfs.permissions import MAY_EXECUTE, check
from recuse.sandbox.vfs.position import Position, Spot

if TYPE_CHECKING:
    from recuse.sandbox.tasks.rights import Acting
    from recuse.sandbox.tasks.tasks import Task, Tasks
    from recuse.sandbox.trap.call import TrappedCall
    from recuse.sandbox.vfs.device_files import DeviceFiles
    from recuse.sandbox.vfs.mounts import Mounts
    from recuse.sandbox.vfs.placeholder_dirs import PlaceholderDirs

_MAX_LINKS: Final = 40

_OWN_IN_PROC: Final = frozenset((b"task", b"fd", b"cwd", b"root", b"exe"))
"""What a process may follow in its own /proc directory, besides numbers, even if nobody else may
look into the process (fs/proc/base.c, proc_fd_access_allowed)."""

_OWN_LACKS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the supervisor itself has run out of. This says nothing about the path."""


class Walk(Position):
    """One walk."""

    def __init__(
        self,
        call: TrappedCall,
        *,
        mounts: Mounts,
        devices: DeviceFiles,
        tasks: Tasks,
        files: OpenFiles,
        placeholders: PlaceholderDirs,
        own_root: bool,
        scope: int,
        real: bool,
    ) -> None:
        """Prepare.

        Args:
            call: the call that looks.
            mounts: the sandbox's.
            devices: the sandbox's.
            tasks: the sandbox's.
            files: the sandbox's.
            placeholders: the sandbox's.
            own_root: whether the thread's root or mounts may differ from the supervisor's.
            scope: see :meth:`recuse.sandbox.vfs.resolve.Tree.find`.
            real: see there.
        """
        super().__init__(mounts, placeholders, call.tid, own_root=own_root, scope=scope)
        self._devices = devices
        self._tasks = tasks
        self._files = files
        self._call = call
        self._real = real
        self._links = 0
        self._magic = False
        self._who: Credentials | None = None
        self._acting: Acting | None = None

    def find(self, base: int, path: bytes, *, follow: bool, opening: bool) -> Found | None:
        """Walk along a path; see :meth:`recuse.sandbox.vfs.resolve.Tree.find`."""
        try:
            self._begin(base, path)
            if self._acting is None:
                return self._find(path, follow, opening)
            with self._acting:
                return self._find(path, follow, opening)
        except OSError as error:
            if error.errno in _OWN_LACKS:
                raise os_error(errno.ENFILE) from None  # the path may be recuse's
            if self.through_ours:
                raise  # in a directory's placeholder, the kernel would get somewhere else
            return None

    def go_on(
        self, at: Location, names: list[bytes], *, follow: bool, opening: bool
    ) -> Found | None:
        """Walk on from a place on a filesystem, for a thread with the supervisor's rights."""
        self.through_ours = True
        try:
            self._take_rights()
            self._arrive(at, names, follow)
            return self._go_on(names, follow, opening)
        except OSError as error:
            if error.errno in _OWN_LACKS:
                raise os_error(errno.ENFILE) from None
            raise

    def _take_rights(self) -> Task:
        task = self._tasks.get(self.tid)
        self._who, self._acting = task.credentials, task.acting
        if self._real:
            self._who, self._acting = (
                task.real_credentials,
                self._tasks.acting_as(task.real_rights),
            )
        return task

    def _begin(self, base: int, path: bytes) -> None:
        """Go to where the path begins.

        The thread may always use that place and its root, whatever its rights.
        """
        task = self._take_rights()
        # A thread may have got its own mounts by clone3(2), which is not trapped.
        self.own_root = self.own_root or not task.shares_mounts()
        if not path.startswith(b"/") or self.scope:
            start = start_of(self.tid, base)
            opened = opened_at(self._files, start) if self._files else None
            if opened is None:
                self.go(native_files.look(start), is_start=True)
            else:
                self.start_at(opened)
        if self.own_root:
            self.root()

    def _find(self, path: bytes, follow: bool, opening: bool) -> Found | None:
        if path.startswith(b"/"):
            self.go_to_root()
        return self._go_on(names_of(path), follow, opening)

    def _go_on(self, names: list[bytes], follow: bool, opening: bool) -> Found | None:
        while names:
            if self.at is not None and (filesystem := filesystem_of(self.at)) is not None:
                self.through_ours = True
                alone = self.mounts.covers_ours  # each name may lead to what is mounted there
                there = go_along(self._call, filesystem, self.at, names, self._real, alone)
                self._arrive(there, names, follow)
                if names and names[-1] == b".." and self.at == there:
                    names.pop()
                    self.up()
                continue
            name = names.pop()
            self._check_search()
            if name == b".":
                continue
            if name == b"..":
                self.up()
                continue
            if self.at is not None:
                location = self._inside(self.at, name, names)
            else:
                added = self._added(name, hiding=True)
                if added is None:
                    try:
                        found = self._step(name, names, follow)
                    except FileNotFoundError:
                        if self.here is None:
                            raise  # the name was found; the directory behind it has gone
                        added = self._added(name, hiding=False)
                        if added is None:
                            self._check_absent(name, names)
                            raise
                    else:
                        if found is not None:
                            return found
                        continue
                location = added
            if location.dentry.node.is_link and (names or follow):
                self.through_ours = True
                self._follow(location.read_link(self._call), names)
            else:
                self.enter(location)
        return self._result(opening)

    def _check_absent(self, name: bytes, names: list[bytes]) -> None:
        """Raise NativelyAbsentError if only the last name is missing, behind recuse's."""
        assert self.here is not None
        if self.through_ours and not any(n != b"." for n in names):
            above = native_files.path_of(self.here.file)
            slash = b"/" if names else b""
            raise NativelyAbsentError(above.rstrip(b"/") + b"/" + name + slash)

    def _arrive(self, there: Location, names: list[bytes], follow: bool) -> None:
        """Go to a place on a filesystem, or to where it leads as a symbolic link."""
        directory = there.dentry.parent
        if there.node.is_link and (names or follow) and directory is not None:
            self.at = Location(there.mount, directory)
            self._follow(there.read_link(self._call), names)
        else:
            self.enter(there)

    def _inside(self, at: Location, name: bytes, names: list[bytes]) -> Location:
        """What has that name in a directory of recuse's; ``names`` follow it."""
        dentry = at.mount.tree.lookup(self._call, at.dentry, name)
        if dentry is None:
            missing = any(n != b"." for n in names)
            raise os_error(errno.ENOENT) if missing else AbsentError(at, name, bool(names))
        return Location(at.mount, dentry)

    def _added(self, name: bytes, *, hiding: bool) -> Location | None:
        """What is added to the native directory by that name, by additions that hide or do not."""
        assert self.here is not None
        for addition in self.here.additions:
            if addition.hides is hiding:
                tree = addition.tree
                try:
                    dentry = tree.lookup(self._call, tree.root, name)
                except OSError as error:
                    if error.errno in SERVER_GONE:
                        continue  # the directory is used without this addition
                    self.through_ours = True  # it is the call's error
                    raise
                if dentry is not None:
                    return Location(addition, dentry)
        return None

    def _result(self, opening: bool) -> Found | None:
        if self.at is not None:
            return Found(self.at, links=self._links, magic=self._magic)
        here = self.here
        assert here is not None
        self.check_reach()
        if opening:
            node = self._devices.by_number.get(here.status.st_rdev)
            if node is not None and stat.S_ISCHR(here.status.st_mode):
                # The number decides, not the name (fs/char_dev.c, chrdev_open).
                if native_files.opens_no_devices(here.file):
                    return None  # EACCES
                native = NativeFile(here.file, here.status, self.above)
                second = lone(node.at(here.status), native.path)
                return Found(second, links=self._links, magic=self._magic, native=native)
        if self.through_ours:
            native = NativeFile(here.file, here.status, self.above)
            raise OutsideError(native, self._links, self._magic)
        return None

    @contextlib.contextmanager
    def _own_rights(self) -> Iterator[None]:
        """Have the supervisor's rights in a ``with`` block, to look at what is the thread's own."""
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
        if self.at is not None:
            node = self.at.node
            self.through_ours = True
            if not node.is_directory:
                raise os_error(errno.ENOTDIR)
            assert self._who is not None
            check(node, self._who, MAY_EXECUTE)
            return
        assert self.here is not None
        if not stat.S_ISDIR(self.here.status.st_mode):
            raise os_error(errno.ENOTDIR)
        if self.callers:
            with self._own_rights():
                native_files.check_search(self.here.file)
        else:
            native_files.check_search(self.here.file)

    def _follow(self, target: bytes, names: list[bytes]) -> None:
        self._count_link()
        if target.startswith(b"/"):
            self.go_to_root()
        names += names_of(target)

    def _count_link(self) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise os_error(errno.ELOOP)

    def _step(self, name: bytes, names: list[bytes], follow: bool) -> Found | None:
        """Go to the native file of that name, or to where it leads.

        Returns:
            None, or the end of the walk: a magic link that must not be followed.
        """
        here = self.here
        assert here is not None
        self.check_reach()
        if self._acting is None or not self._is_callers(here, name):
            return self._step_from(here, name, names, follow)
        with self._own_rights():
            found = self._step_from(here, name, names, follow)
        # This does not hold for the place that a link leads to.
        self.callers = self.above is here.status
        return found

    def _is_callers(self, here: Spot, name: bytes) -> bool:
        """Whether it is the directory of the thread's own process in a ``/proc``, or is in it."""
        if here.status.st_ino == PROC_ROOT_INODE and native_files.is_proc(here.file):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    return int(name) in self._numbers(here)
            return False
        return self.callers and (name.isdigit() or name in _OWN_IN_PROC)

    def _step_from(self, here: Spot, name: bytes, names: list[bytes], follow: bool) -> Found | None:
        file = native_files.look(name, here.file, follow=False)
        try:
            status = os.fstat(file)
            is_link = stat.S_ISLNK(status.st_mode)
            # Comparing device numbers is quick, and enough for the supervisor's own /proc.
            in_proc = is_link and (
                status.st_dev == self._devices.proc_device or native_files.is_proc(file)
            )
            target = self._target(name, here, file, in_proc) if is_link else b""
            if is_link and not in_proc and (names or follow):
                assert self._who is not None
                native_files.check_follow(file, status, here.status, self._who.uid)
        except BaseException:
            os.close(file)
            raise
        if not is_link:
            self.go(file, status)
            self.above = here.status
            return None
        in_root = here.status.st_ino == PROC_ROOT_INODE  # it has no magic links
        is_magic = in_proc and not in_root and native_files.meets_magic(here.file, name)
        if is_magic and native_files.is_supervisors(here.file):
            # A thread may follow all links to what its own process has, whatever it acts as.
            os.close(file)
            raise os_error(errno.EACCES)
        if not names and not follow:
            ours = self._at_magic_link(here, name, target) if is_magic else None
            if ours is not None:
                os.close(file)
                return Found(ours, link=True)
            self.go(file, status)
            return None
        os.close(file)
        if not is_magic:
            self._follow(target, names)
            return None
        self._count_link()
        if self.scope:
            raise os_error(errno.EXDEV)
        self._magic = True
        opened = behind(self._files, target)
        if opened is None:
            self.go(native_files.look(name, here.file))
        else:
            self.leave()
            self.at = opened
        return None

    def _target(self, name: bytes, here: Spot, link: int, in_proc: bool) -> bytes:
        """What a link reads for the thread."""
        if in_proc and here.status.st_ino == PROC_ROOT_INODE:
            if name == b"self":
                return b"%d" % self._numbers(here)[0]
            if name == b"thread-self":
                return b"%d/task/%d" % self._numbers(here)
        return native_files.target_of(link)

    def _numbers(self, proc: Spot) -> tuple[int, int]:
        """The IDs of the process and the thread in a ``/proc``."""
        with self._own_rights():
            if proc.status.st_dev == self._devices.proc_device:
                return self._tasks.get(self.tid).tgid, self.tid
            return numbers_in(proc.file, self.tid)

    def _at_magic_link(self, here: Spot, name: bytes, target: bytes) -> Location | None:
        """What of recuse's a magic link leads to."""
        opened = behind(self._files, target)
        if opened is not None or not self.placeholders.used:
            return opened
        return self.placeholders.standing_for(native_files.status(name, dir_fd=here.file))
