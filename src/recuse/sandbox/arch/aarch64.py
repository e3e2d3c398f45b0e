"""Numbers of the arm64 system call interface (asm-generic/unistd.h; arch/arm64)."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.arch.status import Status

AUDIT_ARCH: Final = 0xC00000B7
"""What seccomp_data.arch says for a 64-bit system call (linux/audit.h)."""

FOREIGN_CALL_BIT: Final = 0
"""There are no calls of the same architecture with other layouts."""

SYSCALLS: Final[dict[str, int]] = {
    "io_submit": 2,
    "getxattr": 8,
    "lgetxattr": 9,
    "fgetxattr": 10,
    "listxattr": 11,
    "llistxattr": 12,
    "flistxattr": 13,
    "getcwd": 17,
    "epoll_ctl": 21,
    "epoll_pwait": 22,
    "fcntl": 25,
    "ioctl": 29,
    "flock": 32,
    "mknodat": 33,
    "mkdirat": 34,
    "unlinkat": 35,
    "symlinkat": 36,
    "linkat": 37,
    "renameat": 38,
    "pivot_root": 41,
    "statfs": 43,
    "fstatfs": 44,
    "truncate": 45,
    "faccessat": 48,
    "chdir": 49,
    "chroot": 51,
    "fchmod": 52,
    "fchmodat": 53,
    "fchownat": 54,
    "fchown": 55,
    "openat": 56,
    "getdents64": 61,
    "lseek": 62,
    "read": 63,
    "write": 64,
    "readv": 65,
    "writev": 66,
    "pread64": 67,
    "pwrite64": 68,
    "preadv": 69,
    "pwritev": 70,
    "sendfile": 71,
    "pselect6": 72,
    "ppoll": 73,
    "splice": 76,
    "tee": 77,
    "readlinkat": 78,
    "newfstatat": 79,
    "fstat": 80,
    "utimensat": 88,
    "capset": 91,
    "unshare": 97,
    "setregid": 143,
    "setgid": 144,
    "setreuid": 145,
    "setuid": 146,
    "setresuid": 147,
    "setresgid": 149,
    "setfsuid": 151,
    "setfsgid": 152,
    "getpgid": 155,
    "setgroups": 159,
    "bind": 200,
    "listen": 201,
    "accept": 202,
    "connect": 203,
    "getsockname": 204,
    "getpeername": 205,
    "sendto": 206,
    "recvfrom": 207,
    "setsockopt": 208,
    "getsockopt": 209,
    "shutdown": 210,
    "sendmsg": 211,
    "recvmsg": 212,
    "mremap": 216,
    "clone": 220,
    "execve": 221,
    "mmap": 222,
    "accept4": 242,
    "recvmmsg": 243,
    "setns": 268,
    "sendmmsg": 269,
    "kcmp": 272,
    "renameat2": 276,
    "seccomp": 277,
    "execveat": 281,
    "copy_file_range": 285,
    "preadv2": 286,
    "pwritev2": 287,
    "statx": 291,
    "io_uring_setup": 425,
    "openat2": 437,
    "pidfd_getfd": 438,
    "faccessat2": 439,
    "epoll_pwait2": 441,
    "fchmodat2": 452,
}
"""Every system call that recuse makes or traps, by name. There are none of the old ones without
``at``, nor poll, select and epoll_wait: the C library makes the newer calls in their stead."""

ADDRESS_LIMIT: Final = 1 << 48
"""The end of user space, as far as programs get it without asking for more (DEFAULT_MAP_WINDOW)."""

O_DIRECTORY: Final = 0o40000
O_NOFOLLOW: Final = 0o100000
O_DIRECT: Final = 0o200000
O_LARGEFILE: Final = 0o400000
"""These four differ between architectures (asm/fcntl.h)."""

INJECTED: Final[dict[str, int]] = {
    "close": 57,
    "close_range": 436,
    "mmap": 222,
    "munmap": 215,
    "sendmsg": 211,
    "madvise": 233,
    "fchdir": 50,
    "open_tree": 428,
    "mlock": 228,
    "io_submit": 2,
}
"""The calls that `recuse.sandbox.inject` makes; mmap's offset is in units of MMAP_UNIT bytes."""

MMAP_UNIT: Final = 1

REGISTERS: Final = (
    Registers(
        ctypes.c_uint64 * 34,
        number=8,
        arguments=(0, 1, 2, 3, 4, 5),
        result=0,
        instruction=32,
        stack=31,
        original=None,
        instruction_size=4,
    ),
)
"""``struct user_pt_regs`` (asm/ptrace.h): x0 to x30, sp, pc, pstate."""

_STAT = struct.Struct("=QQIIIIQQqiiqqQqQqQII")


def pack_stat(status: Status) -> bytes:
    """Encode a ``struct stat`` (128 bytes; asm-generic/stat.h)."""
    return _STAT.pack(
        status.device,
        status.inode,
        status.mode,
        status.links,
        status.uid,
        status.gid,
        status.rdev,
        0,
        status.size,
        status.block_size,
        0,
        0,
        *status.stamps(),
        0,
        0,
    )
