"""How many files poll and select take, and which numbers: as the process's table has room for."""

from collections.abc import Callable

import pytest

from ..conftest import Clients, Shell
from .polled import PRELUDE

NATIVE = PRELUDE.replace('os.open("/dev/box", os.O_RDWR)', "os.eventfd(0)")
"""As empty, and as ready to be written, as the device."""

SELECT = """
in_, out = os.pipe()
os.write(out, b"x")
fd = os.dup2(fd, 50)
def chosen(count, *members, offer=None):
    sets = [bytearray(max(count, 0) // 8 + 16) for _ in range(3)]
    for member in (*members, in_):
        for one in sets[:2]:
            one[member >> 3] |= 1 << (member & 7)
    buffers = [(ctypes.c_char * len(one)).from_buffer(one) for one in sets]
    time = (ctypes.c_long * 2)(20, 0)
    result = call("select", count, *buffers, time)
    left = [[n for n in range(count + 64) if one[n >> 3] >> (n & 7) & 1] for one in sets[:2]]
    print(result, left, flush=True)
"""


@pytest.fixture
def as_native(clients: Clients, client: Shell) -> Callable[[str], str]:
    """Runs a script in the sandbox and outside, compares what it prints, and returns that."""

    def compare(script: str) -> str:
        ours = client(PRELUDE + script)
        assert ours == clients(None)(NATIVE + script)
        assert "Traceback" not in ours
        return ours

    return compare


def test_select_looks_at_no_more_than_the_table_has(as_native: Shell) -> None:
    """What is beyond is neither looked at nor changed (fs/select.c, core_sys_select)."""
    script = (
        SELECT
        + """
for count in (64, 65, 128, 1024, 1025, 1 << 16, 1 << 20, (1 << 31) - 65):
    chosen(min(count, 1 << 20), fd, count - 1 if count <= 1 << 20 else 63)
chosen(200, fd, 63)
chosen(200, fd, 64, 199)
os.dup2(fd, 700)
chosen(1 << 16, fd, 700, 1023, 1024, 65535)
chosen(701, fd, 700)
chosen(700, fd, 700)
chosen(703, fd, 702)
chosen(-1, fd)
"""
    )
    assert "[[700, 1023, 1024, 65535]" not in as_native(script)


def test_a_large_select_with_a_large_table(as_native: Shell) -> None:
    script = (
        SELECT
        + """
import resource
last = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, last + 1))
os.dup2(fd, last)
print(last, flush=True)
chosen(last + 1, fd, last)
chosen(1 << 20, fd, last)
"""
    )
    as_native(script)


def test_poll_of_more_files_than_the_limit_allows(as_native: Shell) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
def polled(count):
    entries = struct.pack("=ihH", fd, IN | OUT, 0) + bytes(8) * 127
    buffer = ctypes.create_string_buffer(entries, 1024)
    result = call("poll", buffer, count, 0)
    print(count, result, struct.unpack_from("=ihH", buffer)[2], flush=True)
for count in (0, 1, 64, 100, 101, 1 << 20, (1 << 31) - 1):
    polled(count)
"""
    assert as_native(script).splitlines()[-1].endswith("EINVAL 0")
