"""Numbers of the x86-64 system call interface (arch/x86/entry/syscalls/syscall_64.tbl)."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.arch.status import Status

AUDIT_ARCH: Final = 0xC000003E
"""What seccomp_data.arch says for a 64-bit system call (linux/audit.h)."""

FOREIGN_CALL_BIT: Final = 0x40000000
"""Set in the number of an x32 system call: same architecture, other argument layouts. 0 where
there is nothing like that."""

SYSCALLS: Final[dict[str, int]] = {
    "read": 0,
    "write": 1,
    "open": 2,
    "stat": 4,
    "fstat": 5,
    "lstat": 6,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "rt_sigreturn": 15,
    "ioctl": 16,
    "pread64": 17,
    "pwrite64": 18,
    "readv": 19,
    "writev": 20,
    "access": 21,
    "select": 23,
    "mremap": 25,
    "sendfile": 40,
    "connect": 42,
    "accept": 43,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "shutdown": 48,
    "bind": 49,
    "listen": 50,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
    "clone": 56,
    "execve": 59,
    "fcntl": 72,
    "flock": 73,
    "truncate": 76,
    "getdents": 78,
    "getcwd": 79,
    "chdir": 80,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "readlink": 89,
    "chmod": 90,
    "fchmod": 91,
    "chown": 92,
    "fchown": 93,
    "lchown": 94,
    "setuid": 105,
    "setgid": 106,
    "setreuid": 113,
    "setregid": 114,
    "setgroups": 116,
    "setresuid": 117,
    "setresgid": 119,
    "getpgid": 121,
    "setfsuid": 122,
    "setfsgid": 123,
    "capset": 126,
    "utime": 132,
    "mknod": 133,
    "statfs": 137,
    "fstatfs": 138,
    "pivot_root": 155,
    "chroot": 161,
    "getxattr": 191,
    "lgetxattr": 192,
    "fgetxattr": 193,
    "listxattr": 194,
    "llistxattr": 195,
    "flistxattr": 196,
    "io_submit": 209,
    "getdents64": 217,
    "epoll_wait": 232,
    "epoll_ctl": 233,
    "utimes": 235,
    "openat": 257,
    "mkdirat": 258,
    "mknodat": 259,
    "fchownat": 260,
    "futimesat": 261,
    "newfstatat": 262,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "readlinkat": 267,
    "fchmodat": 268,
    "faccessat": 269,
    "pselect6": 270,
    "ppoll": 271,
    "unshare": 272,
    "splice": 275,
    "tee": 276,
    "utimensat": 280,
    "epoll_pwait": 281,
    "accept4": 288,
    "preadv": 295,
    "pwritev": 296,
    "recvmmsg": 299,
    "sendmmsg": 307,
    "setns": 308,
    "kcmp": 312,
    "renameat2": 316,
    "seccomp": 317,
    "execveat": 322,
    "copy_file_range": 326,
    "preadv2": 327,
    "pwritev2": 328,
    "statx": 332,
    "io_uring_setup": 425,
    "openat2": 437,
    "pidfd_getfd": 438,
    "faccessat2": 439,
    "epoll_pwait2": 441,
    "fchmodat2": 452,
}
"""Every system call that recuse makes or traps, by name. Another architecture lacks some of
them (aarch64 has no open, stat or fork): what is missing from its table is not trapped."""

ADDRESS_LIMIT: Final = 0x7FFFFFFFF000
"""The end of user space with four-level page tables (TASK_SIZE_MAX)."""

O_DIRECTORY: Final = 0o200000
O_NOFOLLOW: Final = 0o400000
O_DIRECT: Final = 0o40000
O_LARGEFILE: Final = 0o100000
"""These four differ between architectures (asm/fcntl.h)."""

INJECTED: Final[dict[str, int]] = {
    "close": 3,
    "close_range": 436,
    "mmap": 9,
    "munmap": 11,
    "sendmsg": 46,
    "madvise": 28,
    "fchdir": 81,
    "open_tree": 428,
    "mlock": 149,
    "io_submit": 209,
}
"""The calls that `recuse.sandbox.inject` makes; mmap's offset is in units of MMAP_UNIT bytes."""

MMAP_UNIT: Final = 1

REGISTERS: Final = (
    Registers(
        ctypes.c_uint64 * 27,
        number=10,
        arguments=(14, 13, 12, 7, 9, 8),
        result=10,
        instruction=16,
        stack=19,
        original=15,
        instruction_size=2,
    ),
)
"""``struct user_regs_struct`` (sys/user.h): rax for number and result; the arguments are in rdi,
rsi, rdx, r10, r8 and r9."""

_STAT = struct.Struct("=QQQIIIIQqqqqQqQqQ24x")


def pack_stat(status: Status) -> bytes:
    """Encode a ``struct stat`` (144 bytes; asm/stat.h)."""
    return _STAT.pack(
        status.device,
        status.inode,
        status.links,
        status.mode,
        status.uid,
        status.gid,
        0,
        status.rdev,
        status.size,
        status.block_size,
        0,
        *status.stamps(),
    )
