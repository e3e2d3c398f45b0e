"""How a mount of /dev/fuse comes to be: by root, by an ordinary user, without a mount point.

Each way gives a descriptor of /dev/fuse, at which the kernel's first request waits.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from typing import Final, NamedTuple

from recuse.channel.devcuse import KernelError
from recuse.channel.mount_options import MS_RDONLY, Options
from recuse.channel.unmounting import HELPER, HELPER_S, call, identity, is_fuse

DEV_FUSE: Final = "/dev/fuse"

_DEVICE: Final = os.makedev(10, 229)
"""Of /dev/fuse (linux/miscdevice.h)."""
_MS_REMOUNT: Final = 32
_COMMFD: Final = "_FUSE_COMMFD"
_MOUNT_ATTR: Final = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 0x10, 2048: 0x80, 1 << 24: 0x20}
"""MS_RDONLY and so on as fsmount(2) has them (linux/mount.h); relatime is what it does anyway."""
# The same numbers on every architecture.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


class MountError(KernelError):
    """A filesystem cannot be mounted or unmounted; the message is one line that says why."""


class Source(NamedTuple):
    """What is mounted."""

    name: str
    """Of the type, ``fuse.NAME``; it stands for the source as well, if that has no other name."""
    max_read: int
    read_only: bool


def check_directory(path: str, nonempty: bool = False) -> None:
    """Raise MountError unless it is a directory, and empty.

    Who serves a mount that is there is not asked: it may not answer.
    """
    try:
        found = identity(path)
        if found is not None and found.point == path and is_fuse(found.kind):
            if nonempty:
                return
            raise MountError(f"{path}: a FUSE filesystem is mounted there: umount {path}")
        # Not by O_DIRECTORY: that would have autofs mount what is to be mounted now.
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise NotADirectoryError
        finally:
            os.close(descriptor)
        if nonempty:
            return
        # To look into one of autofs would have it wait for this mount.
        waits = found is not None and found.kind == "autofs"
        if not waits and os.listdir(path):
            raise MountError(f"{path}: not empty; a mount would hide what is there")
    except NotADirectoryError as error:
        raise MountError(f"{path}: not a directory") from error
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise MountError(f"{path}: there is no such directory: mkdir {path}") from error
        raise MountError(f"{path}: {error.strerror}") from error


def mount_at(path: str, source: Source, options: Options) -> int:
    """Mount on a directory; return the descriptor of /dev/fuse.

    As root, or whoever has CAP_SYS_ADMIN, by mount(2), otherwise by fusermount3.

    Raises MountError.
    """
    try:
        number = _open()
    except PermissionError as error:
        # Where only a group may open it, fusermount3 may.
        if os.geteuid() == 0:
            raise MountError(f"{DEV_FUSE}: {error.strerror}; in a container, --device /dev/fuse is "
                             "needed, and the right to use it") from error  # fmt: skip
        return _helper_mounts(path, source, options)
    try:
        _mount(path, number, source, options)
    except OSError as error:
        os.close(number)
        if error.errno == errno.EPERM:
            return _helper_mounts(path, source, options)
        raise MountError(f"{path}: cannot be mounted: {error.strerror}") from error
    except BaseException:
        os.close(number)
        raise
    return number


def take_over(number: int, source: Source, options: Options, most: int) -> int:
    """Return a descriptor of /dev/fuse that this process was given, mounted already.

    The kernel does not tell how it was mounted: the options have to say that. ``most`` is what a
    request for data may ask for, in bytes, unless the option max_read forbids it.

    Raises MountError.
    """
    path = f"/dev/fd/{number}"
    try:
        if os.fstat(number).st_rdev != _DEVICE:
            raise MountError(f"{path}: is not {DEV_FUSE}")
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from error
    if not options.default_permissions:
        # The kernel would check no permissions, and what is served here does not either.
        raise MountError(f"{path}: mount it with the option default_permissions")
    if min(options.max_read or most, most) > source.max_read:
        raise MountError(f"{path}: mount it with the option max_read={source.max_read}")
    os.set_inheritable(number, False)
    os.set_blocking(number, False)
    return number


def remount(path: str, flags: int) -> None:
    """Change the flags of what is mounted on a directory; the kernel has changes written before.

    Who serves it is not asked, and its other options stay (fs/fuse/inode.c, fuse_reconfigure).

    Raises MountError.
    """
    try:
        found = identity(path)
        if found is None or not is_fuse(found.kind) or found.point != path:
            raise MountError(f"{path}: no FUSE filesystem is mounted there")
        call(_libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags | _MS_REMOUNT), None))
    except OSError as error:
        busy = error.errno == errno.EBUSY
        reason = "a program has a file open there, to write it" if busy else error.strerror
        raise MountError(f"{path}: cannot be remounted: {reason}") from error


def mount_detached(source: Source, options: Options) -> tuple[int, int]:
    """Mount nowhere; return the descriptor of /dev/fuse, and that of the mount.

    The latter is the mount's root directory; the mount lasts as long as something there is open.

    Raises MountError.
    """
    number = context = -1
    try:
        number = _open()
        context = _syscall(_FSOPEN, b"fuse", _CLOEXEC)
        for key, value in _data(number, options, source):
            word = None if value is None else os.fsencode(value)
            kind = _SET_FLAG if value is None else _SET_STRING
            _syscall(_FSCONFIG, context, kind, key.encode(), word, 0)
        for key, value in (
            ("source", options.fsname or source.name),
            ("subtype", _type(source, options)),
        ):
            _syscall(_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(value), 0)
        if _flags(source, options) & MS_RDONLY:
            _syscall(_FSCONFIG, context, _SET_FLAG, b"ro", None, 0)
        _syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        flags = _flags(source, options)
        attributes = sum(new for old, new in _MOUNT_ATTR.items() if flags & old)
        return number, _syscall(_FSMOUNT, context, _CLOEXEC, attributes)
    except OSError as error:
        if number >= 0:
            os.close(number)
        if error.errno == errno.EPERM:
            raise MountError(
                "only root may mount without a directory; give one, or use a user namespace"
            ) from error
        if error.errno == errno.ENOSYS:
            raise MountError("this kernel cannot mount without a directory (Linux 5.2)") from error
        raise MountError(f"cannot be mounted: {error.strerror}") from error
    finally:
        if context >= 0:
            os.close(context)


def _open() -> int:
    """Open /dev/fuse. Raises MountError if it is not there; PermissionError."""
    try:
        return os.open(DEV_FUSE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise MountError(
                f"{DEV_FUSE}: this kernel has no FUSE: modprobe fuse; in a container, start it "
                "with --device /dev/fuse"
            ) from error
        raise MountError(f"{DEV_FUSE}: {error.strerror}") from error


def _flags(source: Source, options: Options) -> int:
    return options.flags | (MS_RDONLY if source.read_only else 0)


def _type(source: Source, options: Options) -> str:
    return options.subtype or source.name


def _max_read(source: Source, options: Options) -> int:
    return min(source.max_read, options.max_read or source.max_read)


def _data(number: int, options: Options, source: Source) -> list[tuple[str, str | None]]:
    """FUSE's own options (fs/fuse/inode.c, fuse_fs_parameters); None is the value of a flag."""
    data: list[tuple[str, str | None]] = [
        ("fd", f"{number}"),
        ("rootmode", f"{stat.S_IFDIR:o}"),
        ("user_id", f"{os.geteuid()}"),
        ("group_id", f"{os.getegid()}"),
        ("max_read", f"{_max_read(source, options)}"),
        ("default_permissions", None),
    ]
    if options.allow_other or options.allow_root:
        data.append(("allow_other", None))
    return data


def _mount(path: str, number: int, source: Source, options: Options) -> None:
    data = ",".join(
        key if value is None else f"{key}={value}" for key, value in _data(number, options, source)
    )
    call(
        _libc.mount(
            os.fsencode(options.fsname or source.name),
            os.fsencode(path),
            os.fsencode(f"fuse.{_type(source, options)}"),
            ctypes.c_ulong(_flags(source, options)),
            data.encode(),
        )
    )


def _syscall(number: int, *arguments: object) -> int:
    return call(_libc.syscall(ctypes.c_long(number), *arguments))


def _helper_mounts(path: str, source: Source, options: Options) -> int:
    """Have fusermount3 mount, which opens /dev/fuse and sends the descriptor.

    It wants to know of a socket by an environment variable (util/fusermount.c of libfuse).
    """
    program = shutil.which(HELPER)
    if program is None:
        raise MountError(f"{path}: only root may mount where there is no {HELPER}: "
                         "install the package fuse3")  # fmt: skip
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        environment = {**os.environ, _COMMFD: str(theirs.fileno()), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                [HELPER, "-o", _helper_options(source, options), "--", path],
                executable=program,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
                timeout=HELPER_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MountError(f"{path}: {HELPER}: {error}") from error
        theirs.close()
        number = _received(ours)
    if done.returncode or number < 0:
        if number >= 0:
            os.close(number)
        raise MountError(f"{path}: {_why_helper_failed(os.fsdecode(done.stderr))}")
    os.set_blocking(number, False)
    return number


def _helper_options(source: Source, options: Options) -> str:
    words = [
        f"fsname={_escaped(options.fsname or source.name)}",
        f"subtype={_escaped(_type(source, options))}",
        f"max_read={_max_read(source, options)}",
        "default_permissions",
        # It does not know what is so anyway.
        *(name for name in options.flag_names if name != "relatime"),
    ]
    if source.read_only and not options.flags & MS_RDONLY:
        words.append("ro")
    if options.allow_other or options.allow_root:
        words.append("allow_other")
    return ",".join(words)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _received(ours: socket.socket) -> int:
    """The descriptor that was sent, -1 if none was."""
    fds = array.array("i")
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: fds.itemsize])
    return fds[0] if fds else -1


def _why_helper_failed(said: str) -> str:
    reason = " ".join(line.removeprefix(f"{HELPER}: ").strip() for line in said.splitlines())
    if "user_allow_other" in reason:
        return "root has to allow allow_other: a line user_allow_other in /etc/fuse.conf"
    if os.strerror(errno.EPERM) in reason:
        return (
            f"only root may mount here: {HELPER} is not set-user-ID root, or has not the right "
            "(in a container, --cap-add SYS_ADMIN)"
        )
    return f"cannot be mounted: {HELPER}: {reason or 'failed'}"
