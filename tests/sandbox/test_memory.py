"""Bad pointers: what the kernel does with them, and never more than that.

A kernel driver that reads or writes at a bad address fails with EFAULT, or does its part of the
work up to there. ``good`` is an address from which 4096 bytes may be used; what follows may not.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from recuse import File, OpenRequest

from .conftest import Fifo, Shell

Run = Callable[[str], list[str]]


PAGES = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.syscall.argtypes = [ctypes.c_long] * 7
libc.syscall.restype = ctypes.c_long
def syscall(number, *args):
    return call(number, *args, *[0] * (6 - len(args)))
page = 4096
good = libc.mmap(None, 2 * page, 3, 0x22, -1, 0)
assert libc.mprotect(ctypes.c_void_p(good + page), page, 0) == 0
bad = good + page
readonly = libc.mmap(None, page, 1, 0x22, -1, 0)
hole = 0x123456789000
code = libc.mmap(None, page, 5, 0x22, -1, 0)
beyond, kernel, null = 0x7ffffffff000, 0xffff888000000000 - (1 << 64), 0
def iov(*areas):
    words = [word % (1 << 64) for area in areas for word in area]
    array = ctypes.create_string_buffer(struct.pack(f'{len(words)}Q', *words))
    keep.append(array)
    return ctypes.addressof(array)
keep = []
fd = os.open('/dev/echo', os.O_RDWR)
READ, WRITE, PREAD, PWRITE, READV, WRITEV, IOCTL = 0, 1, 17, 18, 19, 20, 16
def at(address, size): return ctypes.string_at(address, size)
"""


@pytest.fixture
def run(echo: Fifo, client: Shell) -> Run:
    return lambda script: client(PAGES + script).splitlines()


def test_addresses_that_are_bad_altogether(echo: Fifo, run: Run) -> None:
    echo.data += b"kept"
    script = """
for address in bad, hole, readonly, code, beyond, kernel, null, -1, 1:
    print(syscall(READ, fd, address, 4), syscall(PREAD, fd, address, 4, 0), end=' ')
    print(syscall(READV, fd, iov((address, 4)), 1))
for address in bad, hole, beyond, kernel, null, -1, 1:
    print(syscall(WRITE, fd, address, 4), syscall(PWRITE, fd, address, 4, 0), end=' ')
    print(syscall(WRITEV, fd, iov((address, 4)), 1))
print(at(readonly, 4), at(code, 4))
"""
    # From write-only memory the kernel could not read either, but x86 has none.
    assert run(script) == [
        *["EFAULT EFAULT EFAULT"] * 16,
        r"b'\x00\x00\x00\x00' b'\x00\x00\x00\x00'",
    ]
    # A read that can store nothing costs no data: the kernel pins the pages before it asks.
    assert echo.data == b"kept"
    assert echo.writes == []


def test_a_read_ends_where_memory_does(echo: Fifo, run: Run) -> None:
    echo.data += bytes(range(200))
    script = """
print(syscall(READ, fd, good + page - 10, 100), at(good + page - 10, 10) == bytes(range(10)))
print(syscall(READ, fd, readonly - 5, 5) in ('EFAULT', 5))
"""
    assert run(script)[0] == "10 True"


def test_a_write_ends_where_memory_does(echo: Fifo, run: Run) -> None:
    script = """
ctypes.memset(good, ord('x'), page)
print(syscall(WRITE, fd, good + page - 10, 100))
"""
    assert run(script) == ["10"]
    assert echo.writes == [b"x" * 10]


def test_vectors_with_a_bad_segment(echo: Fifo, run: Run) -> None:
    echo.data += b"0123456789" * 2
    script = """
print(syscall(READV, fd, iov((good, 4), (bad, 4), (good + 100, 4)), 3), at(good, 4), end=' ')
print(at(good + 100, 4))
print(syscall(READV, fd, iov((bad, 4), (good, 4)), 2), at(good + 4, 4))
print(syscall(READV, fd, iov((good, 3), (readonly, 4)), 2), at(readonly, 4), at(good, 4))
ctypes.memset(good, ord('w'), page)
print(syscall(WRITEV, fd, iov((good, 4), (bad, 4), (good, 4)), 3))
print(syscall(WRITEV, fd, iov((hole, 4), (good, 4)), 2))
"""
    lines = run(script)
    zeros = rb"\x00\x00\x00\x00".decode()
    assert lines == [
        f"4 b'0123' b'{zeros}'",
        f"EFAULT b'{zeros}'",
        f"3 b'{zeros}' b'4563'",
        "4",
        "EFAULT",
    ]
    assert echo.writes == [b"wwww"]
    assert echo.data.startswith(b"789")


BAD_VECTORS = """
print(syscall(READV, fd, bad, 1), syscall(READV, fd, bad - 16, 2), syscall(WRITEV, fd, kernel, 1))
print(syscall(READV, fd, good, 1025), syscall(WRITEV, fd, good, -1))
print(syscall(READV, fd, iov((good, -1)), 1), end=' ')
print(syscall(WRITEV, fd, iov((good, 1 << 63), (good, 1)), 2))
print(syscall(READV, fd, iov((good, 1), (good, -1)), 2), syscall(READV, fd, bad, 0))
print(syscall(READV, fd, iov((kernel, 0)), 1), syscall(WRITEV, fd, iov((good, 1), (beyond, 8)), 2))
print(syscall(READV, fd, iov((kernel, 1), (good, 1)), 2), end=' ')
print(syscall(READV, fd, iov((good, 1), (kernel, 1)), 2))
print(syscall(READV, fd, 0, 1), syscall(READV, fd, -8, 1), syscall(READV, 99, bad, 1))
print(syscall(READV, fd, iov(*[(good, 0)] * 1024), 1024), end=' ')
print(syscall(READV, fd, iov((0, 0), (1, 0)), 2))
"""


def test_bad_arrays_of_segments_fail_as_natively(as_native: Shell) -> None:
    as_native(PAGES.replace("'/dev/echo'", "args[0]") + BAD_VECTORS)


HUGE = """
print(syscall(READ, fd, good, -1), syscall(READ, fd, good, 1 << 63), end=' ')
print(syscall(READ, fd, good, 1 << 47))
print(syscall(WRITE, fd, good, -1), syscall(WRITE, fd, good, 1 << 62), syscall(READ, 99, bad, 1))
print(syscall(READ, fd, beyond - 1, 2), syscall(READ, fd, beyond, 0), syscall(READ, fd, bad, 0))
print(syscall(READ, fd, kernel, 0), syscall(WRITE, fd, kernel, 0), syscall(WRITE, fd, -1, 1))
ro, wo = os.open(args[0], os.O_RDONLY), os.open(args[0], os.O_WRONLY)
print(syscall(READ, wo, kernel, 5), syscall(WRITE, ro, kernel, 5), syscall(READ, wo, good, -1))
print(syscall(PREAD, fd, good, -1, 0), syscall(PREAD, fd, good, 5, 1 << 62), end=' ')
print(syscall(PREAD, fd, good, 5, -5))
print(syscall(PWRITE, fd, good, 5, (1 << 63) - 1), syscall(PREAD, fd, good, 0, (1 << 63) - 1))
"""


def test_huge_counts_fail_as_natively(as_native: Shell) -> None:
    as_native(PAGES.replace("'/dev/echo'", "args[0]") + HUGE)


def test_a_huge_count_on_a_device_with_little_data(echo: Fifo, run: Run) -> None:
    echo.data += b"little"
    script = """
big = libc.mmap(None, 1 << 33, 3, 0x4022, -1, 0)
print(syscall(READ, fd, big, 1 << 33), at(big, 6))
"""
    assert run(script) == ["6 b'little'"]


def test_io_stops_at_2_gib(echo: Fifo, run: Run) -> None:
    open_echo = echo.open

    def open_file(request: OpenRequest) -> File:
        file = open_echo(request)
        taken = 0

        def write(data: bytes, offset: int) -> int:
            nonlocal taken
            taken += len(data)
            # A short count ends the call; nobody wants to copy 2 GiB here.
            return len(data) if taken < 1 << 20 else 1

        file.write = write  # type: ignore[method-assign]  # of this file only
        return file

    echo.open = open_file  # type: ignore[method-assign]  # of this device only
    script = """
big = libc.mmap(None, 1 << 33, 3, 0x4022, -1, 0)
print(syscall(WRITE, fd, big, 1 << 32), syscall(WRITEV, fd, iov((big, 1 << 32), (big, 1 << 32)), 2))
"""
    count = (1 << 20) - 131072 + 1
    assert run(script) == [f"{count} 1"]


def test_many_segments(echo: Fifo, run: Run) -> None:
    script = """
ctypes.memmove(good, bytes(range(256)) * 4, 1024)
print(syscall(WRITEV, fd, iov(*[(good + n, 1) for n in range(1024)]), 1024))
print(syscall(READV, fd, iov(*[(good + 1024 + 2 * n, 1) for n in range(1024)]), 1024))
print(at(good + 1024, 2048)[::2] == bytes(range(256)) * 4, end=' ')
print(at(good + 1024, 2048)[1::2] == bytes(1024))
"""
    assert run(script) == ["1024", "1024", "True True"]
    assert b"".join(echo.writes) == bytes(range(256)) * 4


def test_memory_that_comes_and_goes(echo: Fifo, run: Run) -> None:
    # What the sandbox remembers of the memory map is old here. The bytes may be lost then, as if
    # another thread had unmapped the memory during the read; but nothing is written.
    script = """
for turn in range(30):
    p = libc.mmap(None, page, 3, 0x22, -1, 0)
    ctypes.memset(p, 65 + turn % 26, 8)
    assert syscall(WRITE, fd, p, 8) == 8 and syscall(READ, fd, p, 8) == 8, turn
    libc.mprotect(ctypes.c_void_p(p), page, 1)
    assert os.write(fd, bytes(8)) == 8 and syscall(READ, fd, p, 8) == 'EFAULT', turn
    assert at(p, 8) == bytes([65 + turn % 26]) * 8
    libc.mprotect(ctypes.c_void_p(p), page, 3)
    assert os.write(fd, bytes(8)) == 8 and syscall(READ, fd, p, 8) == 8, turn
    libc.munmap(ctypes.c_void_p(p), page)
    assert os.write(fd, bytes(8)) == 8 and syscall(READ, fd, p, 8) == 'EFAULT', turn
    assert syscall(WRITE, fd, p, 8) == 'EFAULT', turn
    while os.read(fd, 99): pass
print('ok')
"""
    assert run(script) == ["ok"]


def test_memory_after_an_exec_is_new_memory(echo: Fifo, client: Shell) -> None:
    script = """
p = ctypes.create_string_buffer(1 << 24)
fd = os.open('/dev/echo', os.O_RDWR)
os.write(fd, b'one'); print(os.readv(fd, [p]), flush=True)
os.set_inheritable(fd, True)
if len(args) < 3:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], 'x'])
"""
    assert client(script) == "3\n" * 4
    assert echo.opened == 4


def test_pages_that_grow_as_they_are_used(run: Run) -> None:
    # A read into stack and heap that have not been touched yet.
    script = """
fd2 = os.open('/dev/echo', os.O_RDWR)
os.write(fd2, bytes([7]) * 1000000)
p = libc.mmap(None, 1 << 20, 3, 0x22, -1, 0)
print(syscall(READ, fd, p, 1000000), at(p, 1000000) == bytes([7]) * 1000000)
"""
    assert run(script) == ["1000000 True"]


def test_a_shared_mapping_of_a_file_is_memory_too(echo: Fifo, run: Run, tmp_path: Path) -> None:
    script = f"""
file = open({str(tmp_path / "file")!r}, 'w+b')
file.truncate(page)
m = mmap.mmap(file.fileno(), page)
print(os.write(fd, b'hello'), os.readv(fd, [m]), m[:6])
file.truncate(0)  # now the mapping's pages are beyond the end of the file: SIGBUS when touched
print(syscall(WRITE, fd, ctypes.addressof(ctypes.c_char.from_buffer(m)), 4))
"""
    assert run(script) == [r"5 5 b'hello\x00'", "EFAULT"]
    assert echo.writes == [b"hello"]


PATHS = """
# Here the page after the good one is not there at all.
assert libc.munmap(ctypes.c_void_p(bad), page) == 0
for address in bad, hole, kernel, null, beyond - 3:
    print(syscall(2, address, 0), syscall(257, -100, address, 0), end=' ')
    print(syscall(4, address, good), end=' ')
    print(syscall(21, address, 0), syscall(89, address, good, 9), syscall(90, address, 0), end=' ')
    print(syscall(262, -100, address, good, 0), syscall(332, -100, address, 0, 0, good), end=' ')
    print(syscall(437, -100, address, good, 24))
ctypes.memmove(bad - 9, b'/dev/echo', 9)   # no NUL before the end of the page
print(syscall(2, bad - 9, 0))
ctypes.memmove(bad - 10, b'/dev/echo', 10)
print(syscall(2, bad - 10, 0) > 2)
print(syscall(437, -100, bad - 10, bad, 24), syscall(437, -100, bad - 10, bad - 8, 24))
path = ctypes.create_string_buffer(b'/dev/echo')
for address in bad, bad - 8, readonly, kernel, null:
    print(syscall(4, ctypes.addressof(path), address), syscall(5, fd, address), end=' ')
    print(syscall(262, fd, bad - 1, address, 0x1000), syscall(332, fd, bad - 1, 0x1000, 0, address))
"""


def test_paths_and_results_at_bad_addresses(run: Run) -> None:
    lines = run(PATHS)
    assert lines[:4] == [" ".join(["EFAULT"] * 9)] * 4
    assert set(lines[4].split()) <= {"EFAULT", "ENOENT"}
    assert lines[5:] == ["EFAULT", "True", "EFAULT EFAULT"] + ["EFAULT EFAULT EFAULT EFAULT"] * 5


LATE = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
page = 4096
uffd = libc.syscall(323, os.O_CLOEXEC)
if uffd < 0: print('no userfaultfd'); sys.exit()
fcntl.ioctl(uffd, 0xc018aa3f, struct.pack('3Q', 0xaa, 0, 0))  # UFFDIO_API
memory = libc.mmap(None, 16 * page, 3, 0x22, -1, 0)
fcntl.ioctl(uffd, 0xc020aa00, struct.pack('4Q', memory, 16 * page, 1, 0))  # UFFDIO_REGISTER
content = ctypes.create_string_buffer(page)
def fill():
    while True:
        address = struct.unpack_from('Q', os.read(uffd, 32), 16)[0] & -page
        ctypes.memmove(page_of, content, page)
        fcntl.ioctl(uffd, 0xc028aa03, struct.pack('5Q', address, page_of, page, 0, 0))  # _COPY
page_of = libc.mmap(None, page, 3, 0x22, -1, 0)
threading.Thread(target=fill, daemon=True).start()
for number, path in enumerate([b'/etc/hostname', b'/dev/echo', b'/dev/nothing']):
    content.value = path
    fd = libc.syscall(2, ctypes.c_void_p(memory + number * page), os.O_RDWR, 0)
    print(os.readlink(f'/proc/self/fd/{fd}') if fd >= 0 else errno.errorcode[ctypes.get_errno()])
sys.stdout.flush()
os._exit(0)
"""


def test_a_path_in_memory_that_another_thread_fills(client: Shell) -> None:
    output = client(LATE).splitlines()
    if output == ["no userfaultfd"]:
        pytest.skip("userfaultfd(2) is not for everybody here")
    assert output == ["/etc/hostname", "/dev/echo", "ENOENT"]
