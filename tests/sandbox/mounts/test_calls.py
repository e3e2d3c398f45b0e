"""System calls on a filesystem that is mounted in the sandbox, and what is at its edges."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import pytest

from recuse import Directory, Filesystem, OpenFile, OpenRequest, RegularFile
from recuse.sandbox import Sandbox

from ...conftest import Needs
from ...patience import PATIENCE_S
from ..conftest import Clients, Compiled, Shell, client_in, shell_in
from .conftest import example

EDGES = """
os.mkdir("mnt/d"); os.mkdir("out"); open("mnt/f", "w").write("inside"); open("g", "w").write("out")
for old, new in (
    ("mnt/f", "h"), ("g", "mnt/h"), ("mnt/d", "out/d"), ("out", "mnt/out"), ("mnt", "x")
):
    print(old, new, attempt(os.rename, old, new), attempt(os.link, old, new))
os.symlink("../g", "mnt/up"); os.symlink("mnt/f", "down"); os.symlink(os.getcwd() + "/mnt", "there")
print(open("mnt/up").read(), open("down").read(), open("there/d/../f").read())
print(os.listdir("there/d"))
print(os.path.realpath("there/up")[-2:], os.readlink("mnt/up"), os.path.samefile("down", "mnt/f"))
open("mnt/up", "a").write("er"); print(open("g").read()); os.symlink("mnt/made", "new")
open("new", "w").write("by a link"); print(open("mnt/made").read(), os.stat("mnt/made").st_size)
print(attempt(os.rmdir, "mnt"), attempt(os.unlink, "mnt"), attempt(os.mkdir, "mnt"))
print(os.stat("mnt").st_dev != os.stat(".").st_dev, os.stat("mnt/..").st_ino == os.stat(".").st_ino)
print(os.path.ismount("mnt"), os.stat("mnt/d/../..").st_ino == os.stat(".").st_ino)
"""
EDGED = """mnt/f h EXDEV EXDEV
g mnt/h EXDEV EXDEV
mnt/d out/d EXDEV EXDEV
out mnt/out EXDEV EXDEV
mnt x EBUSY EXDEV
out inside inside
[]
/g ../g True
outer
by a link 9
EBUSY EISDIR EEXIST
True True
True True
"""


def test_its_edges(client: Shell) -> None:
    assert client(EDGES) == EDGED


def test_creat(client: Shell) -> None:
    """A call of its own on x86-64, by which tar makes archives."""
    output = client(
        "os.umask(0o022); fd = call('creat', b'mnt/made', 0o674); os.write(fd, b'text')\n"
        "print(oct(os.stat('mnt/made').st_mode), attempt(os.read, fd, 1)); os.close(fd)\n"
        "fd = call('creat', b'mnt/made', 0o600); made = os.stat('mnt/made')\n"
        "print(oct(made.st_mode), made.st_size)\n"
    )
    assert output == "0o100654 EBADF\n0o100654 0\n"


OPENS = """
top = os.open("mnt", os.O_RDONLY)
print(attempt(os.open, "mnt/x", os.O_RDONLY), attempt(os.open, "mnt/x/y", os.O_CREAT | os.O_RDWR))
fd = os.open("x", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640, dir_fd=top)
print(attempt(os.open, "mnt/x", os.O_CREAT | os.O_EXCL), attempt(os.open, "mnt/x/", os.O_RDONLY))
print(oct(os.fstat(fd).st_mode), os.write(fd, b"0123456789"), os.pread(fd, 4, 3), os.read(fd, 9))
print(os.lseek(fd, -3, 2), os.read(fd, 9), os.lseek(fd, 0, 1), attempt(os.lseek, fd, -1, 0))
print(os.ftruncate(fd, 4), os.fsync(fd), os.fdatasync(fd), os.stat("mnt/x").st_size)
print(os.pwrite(fd, b"z", 6), os.pread(fd, 9, 0), os.writev(fd, [b"a", b"", b"bc"]))
app = os.open("mnt/x", os.O_WRONLY | os.O_APPEND); os.write(app, b"!"); print(os.stat(app).st_size)
print(attempt(os.read, app, 1), attempt(os.write, os.open("mnt/x", 0), b"x"), os.dup(fd) > fd)
print(fcntl.fcntl(fd, fcntl.F_GETFL) & 3, fcntl.fcntl(app, fcntl.F_GETFL) & os.O_APPEND != 0)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND); os.lseek(fd, 0, 0); os.write(fd, b"?")
print(os.stat(fd).st_size, os.open("mnt/x", os.O_TRUNC | os.O_WRONLY) > 0, os.stat(fd).st_size)
opened = attempt(os.open, "mnt", os.O_RDWR), attempt(os.open, "mnt", os.O_CREAT)
print(*opened, attempt(os.read, top, 1))
os.symlink("x", "mnt/link"); print(attempt(os.open, "mnt/link", os.O_NOFOLLOW | os.O_RDONLY))
held = os.open("mnt/link", os.O_PATH | os.O_NOFOLLOW); print(stat.S_ISLNK(os.fstat(held).st_mode))
print(os.readlink("", dir_fd=held), attempt(os.read, held, 1), attempt(os.fchmod, held, 0o600))
dir_ = os.open("mnt", os.O_PATH)
print(os.stat("x", dir_fd=dir_).st_size, attempt(os.listdir, dir_))
print(attempt(os.open, "mnt", os.O_TMPFILE | os.O_RDONLY))
nameless = os.open("mnt", os.O_TMPFILE | os.O_RDWR); os.write(nameless, b"named")
os.link(f"/proc/self/fd/{nameless}", "mnt/named", src_dir_fd=top)  # linkat
print(open("mnt/named").read())
os.unlink("mnt/x"); print(os.fstat(fd).st_nlink, os.pwrite(fd, b"gone", 0), os.pread(fd, 4, 0))
print(os.readlink(f"/proc/self/fd/{fd}")[-14:], os.path.exists("mnt/x"), sorted(os.listdir(top)))
again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY); print(os.read(again, 4))
os.mkdir("mnt/d"); print(attempt(os.open, "mnt/d", os.O_CREAT | os.O_DIRECTORY))
print(attempt(os.openat2, 0) if hasattr(os, "openat2") else "-")
"""
OPENED = """ENOENT ENOENT
EEXIST ENOTDIR
0o100640 10 b'3456' b''
7 b'789' 10 EINVAL
None None None 4
1 b'0123\\x00\\x00z' 3
14
EBADF EBADF True
2 True
15 True 0
EISDIR EISDIR EISDIR
ELOOP
True
x EBADF EBADF
0 EBADF
EINVAL
named
0 4 b'gone'
nt/x (deleted) False ['link', 'named']
b'gone'
EINVAL
-
"""


def test_what_open_does(client: Shell) -> None:
    assert client(OPENS) == OPENED


PLACES = """
os.makedirs("mnt/a/b"); here = os.getcwd(); os.chdir("mnt/a/b")
print(os.getcwd() == here + "/mnt/a/b")
os.rename(here + "/mnt/a", here + "/mnt/c")
print(os.getcwd() == here + "/mnt/c/b", os.listdir(".."))
open("f", "w").write("x"); print(os.path.exists(here + "/mnt/c/b/f"), os.stat("../b/f").st_size)
sys.stdout.flush(); pid = os.fork()
if pid == 0: print(os.getcwd() == here + "/mnt/c/b", open("f").read(), flush=True); os._exit(0)
wait(pid); os.chdir("../../.."); print(os.getcwd() == here)
top = os.open("mnt/c", os.O_RDONLY); file = os.open("mnt/c/b/f", os.O_RDONLY)
os.fchdir(top); print(os.getcwd() == here + "/mnt/c", attempt(os.fchdir, file))
os.unlink("b/f"); os.rmdir("b"); os.rmdir("../c"); print(attempt(os.getcwd), os.stat(".").st_nlink)
print(attempt(open, "f", "w"), attempt(os.listdir, top), attempt(os.mkdir, "x"))
os.chdir(here)
print(attempt(os.chdir, "mnt/nothing"), attempt(os.chdir, "beside/x"))
"""
PLACED = """True
True ['b']
True 1
True x
True
True ENOTDIR
ENOENT 0
ENOENT [] ENOENT
ENOENT ENOTDIR
"""


def test_directories_that_programs_are_in(client: Shell) -> None:
    assert client(PLACES) == PLACED


OTHERS = """
open("mnt/f", "w").write("content"); fd = os.open("mnt/f", os.O_RDWR)
two = os.open("mnt/f", os.O_RDWR)
import select
epoll = select.epoll()
print(attempt(epoll.register, fd), select.select([fd], [fd], [], 0) == ([fd], [fd], []))
lock = fcntl.LOCK_EX | fcntl.LOCK_NB
print(attempt(fcntl.flock, fd, lock), attempt(fcntl.flock, two, lock))
os.close(fd); print(attempt(fcntl.flock, two, lock))
print(attempt(fcntl.lockf, two, lock), attempt(os.posix_fallocate, two, 0, 9999))
print(mmap.mmap(two, 0, mmap.MAP_PRIVATE)[:7], mmap.mmap(two, 7, mmap.MAP_SHARED)[:])
print(attempt(os.execv, "mnt/f", ["f"]), attempt(os.sendfile, two, 0, 0, 7))
print(os.statvfs("mnt").f_namemax, os.statvfs(two).f_namemax, os.pathconf("mnt", "PC_NAME_MAX"))
os.setxattr("mnt/f", "user.a", b"one"); os.setxattr(two, "user.b", b"")
print(sorted(os.listxattr(two)))
print(os.getxattr(two, "user.a"), attempt(os.getxattr, "mnt/f", "user.c"))
print(os.removexattr(two, "user.a"))
print(attempt(os.setxattr, "mnt/f", "user.b", b"", os.XATTR_CREATE), os.listxattr("mnt/f"))
os.chmod("mnt/f", 0o604); os.utime("mnt/f", ns=(-1, 5)); s = os.stat("mnt/f")
print(oct(s.st_mode), s.st_atime_ns, s.st_mtime_ns, s.st_blksize, os.truncate("mnt/f", 3))
print(attempt(os.mknod, "mnt/p", stat.S_IFIFO | 0o600), attempt(os.open, "mnt/p", os.O_RDONLY))
sock = socket.socket(socket.AF_UNIX)
print(attempt(sock.bind, "mnt/s"), attempt(sock.connect, "mnt/f"))
"""
OTHER = """None True
None EAGAIN
None
None None
b'content' b'content'
EACCES EINVAL
255 255 255
['user.a', 'user.b']
b'one' ENODATA
None
EEXIST ['user.b']
0o100604 -1 5 4096 None
None ENXIO
EPERM ENOENT
"""


def test_other_calls(client: Shell) -> None:
    assert client(OTHERS) == OTHER


class Slow(RegularFile):
    """A file whose content is there when it has been closed."""

    kept = b""
    mode = 0o644
    size = 0
    written = threading.Event()

    def open(self, request: OpenRequest) -> OpenFile:
        return Writing(self)

    def read(self, size: int, offset: int) -> bytes:
        return self.kept[offset : offset + size]

    def truncate(self, size: int) -> None:
        self.kept, self.size = self.kept[:size], size


class Writing(OpenFile):
    data = b""

    def __init__(self, node: Slow) -> None:
        self.node = node

    def read(self, size: int, offset: int) -> bytes:
        return self.node.read(size, offset)

    def write(self, data: bytes, offset: int) -> int:
        self.data += data
        return len(data)

    async def flush(self) -> None:
        if self.data:
            self.node.kept, self.node.size = self.data, len(self.data)


def test_what_follows_a_close_waits_for_it(here: Path) -> None:
    class Files(Filesystem):
        root = Directory({"late": Slow()})

    with Sandbox(mounts={here / "mnt": Files()}) as sandbox:
        shell = shell_in(sandbox)
        script = "for i in 1 2 3 4 5; do echo $i >mnt/late; cat mnt/late; stat -c %s mnt/late; done"
        assert shell(script, cwd=here) == "".join(f"{i}\n2\n" for i in range(1, 6))


def test_two_filesystems(here: Path) -> None:
    (here / "two").mkdir()
    memory = example("memoryfs").MemoryFilesystem
    with Sandbox(mounts={here / "mnt": memory(), here / "two": memory()}) as sandbox:
        script = """
open("mnt/f", "w").write("one"); print(attempt(os.rename, "mnt/f", "two/f"), os.listdir("two"))
print(attempt(os.link, "mnt/f", "two/f"), os.stat("mnt").st_dev != os.stat("two").st_dev)
os.symlink("../mnt/f", "two/f"); print(open("two/f").read(), os.getpid() > 0)
"""
        assert client_in(sandbox)(script, cwd=here) == "EXDEV []\nEXDEV True\none True\n"


@pytest.mark.right("other users")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_others_may_do_what_modes_let_them(place: Path) -> None:
    (place / "mnt").mkdir()
    with Sandbox(mounts={place / "mnt": example("memoryfs").MemoryFilesystem()}) as sandbox:
        script = """
os.chdir(args[0]); os.umask(0)
os.makedirs("mnt/private/d"); os.chmod("mnt/private", 0o700); os.mkdir("mnt/public", 0o1777)
open("mnt/hid", "w").write("secret"); os.chmod("mnt/hid", 0o600); open("mnt/public/f", "w")
pid = os.fork()
if pid == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    print(attempt(open, "mnt/hid"), attempt(os.stat, "mnt/private/d"), os.access("mnt/hid", 4))
    print(attempt(os.chdir, "mnt/private"), attempt(open, "mnt/n", "w"))
    print(attempt(os.chmod, "mnt", 0))
    open("mnt/public/mine", "w").write("x"); s = os.stat("mnt/public/mine")
    print(s.st_uid, s.st_gid)
    print(attempt(os.unlink, "mnt/public/f"), attempt(os.unlink, "mnt/public/mine"), flush=True)
    os._exit(0)
wait(pid)
"""
        assert client_in(sandbox)(script, place) == (
            "EACCES EACCES False\nEACCES EACCES\nEPERM\n65534 65534\nEPERM None\n"
        )


@pytest.mark.parametrize(
    ("name", "error"),
    [("nothing", FileNotFoundError), ("beside", NotADirectoryError)],
)
def test_a_place_that_is_no_directory(here: Path, name: str, error: type[OSError]) -> None:
    sandbox = Sandbox(mounts={here / name: example("memoryfs").MemoryFilesystem()})
    with pytest.raises(error) as raised, sandbox:
        pass
    assert raised.value.filename == str(here / name)


class Broken(Filesystem):
    """All its lookups fail."""

    class Root(Directory):
        def lookup(self, name: str) -> None:
            raise ZeroDivisionError

    root = Root()


def test_a_filesystem_that_fails(here: Path) -> None:
    with Sandbox(mounts={here / "mnt": Broken()}) as sandbox:
        assert "Input/output error" in shell_in(sandbox)("cat mnt/x", cwd=here)


class Hanging(Filesystem):
    """A lookup that never ends."""

    asked = threading.Event()

    class Root(Directory):
        async def lookup(self, name: str) -> None:
            Hanging.asked.set()
            await asyncio.sleep(PATIENCE_S * 10)

    root = Root()


def test_a_program_that_waits_can_be_killed(here: Path) -> None:
    with Sandbox(mounts={here / "mnt": Hanging()}) as sandbox:
        with sandbox.popen(["cat", "mnt/never"], cwd=here) as program:
            assert Hanging.asked.wait(PATIENCE_S)
            program.kill()
            assert program.wait(PATIENCE_S) < 0
        assert shell_in(sandbox)("cat beside", cwd=here) == "native\n"


def test_any_number_of_directories_can_be_entered(client: Shell) -> None:
    script = """
for number in range(200): os.mkdir(f"mnt/{number}")
here = os.getcwd()
for number in range(200): os.chdir(f"{here}/mnt/{number}"); os.mkdir("in")
pid = os.fork()
if pid == 0:
    for number in range(200): os.chdir(f"../{number}/in"); os.chdir(".."); os.rmdir("in")
    print(os.getcwd()[-3:], flush=True); os._exit(0)
print(wait(pid), os.getcwd()[-3:], os.listdir("."))
"""
    assert client(script) == "199\n0 199 []\n"


COPIES = """
open("mnt/a", "wb").write(b"0123456789"); one = os.open("mnt/a", os.O_RDWR)
two = os.open("mnt/b", os.O_RDWR | os.O_CREAT); native = os.open("beside", os.O_RDWR)
print(os.copy_file_range(one, two, 100), os.lseek(one, 0, 1), os.pread(two, 99, 0))
print(os.copy_file_range(one, two, 3, 2, 20), os.fstat(two).st_size, os.lseek(two, 0, 1))
print(os.copy_file_range(one, two, 9), attempt(os.copy_file_range, one, one, 5, 0, 2))
print(attempt(os.copy_file_range, one, native, 5), attempt(os.copy_file_range, native, two, 5))
top = os.open("mnt", os.O_RDONLY); print(attempt(os.copy_file_range, one, top, 5, 0))
print(attempt(os.copy_file_range, os.open("mnt/a", os.O_WRONLY), two, 5, 0))
"""


def test_copies_within_it(client: Shell) -> None:
    assert client(COPIES) == (
        "10 10 b'0123456789'\n3 23 10\n0 EINVAL\nEXDEV EXDEV\nEISDIR\nEBADF\n"
    )


AIO = """
setup, submit, events = SYS["io_setup"], SYS["io_submit"], SYS["io_getevents"]
context = ctypes.c_uint64(); print(call(setup, 4, ctypes.byref(context)))
fd = os.open("mnt/f", os.O_RDWR | os.O_CREAT); room = ctypes.create_string_buffer(b"0123456789", 10)
def transfer(opcode, offset, size, flags=0):
    block = struct.pack("QIIHhIQQqQII", 7, 0, flags, opcode, 0, fd, ctypes.addressof(room), size,
                        offset, 0, 0, 0)
    block = ctypes.create_string_buffer(block, 64)
    done = call(submit, context, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(block))))
    if done != 1: return done
    event = ctypes.create_string_buffer(32)
    call(events, context, 1, 1, event, None)
    return struct.unpack("QQqq", event.raw)[2]
print(transfer(1, 3, 10), os.fstat(fd).st_size, os.lseek(fd, 0, 1)); room[:] = bytes(10)
print(transfer(0, 4, 10), bytes(room), transfer(0, 50, 10), transfer(1, 0, 1, 0x10))
"""


def test_asynchronous_transfers(client: Shell) -> None:
    expected = "0\n10 13 0\n9 b'123456789\\x00' 0 1\n"
    assert client(AIO) == expected


@pytest.mark.parametrize("flags", [(), ("-m32",), ("-m32", "-D_FILE_OFFSET_BITS=64")])
def test_programs_of_both_sizes(
    sandbox: Sandbox, here: Path, compiled: Compiled, needs: Needs, flags: tuple[str, ...]
) -> None:
    needs("gcc")
    if flags:
        needs("/usr/include/asm", package="gcc-multilib")
    program = compiled("files", *flags)
    (here / "native").mkdir()
    try:
        os.setxattr(here / "native", "user.tried", b"")
    except OSError as error:
        pytest.skip(f"no extended attributes to compare with: {error} (tmpfs before Linux 6.6)")
    expected = subprocess.run(
        [program], cwd=here / "native", stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert shell_in(sandbox)(f"cd mnt; {program}", cwd=here) == expected


BEYOND = """
os.mkdir("mnt/d"); os.mkdir("out"); os.chdir("mnt/d"); os.umask(0o027)
os.mkdir("../../made"); os.mkdir("../../made/in/", 0o700); open("../../file", "w").write("new")
print(oct(os.stat("../../made").st_mode), oct(os.stat("../../file").st_mode))
print(attempt(os.mkdir, "../../made"), attempt(os.mkdir, "../../made/"))
os.truncate("../../file", 2); os.chmod("../../file", 0o600); os.utime("../../file", (5, 6))
s = os.stat("../../file"); print(oct(s.st_mode), s.st_atime, s.st_mtime, s.st_size)
os.symlink("file", "../../link"); os.link("../../file", "../../hard")
print(os.readlink("../../link"), os.stat("../../hard").st_nlink)
os.rename("../../hard", "../../moved"); os.rename("../../moved", "../../made/moved")
print(sorted(os.listdir("../../made")), attempt(os.unlink, "../../no"))
print(attempt(os.unlink, "../../made"), attempt(os.rmdir, "../../made"))
os.unlink("../../made/moved"); os.rmdir("../../made/in"); os.rmdir("../../made")
os.chdir("../.."); os.symlink("..", "mnt/up"); os.symlink("../new", "mnt/new")
open("mnt/new", "w").write("made")
fd = os.open("mnt/up/excl", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666); os.write(fd, b"x")
print(attempt(os.open, "mnt/up/excl", os.O_CREAT | os.O_EXCL), attempt(open, "mnt/up/no/x", "w"))
print(open("new").read(), os.path.islink("mnt/new"), attempt(open, "mnt/up/absent"))
os.unlink("mnt/up/new"); os.mknod("mnt/up/node"); print(attempt(os.lchown, "mnt/new", -1, -1))
print(sorted(os.listdir(".")), os.getcwd() == args[0])
"""


def test_native_files_can_be_made_and_changed_from_there(
    client: Shell, clients: Clients, tmp_path_factory: pytest.TempPathFactory, here: Path
) -> None:
    native = tmp_path_factory.mktemp("native")
    (native / "mnt").mkdir()
    (native / "beside").touch()
    expected = clients(None)(BEYOND, native, cwd=native)
    assert "Traceback" not in expected
    assert client(BEYOND, here) == expected


def test_a_working_directory_may_be_deeper_than_a_path_is_long(client: Shell) -> None:
    output = client(
        "os.chdir('mnt'); name = 'x' * 200\n"
        "for _ in range(30): os.mkdir(name); os.chdir(name)\n"
        "open('file', 'w').close(); os.mkdir('deep')\n"
        "print(sorted(os.listdir('.')), os.listdir('..') == [name])\n"
        "os.chdir('deep'); os.chdir('../..'); print(os.listdir(name) != [])\n"
    )
    assert output == "['deep', 'file'] True\nTrue\n"
