"""Numbers of the 32-bit ARM system call interface, which many arm64 kernels have too.

arch/arm/tools/syscall.tbl (EABI). Programs of 32 bits see no devices on arm64; these are the calls
by which they could reach one whose descriptor they inherit, and those that change what recuse
remembers of a process.
"""

from __future__ import annotations

from typing import Final

from recuse.sandbox.arch.registers import Registers

AUDIT_ARCH: Final = 0x40000028
"""What seccomp_data.arch says for a 32-bit system call (linux/audit.h)."""

SYSCALLS: Final[dict[str, int]] = {
    "read": 3,
    "write": 4,
    "pread64": 180,
    "pwrite64": 181,
    "ioctl": 54,
    "_llseek": 140,
    "lseek": 19,
    "fstat64": 197,
    "poll": 168,
    "ppoll": 336,
    "ppoll_time64": 414,
    "_newselect": 142,
    "pselect6": 335,
    "pselect6_time64": 413,
    "epoll_ctl": 251,
    "readv": 145,
    "writev": 146,
    "preadv": 361,
    "pwritev": 362,
    "preadv2": 392,
    "pwritev2": 393,
    "sendfile": 187,
    "sendfile64": 239,
    "splice": 340,
    "tee": 342,
    "copy_file_range": 391,
    "io_submit": 246,
    "fchmod": 94,
    "fchown": 95,
    "fchown32": 207,
    "fstat": 108,
    "fstatat64": 327,
    "statx": 397,
    "flock": 143,
    "send": 289,
    "sendto": 290,
    "sendmsg": 296,
    "sendmmsg": 374,
    "recv": 291,
    "recvfrom": 292,
    "recvmsg": 297,
    "recvmmsg": 365,
    "recvmmsg_time64": 417,
    "shutdown": 293,
    "getsockopt": 295,
    "setsockopt": 294,
    "getsockname": 286,
    "getpeername": 287,
    "bind": 282,
    "connect": 283,
    "listen": 284,
    "accept": 285,
    "accept4": 366,
    "execve": 11,
    "execveat": 387,
    "unshare": 337,
    "setns": 375,
    "chroot": 61,
    "pivot_root": 218,
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
}
"""Every system call that recuse traps, by name."""

MMAP2: Final = 192
FCNTL: Final = (55, 221)
CLONE: Final = 120
IO_URING_SETUP: Final = 425
"""As for i386: these are trapped, or refused, in some cases."""

INJECTED: Final[dict[str, int]] = {}
REGISTERS: Final[tuple[Registers, ...]] = ()
MMAP_UNIT: Final = 4096
"""No thread of such a program is made to call anything."""
