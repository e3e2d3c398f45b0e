"""The structures of 32-bit programs' calls, against the kernel's own headers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from recuse.sandbox.arch import compat
from recuse.sandbox.arch.status import Status
from tests.conftest import Needs

FIELDS = """
#include <asm/stat.h>
#include <stdio.h>
#include <string.h>
int main(void)
{
    struct stat small;
    struct stat64 large;
    if (fread(&small, sizeof small, 1, stdin) + fread(&large, sizeof large, 1, stdin) != 2)
        return 1;
    printf("%lu %lu %o %u %u %u %lu %lu %lu %lu.%lu %lu.%lu %lu.%lu\\n",
           small.st_dev, small.st_ino, small.st_mode, small.st_nlink, small.st_uid, small.st_gid,
           small.st_rdev, small.st_size, small.st_blksize, small.st_atime, small.st_atime_nsec,
           small.st_mtime, small.st_mtime_nsec, small.st_ctime, small.st_ctime_nsec);
    printf("%llu %llu %o %u %lu %lu %llu %lld %lu %lu.%u %lu.%u %lu.%u\\n",
           large.st_dev, large.st_ino, large.st_mode, large.st_nlink, large.st_uid, large.st_gid,
           large.st_rdev, large.st_size, large.st_blksize, large.st_atime,
           (unsigned) large.st_atime_nsec, large.st_mtime, (unsigned) large.st_mtime_nsec,
           large.st_ctime, (unsigned) large.st_ctime_nsec);
    return fgetc(stdin) != EOF;
}
"""


def test_structures_are_what_a_32_bit_compiler_makes_of_them(needs: Needs, tmp_path: Path) -> None:
    needs("/usr/include/asm", package="gcc-multilib")
    source, program = tmp_path / "stat.c", tmp_path / "stat"
    source.write_text(FIELDS)
    subprocess.run(["gcc", "-m32", "-static", "-o", program, source], check=True)
    stamps = 1, 2, 3, 4, 5, 6
    rdev = os.makedev(254, 300)
    status = Status(6, 1 << 20, 0o20640, 3, 1000, 1001, rdev, 12345, 4096, stamps)
    data = compat.pack_stat(status) + compat.pack_stat64(status)
    done = subprocess.run([program], input=data, capture_output=True, check=True)
    line = f"6 {1 << 20} 20640 3 1000 1001 {rdev} 12345 4096 1.2 3.4 5.6"
    assert done.stdout.decode().splitlines() == [line, line]


@pytest.mark.parametrize("uid", [65535, 65536, 0xFFFFFFFE])
def test_ids_beyond_16_bits_do_not_break_the_small_structure(uid: int) -> None:
    status = Status(0, 0, 0, 0, uid, 0, 0, 0, 0, (0, 0, 0, 0, 0, 0))
    assert len(compat.pack_stat(status)) == 64
