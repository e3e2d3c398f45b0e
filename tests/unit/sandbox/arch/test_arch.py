"""What architectures have in common, and their structures, compared with the running kernel."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from recuse.sandbox.arch import aarch64, arch, i386, x86_64
from recuse.sandbox.arch.status import Status

libc = ctypes.CDLL(None, use_errno=True)


def test_architectures_trap_the_same_calls() -> None:
    """But for those that only the older one has, which others have replaced."""
    older, newer = (
        {call.name for call in module.CALLS if call.trapped} for module in (x86_64, aarch64)
    )
    assert newer < older
    assert older - newer == {
        *("open", "creat", "stat", "lstat", "access", "readlink", "poll", "select", "epoll_wait"),
        *("getdents", "rename", "mkdir", "rmdir", "link", "unlink", "symlink", "chmod", "chown"),
        *("lchown", "utime", "utimes", "futimesat", "mknod"),
        *("rt_sigreturn", "close", "close_range", "dup2", "dup3"),  # see sigreturn.py
    }
    assert set(aarch64.INJECTED) == set(x86_64.INJECTED) == set(i386.INJECTED)


def test_a_packed_stat_is_what_the_kernel_gives(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10000)
    os.utime(file, ns=(-5_000_000_001, 1_234_567_890_123_456_789))
    buffer = ctypes.create_string_buffer(200)
    path = os.fsencode(file)
    assert libc.syscall(arch.SYSCALLS["newfstatat"], -100, path, buffer, 0) == 0
    found = file.stat()
    status = Status(
        found.st_dev,
        found.st_ino,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        found.st_size,
        found.st_blksize,
        (
            *divmod(found.st_atime_ns, 1_000_000_000),
            *divmod(found.st_mtime_ns, 1_000_000_000),
            *divmod(found.st_ctime_ns, 1_000_000_000),
        ),
    )
    packed = arch.pack_stat(status)
    # The number of blocks, which a device has none of, is the only difference.
    blocks = slice(64, 72)  # at the same place in both architectures' structures
    kernels = bytearray(buffer.raw[: len(packed)])
    kernels[blocks] = bytes(8)
    assert packed == bytes(kernels)
