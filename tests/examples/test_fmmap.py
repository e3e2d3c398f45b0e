"""The example of areas for users, with its client and with another one."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

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
print(len(os.read(fd, 1000)), len(os.read(fd, 1000)))
"""


def test_bytes_are_set_one_after_the_other(run: Run) -> None:
    outcome = run("fmmap.py", sys.executable, "-c", SHARED)
    memory, picture, _, more = outcome.stdout.decode().splitlines()
    assert more == "0 81"  # the end, and then from the beginning
    assert memory == "00" * 50 + "01" * 50
    assert picture[15] == "?"
    assert picture[40] == "0"


TWO_USERS = """
import mmap, os
pages = {0: 1, 65534: 2}
for uid, count in pages.items():
    if not os.fork():
        os.setresuid(uid, uid, uid)
        memory = mmap.mmap(os.open("/dev/fmmap", os.O_RDWR), count * 4096)
        memory[-1] = 7
        print(sum(memory[first] == 7 for first in (-1, 4095)), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
print(os.read(os.open("/dev/fmmap", os.O_RDONLY), 1000).decode(), end="")
"""


@pytest.mark.right("other users")
def test_each_user_has_an_area(run: Run) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    outcome = run("fmmap.py", sys.executable, "-c", TWO_USERS)
    assert outcome.returncode == 0, outcome.stderr
    first, second, *pictures = outcome.stdout.decode().splitlines()
    # The second one does not see what the first one wrote.
    assert (first, second) == ("2", "1")
    assert [picture.split()[:2] for picture in pictures] == [["0:", "4096"], ["65534:", "8192"]]


LARGE = """
import errno, mmap, os
fd = os.open("/dev/fmmap", os.O_RDWR)
mmap.mmap(fd, 4096)
for size, offset in [(64 << 40, 0), (4096, 64 << 40), (1 << 20, 4096)]:
    try:
        mmap.mmap(fd, size, offset=offset)
    except OSError as error:
        print(errno.errorcode[error.errno])
memory = mmap.mmap(fd, 1 << 20)
ones = memory[:].count(1)
while memory[:].count(1) == ones:
    pass
print(os.read(fd, 1000).decode().split()[1])
"""


def test_an_area_has_a_largest_size(run: Run) -> None:
    outcome = run("fmmap.py", sys.executable, "-c", LARGE)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.decode().split() == ["ENOMEM", "ENOMEM", "ENOMEM", str(1 << 20)]
    assert outcome.stderr == b""


def test_the_client_tells_how_it_is_used(run: Run) -> None:
    outcome = run("fmmap.py", sys.executable, CLIENT, "/dev/fmmap")
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(b"usage: ")
