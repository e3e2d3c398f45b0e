"""Calls that make, move and remove names (fs/namei.c, fs/open.c, net/unix/af_unix.c; Linux 6.1).

A device's nodes exist as long as it does. So no name can be made in a node's place, and none of
their names can be removed. On a filesystem everything is as the filesystem says.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, named, place_of
from recuse.sandbox.syscalls.processes import socket_call
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.vfs.dentry import Addition, Location, Mount
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree, Place, filesystem_of
from recuse.sandbox.vfs.resolve import AT_FDCWD, AbsentError, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall


_AT_REMOVEDIR: Final = 0x200
_AT_SYMLINK_FOLLOW: Final = 0x400
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_RENAME_FLAGS: Final = 7

# struct sockaddr_un: the family, then a path that need not end with a NUL.
_FAMILY_SIZE: Final = 2
_ADDRESS_SIZE: Final = 110


def _at(call: TrappedCall, machine: Machine, base: int, address: int) -> Location | None:
    """What of recuse's has exactly that name, without following links."""
    return _at_path(call, machine, base, machine.strings.read(call.tid, address))


def _at_path(call: TrappedCall, machine: Machine, base: int, path: bytes) -> Location | None:
    found = machine.tree.find(call, base, path, follow=False) if path else None
    return found.location if found is not None and not found.link else None


_Maker = Callable[[FilesystemTree, Place], "Outcome"]
"""Makes a name on a filesystem."""


def _make(  # noqa: PLR0917 - the calls' arguments, and what to do
    call: TrappedCall,
    machine: Machine,
    base: int,
    address: int,
    make: _Maker,
    directory: bool = False,
) -> Outcome:
    """Make a name; ``directory``: slashes may follow it."""
    path = machine.strings.read(call.tid, address)
    place = place_of(call, machine, base, path)
    if place is None:
        return _make_path(call, machine, base, path, errno.EEXIST)
    # fs/namei.c, filename_create
    if place.is_dots:
        raise os_error(errno.EEXIST)
    if place.slashes and not directory:
        exists = _at_path(call, machine, base, path.rstrip(b"/"))
        raise os_error(errno.ENOENT if exists is None else errno.EEXIST)
    return make(_filesystem(place), place)


def _filesystem(place: Place) -> FilesystemTree:
    filesystem = filesystem_of(place.directory)
    assert filesystem is not None
    return filesystem


def _make_path(call: TrappedCall, machine: Machine, base: int, path: bytes, exists: int) -> int:
    """Let the kernel make a name, unless that is recuse's (``exists``) or in its directory."""
    try:
        if _at_path(call, machine, base, path) is not None:
            raise os_error(exists)
    except AbsentError:
        raise os_error(errno.EPERM) from None  # no directory of /sys allows that
    return PROCEED


def _remove(
    call: TrappedCall,
    machine: Machine,
    base: int,
    address: int,
    *,
    directory: bool = False,
) -> Outcome:
    path = machine.strings.read(call.tid, address)
    place = place_of(call, machine, base, path)
    if place is not None:
        if not place.is_dots:
            _check_uncovered(call, machine, base, path, directory)
            filesystem = _filesystem(place)
            remove = filesystem.remove_directory if directory else filesystem.unlink
            return remove(call, place)
        # fs/namei.c, do_rmdir and do_unlinkat
        errors = {b"": errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}
        raise os_error(errors[place.name] if directory else errno.EISDIR)
    there = _at_path(call, machine, base, path)
    if there is not None:
        if filesystem_of(there) is not None:  # its root
            raise _covered(there, directory)
        not_one = directory and not there.node.is_directory
        raise os_error(errno.ENOTDIR if not_one else errno.EPERM)
    return PROCEED


def _covered(root: Location, directory: bool) -> OSError:
    """Why a name cannot be removed on which something is mounted (fs/namei.c, may_delete)."""
    if directory == root.node.is_directory:
        return os_error(errno.EBUSY)
    return os_error(errno.ENOTDIR if directory else errno.EISDIR)


def _check_uncovered(
    call: TrappedCall, machine: Machine, base: int, path: bytes, directory: bool | None
) -> None:
    """Raise EBUSY if something is mounted on a name on a filesystem.

    ``directory``: whether it should be a directory's, which is then checked first; None if either
    may be.
    """
    if not machine.tree.mounts.covers_ours:
        return
    with contextlib.suppress(AbsentError, OutsideError):
        there = _at_path(call, machine, base, path)
        if there is not None and there.is_root:
            raise _covered(there, there.node.is_directory if directory is None else directory)


def mkdir(call: TrappedCall, machine: Machine) -> Outcome:
    """``mkdir(path, mode)``."""
    return _make_directory(call, machine, AT_FDCWD, call.a0, call.a1)


def mkdirat(call: TrappedCall, machine: Machine) -> Outcome:
    """``mkdirat(dirfd, path, mode)``."""
    return _make_directory(call, machine, signed32(call.a0), call.a1, call.a2)


def _make_directory(
    call: TrappedCall, machine: Machine, base: int, address: int, mode: int
) -> Outcome:
    def make(filesystem: FilesystemTree, place: Place) -> Outcome:
        return filesystem.make_directory(call, place, mode)

    return _make(call, machine, base, address, make, directory=True)


def symlink(call: TrappedCall, machine: Machine) -> Outcome:
    """``symlink(target, path)``."""
    return _make_symlink(call, machine, call.a0, AT_FDCWD, call.a1)


def symlinkat(call: TrappedCall, machine: Machine) -> Outcome:
    """``symlinkat(target, dirfd, path)``."""
    return _make_symlink(call, machine, call.a0, signed32(call.a1), call.a2)


def _make_symlink(
    call: TrappedCall, machine: Machine, target: int, base: int, address: int
) -> Outcome:
    def make(filesystem: FilesystemTree, place: Place) -> Outcome:
        return filesystem.make_symlink(call, place, machine.strings.read(call.tid, target))

    return _make(call, machine, base, address, make)


def mknod(call: TrappedCall, machine: Machine) -> Outcome:
    """``mknod(path, mode, number)``."""
    return _make_node(call, machine, AT_FDCWD, call.a0, call.a1, call.a2)


def mknodat(call: TrappedCall, machine: Machine) -> Outcome:
    """``mknodat(dirfd, path, mode, number)``."""
    return _make_node(call, machine, signed32(call.a0), call.a1, call.a2, call.a3)


def _make_node(  # noqa: PLR0917 - the calls' arguments
    call: TrappedCall, machine: Machine, base: int, address: int, mode: int, number: int
) -> Outcome:
    _see_number(machine, mode, number)

    def make(filesystem: FilesystemTree, place: Place) -> Outcome:
        return filesystem.make_node(call, place, mode & 0xFFFF, number & 0xFFFFFFFF)

    return _make(call, machine, base, address, make)


def _see_number(machine: Machine, mode: int, number: int) -> None:
    """If the new node has a device's number, opening it must lead to the device from now on."""
    devices = machine.tree.devices
    if stat.S_ISCHR(mode & 0xFFFF) and number & 0xFFFFFFFF in devices.by_number:
        devices.numbers_elsewhere = True


def bind(call: TrappedCall, machine: Machine) -> int:
    """``bind(fd, address, length)``, which makes a name if it is a Unix socket's address.

    Whether the descriptor is a Unix socket is not checked. If it is something else, EADDRINUSE and
    EPERM come instead of the kernel's ENOTSOCK or EAFNOSUPPORT. In either case nothing is made.
    """
    socket_call(call, machine)
    path = _unix_path(call)
    return _make_path(call, machine, AT_FDCWD, path, errno.EADDRINUSE) if path else PROCEED


def _unix_path(call: TrappedCall) -> bytes:
    """The path in a socket's address (arguments 1 and 2); empty if it has none or is wrong."""
    length = signed32(call.a2)
    if not _FAMILY_SIZE < length <= _ADDRESS_SIZE:
        return b""
    try:
        data = read_memory(call.tid, call.a1, length)
    except OSError:
        return b""  # EFAULT
    if len(data) < length or int.from_bytes(data[:_FAMILY_SIZE], sys.byteorder) != socket.AF_UNIX:
        return b""
    return data[_FAMILY_SIZE:].partition(b"\0")[0]  # an abstract name begins with a NUL


def link(call: TrappedCall, machine: Machine) -> Outcome:
    """``link(old, new)``: a node has no second name."""
    return _link(call, machine, (AT_FDCWD, call.a0), (AT_FDCWD, call.a1), 0)


def linkat(call: TrappedCall, machine: Machine) -> Outcome:
    """``linkat(olddirfd, old, newdirfd, new, flags)``."""
    old, new = (signed32(call.a0), call.a1), (signed32(call.a2), call.a3)
    return _link(call, machine, old, new, call.a4)


def _link(
    call: TrappedCall,
    machine: Machine,
    old: tuple[int, int],
    new: tuple[int, int],
    flags: int,
) -> Outcome:
    if flags & ~(_AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
        return PROCEED  # EINVAL
    if machine.tree.mounts.filesystems:
        outcome = _link_mounted(call, machine, old, new, flags)
        if outcome is not None:
            return outcome
    # fs/namei.c, do_linkat: a new name that exists already is checked first.
    source, target = _end(call, machine, *old), _end(call, machine, *new)
    if target.there is not None:
        raise os_error(errno.EEXIST)
    return _move(source, target)


def _link_mounted(
    call: TrappedCall,
    machine: Machine,
    old: tuple[int, int],
    new: tuple[int, int],
    flags: int,
) -> Outcome | None:
    """Give a file of a filesystem another name; None if neither file nor name are on one."""
    lookup = flags & AT_EMPTY_PATH | (0 if flags & _AT_SYMLINK_FOLLOW else AT_SYMLINK_NOFOLLOW)
    try:
        found = named(call, machine, *old, lookup)
    except OutsideError:
        found = None
    if found is not None and found.link:
        found = None  # the link itself, which is in /proc
    path = machine.strings.read(call.tid, new[1])
    place = place_of(call, machine, new[0], path)
    ours = found is not None and filesystem_of(found.location) is not None
    if place is None and not ours:
        return None
    if place is not None and place.is_dots:
        raise os_error(errno.EEXIST)
    if place is None or found is None or found.location.mount is not place.directory.mount:
        raise os_error(errno.EXDEV)
    if place.slashes:
        raise os_error(errno.ENOENT)
    return _filesystem(place).make_link(call, found.location, place)


def rename(call: TrappedCall, machine: Machine) -> Outcome:
    """``rename(old, new)``."""
    return _rename(call, machine, (AT_FDCWD, call.a0), (AT_FDCWD, call.a1), 0)


def renameat(call: TrappedCall, machine: Machine) -> Outcome:
    """``renameat(olddirfd, old, newdirfd, new)``."""
    old, new = (signed32(call.a0), call.a1), (signed32(call.a2), call.a3)
    return _rename(call, machine, old, new, 0)


def renameat2(call: TrappedCall, machine: Machine) -> Outcome:
    """``renameat2(olddirfd, old, newdirfd, new, flags)``."""
    old, new = (signed32(call.a0), call.a1), (signed32(call.a2), call.a3)
    return _rename(call, machine, old, new, call.a4 & 0xFFFFFFFF)


def _rename(
    call: TrappedCall,
    machine: Machine,
    old: tuple[int, int],
    new: tuple[int, int],
    flags: int,
) -> Outcome:
    if machine.tree.mounts.filesystems:
        source, target = (
            place_of(call, machine, base, machine.strings.read(call.tid, address))
            for base, address in (old, new)
        )
        if source is not None or target is not None:
            for place, (base, address) in ((source, old), (target, new)):
                if place is not None and not place.is_dots:
                    path = machine.strings.read(call.tid, address)
                    _check_uncovered(call, machine, base, path, None)
            return _rename_mounted(call, source, target, flags)
    before = _end(call, machine, *old)
    after = _end(call, machine, *new)
    for there in (before.there, after.there):
        if there is not None and there.is_root and filesystem_of(there) is not None:
            raise os_error(errno.EBUSY)
    return _move(before, after)


def _rename_mounted(
    call: TrappedCall, source: Place | None, target: Place | None, flags: int
) -> Outcome:
    # fs/namei.c, do_renameat2
    if flags & ~_RENAME_FLAGS or (flags & _RENAME_EXCHANGE and flags != _RENAME_EXCHANGE):
        raise os_error(errno.EINVAL)
    if source is None or target is None or source.directory.mount is not target.directory.mount:
        raise os_error(errno.EXDEV)
    if source.is_dots:
        raise os_error(errno.EBUSY)
    if target.is_dots:
        raise os_error(errno.EEXIST if flags & _RENAME_NOREPLACE else errno.EBUSY)
    return _filesystem(source).rename(call, source, target, flags)


class _End(NamedTuple):
    """A place from which a name is taken, or where it is made."""

    there: Location | None
    """What has the name, if that is recuse's."""
    missing: AbsentError | None
    """Set if nothing has the name and its directory is recuse's."""

    @property
    def mount(self) -> Mount | None:
        """The mount that it is on; None if that is a native one."""
        place = self.missing.directory if self.missing is not None else self.there
        if place is None or isinstance(place.mount, Addition):
            return None
        return place.mount


def _end(call: TrappedCall, machine: Machine, base: int, address: int) -> _End:
    try:
        return _End(_at(call, machine, base, address), None)
    except AbsentError as missing:
        return _End(None, missing.with_traceback(None))


def _move(old: _End, new: _End) -> int:
    """The result of a rename or link between these places."""
    if old.mount is not new.mount:
        raise os_error(errno.EXDEV)
    if old.missing is not None:
        raise old.missing
    ours = old.there is not None or new != (None, None)
    if ours:
        raise os_error(errno.EPERM)
    return PROCEED


def unlink(call: TrappedCall, machine: Machine) -> Outcome:
    """``unlink(path)``."""
    return _remove(call, machine, AT_FDCWD, call.a0)


def rmdir(call: TrappedCall, machine: Machine) -> Outcome:
    """``rmdir(path)``."""
    return _remove(call, machine, AT_FDCWD, call.a0, directory=True)


def unlinkat(call: TrappedCall, machine: Machine) -> Outcome:
    """``unlinkat(dirfd, path, flags)``."""
    if call.a2 & 0xFFFFFFFF & ~_AT_REMOVEDIR:
        return PROCEED  # EINVAL
    base, directory = signed32(call.a0), bool(call.a2 & _AT_REMOVEDIR)
    return _remove(call, machine, base, call.a1, directory=directory)


HANDLERS: Final[dict[str, Handler]] = {
    "mkdir": mkdir,
    "mknod": mknod,
    "mkdirat": mkdirat,
    "mknodat": mknodat,
    "bind": bind,
    "symlink": symlink,
    "symlinkat": symlinkat,
    "link": link,
    "linkat": linkat,
    "rename": rename,
    "renameat": renameat,
    "renameat2": renameat2,
    "unlink": unlink,
    "rmdir": rmdir,
    "unlinkat": unlinkat,
}
