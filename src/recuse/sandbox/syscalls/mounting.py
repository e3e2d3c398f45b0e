"""mount and umount2: filesystems of programs that serve at /dev/fuse (fs/namespace.c; Linux 6.18).

Nobody outside sees what is mounted, as in a mount namespace. So who runs the sandbox needs no
rights for that, as root does not, and other users those that fusermount3(1) asks for. All other
mounts are left to the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.log import Log
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler
from recuse.sandbox.vfs.dentry import Location, Mount
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree, filesystem_of
from recuse.sandbox.vfs.found import NativeFile
from recuse.sandbox.vfs.native_files import check_access
from recuse.sandbox.vfs.permissions import MAY_READ, MAY_WRITE
from recuse.sandbox.vfs.resolve import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recuse.sandbox.files.description import FileDescription
    from recuse.sandbox.fs.server_mount import ServerOptions
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall

_MS_REMOUNT: Final = 32
_MS_OTHER: Final = 0x1000 | 0x2000 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20
"""MS_BIND, MS_MOVE, and those that change propagation: nothing is mounted anew."""
_MS_MAGIC: Final = 0xC0ED0000
_MS_MAGIC_MASK: Final = 0xFFFF0000

_ON_DEVICE: Final = b"fuseblk"
"""The type of filesystems on block devices."""

_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_MNT_EXPIRE: Final = 4
_UMOUNT_NOFOLLOW: Final = 8
_UMOUNT_KNOWN: Final = _MNT_FORCE | _MNT_DETACH | _MNT_EXPIRE | _UMOUNT_NOFOLLOW

_log: Final = Log("recuse.sandbox")

_FUSE_CONF: Final = "/etc/fuse.conf"


def mount(call: TrappedCall, machine: Machine) -> int:
    """``mount(source, target, type, flags, data)``."""
    flags = call.a3 & 0xFFFFFFFF
    if flags & _MS_MAGIC_MASK == _MS_MAGIC:
        flags &= ~_MS_MAGIC_MASK
    if flags & _MS_REMOUNT:
        return _remount(call, machine, flags)
    if flags & _MS_OTHER or not call.a2:
        return _of_ours(call, machine, flags)
    kind = machine.strings.read(call.tid, call.a2)
    if not _is_fuse(kind):
        return _of_ours(call, machine, flags)
    return _mount(call, machine, kind, flags)


def _is_fuse(kind: bytes) -> bool:
    return kind.partition(b".")[0] in (b"fuse", _ON_DEVICE)


def _of_ours(call: TrappedCall, machine: Machine, flags: int) -> int:
    """Mount something on a filesystem of ours, or mount a part of one elsewhere."""
    if not machine.tree.mounts.filesystems:
        return PROCEED
    for address in (call.a1, call.a0 if flags & _MS_OTHER else 0):
        path = machine.strings.read(call.tid, address) if address else b""
        found = machine.tree.find(call, AT_FDCWD, path) if path else None
        if found is not None and filesystem_of(found.location) is not None:
            # No rights help: the kernel does not know of it.
            raise os_error(errno.EPERM)
    return PROCEED


def _mount(call: TrappedCall, machine: Machine, kind: bytes, flags: int) -> int:
    from recuse.sandbox.files.fuse_file import FuseFile  # noqa: PLC0415 - few sandboxes have any
    from recuse.sandbox.fs.server_mount import (  # noqa: PLC0415 - few sandboxes have any
        MS_NODEV,
        MS_NOSUID,
        mount_server,
        parse_options,
    )

    if not machine.fuse:
        _tell_once()
        raise os_error(errno.EPERM)
    source = machine.strings.read(call.tid, call.a0) if call.a0 else b"none"
    path = machine.strings.read(call.tid, call.a1)
    data = machine.strings.read(call.tid, call.a4) if call.a4 else b""
    if not path:
        raise os_error(errno.ENOENT)
    place = machine.tree.place(call, AT_FDCWD, path)
    device = None
    if kind.startswith(_ON_DEVICE):
        device = _device_at(call, machine, source if call.a0 else b"")
    options = parse_options(data, on_device=device is not None)
    file = machine.files.find_opened(call.tid, options.descriptor)
    if not isinstance(file, FuseFile):
        raise os_error(errno.EINVAL)
    if isinstance(place, NativeFile):
        is_directory = stat.S_ISDIR(place.status.st_mode)
    else:
        is_directory = place.node.is_directory
    if is_directory != stat.S_ISDIR(options.root_mode):
        raise os_error(errno.ENOTDIR)
    uid = call.task.credentials.uid
    if uid:
        flags |= MS_NOSUID | MS_NODEV
    if uid not in (0, os.geteuid()):
        _check_user(call, place, options)
    listed = source, kind, flags
    tree = mount_server(file, options, listed, device, machine.files, machine.tap)
    point = place.status if isinstance(place, NativeFile) else place
    machine.tree.mounts.mount(tree, place.path, point, late=True)
    machine.serves(tree, os.fsdecode(place.path))
    return 0


def _device_at(call: TrappedCall, machine: Machine, path: bytes) -> int:
    """The number of the block device with that path, if the caller may use it.

    Raises:
        OSError: EINVAL without a path; ENOTBLK for other files; EACCES.
    """
    if not path:
        raise os_error(errno.EINVAL)
    place = machine.tree.place(call, AT_FDCWD, path)
    if not (isinstance(place, NativeFile) and stat.S_ISBLK(place.status.st_mode)):
        raise os_error(errno.ENOTBLK)
    check_access(call.task.acting, place.descriptor, MAY_READ | MAY_WRITE)
    return place.status.st_rdev


def _remount(call: TrappedCall, machine: Machine, flags: int) -> int:
    """Change a mount's flags. Its options stay as they are: old programs repeat only some."""
    from recuse.sandbox.fs.server_mount import (  # noqa: PLC0415 - few sandboxes have any
        MS_NODEV,
        MS_NOSUID,
        MS_RDONLY,
        remount,
    )

    mount = _mount_at(call, machine, call.a1)
    if mount is None:
        return PROCEED
    if flags & MS_RDONLY and any(
        file.flags & os.O_ACCMODE != os.O_RDONLY for file in _open_files(mount, machine)
    ):
        raise os_error(errno.EBUSY)
    if call.task.credentials.uid:
        flags |= MS_NOSUID | MS_NODEV
    remount(_filesystem(mount), flags)
    return 0


@functools.cache
def _tell_once() -> None:
    _log.warning(
        "a program wants to mount a filesystem that it serves: to allow that, use recuse run --fuse"
    )


def _check_user(call: TrappedCall, place: Location | NativeFile, options: ServerOptions) -> None:
    """Raise EPERM unless another ordinary user may do that (fusermount3's check_perm)."""
    who = call.task.credentials
    try:
        if isinstance(place, NativeFile):
            owner, mode = place.status.st_uid, place.status.st_mode
            check_access(call.task.acting, place.descriptor, MAY_WRITE)
        else:
            filesystem = filesystem_of(place)
            if filesystem is None:
                raise os_error(errno.EPERM)
            filesystem.check_access(call, place.dentry, MAY_WRITE, real=False)
            found = filesystem.status(call, place.dentry)
            owner, mode = found.uid, found.mode
    except PermissionError:
        raise os_error(errno.EPERM) from None
    if (
        (mode & stat.S_ISVTX and owner != who.uid)
        or (options.user_id, options.group_id) != (who.uid, who.gid)
        or (options.allow_other and not _may_allow_others())
    ):
        raise os_error(errno.EPERM)


def _may_allow_others() -> bool:
    """Whether the machine lets ordinary users give others access to their filesystems."""
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


def fsopen(call: TrappedCall, machine: Machine) -> int:
    """``fsopen(type, flags)``: programs fall back from it to mount(2)."""
    kind = machine.strings.read(call.tid, call.a0)
    if _is_fuse(kind):
        raise os_error(errno.ENOSYS)
    return PROCEED


def umount2(call: TrappedCall, machine: Machine) -> int:
    """``umount2(target, flags)``."""
    return _unmount(call, machine, call.a1 & 0xFFFFFFFF)


def umount(call: TrappedCall, machine: Machine) -> int:
    """``umount(target)`` of a 32-bit program."""
    return _unmount(call, machine, 0)


def renumbered(call: TrappedCall, machine: Machine, name: str) -> Outcome:
    """One of these calls, with the number of another one. OSError: EPERM if it is not ours."""
    outcome = HANDLERS[name](call, machine)
    if outcome == PROCEED:
        raise os_error(errno.EPERM)  # the call that it looks like must not be made
    return outcome


def _mount_at(
    call: TrappedCall, machine: Machine, address: int, *, follow: bool = True
) -> Mount | None:
    """The mount that a path leads to; None if it leads to none of ours.

    Raises:
        OSError: EINVAL if it leads into one; EPERM if the caller may not change it.
    """
    if not machine.tree.mounts.filesystems:
        return None
    path = machine.strings.read(call.tid, address)
    found = machine.tree.find(call, AT_FDCWD, path, follow=follow) if path else None
    if found is None or found.link or filesystem_of(found.location) is None:
        return None
    location = found.location
    mount = location.mount
    if not location.is_root or mount.detached:
        raise os_error(errno.EINVAL)
    if call.task.credentials.uid not in (0, _filesystem(mount).description.user):
        raise os_error(errno.EPERM)
    return mount


def _unmount(call: TrappedCall, machine: Machine, flags: int) -> int:
    if flags & ~_UMOUNT_KNOWN:
        return PROCEED
    mount = _mount_at(call, machine, call.a0, follow=not flags & _UMOUNT_NOFOLLOW)
    if mount is None:
        return PROCEED
    if flags & _MNT_EXPIRE:
        raise os_error(errno.EINVAL if flags & (_MNT_FORCE | _MNT_DETACH) else errno.EAGAIN)
    if flags & _MNT_FORCE:
        _filesystem(mount).connection.abort()
    if flags & _MNT_DETACH:
        return _Unmounting(call, mount, machine).remove()
    if _is_used(mount, machine):
        raise os_error(errno.EBUSY)
    unmounting = _Unmounting(call, mount, machine)
    if machine.files.has_closed(_filesystem(mount)):
        return unmounting.release()
    return unmounting.remove()


class _Unmounting:
    """A call that waits, before it unmounts, until the server has released what was closed.

    For programs, close(2) has waited for the server, so the filesystem must not end before that. A
    filesystem on a device is waited for after that, too, until everything has been written.
    """

    def __init__(self, call: TrappedCall, mount: Mount, machine: Machine) -> None:
        self._call = call
        self._mount = mount
        self._machine = machine
        self._turns = deque((None,))
        """Whoever takes it continues the call."""
        self._removed = False
        self._interrupted = False

    def release(self) -> int:
        """Wait for the server, and then unmount it."""
        self._call.wait(self._interrupt)
        if not self._machine.files.after_releases(_filesystem(self._mount), self._remove_released):
            self._remove_released()
        return ANSWERED

    def remove(self) -> int:
        """Unmount it now."""
        connection = self._machine.unmount(self._mount)
        if connection is None:
            return 0
        self._removed = True
        self._call.wait(self._interrupt)
        connection.at_end(self._answer)
        return ANSWERED

    def _remove_released(self) -> None:
        with contextlib.suppress(IndexError):
            self._turns.pop()
            if _is_used(self._mount, self._machine):
                self._call.fail(errno.EBUSY)
                return
            connection = self._machine.unmount(self._mount)
            self._removed = True
            self._turns.append(None)
            if connection is None or self._interrupted:
                self._answer()
            else:
                connection.at_end(self._answer)

    def _answer(self) -> None:
        with contextlib.suppress(IndexError):
            self._turns.pop()
            self._call.answer(0)

    def _interrupt(self, call: TrappedCall, fatal: bool) -> None:
        """A signal has come: start again, or end if it is unmounted, whatever its server does."""
        del fatal
        self._interrupted = True
        with contextlib.suppress(IndexError):
            self._turns.pop()
            if self._removed:
                call.answer(0)
            else:
                call.restart()


def _filesystem(mount: Mount) -> FilesystemTree:
    """What was mounted. Nothing else can be mounted on it."""
    assert isinstance(mount.tree, FilesystemTree)
    return mount.tree


def _open_files(mount: Mount, machine: Machine) -> Iterator[FileDescription]:
    """The files of a mount that are open or mapped."""
    for file in list(machine.files.by_link.values()):
        if file.location.mount is mount and not file.end.hung_up():
            yield file
    machine.memory_maps.settle()
    for file in machine.memory_maps.files():
        if file.location.mount is mount:
            yield file


def _is_used(mount: Mount, machine: Machine) -> bool:
    """Whether programs have files of a mount open or mapped, are in it, or mounted something on it.

    What was closed is not in use any more, whether the server knows that already or not.
    """
    filesystem = _filesystem(mount)
    return (
        bool(machine.tree.mounts.on(mount))
        or machine.waits_for(filesystem.connection)
        or machine.files.pending.is_awaited(filesystem)
        or any(True for _ in _open_files(mount, machine))
        or machine.tree.placeholders.are_entered(mount)
    )


HANDLERS: Final[dict[str, Handler]] = {
    "fsopen": fsopen,
    "mount": mount,
    "umount": umount,
    "umount2": umount2,
}
