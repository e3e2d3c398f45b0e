"""The example of areas for users, with its client and with another one."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable

Run = Callable[..., subprocess.CompletedProcess[bytes]]

CLIENT = "examples/fmmap_client.py"


def test_the_client_finds_and_clears_what_the_device_sets(run: Run) -> None:
    client = f"{sys.executable} {CLIENT} /dev/fmmap"
    outcome = run("fmmap.py", "sh", "-c", f"{client} 0 1 200; {client} 2 1 5; cat /dev/fmmap")
    assert outcome.returncode == 0, outcome.stderr
    first, second, picture, end = outcome.stdout.decode().split("\n")
    assert not end
    status = first.rpartition("\r")[2]
    # 200 of 4096 bytes: three columns, and a part of the fourth one.
    assert len(status) == 78
    assert set(status[:3]) <= set("01?")
    assert status[3] in "^#"
    assert status[4:].strip() == ""
    assert second.rpartition("\r")[2].strip() in ("^", "#")
    # The area has grown to what the second one mapped.
    uid, size = picture[:14].split(":")
    assert (int(uid), int(size)) == (os.getuid(), 3 * mmap.PAGESIZE)
    assert len(picture) == 80
    assert picture.count("^") == 1
    assert set(picture[15:]) <= set("^01?")


SHARED = """
import mmap, os
fd = os.open("/dev/fmmap", os.O_RDWR)
memory = mmap.mmap(fd, 4096)
while memory[99:100] != b"\\1":
    pass
memory[:50] = bytes(50)
print(memory[:100].hex())
print(os.read(fd, 1000).decode())
"""


def test_bytes_are_set_one_after_the_other(run: Run) -> None:
    outcome = run("fmmap.py", sys.executable, "-c", SHARED)
    memory, picture = outcome.stdout.decode().split("\n")[:2]
    assert memory == "00" * 50 + "01" * 50
    assert picture[15] == "?"
    assert picture[40] == "0"


def test_the_client_tells_how_it_is_used(run: Run) -> None:
    outcome = run("fmmap.py", sys.executable, CLIENT, "/dev/fmmap")
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(b"usage: ")
