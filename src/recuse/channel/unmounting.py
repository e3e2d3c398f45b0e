"""Which mount a path is on, and how it comes to an end.

A small process does this too (`recuse.channel.guard`): the standard library is all that is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

HELPER: Final = "fusermount3"
"""The program, installed set-user-ID root, by which ordinary users mount and unmount."""

HELPER_S: Final = 30.0
"""How long it may take."""

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
ABORT: Final = b"1"
_CONNECTIONS: Final = "/sys/fs/fuse/connections"
# The same numbers on every architecture.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CREATE: Final = 6
_CLOEXEC: Final = 1
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000
_STATX_SIZE: Final = 256
_STX_DEV_MINOR: Final = 140
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")
"""White space and backslashes in /proc/self/mountinfo."""
_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """What tells one mount from others."""

    number: str
    """Of the mount, in /proc/self/mountinfo; it may become another one's later."""
    device: str
    """Major and minor number; these may, too."""
    kind: str
    """The type, such as fuse.hello."""
    point: str
    """Where it is mounted."""

    @property
    def connection(self) -> int:
        """The number of its connection, if it is one of FUSE."""
        return int(self.device.partition(":")[2])


def resolve(path: str | os.PathLike[str]) -> str:
    """Return what `os.path.realpath` does, without asking who serves a mount there.

    Raises OSError if nothing is there.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def identity(path: str) -> Identity | None:
    """Return which mount a path is on, without asking who serves it; None if that is not known.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _identity(descriptor)
    finally:
        os.close(descriptor)


def _identity(descriptor: int) -> Identity | None:
    number = _information(descriptor)[b"mnt_id"]
    return _find(lambda fields: fields[0] == number)


def identity_of(connection: int) -> Identity | None:
    """Return which mount has a connection of FUSE, None if there is none here. Raises OSError."""
    device = f"0:{connection}".encode()
    return _find(lambda fields: fields[2] == device)


def connection_at(number: int) -> int | None:
    """The number of the connection of an open /dev/fuse; None before Linux 6.16. Raises OSError."""
    found = _information(number).get(b"fuse_connection")
    return None if found is None else int(found)


def _information(descriptor: int) -> dict[bytes, bytes]:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
        pairs = (line.partition(b":") for line in lines)
        return {name: value.strip() for name, _, value in pairs}


def _find(is_it: Callable[[list[bytes]], bool]) -> Identity | None:
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split()
            if is_it(fields):
                kind = os.fsdecode(fields[fields.index(b"-") + 1])
                point = os.fsdecode(_ESCAPED.sub(_unescape, fields[4]))
                return Identity(fields[0].decode(), fields[2].decode(), kind, point)
    return None


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def is_fuse(kind: str) -> bool:
    """Whether a mount's type is one of FUSE."""
    return kind in ("fuse", "fuseblk") or kind.startswith(("fuse.", "fuseblk."))


def unmount(path: str, lazy: bool) -> None:
    """Unmount what a path is on; ``lazy``: at once, though programs use it.

    Root does it by umount2(2), an ordinary user by fusermount3.

    Raises OSError: EBUSY if programs use it; EPERM if it is not the user's.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    try:
        call(_libc.umount2(os.fsencode(path), flags))
    except PermissionError:
        _helper_unmounts(path, lazy)


def write_changes(directory: str) -> None:
    """Have the kernel write what programs have changed in files that stay open."""
    with contextlib.suppress(OSError):
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _libc.syncfs(root)
        finally:
            os.close(root)


def connection_of(root: int) -> int | None:
    """The number of the FUSE connection of a mount whose root directory is open.

    It does not ask who serves it. None if that cannot be found out.
    """
    status = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(root, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, status):
        return None
    return int.from_bytes(status.raw[_STX_DEV_MINOR : _STX_DEV_MINOR + 4], sys.byteorder)


def abort(connection: int) -> None:
    """End a FUSE connection at once, if that is possible; programs get ENOTCONN."""
    try:
        control = open_control(connection)
        try:
            os.write(control, ABORT)
        finally:
            os.close(control)
    except OSError:
        return  # it is not the user's, or fusectl is missing


def open_control(connection: int) -> int:
    """Open the file that ends a FUSE connection if `ABORT` is written to it.

    Its owner may do that where fusectl is mounted, and root anywhere. Raises OSError.
    """
    try:
        directory = os.open(_CONNECTIONS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _open_control(directory, connection)
        finally:
            os.close(directory)
    except FileNotFoundError:
        context = call(_libc.syscall(_FSOPEN, b"fusectl", _CLOEXEC))
        try:
            call(_libc.syscall(_FSCONFIG, context, _CREATE, None, None, 0))
            directory = call(_libc.syscall(_FSMOUNT, context, _CLOEXEC, 0))
        finally:
            os.close(context)
        try:
            return _open_control(directory, connection)
        finally:
            os.close(directory)


def _open_control(directory: int, connection: int) -> int:
    return os.open(f"{connection}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)


def end_mount(path: str, mounted: Identity) -> None:
    """End the connection of what a path is on, and unmount it, if it is this mount; or leave it.

    The first is for programs that wait: children of the server that have /dev/fuse would keep it.
    For root nothing can come between: what was looked at is what is unmounted.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if _identity(descriptor) != mounted:
            return
        place = f"/proc/self/fd/{descriptor}".encode()
        try:
            # That ends a connection of FUSE (fs/fuse/inode.c, fuse_umount_begin).
            call(_libc.umount2(place, MNT_FORCE | MNT_DETACH))
            return
        except PermissionError:  # so it is for root of a user namespace, too
            abort(mounted.connection)
        try:
            call(_libc.umount2(place, MNT_DETACH))
        except PermissionError:
            _helper_unmounts(path, lazy=True)
    finally:
        os.close(descriptor)


def _helper_unmounts(path: str, lazy: bool) -> None:
    program = shutil.which(HELPER)
    if program is None:
        raise OSError(errno.EPERM, f"only root may unmount where there is no {HELPER}")
    options = ["-u", "-z"] if lazy else ["-u"]
    try:
        done = subprocess.run(
            [HELPER, *options, "--", path],
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            timeout=HELPER_S,
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{HELPER} does not end") from None
    if done.returncode:
        text = os.fsdecode(done.stderr).strip().removeprefix(f"{HELPER}: ")
        busy = os.strerror(errno.EBUSY) in text
        raise OSError(errno.EBUSY if busy else errno.EPERM, text or f"{HELPER} failed")


def call(result: int) -> int:
    """Return what a function of C has returned. Raises OSError if that is -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
