"""Native files that programs name: all that the supervisor opens, looks at and lists for them.

Nothing else in the sandbox does that (tests/test_layering.py). Each of these functions does what
the calling thread may do. When it works for a program with fewer rights, the thread acts as that
program (:mod:`recuse.sandbox.tasks.rights`). Files are held by descriptors that open nothing
(O_PATH), and are opened through ``/proc/self/fd``. So the file that was looked at is the one that
is opened, wherever the path leads by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from typing import Final

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch
from recuse.sandbox.tasks.rights import Acting, in_own_thread
from recuse.wire.ids import Tid

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
_AT_EACCESS: Final = 0x200

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
"""openat2(2)."""
_OPEN_HOW = struct.Struct("=QQQ")

O_PATH: Final = 0o10000000
O_TMPFILE: Final = 0o20000000
LOOK: Final = O_PATH | os.O_CLOEXEC
LOOK_AT_LINK: Final = LOOK | arch.O_NOFOLLOW

PROC_ROOT_INODE: Final = 1
"""The inode number of every /proc (linux/proc_fs.h, PROC_ROOT_INO)."""
_DEEPEST_IN_PROC: Final = 5
"""More levels than there are below a process's own directory: ``/proc/PID/task/TID/fd``."""

PROC_MAGIC: Final = 0x9FA0
_PIPE_MAGIC: Final = 0x50495045
SYSFS_MAGIC: Final = 0x62656572
_OF_THE_OPENER: Final = frozenset((PROC_MAGIC, 0x27E0EB, 0x63677270, 0x6E736673))
"""linux/magic.h: proc; cgroup, cgroup2 and namespaces."""

_ST_NODEV: Final = 4
_ST_NOSYMFOLLOW: Final = 0x2000
"""statvfs(3): on that mount, device nodes cannot be opened, or symbolic links not followed."""

_FOR_ALL: Final = stat.S_ISVTX | stat.S_IWOTH
"""The mode of a directory in which everybody may make files, and remove only their own."""

_STATFS: Final = struct.Struct("=qqQQQQQiiqqq32x")
"""asm-generic/statfs.h"""
_STATX_PLACE: Final = struct.Struct("=I28xQ104xQ")
"""``struct statx``: the mask, the inode number, the number of the mount."""
_STATX_SIZE: Final = 256
_STATX_INO: Final = 0x100
_STATX_MNT_ID: Final = 0x1000
_ANONYMOUS_MAGIC: Final = 0x09041934
_NAME_MAX: Final = 255

_NOBODY_ELSE: Final = contextlib.nullcontext()

_libc = ctypes.CDLL(None, use_errno=True)

# These are quick, because almost every call needs them.
access = os.access
"""For the supervisor itself: access(2) uses the real IDs."""
status = os.stat
link_status = os.lstat
is_link = os.path.islink
is_there = os.path.lexists
real_path = os.path.realpath


def status_from(acting: Acting | None, start: bytes, path: bytes) -> os.stat_result:
    """What a path leads to, from a thread's directory in ``/proc`` that recuse itself opens.

    Raises:
        OSError: as stat; EACCES if the rights cannot be taken on.
    """
    directory = look(start)
    try:
        with acting or _NOBODY_ELSE:
            return os.stat(path, dir_fd=directory)
    finally:
        os.close(directory)


def is_empty(path: bytes) -> bool:
    """Whether a directory of the supervisor's is empty. OSError as opendir."""
    return not os.listdir(path)


def is_link_in(name: bytes, directory: int) -> bool:
    """Whether there is a symbolic link of that name in a directory."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode)


def is_working_directory(places: set[tuple[int, int]]) -> bool:
    """Whether a process is in one of these directories, which have no names any more.

    ``places`` are device and inode numbers.
    """
    for name in os.listdir("/proc"):
        link = f"/proc/{name}/cwd"
        with contextlib.suppress(OSError):
            # Looking at a directory may wait for its filesystem, unlike reading the link.
            if name.isdigit() and os.readlink(link).endswith(" (deleted)"):
                found = os.stat(link)
                if (found.st_dev, found.st_ino) in places:
                    return True
    return False


def start_of(tid: Tid, base: int) -> bytes:
    """The link to a thread's working directory, or to a directory that it has open."""
    return b"/proc/%d/cwd" % tid if base == AT_FDCWD else b"/proc/%d/fd/%d" % (tid, base)


def open_path(directory: int, path: bytes, resolve: int, flags: int = 0) -> int:
    """Call openat2 with O_PATH; return a descriptor, or a negative errno."""
    how = _OPEN_HOW.pack(LOOK | flags, 0, resolve)
    result: int = _libc.syscall(arch.SYSCALLS["openat2"], directory, path, how, len(how))
    return result if result >= 0 else -ctypes.get_errno()


def look(path: bytes, directory: int | None = None, *, follow: bool = True) -> int:
    """A descriptor that opens nothing. OSError as open."""
    return os.open(path, LOOK if follow else LOOK_AT_LINK, dir_fd=directory)


def hold(path: bytes, found: os.stat_result) -> int:
    """A descriptor of what a path of the supervisor's leads to; -1 if that is something else."""
    try:
        file = look(path)
    except OSError:
        return -1
    if os.path.samestat(os.fstat(file), found):
        return file
    os.close(file)
    return -1


def meets_magic(directory: int, path: bytes) -> bool:
    """Whether following ``path`` meets a magic link, such as ``/proc/PID/fd/N``."""
    file = open_path(directory, path, RESOLVE_NO_MAGICLINKS)
    if file >= 0:
        os.close(file)
    return file == -errno.ELOOP


def is_supervisors(directory: int) -> bool:
    """Whether a directory of a ``/proc`` belongs to this very process."""
    with contextlib.suppress(OSError):
        up = b""
        for _ in range(_DEEPEST_IN_PROC):
            if os.stat(up + b"../", dir_fd=directory).st_ino == PROC_ROOT_INODE:
                # That /proc shows this thread under its ID in that /proc's namespace.
                thread = os.readlink(up + b"../thread-self", dir_fd=directory)
                os.stat(up + b"task/" + thread.rpartition(b"/")[2], dir_fd=directory)
                return True
            up += b"../"
    return False


def target_of(link: int) -> bytes:
    """Where a symbolic link leads; ``link`` is a descriptor of it. OSError as readlink."""
    return os.readlink(b"", dir_fd=link)


def target_at(link: bytes) -> bytes:
    """Where one of recuse's own links in /proc leads. OSError as readlink."""
    return os.readlink(link)


def path_of(file: int) -> bytes:
    """The path of a descriptor's file, from the supervisor's root."""
    return os.readlink(b"/proc/self/fd/%d" % file)


def path_to(tid: Tid, file: int, found: os.stat_result) -> bytes:
    """A path by which a thread finds a descriptor's file, whose status is ``found``.

    A pipe has none, nor has what was removed: then it is that of a descriptor of the thread's own.

    Raises:
        OSError: ENOENT if there is no such path.
    """
    path = path_of(file)
    with contextlib.suppress(OSError):
        if path.startswith(b"/") and os.path.samestat(os.lstat(path), found):
            return path
    descriptors = b"/proc/%d/fd/" % tid
    for number in os.listdir(descriptors):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(descriptors + number), found):
                return b"/proc/thread-self/fd/" + number
    raise os_error(errno.ENOENT)


def place_of(path: bytes) -> tuple[int, int] | None:
    """The ID of a directory's mount, which is unique in all namespaces, and its inode number.

    None if it cannot be found, or if the kernel does not say (it does since Linux 5.8).
    """
    wanted = _STATX_INO | _STATX_MNT_ID
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.syscall(arch.SYSCALLS["statx"], AT_FDCWD, path, 0, wanted, buffer) < 0:
        return None
    told, inode, mount = _STATX_PLACE.unpack_from(buffer)
    return (mount, inode) if told & wanted == wanted else None


def root_path(tid: Tid) -> bytes:
    """The path of a thread's root, from the supervisor's. OSError if it is gone."""
    return os.readlink(b"/proc/%d/root" % tid)


def below(root: bytes, path: bytes) -> bytes:
    """A path as seen from a root; unchanged if it is not below that root."""
    return path.removeprefix(root) or b"/" if path.startswith(root + b"/") or path == root else path


def mount_of(file: int) -> bytes:
    """The line of ``/proc/self/fdinfo`` with the mount on which a descriptor was opened."""
    with open(f"/proc/self/fdinfo/{file}", "rb") as lines:
        return next(line for line in lines if line.startswith(b"mnt_id:"))


def check_search(directory: int) -> None:
    """Raise EACCES unless names may be looked up in a directory."""
    # The kernel checks that on the way to "." too.
    os.close(os.open(b".", LOOK, dir_fd=directory))


def check_access(acting: Acting | None, file: int, wanted: int) -> None:
    """Raise the error of an access to a file, if any: EACCES; EROFS for writing.

    Args:
        acting: with whose rights; None for the supervisor's own.
        file: a descriptor of it.
        wanted: as for access(2).
    """
    flags = AT_EMPTY_PATH | _AT_EACCESS
    number = arch.SYSCALLS["faccessat2"]
    with acting or _NOBODY_ELSE:
        result = _libc.syscall(number, file, b"", wanted, flags)
        code = ctypes.get_errno()
        if result < 0 and code in (errno.EPERM, errno.ENOSYS):  # refused by a container
            # access(2) uses the real IDs, which are the supervisor's.
            path = b"/proc/self/fd/%d" % file
            result = -1 if acting else _libc.access(path, wanted)
            code = errno.EACCES if acting else ctypes.get_errno()
    if result < 0:
        raise os_error(code)


def opens_no_devices(file: int) -> bool:
    """Whether device nodes on a file's mount cannot be opened."""
    return bool(os.fstatvfs(file).f_flag & _ST_NODEV)


def filesystem_type(file: int) -> int:
    """f_type of fstatfs(2); 0 if that fails."""
    buffer = (ctypes.c_long * 32)()
    return 0 if _libc.fstatfs(file, buffer) else buffer[0] & 0xFFFFFFFF


def filesystem_type_at(path: bytes) -> int:
    """The same for a path of the supervisor's."""
    buffer = (ctypes.c_long * 32)()
    return 0 if _libc.statfs(path, buffer) else buffer[0] & 0xFFFFFFFF


def is_proc(file: int) -> bool:
    """Whether a descriptor's file is on a filesystem of type proc."""
    return filesystem_type(file) == PROC_MAGIC


def is_pipe(file: int) -> bool:
    """Whether a descriptor's file is a pipe without a name. Opening one never waits."""
    return filesystem_type(file) == _PIPE_MAGIC


def depends_on_opener(file: int) -> bool:
    """Whether the content may depend on who has opened the file, or on the opener's namespaces."""
    return filesystem_type(file) in _OF_THE_OPENER


def statfs(file: int) -> bytes:
    """``struct statfs`` of a descriptor's file. OSError as fstatfs."""
    buffer = ctypes.create_string_buffer(_STATFS.size)
    if _libc.fstatfs(file, buffer) < 0:
        raise os_error(ctypes.get_errno())
    return buffer.raw


def statfs_at(path: bytes) -> bytes:
    """``struct statfs`` of a directory of the supervisor's. OSError as statfs."""
    directory = look(path)
    try:
        return statfs(directory)
    finally:
        os.close(directory)


def statfs_of_anonymous() -> bytes:
    """``struct statfs`` of a file for which the kernel has no name (fs/libfs.c, simple_statfs)."""
    return _STATFS.pack(_ANONYMOUS_MAGIC, PAGE_SIZE, 0, 0, 0, 0, 0, 0, 0, _NAME_MAX, PAGE_SIZE, 0)


def _level(name: str) -> int:
    """A setting of the kernel's; its default where it cannot be read."""
    try:
        with open(f"/proc/sys/fs/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1


def check_follow(link: int, linked: os.stat_result, directory: os.stat_result, uid: int) -> None:
    """Raise the error of following a symbolic link (fs/namei.c, pick_link; Linux 6.1).

    Args:
        link: a descriptor of it.
        linked: its status.
        directory: the status of its directory.
        uid: the filesystem user ID of the thread that follows it.

    Raises:
        OSError: ELOOP on a mount whose links are not followed; EACCES for somebody else's link in a
            directory where everybody may make files.
    """
    if os.fstatvfs(link).f_flag & _ST_NOSYMFOLLOW:
        raise os_error(errno.ELOOP)
    for_all = directory.st_mode & _FOR_ALL == _FOR_ALL
    if for_all and linked.st_uid not in (uid, directory.st_uid) and _level("protected_symlinks"):
        raise os_error(errno.EACCES)


def check_create(file: os.stat_result, directory: os.stat_result, uid: int) -> None:
    """Raise EACCES unless O_CREAT may open a file that exists already.

    If everybody may make files in the directory, somebody else may have put it there (fs/namei.c,
    may_create_in_sticky). The arguments are those of :func:`check_follow`.
    """
    if not directory.st_mode & stat.S_ISVTX or file.st_uid in (uid, directory.st_uid):
        return
    level = _level("protected_regular")
    if (level and directory.st_mode & stat.S_IWOTH) or (
        level > 1 and directory.st_mode & stat.S_IWGRP
    ):
        raise os_error(errno.EACCES)


def open_again(acting: Acting | None, file: int, flags: int, mode: int, umask: int) -> int:
    """Open what a descriptor refers to, as a program's open would; return a new descriptor.

    Args:
        acting: with whose rights; None for the supervisor's own.
        file: the descriptor.
        flags: the program's. The file exists already, and is no symbolic link.
        mode: the program's, for O_TMPFILE.
        umask: likewise.

    Raises:
        OSError: as open; EACCES if the rights cannot be taken on; EAGAIN if no thread can start.
    """
    flags = flags & ~(os.O_CREAT | O_PATH | arch.O_NOFOLLOW) | os.O_CLOEXEC
    path = b"/proc/self/fd/%d" % file
    if acting is None and not flags & O_TMPFILE:
        return os.open(path, flags)
    # An open file remembers for ever who has opened it.
    return in_own_thread(acting, umask, lambda left: os.open(path, flags, mode & ~left))


def list_next(acting: Acting | None, directory: int, room: int, *, typed: bool) -> bytes:
    """What the kernel lists next in an open directory.

    Args:
        acting: with whose rights: not everybody sees all of a /proc (hidepid).
        directory: a copy of the program's own descriptor.
        room: for how many bytes.
        typed: whether to list like getdents64, and not like getdents.

    Raises:
        OSError: as getdents.
    """
    number = arch.SYSCALLS["getdents64" if typed else "getdents"]
    buffer = ctypes.create_string_buffer(room)
    with acting or _NOBODY_ELSE:
        count = _libc.syscall(number, directory, buffer, room)
        code = ctypes.get_errno()
    if count < 0:
        raise os_error(code)
    return buffer.raw[:count]
