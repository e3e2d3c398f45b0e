"""Files of a filesystem that programs have mapped into memory: as natively."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from recuse import Directory, Filesystem, Node, OpenFile, OpenRequest, RegularFile
from recuse.sandbox import Sandbox
from tests.conftest import Needs

from ..conftest import PRELUDE, Clients, Shell
from .conftest import example

HELPERS = """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def call(name, *args):
    return getattr(libc, name)(*args) and errno.errorcode[ctypes.get_errno()]
def ends(work):
    pid = os.fork()
    if not pid:
        work(); os._exit(0)
    return os.waitpid(pid, 0)[1]
def put(name, data):
    with open(name, "wb") as file: file.write(data)
def got(name):
    with open(name, "rb") as file: return file.read()
"""
BEGIN = """
os.chdir(sys.argv[1])
put("f", b"x" * 10000); fd = os.open("f", os.O_RDWR); m = mmap.mmap(fd, 0)
"""

SCRIPTS = {
    "reading and writing": """
m[:5] = b"HELLO"; print(os.pread(fd, 7, 0), got("f")[:7])
print(os.pwrite(fd, b"world", 4094), m[4090:4100]); m[4095] = 33; print(os.pread(fd, 6, 4093))
put("g", b"new"); print(os.system("head -c 3 f; cat g >>f; cmp f f"), os.fstat(fd).st_size)
m.flush(); m.close(); print(len(got("f")), got("f")[4090:4100], got("f")[-5:])
""",
    "the file's end": """
print(m[9999])
os.ftruncate(fd, 11000); print(m[9998:10000], os.pread(fd, 20, 9998))
m.resize(11000); os.ftruncate(fd, 10000); m[10005:10008] = b"abc"
print(os.pread(fd, 20, 9990), os.fstat(fd).st_size)
os.ftruncate(fd, 11000); print(m[9998:10010], os.pread(fd, 20, 9998))
os.ftruncate(fd, 5000); print(ends(lambda: m[8192]), m[4998:5003], ends(lambda: m[8191]))
os.truncate("f", 9000); print(m[4998:5003], m[8999], ends(lambda: m[8192]))
os.pwrite(fd, b"end", 10990); print(m[10988:10993], os.stat("f").st_size)
os.system("printf more >>f"); print(os.stat("f").st_size, m[10990:10997])
put("f", b""); print(ends(lambda: m[0])); put("f", b"again" * 1000); print(m[:10], m[4999])
""",
    "rights": """
ro = os.open("f", os.O_RDONLY); both = mmap.PROT_READ | mmap.PROT_WRITE
print(attempt(mmap.mmap, ro, 100, mmap.MAP_SHARED, both))
print(attempt(mmap.mmap, os.open("f", os.O_WRONLY), 100, mmap.MAP_SHARED, mmap.PROT_WRITE))
print(mmap.mmap(ro, 100, mmap.MAP_SHARED, mmap.PROT_READ)[:5])
a = ctypes.c_void_p(libc.mmap(None, 4096, 1, 1, ro, 0)); print(call("mprotect", a, 4096, 3))
b = ctypes.c_void_p(libc.mmap(None, 4096, 1, 1, fd, 0)); print(call("mprotect", b, 4096, 3))
ctypes.memset(b, 66, 3); print(os.pread(ro, 6, 0), m[:6])
print(call("msync", b.value + 1, 10, 4), call("msync", b, 4096, 5), call("msync", b, 1 << 40, 4))
print(call("munmap", b, 4096), call("msync", b, 4096, 4))
""",
    "processes": """
def kid(): m[100:103] = b"kid"
print(ends(kid), m[100:103], os.pread(fd, 3, 100))
def killed():
    put("g", bytes(8192)); k = mmap.mmap(os.open("g", os.O_RDWR), 0)
    k[5000:5006] = b"killed"; os.kill(os.getpid(), 9)
print([(ends(killed), got("g")[4999:5007]) for _ in range(9)])
def executes():
    k = mmap.mmap(os.open("g", os.O_RDWR), 0); k[:4] = b"exec"; os.execvp("true", ["true"])
print(ends(executes), got("g")[:5])
""",
    "private": """
p = mmap.mmap(fd, 0, mmap.MAP_PRIVATE); os.pwrite(fd, b"LATER", 0); print(p[:5])
p[:2] = b"my"; os.pwrite(fd, b"again", 0); print(p[:5], m[:5], os.pread(fd, 5, 0))
""",
    "other sizes": """
put("h", bytes(range(256)) * 64); h = mmap.mmap(os.open("h", os.O_RDWR), 4096)
h.resize(16384); print(h[16380:16384], len(h)); h[16383] = 7; h.flush(); print(got("h")[-2:])
h.resize(20000); print(os.stat("h").st_size, h[19999], len(h))
os.unlink("h"); h[0] = 3; h.flush(); print(h[:2]); h.close()
part = mmap.mmap(fd, 4096, offset=4096); part[:2] = b"ab"; print(m[4095:4099])
os.posix_fallocate(fd, 0, 20000); print(os.fstat(fd).st_size, m[5001])
print(libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4100)), m[:5], m[4096:4102])
m[8:12] = b"copy"; print(os.copy_file_range(fd, fd, 4, 8, 6000), m[6000:6004], os.pread(fd, 9, 0))
os.system("cp f copy; cmp f copy && wc -c <copy")
""",
}


@pytest.fixture(params=[False, True])
def files(request: pytest.FixtureRequest) -> Filesystem:
    """An empty filesystem in memory, which is told at once of what is written, or later."""
    files: Filesystem = example("memoryfs").MemoryFilesystem()
    files.writeback = request.param
    return files


@pytest.mark.parametrize("name", SCRIPTS)
def test_mappings_are_like_native_ones(
    name: str, client: Shell, clients: Clients, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = HELPERS + BEGIN + SCRIPTS[name]
    expected = clients(None)(script, tmp_path_factory.mktemp("native"))
    assert "Traceback" not in expected
    assert client(script, here / "mnt") == expected


@pytest.mark.parametrize("name", SCRIPTS)
def test_backing_files_are_mapped(
    name: str, clients: Clients, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = HELPERS + BEGIN + SCRIPTS[name]
    expected = clients(None)(script, tmp_path_factory.mktemp("native"))
    (here / "shown").mkdir()
    files = example("mirrorfs").Mirror(str(here / "shown"))
    with Sandbox(mounts={here / "mnt": files}) as sandbox:
        assert clients(sandbox)(script, here / "mnt") == expected


PROGRAMS = {
    "gold": """
cd mnt && echo 'int puts(const char *); int main(void) { return puts("linked") < 0; }' >a.c &&
gcc -fuse-ld=gold -o a a.c && ./a && gcc -o b a.c && ./b && strip a b && ./a && ./b
""",
    "rsync": """
mkdir mnt/a && head -c 300000 /dev/zero >mnt/a/zeros && ls -l / >mnt/a/listing && sync mnt/a/zeros
rsync -a mnt/a/ mnt/b && diff -r mnt/a mnt/b && rsync -a --inplace beside mnt/b/zeros &&
cat mnt/b/zeros
""",
    "sqlite3": """
cd mnt; sqlite3 db 'pragma mmap_size = 100000; pragma journal_mode = wal; create table t (a);'
sqlite3 db 'pragma mmap_size = 100000; insert into t values (1), (2)' & wait
sqlite3 db 'pragma mmap_size = 100000; select sum(a) from t; pragma integrity_check'; ls
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_map_files(name: str, shell: Shell, natively: Shell, needs: Needs) -> None:
    needs({"gold": "gcc"}.get(name, name))
    if name == "gold":
        needs("gold", "binutils")
    expected = natively(PROGRAMS[name])
    assert "status" not in expected
    assert shell(PROGRAMS[name]) == expected


DATABASE = """
import sqlite3
path = sys.argv[1] + "/db"
def work(number):
    db = sqlite3.connect(path, timeout=60)
    for each in range(9):
        db.execute("insert into t values (?, ?)", (number, each)); db.commit()
    db.close()
db = sqlite3.connect(path, timeout=60)
print(db.execute("pragma journal_mode = wal").fetchone())
db.execute("create table t (a, b)"); db.commit()
pids = []
for number in range(3):
    pid = os.fork()
    if not pid:
        work(number); os._exit(0)
    pids.append(pid)
print([os.waitpid(pid, 0)[1] for pid in pids])
print(db.execute("select count(*), sum(b) from t").fetchone())
print(db.execute("pragma integrity_check").fetchone(), sorted(os.listdir(sys.argv[1])))
db.close(); print(os.listdir(sys.argv[1]))
"""


def test_sqlite_with_a_shared_index_of_its_log(client: Shell, here: Path) -> None:
    assert client(DATABASE, here / "mnt") == (
        "('wal',)\n[0, 0, 0]\n(27, 108)\n('ok',) ['db', 'db-shm', 'db-wal']\n['db']\n"
    )


class Unanswered(OpenFile):
    """What is read of it does not come."""

    def __init__(self, asked: Node) -> None:
        self.asked = asked

    async def read(self, size: int, offset: int) -> bytes:
        self.asked.mode |= 0o001
        await asyncio.Event().wait()
        raise AssertionError

    def write(self, data: bytes, offset: int) -> None:
        """Take it."""


class Slow(RegularFile):
    """A file that can only be written; that somebody reads shows in the mode of another one."""

    def __init__(self, asked: Node) -> None:
        super().__init__(bytes(5000))
        self.asked = asked

    def open(self, request: OpenRequest) -> Unanswered:
        return Unanswered(self.asked)


WAITS = (
    HELPERS
    + """
os.chdir(sys.argv[1])
pid = os.fork()
if not pid:
    mmap.mmap(os.open("slow", os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_READ)
while not os.stat("asked").st_mode & 1: time.sleep(0.01)
print(got("asked"), os.stat("slow").st_size)
fd = os.open("slow", os.O_WRONLY); print(os.write(fd, b"new"), os.fsync(fd))
os.kill(pid, 9); print(os.waitpid(pid, 0)[1])
print(got("asked"))
"""
)


def test_nobody_else_waits_for_the_pages_of_a_mapping(here: Path, clients: Clients) -> None:
    asked = RegularFile(b"other")
    files = Filesystem(Directory({"asked": asked, "slow": Slow(asked)}))
    with Sandbox(mounts={here / "mnt": files}) as sandbox:
        assert clients(sandbox)(WAITS, here / "mnt") == "b'other' 5000\n3 None\n9\nb'other'\n"


class Telling(RegularFile):
    """A file: what is written to it shows in another one at once."""

    def __init__(self, told: RegularFile) -> None:
        super().__init__(b"....")
        self.told = told

    def write(self, data: bytes, offset: int) -> None:
        self.told.content = data
        self.told.size = len(data)


SYNCED = (
    HELPERS
    + """
os.chdir(sys.argv[1]); fd = os.open("telling", os.O_RDWR); m = mmap.mmap(fd, 0)
m[:2] = b"ab"; print(got("told")); print(call("syncfs", fd), got("told"))
m[:2] = b"cd"; os.sync()
while got("told") != b"cd..": pass
"""
)


def test_sync_and_syncfs_write_back(here: Path, clients: Clients) -> None:
    told = RegularFile()
    told.cache_s = 0
    files = Filesystem(Directory({"told": told, "telling": Telling(told)}))
    with Sandbox(mounts={here / "mnt": files}) as sandbox:
        assert clients(sandbox)(SYNCED, here / "mnt") == "b''\n0 b'ab..'\n"


HELD = """
os.chdir("mnt"); put("f", b"xxxx"); fd = os.open("f", os.O_RDWR); os.chdir("..")
at = ctypes.c_void_p(libc.mmap(None, 4, 3, 1, fd, 0)); os.close(fd); ctypes.memset(at, 65, 3)
print(os.system("fusermount3 -u mnt 2>/dev/null") >> 8, got("source/f"))
print(os.system("fusermount3 -uz mnt"), os.listdir("mnt"), ctypes.string_at(at, 4))
print(call("msync", at, 4, 4), got("source/f")); ctypes.memset(at, 66, 2)
print(call("munmap", at, 4))
"""

DEAD = """
os.chdir("mnt"); put("f", b"xxxx"); fd = os.open("f", os.O_RDWR); m = mmap.mmap(fd, 0)
m[:3] = b"abc"; m.flush(); os.kill(int(sys.argv[1]), 9)
while attempt(os.listdir, ".") != "ENOTCONN": pass
m[:3] = b"def"; print(m[:], attempt(m.flush), attempt(os.fsync, fd), attempt(os.pread, fd, 4, 0))
print(attempt(m.close), attempt(os.write, fd, b"x"), attempt(os.close, fd), got("../source/f"))
os.chdir("..")
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (HELD, "1 b'xxxx'\n0 [] b'AAAx'\n0 b'AAAx'\n0\n0\nBBAx"),
        (DEAD, "b'defx' ENOTCONN ENOTCONN b'defx'\nNone ENOTCONN None b'abcx'\n137\nabcx"),
    ],
)
def test_the_server_goes(
    bare_shell: Shell, needs: Needs, here: Path, script: str, expected: str
) -> None:
    needs("bindfs", "bindfs")
    (here / "script.py").write_text(PRELUDE + HELPERS + script, encoding="utf-8")
    output = bare_shell(
        "bindfs -f --no-allow-other source mnt & until mountpoint -q mnt; do :; done\n"
        f"{sys.executable} -I -S script.py $!; wait $!; echo $?; cat source/f; "
        "! mountpoint -q mnt || fusermount3 -u mnt"
    )
    assert output == expected


class Later(OpenFile):
    """It answers later, so that much is under way at once."""

    def __init__(self, node: Kept) -> None:
        self.node = node

    async def read(self, size: int, offset: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(self.node.data[offset : offset + size])

    async def write(self, data: bytes, offset: int) -> None:
        await asyncio.sleep(0)
        self.node.data[offset : offset + len(data)] = data


class Kept(RegularFile):
    """It keeps what is written."""

    mode = 0o666
    cache_s = 0

    def __init__(self) -> None:
        self.data = bytearray(4 * 4096)
        self.size = len(self.data)

    def open(self, request: OpenRequest) -> Later:
        return Later(self)


AT_ONCE = (
    HELPERS
    + """
os.chdir(sys.argv[1]); fd = os.open("f", os.O_RDWR); m = mmap.mmap(fd, 0); wrong = []
def stores(at):
    for number in range(100):
        for page in range(4): m[page * 4096 + at] = number
def writes(at):
    own = os.open("f", os.O_RDWR); at = 1000 + 10 * at
    for number in range(100):
        place = number % 4 * 4096 + at; data = bytes([number]) * 3
        os.pwrite(own, data, place); read = os.pread(own, 3, place), m[place : place + 3]
        if read != (data, data): wrong.append((number, *read))
def syncs(at):
    for number in range(30): os.fsync(fd) if at % 2 else m.flush()
def opens(at):
    for number in range(30): os.close(os.open("f", os.O_RDONLY))
work = [threading.Thread(target=one, args=(n,)) for n in range(3)
        for one in (stores, writes, syncs, opens)]
for one in work: one.start()
for one in work: one.join()
m.flush(); direct = os.open("f", os.O_RDONLY | os.O_DIRECT); data = os.pread(direct, 4 * 4096, 0)
print(wrong, data == m[:], [data[page * 4096] for page in range(4)])
print([data[page * 4096 + 1000] for page in range(4)])
"""
)


@pytest.mark.parametrize("writeback", [False, True])
def test_what_is_stored_and_written_at_once_is_all_there(
    here: Path, clients: Clients, writeback: bool
) -> None:
    files = Filesystem(Directory({"f": Kept()}))
    files.writeback = writeback
    with Sandbox(mounts={here / "mnt": files}) as sandbox:
        output = clients(sandbox)(AT_ONCE, here / "mnt")
    assert output == "[] True [99, 99, 99, 99]\n[96, 97, 98, 99]\n"
