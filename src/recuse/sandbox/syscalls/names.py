"""Calls that make, move and remove names (fs/namei.c, fs/open.c, net/unix/af_unix.c; Linux 6.1).

A sandbox's nodes exist as long as their devices do. So no name can be made in a node's place, and
none of their names can be removed.
"""

from __future__ import annotations

import errno
import socket
import stat
import sys
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.processes import socket_call
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.vfs.dentry import Addition, Location, Mount
from recuse.sandbox.vfs.resolve import AT_FDCWD, AbsentError

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall


_AT_REMOVEDIR: Final = 0x200

# struct sockaddr_un: the family, then a path that need not end with a NUL.
_FAMILY_SIZE: Final = 2
_ADDRESS_SIZE: Final = 110


def _at(call: TrappedCall, machine: Machine, base: int, address: int) -> Location | None:
    """What of recuse's has exactly that name, without following links."""
    return _at_path(call, machine, base, machine.strings.read(call.tid, address))


def _at_path(call: TrappedCall, machine: Machine, base: int, path: bytes) -> Location | None:
    found = machine.tree.find(call, base, path, follow=False) if path else None
    return found.location if found is not None and not found.link else None


def _make(call: TrappedCall, machine: Machine, base: int, address: int) -> int:
    return _make_path(call, machine, base, machine.strings.read(call.tid, address), errno.EEXIST)


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
) -> int:
    there = _at(call, machine, base, address)
    if there is not None:
        not_one = directory and not there.node.is_directory
        raise os_error(errno.ENOTDIR if not_one else errno.EPERM)
    return PROCEED


def make_first(call: TrappedCall, machine: Machine) -> int:
    """``mkdir(path, ...)``."""
    return _make(call, machine, AT_FDCWD, call.a0)


def make_second(call: TrappedCall, machine: Machine) -> int:
    """``symlink(target, path)``."""
    return _make(call, machine, AT_FDCWD, call.a1)


def make_at(call: TrappedCall, machine: Machine) -> int:
    """``mkdirat(dirfd, path, ...)``."""
    return _make(call, machine, signed32(call.a0), call.a1)


def mknod(call: TrappedCall, machine: Machine) -> int:
    """``mknod(path, mode, number)``."""
    _see_number(machine, call.a1, call.a2)
    return make_first(call, machine)


def mknodat(call: TrappedCall, machine: Machine) -> int:
    """``mknodat(dirfd, path, mode, number)``."""
    _see_number(machine, call.a2, call.a3)
    return make_at(call, machine)


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


def symlinkat(call: TrappedCall, machine: Machine) -> int:
    """``symlinkat(target, dirfd, path)``."""
    return _make(call, machine, signed32(call.a1), call.a2)


def link(call: TrappedCall, machine: Machine) -> int:
    """``link(old, new)``: a node has no second name."""
    return _link(call, machine, (AT_FDCWD, call.a0), (AT_FDCWD, call.a1))


def linkat(call: TrappedCall, machine: Machine) -> int:
    """``linkat(olddirfd, old, newdirfd, new, flags)``."""
    old, new = (signed32(call.a0), call.a1), (signed32(call.a2), call.a3)
    return _link(call, machine, old, new)


def _link(call: TrappedCall, machine: Machine, old: tuple[int, int], new: tuple[int, int]) -> int:
    # fs/namei.c, do_linkat: a new name that exists already is checked first.
    source, target = _end(call, machine, *old), _end(call, machine, *new)
    if target.there is not None:
        raise os_error(errno.EEXIST)
    return _move(source, target)


def rename(call: TrappedCall, machine: Machine) -> int:
    """``rename(old, new)``."""
    old = _end(call, machine, AT_FDCWD, call.a0)
    return _move(old, _end(call, machine, AT_FDCWD, call.a1))


def renameat(call: TrappedCall, machine: Machine) -> int:
    """``renameat(olddirfd, old, newdirfd, new)`` and ``renameat2``."""
    old = _end(call, machine, signed32(call.a0), call.a1)
    return _move(old, _end(call, machine, signed32(call.a2), call.a3))


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


def unlink(call: TrappedCall, machine: Machine) -> int:
    """``unlink(path)``."""
    return _remove(call, machine, AT_FDCWD, call.a0)


def rmdir(call: TrappedCall, machine: Machine) -> int:
    """``rmdir(path)``."""
    return _remove(call, machine, AT_FDCWD, call.a0, directory=True)


def unlinkat(call: TrappedCall, machine: Machine) -> int:
    """``unlinkat(dirfd, path, flags)``."""
    base, directory = signed32(call.a0), bool(call.a2 & _AT_REMOVEDIR)
    return _remove(call, machine, base, call.a1, directory=directory)


HANDLERS: Final[dict[str, Handler]] = {
    "mkdir": make_first,
    "mknod": mknod,
    "mkdirat": make_at,
    "mknodat": mknodat,
    "bind": bind,
    "symlink": make_second,
    "symlinkat": symlinkat,
    "link": link,
    "linkat": linkat,
    "rename": rename,
    "renameat": renameat,
    "renameat2": renameat,
    "unlink": unlink,
    "rmdir": rmdir,
    "unlinkat": unlinkat,
}
