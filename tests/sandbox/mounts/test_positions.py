"""The position of an open file, which several threads and processes share."""

from __future__ import annotations

import asyncio

from recuse import Directory, Filesystem, OpenFile, OpenRequest, RegularFile

from .as_linux import in_sandbox


class Late(OpenFile):
    """A file whose server answers later, so that many calls are under way at once."""

    def __init__(self, node: LateFile) -> None:
        self.node = node

    async def read(self, size: int, offset: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(self.node.data[offset : offset + size])

    async def write(self, data: bytes, offset: int) -> None:
        await asyncio.sleep(0)
        self.node.data[offset : offset + len(data)] = data
        self.node.size = len(self.node.data)


class LateFile(RegularFile):
    """One that keeps what is written."""

    mode = 0o666

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.size = len(data)

    def open(self, request: OpenRequest) -> Late:
        return Late(self)


def make() -> Filesystem:
    """A file that can be read, one that can be written, and a directory."""
    numbers = b"".join(b"%04d" % number for number in range(1000))
    many = Directory({str(number): RegularFile() for number in range(300)})
    return Filesystem(Directory({"read": LateFile(numbers), "written": LateFile(), "many": many}))


SHARED = """
def together(function):
    threads = [threading.Thread(target=function, args=(one,)) for one in range(6)]
    for one in threads: one.start()
    for one in threads: one.join()
def reading(_):
    while data := os.read(fd, 40): got.append(data)
for flags in (0, os.O_DIRECT):
    fd = os.open("mnt/read", os.O_RDONLY | flags); got = []; together(reading)
    print(len(got), len(set(got)), os.lseek(fd, 0, 1))
def writing(one):
    for number in range(10): os.write(fd, b"%c%d." % (65 + one, number))
fd = os.open("mnt/written", os.O_WRONLY); together(writing); pids = []
for one in range(6, 9):
    pids.append(os.fork())
    if not pids[-1]: writing(one); os._exit(0)
print([wait(pid) for pid in pids], os.lseek(fd, 0, 1))
data = open("mnt/written", "rb").read(); print(len(data), len(set(data.split(b"."))))
top = os.open("mnt/many", os.O_RDONLY); lists = []
def listing(_):
    buffer = ctypes.create_string_buffer(512)
    while (size := libc.syscall(SYS["getdents64"], top, buffer, 512)) > 0:
        lists.append(buffer.raw[:size])
together(listing); names = []
for data in lists:
    while data:
        length = data[16] | data[17] << 8; names.append(data[19:length].split(b"\\0")[0])
        data = data[length:]
print(len(names), len(set(names)))
"""


def test_who_shares_it_reads_and_writes_one_after_the_other() -> None:
    assert in_sandbox(make, SHARED).splitlines() == [
        *["100 100 4000", "100 100 4000", "[0, 0, 0] 270", "270 91", "302 302"],
    ]
