"""Numbers of the i386 system call interface, as 32-bit programs use it on an x86-64 kernel.

arch/x86/entry/syscalls/syscall_32.tbl. The kernel's numbers for open flags, poll events and errors
are those of x86-64.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from recuse.sandbox.arch import x86_64
from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.arch.status import Status

AUDIT_ARCH: Final = 0x40000003
"""What seccomp_data.arch says for a 32-bit system call (linux/audit.h)."""

SYSCALLS: Final[dict[str, int]] = {
    # The hot ones first, since the filter compares in this order.
    "read": 3,
    "write": 4,
    "pread64": 180,
    "pwrite64": 181,
    "ioctl": 54,
    "openat": 295,
    "_llseek": 140,
    "lseek": 19,
    "fstat64": 197,
    "poll": 168,
    "ppoll": 309,
    "ppoll_time64": 414,
    "_newselect": 142,
    "select": 82,
    "pselect6": 308,
    "pselect6_time64": 413,
    "epoll_wait": 256,
    "epoll_pwait": 319,
    "epoll_pwait2": 441,
    "epoll_ctl": 255,
    "readv": 145,
    "writev": 146,
    "preadv": 333,
    "pwritev": 334,
    "preadv2": 378,
    "pwritev2": 379,
    "sendfile": 187,
    "sendfile64": 239,
    "splice": 313,
    "tee": 315,
    "copy_file_range": 377,
    "io_submit": 248,
    "getdents64": 220,
    "fchmod": 94,
    "fchown": 95,
    "fchown32": 207,
    "fgetxattr": 231,
    "flistxattr": 234,
    "fstat": 108,
    "fstatat64": 300,
    "stat64": 195,
    "lstat64": 196,
    "statx": 383,
    "open": 5,
    "stat": 106,
    "lstat": 107,
    "creat": 8,
    "openat2": 437,
    "truncate": 92,
    "truncate64": 193,
    "access": 33,
    "faccessat": 307,
    "faccessat2": 439,
    "readlink": 85,
    "readlinkat": 305,
    "chmod": 15,
    "fchmodat": 306,
    "fchmodat2": 452,
    "chown": 182,
    "chown32": 212,
    "lchown": 16,
    "lchown32": 198,
    "fchownat": 298,
    "utime": 30,
    "utimes": 271,
    "futimesat": 299,
    "utimensat": 320,
    "utimensat_time64": 412,
    "getxattr": 229,
    "lgetxattr": 230,
    "listxattr": 232,
    "llistxattr": 233,
    "chdir": 12,
    "getcwd": 183,
    "mkdir": 39,
    "mkdirat": 296,
    "mknod": 14,
    "mknodat": 297,
    "symlink": 83,
    "symlinkat": 304,
    "link": 9,
    "linkat": 303,
    "rename": 38,
    "renameat": 302,
    "renameat2": 353,
    "unlink": 10,
    "unlinkat": 301,
    "rmdir": 40,
    "flock": 143,
    "socketcall": 102,
    "sendmsg": 370,
    "sendmmsg": 345,
    "execve": 11,
    "execveat": 358,
    "unshare": 310,
    "setns": 346,
    "chroot": 61,
    "pivot_root": 217,
    "sendto": 369,
    "recvfrom": 371,
    "recvmsg": 372,
    "recvmmsg": 337,
    "recvmmsg_time64": 417,
    "shutdown": 373,
    "getsockopt": 365,
    "setsockopt": 366,
    "getsockname": 367,
    "getpeername": 368,
    "bind": 361,
    "connect": 362,
    "listen": 363,
    "accept4": 364,
    "setuid": 23,
    "setuid32": 213,
    "setgid": 46,
    "setgid32": 214,
    "setreuid": 70,
    "setreuid32": 203,
    "setregid": 71,
    "setregid32": 204,
    "setresuid": 164,
    "setresuid32": 208,
    "setresgid": 170,
    "setresgid32": 210,
    "setfsuid": 138,
    "setfsuid32": 215,
    "setfsgid": 139,
    "setfsgid32": 216,
    "setgroups": 81,
    "setgroups32": 206,
    "capset": 185,
    "statfs64": 268,
    "fstatfs64": 269,
    "mmap": 90,
    "mremap": 163,
    "sigreturn": 119,
    "rt_sigreturn": 173,
}
"""Every system call that recuse traps, by name."""

MMAP2: Final = 192
"""``mmap2``, which is trapped for files only."""

INJECTED: Final[dict[str, int]] = {
    "close": 6,
    "close_range": 436,
    "mmap": MMAP2,
    "munmap": 91,
    "sendmsg": 370,
    "fchdir": 133,
    "open_tree": 428,
    "madvise": 219,
    "mlock": 150,
    "io_submit": 248,
}
"""The calls that `recuse.sandbox.inject` makes; mmap's offset is in units of MMAP_UNIT bytes."""

MMAP_UNIT: Final = 4096

FCNTL: Final = (55, 221)
"""``fcntl`` and ``fcntl64``, of which some commands are trapped."""

CLONE: Final = 120
"""Trapped if it makes certain namespaces."""

IO_URING_SETUP: Final = 425

REGISTERS: Final = (
    Registers(
        ctypes.c_uint32 * 17,
        number=6,
        arguments=(0, 1, 2, 3, 4, 5),
        result=6,
        instruction=12,
        stack=15,
        original=11,
        instruction_size=2,
    ),
    x86_64.REGISTERS[0]._replace(arguments=(5, 11, 12, 13, 14, 4)),
)
"""``struct user_regs_struct32`` (asm/user32.h): eax for number and result; the arguments are in
ebx, ecx, edx, esi, edi and ebp. A 64-bit program can make 32-bit calls too (``int $0x80``), and has
its own registers then."""

_STAT = struct.Struct("=IIHHHHIIIIIIIIIIxxxxxxxx")
_STAT64 = struct.Struct("=QxxxxIIIIIQxxxxqIQIIIIIIQ")
_LOW: Final = 0xFFFFFFFF


def pack_stat(status: Status) -> bytes:
    """Encode a ``compat_stat`` (64 bytes; arch/x86/include/asm/compat.h), of ``stat`` and its like.

    What does not fit is cut off.
    """
    return _STAT.pack(
        status.device & _LOW,
        status.inode & _LOW,
        status.mode,
        status.links,
        status.uid & 0xFFFF,
        status.gid & 0xFFFF,
        status.rdev & _LOW,
        status.size,
        status.block_size,
        0,
        *_stamps(status),
    )


def pack_stat64(status: Status) -> bytes:
    """Encode an i386 ``struct stat64`` (96 bytes; arch/x86/include/asm/stat.h)."""
    return _STAT64.pack(
        status.device,
        status.inode & _LOW,
        status.mode,
        status.links,
        status.uid,
        status.gid,
        status.rdev,
        status.size,
        status.block_size,
        0,
        *_stamps(status),
        status.inode,
    )


def _stamps(status: Status) -> list[int]:
    return [part & _LOW for part in status.stamps()]
