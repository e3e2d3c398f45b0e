"""Pages are the machine's: arm64's kernels have some of 4, of 16 and of 64 KiB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import mmap
mmap.PAGESIZE = {size}
import json
from recuse.channel.devcuse import MOST_DATA
from recuse.kernel.char import ioctl
from recuse.kernel.char import mmap as mapping
from recuse.kernel import iovec as segments
from recuse.sandbox.vfs.nodes import Identity, Node

def refused(offset):
    call = mapping.MmapCall(0, 1, 1, mapping.MAP_SHARED, offset)
    try:
        mapping.check(call, 2, True)
    except OSError as error:
        return error.errno

rounded = mapping.MmapCall(0, 1, 1, mapping.MAP_SHARED, 0).pages
print(json.dumps({{
    "most of an ioctl": [ioctl.MAX_BYTES, MOST_DATA],
    "rounded": rounded,
    "offsets": [refused({size}), refused({size} // 2)],
    "st_blksize": Node(Identity(1, 0, 0, 0), 0).block_size,
}}))
"""


@pytest.mark.parametrize("size", [4096, 16384, 65536])
def test_what_is_counted_in_pages(size: int) -> None:
    script = SCRIPT.format(size=size)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout) == {
        "most of an ioctl": [32 * size, 32 * size],
        "rounded": size,
        "offsets": [None, 22],
        "st_blksize": size,
    }
