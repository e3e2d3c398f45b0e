"""Flags of opens and of single transfers, the kernel's own AIO and the like, as on Linux's FUSE."""

from __future__ import annotations

import pytest

from recuse import Filesystem

from .as_linux import alike
from .conftest import example


def make() -> Filesystem:
    """A filesystem in memory."""
    made: Filesystem = example("memoryfs").MemoryFilesystem()
    return made


BEGIN = """
fd = os.open("mnt/f", os.O_RDWR | os.O_CREAT); os.write(fd, b"0123456789")
append = os.open("mnt/f", os.O_RDWR | os.O_APPEND)
ro, wo, top = os.open("mnt/f", os.O_RDONLY), os.open("mnt/f", os.O_WRONLY), os.open("mnt", 0)
HIPRI, DSYNC, SYNC, NOWAIT, APPEND, NOAPPEND, ATOMIC, DONTCACHE = (1 << bit for bit in range(8))
long = ctypes.c_long
def content(): return os.pread(fd, 99, 0)
"""

RWF = """
def vectored(name, file, data, offset, flags):
    buffer = ctypes.create_string_buffer(data, len(data))
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(data))
    result = call(SYS[name], file, vector, long(1), long(offset), long(0), flags)
    return result, buffer.raw
every = (HIPRI, DSYNC, SYNC, NOWAIT, APPEND, NOAPPEND, ATOMIC, DONTCACHE)
for flags in (0, *every, APPEND | NOAPPEND, SYNC | APPEND, 512):
    os.lseek(fd, 2, 0); os.ftruncate(fd, 10)
    print(flags, [vectored("preadv2", fd, b"....", at, flags) for at in (3, -1)])
    print([vectored("pwritev2", fd, b"ab", at, flags) for at in (3, -1)])
    print(os.lseek(fd, 0, 1), content(), os.fstat(fd).st_size)
for flags in (0, APPEND, NOAPPEND, SYNC):
    os.ftruncate(fd, 10); print(vectored("pwritev2", append, b"xy", 0, flags))
    print(vectored("pwritev2", append, b"zw", -1, flags), os.lseek(append, 0, 1), content())
print(os.pwrite(append, b"QQ", 0), content())
"""

OPENED = """
direct = os.O_DIRECT
for flags in (os.O_SYNC, os.O_DSYNC, direct, os.O_NOATIME, direct | os.O_APPEND):
    file = os.open("mnt/f", os.O_RDWR | flags); print(oct(fcntl.fcntl(file, fcntl.F_GETFL)))
    print(os.pwrite(file, b"odd", 1), os.pread(file, 3, 1), os.write(file, b"abc"))
    print(os.lseek(file, 0, 1), attempt(fcntl.fcntl, file, fcntl.F_SETFL, direct))
    print(fcntl.fcntl(file, fcntl.F_GETFL) & direct, fcntl.fcntl(file, fcntl.F_SETFL, 0))
    print(oct(fcntl.fcntl(file, fcntl.F_GETFL))); os.close(file)
print(attempt(fcntl.fcntl, top, fcntl.F_SETFL, direct))
page = mmap.mmap(-1, 8192); page.write(b"d" * 8192)
file = os.open("mnt/direct", os.O_RDWR | os.O_CREAT | direct); print(os.writev(file, [page]))
print([os.preadv(file, [page], at) for at in (4096, 8192, 4000)], os.fstat(file).st_size)
other = os.open("mnt/direct", os.O_RDWR); os.pwrite(other, b"cached", 0)
print(os.preadv(file, [page], 0), page[:8], os.pwrite(file, b"DDDD", 0), os.pread(other, 8, 0))
os.close(os.open("mnt/log", os.O_WRONLY | os.O_CREAT)); pids = []; sys.stdout.flush()
for number in range(4):
    pids.append(os.fork())
    if not pids[-1]:
        log = os.open("mnt/log", os.O_WRONLY | os.O_APPEND)
        for _ in range(50): os.write(log, b"%d" % number * 37 + b"\\n")
        os._exit(0)
lines = [wait(pid) for pid in pids], open("mnt/log").read().split("\\n")
print(lines[0], len(lines[1]), sorted(set(lines[1])))
"""

AIO = """
context = ctypes.c_ulong(); print(call(SYS["io_setup"], 8, ctypes.byref(context)))
def submit(file, opcode, data, offset, flags=0, size=None):
    buffer = ctypes.create_string_buffer(data, len(data)) if data else None
    address = ctypes.addressof(buffer) if data else 0
    block = ctypes.create_string_buffer(struct.pack("=QIIHhIQQqQII", 7, 0, flags, opcode, 0, file,
        address, len(data) if size is None else size, offset, 0, 0, 0), 64)
    pointer = (ctypes.c_void_p * 1)(ctypes.addressof(block))
    if (result := call(SYS["io_submit"], context, long(1), pointer)) != 1: return result
    event = (ctypes.c_int64 * 4)(); until = (ctypes.c_long * 2)(30, 0)
    got = call(SYS["io_getevents"], context, long(1), long(1), event, until)
    return got, event[0], event[2], data and buffer.raw
READ, WRITE, FSYNC, FDSYNC, NOOP = 0, 1, 2, 3, 6
print(submit(fd, READ, b"....", 3), submit(fd, WRITE, b"WW", 1), content())
print(submit(fd, READ, b"....", 99), submit(fd, READ, b"....", -1), submit(fd, NOOP, b"..", 0))
print(submit(wo, READ, b"..", 3), submit(ro, WRITE, b"..", 3), submit(999, READ, b"..", 3))
for file in (fd, ro, top): print([submit(file, what, b"", 0) for what in (FSYNC, FDSYNC)])
print([submit(fd, FSYNC, *args) for args in ((b"a", 0), (b"", 1), (b"", 0, SYNC), (b"", 0, 0, 5))])
for flags in (HIPRI, DSYNC, SYNC, NOWAIT, APPEND, NOAPPEND, ATOMIC, DONTCACHE, 512):
    os.ftruncate(fd, 10); print(flags, submit(fd, READ, b"..", 3, flags))
    print(submit(fd, WRITE, b"rs", 3, flags), content())
print(submit(append, WRITE, b"ap", 0), content(), submit(top, READ, b"..", 0))
print(submit(os.open("mnt", os.O_PATH), READ, b"..", 0))
direct = os.open("mnt/f", os.O_RDWR | os.O_DIRECT)
print(submit(direct, READ, b"." * 12, 0), submit(direct, WRITE, b"o" * 100, 8192))
print(os.fstat(fd).st_size)
"""

OTHERS = """
def ranged(file, *args): return call(SYS["sync_file_range"], file, *map(long, args))
print(ranged(fd, 0, 0, 7), ranged(fd, 0, 0, 8), ranged(fd, -1, 5, 2), ranged(ro, 3, 9, 2))
print(ranged(top, 0, 0, 2), ranged(os.open("mnt", os.O_PATH), 0, 0, 2), call(SYS["syncfs"], fd))
print([call(SYS["readahead"], file, long(0), long(99)) for file in (fd, wo, top)])
print(attempt(os.posix_fadvise, fd, 0, 0, 4))
places = (0, 3), (0, 4), (99, 3), (99, 4), (-1, 3), (-1, 0), (1 << 62, 0), ((1 << 63) - 1, 0)
print([attempt(os.lseek, fd, *place) for place in (*places, (0, 9))])
print(attempt(os.pread, top, 1, 0), attempt(os.pwrite, top, b"1", 0), attempt(os.ftruncate, top, 0))
print(attempt(os.ftruncate, ro, 0), attempt(os.ftruncate, fd, -1), attempt(os.truncate, "mnt", 0))
def allocated(file, *args): return call(SYS["fallocate"], file, *map(long, args))
for args in ((0, 0, 0), (0, -1, 5), (0, 0, 20), (1, 30, 10), (3, 2, 3), (2, 0, 1), (16, 0, 4),
             (17, 0, 4), (8, 0, 4096), (32, 0, 4096), (64, 0, 1), (1, (1 << 63) - 5, 10)):
    print(args, allocated(fd, *args), os.fstat(fd).st_size)
print(allocated(ro, 0, 0, 5), allocated(top, 0, 0, 5))
"""

DIRECTORIES = """
print([attempt(os.lseek, top, *place) for place in ((5, 0), (1, 1), (7, 2), (-9, 2), (0, 9))])
print([attempt(os.lseek, top, at, how) for at in (0, 5, -1) for how in (3, 4)])
print([attempt(fcntl.ioctl, top, command) for command in (0x5401, 0x541B, 0x80086601, 0x8906, 1)])
path = os.open("mnt", os.O_PATH); print(os.isatty(top), attempt(fcntl.ioctl, path, 0x5401))
a, b = os.pipe()
for pair in ((fd, b), (a, fd), (wo, b), (a, ro), (top, b), (a, top), (path, b), (a, path)):
    print(call(SYS["tee"], *pair, long(1), 2))
kinds = [(prot, flags) for prot in (1, 2, 3, 5) for flags in (1, 2, 3)]
print([attempt(mmap.mmap, top, 4096, flags, prot) for prot, flags in kinds])
print([call("syncfs", file) for file in (fd, ro, wo, top, path, 99)], os.sync())
"""


@pytest.mark.parametrize(
    "script",
    [RWF, OPENED, AIO, OTHERS, DIRECTORIES],
    ids=["rwf", "opened", "aio", "others", "directories"],
)
def test_results_are_linux_s(script: str) -> None:
    alike(make, BEGIN + script)
