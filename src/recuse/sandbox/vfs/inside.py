"""Paths that lead into a filesystem, or begin in one: most need no native walk.

Where a path begins with a mount's, it leads through native directories that anybody may change at
any time. All of that is asked of the kernel by one stat, in the program's place.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

from recuse.kernel.errors import os_error
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.filesystem_tree import filesystem_of
from recuse.sandbox.vfs.found import AbsentError
from recuse.sandbox.vfs.native_files import AT_FDCWD, start_of
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.sandbox.trap.call import TrappedCall
    from recuse.sandbox.vfs.filesystem_tree import FilesystemTree
    from recuse.sandbox.vfs.mounts import Mounts
    from recuse.sandbox.vfs.placeholder_dirs import PlaceholderDirs


def names_of(path: bytes) -> list[bytes]:
    """A path's names, the first one last. A slash at the end counts as a name, "."."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


def go_along(  # noqa: PLR0917
    call: TrappedCall,
    filesystem: FilesystemTree,
    at: Location,
    names: list[bytes],
    real: bool,
    alone: bool = False,
) -> Location:
    """Go along a path in a filesystem, and take each name off the end of ``names``.

    Args:
        call: the call that looks.
        filesystem: the filesystem.
        at: where the path begins.
        names: the path.
        real: whether to go as the thread's real user.
        alone: whether to take one name only.

    Returns:
        Where it leads, or where it stops: at a symbolic link or before "..".

    Raises:
        AbsentError: if only the last name is missing.
        OSError: ENOENT for another one; ENOTDIR; EACCES, or what the server answers.
        UnansweredError: if the server has to be asked.
    """
    part = names[-1:] if alone else names
    there = Location(at.mount, filesystem.go_along(call, at.dentry, part, real=real))
    if alone:
        names[-1:] = part
    if part and not there.node.is_link:
        if not there.node.is_directory:
            raise os_error(errno.ENOTDIR)
        if names[-1] != b"..":
            name = names.pop()
            missing = any(n != b"." for n in names)
            raise os_error(errno.ENOENT) if missing else AbsentError(there, name, bool(names))
    return there


class OpenFile(Protocol):
    """An open file of recuse's that a program has."""

    location: Location
    """Where it was found."""


OpenFiles: TypeAlias = Mapping[str, OpenFile]
"""All open files of recuse's that programs have, by what their links in ``/proc/PID/fd`` read."""


def opened_at(files: OpenFiles, link: bytes) -> Location | None:
    """Where the open file was found to which a link in ``/proc`` leads, if it is recuse's.

    Raises:
        OSError: as readlink.
    """
    return behind(files, native_files.target_at(link))


def behind(files: OpenFiles, target: bytes) -> Location | None:
    """The location of an open file of recuse's; ``target`` is what a link to it reads."""
    if not target.startswith((b"socket:[", b"pipe:[")):
        return None
    file = files.get(target.decode())
    return file.location if file is not None else None


class Inside:
    """Finds what is in filesystems without walking natively."""

    def __init__(self, files: OpenFiles, mounts: Mounts, placeholders: PlaceholderDirs) -> None:
        """The arguments are those of the walk."""
        self._files = files
        self._mounts = mounts
        self._placeholders = placeholders

    def find(
        self, call: TrappedCall, base: int, path: bytes, *, real: bool, own_root: bool
    ) -> tuple[Location, list[bytes]] | None:
        """Go along a path as far as it stays in a filesystem.

        Args:
            call: the call that looks.
            base: where a relative path begins.
            path: not empty.
            real: whether to look it up with the thread's real IDs.
            own_root: whether the thread's root or mounts may differ from the supervisor's.

        Returns:
            Where it stops, and the names that are left, the first one last; None if the path has to
            be walked.

        Raises:
            OSError, UnansweredError: as :func:`go_along`.
        """
        at = None if path.startswith(b"/") else self._start(call.tid, base)
        if at is None:
            entered = None if own_root else self._enter(call, base, path, real)
            if entered is None:
                return None
            at, path = entered
        filesystem = filesystem_of(at)
        if filesystem is None:
            return None
        names = names_of(path)
        if names and not self._mounts.covers_ours:
            at = go_along(call, filesystem, at, names, real)
        return at, names

    @staticmethod
    def may_go_on(call: TrappedCall, *, real: bool) -> bool:
        """Whether the thread has the supervisor's rights and mounts: it finds what we find."""
        task = call.task
        return (task.has_ours if real else task.acting is None) and task.shares_mounts()

    def _enter(
        self, call: TrappedCall, base: int, path: bytes, real: bool
    ) -> tuple[Location, bytes] | None:
        """Where a path enters a filesystem, and the rest; None if that is not quick to see."""
        mounts, start, link = self._mounts, b"", b""
        if not path.startswith(b"/"):
            if base != AT_FDCWD or path.partition(b"/")[0] not in mounts.ways:
                return None
            link = start_of(call.tid, base)
            try:
                start = native_files.target_at(link).rstrip(b"/")
            except OSError:
                return None
            path = start + b"/" + path
        if not path.startswith(mounts.entrances):
            return None
        if not self.may_go_on(call, real=real):
            return None
        entered = mounts.enter(path, start, link)
        if entered is None:
            return None
        mount, rest = entered
        return mounts.top(Location(mount, mount.tree.root)), rest

    def _start(self, tid: Tid, base: int) -> Location | None:
        """The directory of recuse's at which a relative path begins, if it is known to be one."""
        try:
            if base != AT_FDCWD:
                return opened_at(self._files, start_of(tid, base)) if self._files else None
            if not self._placeholders.used:
                return None
            location = self._placeholders.standing_for(native_files.status(start_of(tid, base)))
        except OSError:
            return None
        return None if location is None or location.node.removed else location
