"""open and related calls (fs/open.c, fs/namei.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from recuse.kernel.char.files import OpenFile, open_file
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.sandbox.abilities import may_open_tree, may_trace
from recuse.sandbox.arch import arch
from recuse.sandbox.files.attribute_file import AttributeFile, ControlFile
from recuse.sandbox.files.cuse_file import CuseFile
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.device_file import DeviceFile, device_end
from recuse.sandbox.files.path_file import PathFile
from recuse.sandbox.syscalls import mount_table
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed32, signed64
from recuse.sandbox.syscalls.lookup import place_of
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.tasks.tasks import umask_of
from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.sandbox.vfs.by_thread import look_by_thread
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.filesystem_tree import Place, filesystem_of
from recuse.sandbox.vfs.native_files import (
    O_PATH,
    O_TMPFILE,
    RESOLVE_NO_MAGICLINKS,
    check_access,
    check_create,
    open_again,
)
from recuse.sandbox.vfs.nodes import (
    AttributeNode,
    ControlNode,
    CuseNode,
    DeviceNode,
    FuseNode,
    Node,
)
from recuse.sandbox.vfs.permissions import MAY_READ, MAY_WRITE, check
from recuse.sandbox.vfs.resolve import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    AbsentError,
    Found,
    NativeFile,
    NativelyAbsentError,
    OutsideError,
)

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

_KNOWN_FLAGS: Final = 0o37777703
"""VALID_OPEN_FLAGS: all flags in this architecture's fcntl.h."""

_PATH_FLAGS: Final = arch.O_DIRECTORY | arch.O_NOFOLLOW | O_PATH | os.O_CLOEXEC
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_CACHED: Final = 0x20
_RESOLVE_KNOWN: Final = 0x3F
_SCOPES: Final = RESOLVE_BENEATH | RESOLVE_IN_ROOT
_OPEN_HOW = struct.Struct("=QQQ")

_ACCESS: Final = {
    os.O_RDONLY: MAY_READ,
    os.O_WRONLY: MAY_WRITE,
    os.O_RDWR: MAY_READ | MAY_WRITE,
    os.O_ACCMODE: MAY_READ | MAY_WRITE,
}

_CALLS_BEFORE_MOUNT: Final = 50
"""Enough for what libraries do between opening /dev/fuse and mount(2)."""

STATUS_FLAGS: Final = ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC)
"""The flags that an open file keeps and that F_GETFL returns."""


def _open(
    call: TrappedCall,
    machine: Machine,
    base: int,
    address: int,
    flags: int,
    *,
    mode: int = 0,
    resolve: int = 0,
) -> Outcome:
    path = machine.strings.read(call.tid, address)
    if not path:
        return PROCEED
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    follow = not (flags & arch.O_NOFOLLOW or exclusive)
    scope = resolve & _SCOPES
    place = place_of(call, machine, base, path, scope) if exclusive else None
    if place is not None and not place.is_dots:
        return _create(call, place, flags, mode)
    try:
        opening = not flags & O_PATH
        found = machine.tree.find(call, base, path, follow=follow, scope=scope, opening=opening)
    except AbsentError as absent:
        if flags & os.O_CREAT:
            place = Place(absent.directory, absent.name, absent.slashes)
            return _create(call, place, flags, mode, absent=True)
        raise
    except NativelyAbsentError:
        if flags & os.O_CREAT:
            raise  # it is made there (`syscalls.elsewhere`)
        raise os_error(errno.ENOENT) from None
    except OutsideError as outside:
        return _open_outside(call, machine, outside, flags, mode, resolve)
    except NotADirectoryError:
        if flags & os.O_CREAT and path.endswith(b"/"):
            raise os_error(errno.EISDIR) from None
        raise
    if found is None:
        table = None
        if machine.tree.mounts.filesystems and path.endswith(mount_table.ENDS):
            table = mount_table.mount_table(call, machine, path)
        return PROCEED if table is None else _open_found(call, machine, Found(table), flags, mode)
    _check_resolve(resolve, found)
    if exclusive:
        raise os_error(errno.EEXIST)
    if found.link:
        # O_NOFOLLOW on a link: O_PATH would open the link itself, which is the kernel's.
        return PROCEED
    return _open_found(call, machine, found, flags, mode)


def _create(
    call: TrappedCall, place: Place, flags: int, mode: int, *, absent: bool = False
) -> Outcome:
    """Make a file in a directory of recuse's: only filesystems let programs do that."""
    filesystem = filesystem_of(place.directory)
    if filesystem is None:
        raise os_error(errno.EACCES)
    if flags & arch.O_DIRECTORY:
        raise os_error(errno.EINVAL)
    return filesystem.create(call, place, flags, mode, absent=absent)


def _open_found(
    call: TrappedCall, machine: Machine, found: Found, flags: int, mode: int
) -> Outcome:
    """Open a file of recuse's, or one with a device's number."""
    location, node = found.location, found.node
    filesystem = filesystem_of(location)
    if filesystem is not None and not flags & O_PATH:
        if flags & os.O_CREAT and flags & arch.O_DIRECTORY:
            raise os_error(errno.EINVAL)
        return filesystem.open(call, location, flags, mode)
    if node.is_directory and filesystem is None:
        return _open_directory(call, machine, location, flags)
    if flags & arch.O_DIRECTORY and not node.is_directory:  # O_TMPFILE contains it
        raise os_error(errno.EINVAL if flags & os.O_CREAT else errno.ENOTDIR)
    if flags & O_PATH:
        return install(call, machine, PathFile(location, flags & STATUS_FLAGS), flags)
    if node.is_link:
        raise os_error(errno.ELOOP)
    if call.arch == arch.AUDIT_ARCH:
        # Where file positions have 64 bits, every file is opened like this (force_o_largefile).
        flags |= arch.O_LARGEFILE
    wanted = _ACCESS[flags & os.O_ACCMODE]
    if flags & os.O_TRUNC:
        wanted |= MAY_WRITE
    task = call.task
    if found.native is None:
        check(node, task.credentials, wanted)
    else:
        check_access(task.acting, found.native.descriptor, wanted)
    opener = OPENERS.get(type(node))
    if opener is None:
        raise os_error(errno.ENXIO)  # fs/inode.c, no_open
    return opener(call, machine, location, flags)


def _open_outside(  # noqa: PLR0917 - as the calls' arguments come
    call: TrappedCall,
    machine: Machine,
    outside: OutsideError,
    flags: int,
    mode: int,
    resolve: int,
) -> int:
    """Open a native directory or plain file that the kernel does not find by the path.

    Other files may depend on who opens them, as those of ``/proc`` do.
    """
    file = outside.file
    kind = file.status.st_mode
    if not flags & O_PATH and (
        file.of_the_opener or not (stat.S_ISDIR(kind) or stat.S_ISREG(kind) or stat.S_ISLNK(kind))
    ):
        raise outside
    _check_resolve(resolve, outside)
    if flags & os.O_CREAT and flags & os.O_EXCL:
        raise os_error(errno.EEXIST)
    if stat.S_ISLNK(kind) and not flags & O_PATH:
        raise os_error(errno.ELOOP)
    task = call.task
    if flags & os.O_CREAT:
        if stat.S_ISDIR(kind):
            raise os_error(errno.EISDIR)
        if file.directory is not None:
            check_create(file.status, file.directory, task.credentials.uid)
    if flags & O_PATH:
        if flags & arch.O_DIRECTORY and not stat.S_ISDIR(kind):
            raise os_error(errno.ENOTDIR)
        return _look_outside(call, machine, file, flags)
    machine.tasks.check_confinement(call.tid)
    umask = umask_of(call.tid) if flags & O_TMPFILE else 0
    opened = open_again(task.acting, file.descriptor, flags, mode & 0o7777, umask)
    return _give_native(call, opened, flags)


def _check_resolve(resolve: int, found: Found | OutsideError) -> None:
    """Raise ELOOP if openat2's argument forbids the links that the path led over."""
    if (resolve & _RESOLVE_NO_SYMLINKS and found.links) or (
        resolve & RESOLVE_NO_MAGICLINKS and found.magic
    ):
        raise os_error(errno.ELOOP)


def _look_outside(call: TrappedCall, machine: Machine, file: NativeFile, flags: int) -> int:
    """Open a native file with O_PATH.

    The kernel lets nobody give such a descriptor to a program, so the thread opens the file itself.
    If the thread cannot be made to do that, there are two cases. A directory is opened for reading,
    if the program may read it. For anything else, a descriptor of recuse's stands for the file.
    """
    if may_trace() and may_open_tree():
        try:
            with Injection(call) as thread:
                try:
                    thread.result = look_by_thread(thread, call.tid, file, flags & os.O_CLOEXEC)
                except OSError as error:
                    thread.result = -(error.errno or errno.EIO)
            return ANSWERED
        except GoneError:
            return ANSWERED
        except PermissionError:
            pass  # it has a debugger already
    location = file.location()
    if not location.node.is_directory:
        return install(call, machine, PathFile(location, flags & STATUS_FLAGS), flags)
    acting = call.task.acting
    opened = open_again(acting, file.descriptor, arch.O_DIRECTORY, 0, 0)
    return _give_native(call, opened, flags)


def _give_native(call: TrappedCall, file: int, flags: int) -> int:
    """Give the program a copy of the supervisor's descriptor, and close the supervisor's."""
    try:
        cloexec = bool(flags & os.O_CLOEXEC)
        number = call.add_descriptor(file, cloexec=cloexec)
    finally:
        os.close(file)
    return ANSWERED if number is None else number


def _open_directory(call: TrappedCall, machine: Machine, location: Location, flags: int) -> int:
    if flags & os.O_CREAT or flags & os.O_ACCMODE != os.O_RDONLY:
        raise os_error(errno.EISDIR)
    # Also with O_PATH the descriptor can be read: the kernel lets nobody pass on an O_PATH one.
    check(location.node, call.task.credentials, MAY_READ)
    return _give_native(call, machine.tree.placeholders.open(location), flags)


def _open_attribute(call: TrappedCall, machine: Machine, location: Location, flags: int) -> int:
    node = location.node
    assert isinstance(node, AttributeNode)
    # fs/kernfs/file.c, kernfs_fop_open: the mode counts even for root.
    access = _ACCESS[flags & os.O_ACCMODE]
    if (access & MAY_READ and not (node.mode & 0o444 and node.show)) or (
        access & MAY_WRITE and not (node.mode & 0o222 and node.store)
    ):
        raise os_error(errno.EACCES)
    if flags & arch.O_DIRECT:
        raise os_error(errno.EINVAL)
    return install(call, machine, AttributeFile(location, flags & STATUS_FLAGS), flags)


def _open_control(call: TrappedCall, machine: Machine, location: Location, flags: int) -> int:
    if flags & arch.O_DIRECT:
        raise os_error(errno.EINVAL)
    return install(call, machine, ControlFile(location, flags & STATUS_FLAGS), flags)


def _open_cuse(call: TrappedCall, machine: Machine, location: Location, flags: int) -> Steps[int]:
    caller = call.caller()
    # If the last server has just ended, the new one finds the device's name free.
    yield machine.files.releases(location.node)
    file = CuseFile(location, flags & STATUS_FLAGS, machine.table, caller)
    return install(call, machine, file, flags)


def _open_fuse(call: TrappedCall, machine: Machine, location: Location, flags: int) -> int:
    from recuse.sandbox.files.fuse_file import FuseFile  # noqa: PLC0415 - few sandboxes have any

    if machine.renumbered is not None:
        machine.renumbered.watch(call.tid, _CALLS_BEFORE_MOUNT)
    return install(call, machine, FuseFile(location, flags & STATUS_FLAGS, machine.files), flags)


def _open_device(call: TrappedCall, machine: Machine, location: Location, flags: int) -> Steps[int]:
    node = location.node
    assert isinstance(node, DeviceNode)
    caller, device = call.caller(), node.device
    machine.memory_maps.settle()
    yield machine.files.releases(node)
    end = device_end()
    try:
        opened: OpenFile = yield OnDevice(device, open_file(device, flags & ~os.O_CLOEXEC, caller))
    except BaseException:
        end.close()
        raise
    file = DeviceFile(location, opened, end, machine.files, machine.tree.devices)
    if flags & arch.O_DIRECT:
        # The kernel checks this last, when the file is open already.
        machine.files.add(file)
        machine.files.drop(file)
        raise os_error(errno.EINVAL)
    return install(call, machine, file, flags)


Opener: TypeAlias = Callable[[TrappedCall, "Machine", Location, int], Outcome]

OPENERS: Final[dict[type[Node], Opener]] = {
    AttributeNode: _open_attribute,
    ControlNode: _open_control,
    CuseNode: _open_cuse,
    FuseNode: _open_fuse,
    DeviceNode: _open_device,
}
"""What opens a node for a program that may open it, by the kind of node. It makes the
`FileDescription` and gives the program a descriptor of it (`install`). Other kinds cannot be
opened."""


def install(call: TrappedCall, machine: Machine, file: FileDescription, flags: int) -> int:
    """Give the program a descriptor; return its number, or ANSWERED if the caller is gone.

    Raises:
        OSError: EMFILE; the file has then been released again.
    """
    number = machine.files.install(call, file, cloexec=bool(flags & os.O_CLOEXEC))
    return ANSWERED if number is None else number


def _legacy(flags: int) -> int:
    """The flags of a call that ignores flags it does not know (build_open_how)."""
    flags &= _KNOWN_FLAGS
    return flags & _PATH_FLAGS if flags & O_PATH else flags


def open_(call: TrappedCall, machine: Machine) -> Outcome:
    """``open(path, flags, mode)``."""
    return _open(call, machine, AT_FDCWD, call.a0, _legacy(call.a1), mode=call.a2)


def openat(call: TrappedCall, machine: Machine) -> Outcome:
    """``openat(dirfd, path, flags, mode)``."""
    flags = _legacy(call.a2)
    return _open(call, machine, signed32(call.a0), call.a1, flags, mode=call.a3)


def creat(call: TrappedCall, machine: Machine) -> Outcome:
    """``creat(path, mode)``."""
    # The same for 32-bit programs.
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | arch.O_LARGEFILE
    return _open(call, machine, AT_FDCWD, call.a0, flags, mode=call.a1)


def openat2(call: TrappedCall, machine: Machine) -> Outcome:
    """``openat2(dirfd, path, how, size)``.

    Arguments that the kernel refuses without looking at the path (copy_struct_from_user,
    build_open_flags) are left to the kernel.
    """
    size = call.a3
    if not _OPEN_HOW.size <= size <= PAGE_SIZE:
        return PROCEED
    how = read_memory(call.tid, call.a2, size)
    flags, mode, resolve = _OPEN_HOW.unpack_from(how.ljust(_OPEN_HOW.size, b"\0"))
    creates = flags & (os.O_CREAT | O_TMPFILE)
    if (
        len(how) < size
        or any(how[_OPEN_HOW.size :])
        or flags & ~_KNOWN_FLAGS
        or mode & ~0o7777
        or (mode and not creates)
        or (flags & O_PATH and flags & ~_PATH_FLAGS)
        or resolve & ~_RESOLVE_KNOWN
        or resolve & _SCOPES == _SCOPES
        or (resolve & _RESOLVE_CACHED and flags & os.O_TRUNC | creates)
    ):
        return PROCEED
    base = signed32(call.a0)
    return _open(call, machine, base, call.a1, flags, mode=mode, resolve=resolve)


def truncate(call: TrappedCall, machine: Machine) -> Outcome:
    """``truncate(path, length)``: a device has no length."""
    path = machine.strings.read(call.tid, call.a0)
    found = machine.tree.find(call, AT_FDCWD, path) if path else None
    if found is None:
        return PROCEED
    filesystem = filesystem_of(found.location)
    if filesystem is not None:
        return filesystem.truncate(call, found.location.dentry, signed64(call.a1))
    if isinstance(found.node, AttributeNode):
        check(found.node, call.task.credentials, MAY_WRITE)
        return 0  # no effect, as with open and O_TRUNC
    raise os_error(errno.EISDIR if found.node.is_directory else errno.EINVAL)


HANDLERS: Final[dict[str, Handler]] = {
    "open": open_,
    "openat": openat,
    "openat2": openat2,
    "creat": creat,
    "truncate": truncate,
}
