"""open and its kin (fs/open.c, fs/namei.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.files import OpenFile, open_file
from recuse.kernel.operation import run
from recuse.sandbox.arch import arch
from recuse.sandbox.descriptors import Descriptor
from recuse.sandbox.memory import read_memory
from recuse.sandbox.permissions import MAY_READ, MAY_WRITE, check
from recuse.sandbox.syscalls.call import ANSWERED, PROCEED, Handler, failure, signed32
from recuse.sandbox.tasks import is_alone
from recuse.sandbox.tree import AT_FDCWD, Node

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

_O_TMPFILE: Final = 0o20000000
_O_PATH: Final = 0o10000000
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_IN_ROOT: Final = 0x10
_OPEN_HOW = struct.Struct("=QQQ")

_ACCESS: Final = {
    os.O_RDONLY: MAY_READ,
    os.O_WRONLY: MAY_WRITE,
    os.O_RDWR: MAY_READ | MAY_WRITE,
    os.O_ACCMODE: MAY_READ | MAY_WRITE,
}

_STATUS_FLAGS: Final = ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC)
"""The flags that stay with the open file and that F_GETFL shows."""


def _open(supervisor: Supervisor, call: Notification, base: int, address: int, flags: int) -> int:
    path = supervisor.strings.read(call.pid, address)
    if not path:
        return PROCEED
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    follow = not (flags & arch.O_NOFOLLOW or exclusive)
    found = supervisor.tree.find(call.pid, base, path, follow=follow)
    if found is None:
        return PROCEED
    if exclusive:
        raise failure(errno.EEXIST)
    if found.link:
        # O_NOFOLLOW on a link: O_PATH would give the link itself, which the kernel has.
        return PROCEED
    node = found.node
    if node.is_directory:
        return _open_directory(supervisor, call, node, flags)
    return _open_device(supervisor, call, node, flags)


def _open_directory(supervisor: Supervisor, call: Notification, node: Node, flags: int) -> int:
    if flags & os.O_CREAT or flags & os.O_ACCMODE != os.O_RDONLY:
        raise failure(errno.EISDIR)
    check(node, supervisor.tasks.get(call.pid).credentials, MAY_READ)
    shadow = os.open(
        supervisor.tree.shadow_of(node),
        os.O_RDONLY | arch.O_DIRECTORY | os.O_CLOEXEC | flags & _O_PATH,
    )
    try:
        supervisor.listener.answer_with_descriptor(
            call.id, shadow, cloexec=bool(flags & os.O_CLOEXEC)
        )
    finally:
        os.close(shadow)
    return ANSWERED


def _open_device(supervisor: Supervisor, call: Notification, node: Node, flags: int) -> int:
    device = node.device
    assert device is not None
    if flags & arch.O_DIRECTORY:  # O_TMPFILE contains it
        raise failure(errno.ENOTDIR)
    status = flags & _STATUS_FLAGS & ~arch.O_NOFOLLOW
    if flags & _O_PATH:
        _install(supervisor, call, Descriptor(device, status), flags)
        return ANSWERED
    wanted = _ACCESS[flags & os.O_ACCMODE]
    if flags & os.O_TRUNC:
        wanted |= MAY_WRITE
    check(node, supervisor.tasks.get(call.pid).credentials, wanted)
    caller = supervisor.caller(call)
    descriptor = Descriptor(device, status)

    def opened(file: OpenFile | None, error: OSError | None) -> None:
        if file is None:
            descriptor.close()
            supervisor.finish(call, 0, error)
            return
        file.flags = status
        descriptor.file = file
        try:
            _install(supervisor, call, descriptor, flags)
        except OSError as reason:
            supervisor.finish(call, 0, reason)

    def begin() -> None:
        run(device.connection, open_file(device, flags, caller), opened)

    supervisor.descriptors.after_releases(device, begin)
    return ANSWERED


def _install(
    supervisor: Supervisor, call: Notification, descriptor: Descriptor, flags: int
) -> None:
    """Give the program its descriptor, as the result of the call.

    Raises:
        OSError: EMFILE; the file is released again.
    """
    alone = is_alone(call.pid)  # while the call waits, nothing can change that
    supervisor.descriptors.add(descriptor)
    try:
        number = supervisor.listener.answer_with_descriptor(
            call.id, descriptor.theirs, cloexec=bool(flags & os.O_CLOEXEC)
        )
    except OSError:
        supervisor.descriptors.drop(descriptor)
        raise
    if number is None:
        supervisor.descriptors.drop(descriptor)
        return
    supervisor.descriptors.installed(descriptor, (call.pid, number) if alone else None)


def open_(supervisor: Supervisor, call: Notification) -> int:
    """``open(path, flags, mode)``."""
    return _open(supervisor, call, AT_FDCWD, call.a0, signed32(call.a1))


def openat(supervisor: Supervisor, call: Notification) -> int:
    """``openat(dirfd, path, flags, mode)``."""
    return _open(supervisor, call, signed32(call.a0), call.a1, signed32(call.a2))


def creat(supervisor: Supervisor, call: Notification) -> int:
    """``creat(path, mode)``."""
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    return _open(supervisor, call, AT_FDCWD, call.a0, flags)


def openat2(supervisor: Supervisor, call: Notification) -> int:
    """``openat2(dirfd, path, how, size)``.

    A path that must stay below its directory does not lead to ``/dev``: the kernel answers.
    """
    flags, _, resolve = _OPEN_HOW.unpack(read_memory(call.pid, call.a2, _OPEN_HOW.size))
    if resolve & (_RESOLVE_BENEATH | _RESOLVE_IN_ROOT):
        return PROCEED
    return _open(supervisor, call, signed32(call.a0), call.a1, flags)


def truncate(supervisor: Supervisor, call: Notification) -> int:
    """``truncate(path, length)``: only regular files have a length."""
    path = supervisor.strings.read(call.pid, call.a0)
    found = supervisor.tree.find(call.pid, AT_FDCWD, path) if path else None
    if found is None:
        return PROCEED
    raise failure(errno.EISDIR if stat.S_ISDIR(found.node.mode) else errno.EINVAL)


HANDLERS: Final[dict[str, Handler]] = {
    "open": open_,
    "openat": openat,
    "openat2": openat2,
    "creat": creat,
    "truncate": truncate,
}
