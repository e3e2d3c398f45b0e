"""The architecture's numbers, compared with the running kernel and the C library's headers."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from recuse.sandbox.arch import arch
from recuse.sandbox.arch.status import Status
from tests.conftest import Needs

libc = ctypes.CDLL(None, use_errno=True)


def test_numbers_are_those_of_the_headers(needs: Needs, tmp_path: Path) -> None:
    compiler = needs("cc", package="gcc")
    source = tmp_path / "numbers.c"
    numbers = arch.SYSCALLS | arch.INJECTED
    lines = [
        f'#ifdef __NR_{name}\nprintf("{name} %d\\n", __NR_{name});\n#endif' for name in numbers
    ]
    source.write_text(
        "#include <stdio.h>\n#include <asm/unistd.h>\nint main(void) {\n"
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    program = tmp_path / "numbers"
    subprocess.run([compiler, "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    theirs = {name: int(number) for name, number in map(str.split, output.splitlines())}
    # Older headers lack the newest calls.
    assert len(theirs) >= len(numbers) - 2
    assert {name: numbers[name] for name in theirs} == theirs


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
    blocks = slice(64, 72)
    kernels = bytearray(buffer.raw[: len(packed)])
    kernels[blocks] = bytes(8)
    assert packed == bytes(kernels)
