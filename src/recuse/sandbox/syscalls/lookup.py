"""What a call's arguments name: a path, possibly from a directory, or a descriptor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recuse.sandbox.syscalls.handler import signed32
from recuse.sandbox.tasks.memory import UnreadableError
from recuse.sandbox.vfs.filesystem_tree import Place, filesystem_of
from recuse.sandbox.vfs.resolve import AT_FDCWD, Found, OutsideError

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000


def named(  # noqa: PLR0917 - as the calls' arguments come
    call: TrappedCall,
    machine: Machine,
    base: int,
    address: int,
    flags: int,
    real: bool = False,
) -> Found | None:
    """What a directory descriptor, a path and AT_ flags name; None if it is not recuse's.

    With ``real``, it is looked up as the thread's real user.
    """
    try:
        path = machine.strings.read(call.tid, address) if address else b""
    except UnreadableError:
        if flags & AT_EMPTY_PATH:
            held(call, machine, base)  # the kernel must not look at a descriptor of a device
        raise
    if path:
        follow = not flags & AT_SYMLINK_NOFOLLOW
        return machine.tree.find(call, base, path, follow=follow, real=real)
    if not flags & AT_EMPTY_PATH:
        return None
    if base == AT_FDCWD:
        return _directory(call, machine, base)
    return held(call, machine, base)


def _directory(call: TrappedCall, machine: Machine, number: int) -> Found | None:
    location = machine.tree.directory(call.tid, number)
    return Found(location) if location is not None else None


def inspected(  # noqa: PLR0917 - as the calls' arguments come
    call: TrappedCall,
    machine: Machine,
    base: int,
    address: int,
    flags: int,
    real: bool = False,
) -> Found | None:
    """Do :func:`named`, for calls that change nothing."""
    try:
        return named(call, machine, base, address, flags, real)
    except OutsideError as outside:
        return Found(outside.file.location(), native=outside.file)


def place_of(
    call: TrappedCall, machine: Machine, base: int, path: bytes, scope: int = 0
) -> Place | None:
    """Where a path's last name is to be made or removed; None if that is on no filesystem's mount.

    Raises:
        OSError: as `Tree.find` of what comes before the name.
    """
    if not machine.tree.mounts.filesystems or not path:
        return None
    above, slash, name = path.rstrip(b"/").rpartition(b"/")
    try:
        # With the slash, it is a directory or an error.
        directory = above + slash or (b"." if name else b"/")
        found = machine.tree.find(call, base, directory, scope=scope)
    except OutsideError:
        return None
    if found is None or filesystem_of(found.location) is None:
        return None
    return Place(found.location, name, path.endswith(b"/"))


def held(call: TrappedCall, machine: Machine, number: int) -> Found | None:
    """What a descriptor refers to; None if it is not recuse's."""
    descriptor = machine.files.find(call.tid, number)
    if descriptor is not None:
        return Found(descriptor.location)
    return _directory(call, machine, number) if number >= 0 else None


def opened(call: TrappedCall, machine: Machine) -> Found | None:
    """What descriptor argument 0 refers to, for calls that fail with EBADF for O_PATH."""
    number = signed32(call.a0)
    machine.files.find_opened(call.tid, number)
    return held(call, machine, number)


def by_path_or_descriptor(call: TrappedCall, machine: Machine, flags: int) -> Found | None:
    base = signed32(call.a0)
    if call.a1 == 0:
        return opened(call, machine)
    return named(call, machine, base, call.a1, flags)
