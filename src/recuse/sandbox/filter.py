"""The seccomp filter: which system calls of a program come to the supervisor.

The filter is fixed once it is installed and sees only a call's number and its arguments as
numbers. So it decides by the call's number alone, but for ``fcntl``, whose commands it knows. It
does *not* look at descriptor numbers: a device has the ordinary, lowest number that the program
would get from the kernel, and dup2, SCM_RIGHTS or a shell may put it anywhere. Which descriptor is
a device is told by :mod:`recuse.sandbox.descriptors` at each call.

System calls that are never trapped cost nothing: since Linux 5.11 they are allowed by a bitmap
before any filter runs.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from recuse.sandbox.arch import arch

TRAPPED: Final = (
    # Files by descriptor; the hot ones first, since the filter compares in this order.
    "read", "write", "pread64", "pwrite64", "ioctl", "openat", "lseek", "fstat",
    "readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2",
    "sendfile", "splice", "tee", "copy_file_range",
    "getdents64", "getdents", "fchmod", "fchown", "fgetxattr", "flistxattr",
    # Files by path.
    "newfstatat", "statx", "open", "stat", "lstat", "creat", "openat2", "truncate",
    "access", "faccessat", "faccessat2", "readlink", "readlinkat",
    "chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat",
    "utime", "utimes", "futimesat", "utimensat",
    "getxattr", "lgetxattr", "listxattr", "llistxattr", "chdir",
    "mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir",
    # Nothing to emulate: these make a second reference to an open file or a second user of a
    # descriptor table, or change what the supervisor remembers of a process, and must be seen
    # before they happen.
    "dup", "dup2", "dup3", "sendmsg", "sendmmsg", "pidfd_getfd", "fork", "vfork", "clone", "clone3",
    "execve", "execveat", "unshare", "setns", "chroot", "pivot_root",
    # A device's descriptor is natively a socket, and must not be one.
    "sendto", "recvfrom", "recvmsg", "recvmmsg", "shutdown", "getsockopt", "setsockopt",
    "getsockname", "getpeername", "bind", "connect", "listen", "accept", "accept4",
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid",
    "setfsuid", "setfsgid", "setgroups", "capset",
)  # fmt: skip
"""The calls that always come to the supervisor; ``fcntl`` comes for some commands."""

F_DUPFD: Final = 0
F_GETFL: Final = 3
F_SETFL: Final = 4
F_DUPFD_CLOEXEC: Final = 1030
TRAPPED_FCNTL: Final = (F_DUPFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC)

# linux/seccomp.h
_RETURN_ALLOW: Final = 0x7FFF0000
_RETURN_NOTIFY: Final = 0x7FC00000
_RETURN_ERRNO: Final = 0x00050000

# linux/bpf_common.h: a 32-bit load from struct seccomp_data, jumps and return.
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_INSTRUCTION = struct.Struct("=HBBI")

# Offsets in struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}. The low half of an
# argument comes first: recuse supports little-endian machines only.
_NUMBER: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16


def build_filter() -> bytes:
    """Return the filter as an array of ``struct sock_filter``, 8 bytes each.

    - another architecture's call (a 32-bit program): allowed, and sees no devices;
    - x32 calls and ``io_uring_setup``: ENOSYS. The first would carry other argument layouts, the
      second would let a program do I/O that no filter sees; programs fall back from both;
    - the calls in :data:`TRAPPED`: the supervisor decides;
    - everything else: allowed.
    """
    program = _Assembler()
    program.load(_ARCH)
    program.jump(_JUMP_EQUAL, arch.AUDIT_ARCH, otherwise="allow")
    program.load(_NUMBER)
    program.jump(_JUMP_SET, arch.FOREIGN_CALL_BIT, then="nosys")
    for name in TRAPPED:
        if name in arch.SYSCALLS:
            program.jump(_JUMP_EQUAL, arch.SYSCALLS[name], then="notify")
    program.jump(_JUMP_EQUAL, arch.SYSCALLS["io_uring_setup"], then="nosys")
    program.jump(_JUMP_EQUAL, arch.SYSCALLS["fcntl"], otherwise="allow")
    program.load(_ARGUMENTS + 8)
    for command in TRAPPED_FCNTL:
        program.jump(_JUMP_EQUAL, command, then="notify")
    program.give("allow", _RETURN_ALLOW)
    program.give("notify", _RETURN_NOTIFY)
    program.give("nosys", _RETURN_ERRNO | errno.ENOSYS)
    return program.assemble()


class _Assembler:
    """Classic BPF with named jump targets."""

    def __init__(self) -> None:
        self._code: list[tuple[int, str | None, str | None, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load(self, offset: int) -> None:
        self._code.append((_LOAD, None, None, offset))

    def jump(
        self, kind: int, value: int, *, then: str | None = None, otherwise: str | None = None
    ) -> None:
        self._code.append((kind, then, otherwise, value))

    def give(self, name: str, action: int) -> None:
        self.label(name)
        self._code.append((_RETURN, None, None, action))

    def assemble(self) -> bytes:
        code = bytearray()
        for index, (kind, then, otherwise, value) in enumerate(self._code):
            distances = [
                self._labels[name] - index - 1 if name else 0 for name in (then, otherwise)
            ]
            code += _INSTRUCTION.pack(kind, *distances, value)
        return bytes(code)
