"""The architecture's numbers, compared with the running kernel and the C library's headers."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recuse.sandbox.arch import MACHINE, aarch64, arch, arm, i386, x86_64
from recuse.sandbox.arch.status import Status
from tests.conftest import Needs

libc = ctypes.CDLL(None, use_errno=True)


GENERIC = """
#define __BITS_PER_LONG 64
#define __ARCH_WANT_NEW_STAT
#define __ARCH_WANT_RENAMEAT
#include <asm-generic/unistd.h>
"""
"""What asm/unistd.h of arm64 is (arch/arm64/include/uapi/asm/unistd.h, Linux 6.1)."""


@pytest.mark.parametrize(
    ("numbers", "header"),
    [
        pytest.param(x86_64.SYSCALLS | x86_64.INJECTED, "#include <asm/unistd_64.h>", id="x86-64"),
        pytest.param(aarch64.SYSCALLS | aarch64.INJECTED, GENERIC, id="arm64"),
        pytest.param(arch.SYSCALLS | arch.INJECTED, "#include <asm/unistd.h>", id="own"),
    ],
)
def test_numbers_are_those_of_the_headers(
    needs: Needs, tmp_path: Path, numbers: dict[str, int], header: str
) -> None:
    if "unistd_64" in header and MACHINE != "x86_64":
        pytest.skip("that header is x86-64's")
    compiler = needs("cc", package="gcc")
    source = tmp_path / "numbers.c"
    lines = [
        f'#ifdef __NR_{name}\nprintf("{name} %d\\n", __NR_{name});\n#endif' for name in numbers
    ]
    source.write_text(
        f"#include <stdio.h>\n{header}\nint main(void) {{\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    program = tmp_path / "numbers"
    subprocess.run([compiler, "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    theirs = {name: int(number) for name, number in map(str.split, output.splitlines())}
    # Older headers lack the newest calls.
    assert len(theirs) >= len(numbers) - 2
    assert {name: numbers[name] for name in theirs} == theirs


def test_numbers_are_those_of_the_headers_of_32_bit_arm(needs: Needs) -> None:
    header = "/usr/arm-linux-gnueabihf/include/asm/unistd-eabi.h"
    text = needs(header, "linux-libc-dev-armhf-cross").read_text()
    defined = re.findall(r"#define __NR_(\w+) \(__NR_SYSCALL_BASE \+ (\d+)\)", text)
    theirs = {name: int(number) for name, number in defined}
    ours = arm.SYSCALLS | dict(zip(("fcntl", "fcntl64"), arm.FCNTL, strict=True))
    ours |= {"mmap2": arm.MMAP2, "clone": arm.CLONE, "io_uring_setup": arm.IO_URING_SETUP}
    assert {name: theirs[name] for name in ours} == ours


def test_architectures_trap_the_same_calls() -> None:
    """But for those that only the older one has, which others have replaced."""
    older = set(x86_64.SYSCALLS) - set(aarch64.SYSCALLS) - {"rt_sigreturn"}  # see sigreturn.py
    assert set(aarch64.SYSCALLS) < set(x86_64.SYSCALLS)
    assert older == {
        *("open", "creat", "stat", "lstat", "access", "readlink", "poll", "select", "epoll_wait"),
        *("getdents", "rename", "mkdir", "rmdir", "link", "unlink", "symlink", "chmod", "chown"),
        *("lchown", "utime", "utimes", "futimesat", "mknod"),
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
        (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns),
    )
    packed = arch.pack_stat(status)
    # The number of blocks, which a device has none of, is the only difference.
    blocks = slice(64, 72)  # at the same place in both architectures' structures
    kernels = bytearray(buffer.raw[: len(packed)])
    kernels[blocks] = bytes(8)
    assert packed == bytes(kernels)


AS_ARM64 = """
import os
os.uname = lambda system=os.uname(): os.uname_result([*system[:4], "aarch64"])
from recuse.sandbox import supervisor
from recuse.sandbox.arch import aarch64, arch, arm, compat
from recuse.sandbox.filter import TRAPPED, build_filter
from recuse.sandbox.syscalls import compat_handlers, handlers
assert (arch, compat) == (aarch64, arm)
assert len(build_filter()) < 8 * 4096  # BPF_MAXINSNS
assert {arch.SYSCALLS[name] for name in TRAPPED if name in arch.SYSCALLS} <= set(handlers())
assert {*arm.SYSCALLS.values(), *arm.FCNTL, arm.MMAP2, arm.CLONE} == set(compat_handlers())
"""


def test_every_call_that_is_trapped_on_arm64_has_a_handler() -> None:
    subprocess.run([sys.executable, "-c", AS_ARM64], check=True)
