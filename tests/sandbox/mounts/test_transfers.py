"""sendfile, splice and copy_file_range from and to filesystems, as on Linux's FUSE."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from recuse import Directory, Filesystem, OpenRequest, RegularFile
from recuse.sandbox import Sandbox, abilities

from ...conftest import Needs
from ...patience import PATIENCE_S
from ..conftest import Shell, client_in, python_argv
from .as_linux import alike
from .conftest import example


def make() -> Filesystem:
    """A filesystem in memory."""
    made: Filesystem = example("memoryfs").MemoryFilesystem()
    return made


BEGIN = """
import select
def rest(pipe):
    data = b""
    while select.select([pipe], [], [], 0)[0]:
        part = os.read(pipe, 99999)
        if not part: break
        data += part
    return data
def send(out, in_, offset, count): return attempt(os.sendfile, out, in_, offset, count)
def splice(*args, **options): return attempt(os.splice, *args, **options)
def copy(*args, **options): return attempt(os.copy_file_range, *args, **options)
open("mnt/f", "w").write("0123456789" * 10)
fd = os.open("mnt/f", os.O_RDWR); out = os.open("mnt/out", os.O_RDWR | os.O_CREAT)
top = os.open("mnt", os.O_RDONLY); path = os.open("mnt", os.O_PATH)
native = os.open("native", os.O_RDWR | os.O_CREAT); os.write(native, b"native" * 3)
r, w = os.pipe(); one, two = socket.socketpair()
ro, wo = os.open("mnt/f", os.O_RDONLY), os.open("mnt/f", os.O_WRONLY)
append = os.open("mnt/f", os.O_WRONLY | os.O_APPEND)
nro, nwo = os.open("native", os.O_RDONLY), os.open("native", os.O_WRONLY)
nappend = os.open("native", os.O_WRONLY | os.O_APPEND)
big = os.open("mnt/big", os.O_RDWR | os.O_CREAT); os.write(big, bytes(300000)); os.lseek(big, 0, 0)
"""

SENDFILE = """
print(send(w, fd, 0, 50), rest(r))
print(os.lseek(fd, 95, 0), send(w, fd, None, 50), os.lseek(fd, 0, 1), rest(r))
print(send(w, fd, None, 50), send(w, fd, 200, 50), send(w, fd, 0, 0))
print(send(out, fd, 0, 50), os.pread(out, 99, 0), os.lseek(out, 0, 1))
print(send(out, native, 0, 9), os.pread(out, 99, 0))
print(os.lseek(native, 5, 0), send(out, native, None, 9), os.pread(out, 99, 0))
print(os.lseek(native, 0, 1), send(native, fd, 0, 9), os.pread(native, 99, 0))
print(os.lseek(native, 0, 1), send(one.fileno(), fd, 3, 7), two.recv(99))
print(send(ro, fd, 0, 5), send(w, wo, 0, 5), send(append, native, 0, 5), send(w, fd, -1, 5))
print(send(nappend, fd, 0, 5), send(nro, fd, 0, 5), send(out, nappend, 0, 5), send(r, fd, 0, 5))
print(send(999, fd, 0, 5), send(fd, 999, 0, 5), send(999, wo, 0, 5))
print(send(w, top, 0, 5), send(w, path, 0, 5), send(path, fd, 0, 5), send(top, fd, 0, 5))
os.write(w, b"abc"); print(send(out, r, None, 3), send(out, r, 0, 3), rest(r))
print(one.send(b"abc"), send(out, two.fileno(), None, 3), send(out, two.fileno(), 0, 3))
null = os.open("/dev/null", os.O_WRONLY)
print(send(null, fd, 0, 30), send(os.eventfd(0), fd, 0, 8), send(null, big, 100, 999999))
os.lseek(out, 0, 0); print([send(out, big, None, 200000) for _ in range(3)])
print(os.lseek(out, 0, 1), os.lseek(big, 0, 1), os.fstat(out).st_size)
print(send(native, big, 0, 200000), os.fstat(native).st_size)
os.set_blocking(w, False)
print(send(w, big, 0, 200000), send(w, big, 0, 200000), len(rest(r)))
print(send(w, big, 100, 200000), len(rest(r)), one.setblocking(False))
print(0 < send(one.fileno(), big, 0, 20000000) <= 300000)
sys.stdout.flush(); signal.signal(signal.SIGPIPE, lambda *_: print("SIGPIPE"))
os.close(r); print(send(w, fd, 0, 5)); two.close(); print(send(one.fileno(), fd, 0, 5))
import resource
signal.signal(signal.SIGXFSZ, lambda *_: print("SIGXFSZ"))
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); os.ftruncate(out, 0); os.lseek(out, 0, 0)
print(send(out, fd, 0, 50), send(out, fd, 0, 50)); os.lseek(native, 0, 0)
print(send(native, fd, 0, 50), send(native, fd, 0, 50))
address = (ctypes.c_int64 * 1)(1 << 62)
print(call(SYS["sendfile"], w, fd, ctypes.c_void_p(8), ctypes.c_size_t(5)))
print(call(SYS["sendfile"], out, fd, address, ctypes.c_size_t(5)))
"""

SPLICE = """
print(splice(fd, w, 20, offset_src=5), rest(r), os.lseek(fd, 7, 0))
print(splice(fd, w, 20), os.lseek(fd, 0, 1), rest(r))
print(os.write(w, b"PIPE"), splice(r, out, 99, offset_dst=2), os.pread(out, 20, 0))
print(os.lseek(out, 0, 1))
print(os.write(w, b"pipe"), splice(r, out, 2), os.pread(out, 20, 0), os.lseek(out, 0, 1), rest(r))
print(splice(fd, out, 5), splice(fd, native, 5), splice(native, fd, 5), splice(wo, w, 3))
os.write(w, b"x"); print(splice(r, ro, 3), splice(r, append, 3), splice(r, out, 3, offset_src=1))
print(splice(fd, r, 3, offset_src=1), splice(fd, w, 5, offset_dst=3), rest(r))
print(splice(999, out, 3), splice(fd, 999, 3), splice(top, w, 3), splice(fd, one.fileno(), 3))
print(splice(fd, w, 5, offset_src=1000), splice(fd, w, 0))
def flagged(in_, out, flags): return call(SYS["splice"], in_, None, out, None, 5, flags)
print(flagged(fd, w, 16), flagged(fd, w, 1 | 4 | 8), rest(r), flagged(r, out, 2))
print(call(SYS["tee"], fd, w, 5, 0), call(SYS["tee"], r, fd, 5, 0))
print(call(SYS["vmsplice"], fd, None, 0, 0))
os.set_blocking(w, False)
print(splice(big, w, 200000, offset_src=0), splice(big, w, 200000, offset_src=0), len(rest(r)))
os.set_blocking(w, True); os.set_blocking(r, False); print(splice(r, out, 5))
os.write(w, bytes(50000)); print(splice(r, out, 99999), os.fstat(out).st_size)
os.close(w); print(splice(r, out, 5))
import resource
r, w = os.pipe(); os.ftruncate(out, 0); os.lseek(out, 0, 0)
signal.signal(signal.SIGXFSZ, lambda *_: print("SIGXFSZ"))
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); os.write(w, b"12345678901234")
print(splice(r, out, 20), splice(r, out, 20), rest(r), os.pread(out, 20, 0))
"""

COPY = """
print(copy(fd, out, 10, 0, 20), copy(fd, out, 10, 95, 0), os.pread(out, 99, 0))
print(os.lseek(fd, 90, 0), copy(fd, out, 100), os.lseek(fd, 0, 1), os.lseek(out, 0, 1))
print(copy(fd, native, 5), copy(native, fd, 5), copy(fd, w, 5), copy(fd, fd, 5, 0, 50))
print(copy(fd, fd, 50, 0, 20), copy(wo, out, 4), copy(fd, ro, 4), copy(fd, append, 4))
print(copy(fd, nro, 5), copy(nwo, fd, 5), copy(w, fd, 5), copy(fd, 999, 5), copy(999, fd, 5))
print(copy(os.open("/dev/null", os.O_RDWR), fd, 5), copy(wo, native, 4), copy(top, out, 4))
print(copy(fd, top, 4), copy(fd, path, 4), copy(fd, out, 0), copy(fd, os.open(".", 0), 4))
at = (ctypes.c_int64 * 1)(-5); size = ctypes.c_size_t(5); bad = ctypes.c_void_p(8)
def made(*args): return call(SYS["copy_file_range"], *args)
print(made(fd, at, out, None, size, 0), made(fd, None, out, at, size, 0))
print(made(fd, bad, out, at, size, 0))
print(made(fd, None, out, None, size, 1)); at[0] = (1 << 63) - 3
print(made(fd, at, out, None, size, 0), made(fd, None, out, at, size, 0))
"""


@pytest.mark.parametrize("script", [SENDFILE, SPLICE, COPY], ids=["sendfile", "splice", "copy"])
def test_results_are_linux_s(script: str) -> None:
    alike(make, BEGIN + script)


WAITS = """
def soon(function, *args):
    thread = threading.Thread(target=function, args=args); thread.start(); return thread
def asleep(thread):
    while open(f"/proc/self/task/{thread.native_id}/stat").read().split()[2] != "S": pass
def sent(*args): results.append(send(*args))
def spliced(*args): results.append(splice(*args))
results = []
thread = soon(sent, one.fileno(), big, 0, 299999); got = 0
while got < 299999: got += len(two.recv(99999))
thread.join(); print(got, results)
while os.write(w, bytes(4096)) and select.select([], [w], [], 0)[1]: pass
thread = soon(sent, w, fd, 0, 10); asleep(thread); print(results)
os.read(r, 99999); thread.join()
print(results, rest(r)[-10:])
thread = soon(spliced, r, out, 9); asleep(thread); os.write(w, b"abc"); thread.join()
print(results)
thread = soon(spliced, r, out, 9); asleep(thread); os.close(w); thread.join(); print(results)
r, w = os.pipe()
hits = []
signal.signal(signal.SIGALRM, lambda *_: hits.append(1)); signal.siginterrupt(signal.SIGALRM, True)
def raw(name, *args): return call(SYS[name], *args)
size = ctypes.c_size_t(100000000)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
print(raw("splice", r, None, out, None, size, 0), bool(hits))
print(0 < raw("sendfile", one.fileno(), big, None, size) <= 300000)
print(raw("sendfile", one.fileno(), big, (ctypes.c_int64 * 1)(0), size))
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 30000))
signal.setitimer(signal.ITIMER_REAL, 0)
print(raw("sendfile", one.fileno(), big, (ctypes.c_int64 * 1)(0), size))
"""


def test_waiting_for_room_and_for_bytes() -> None:
    assert "EINTR" in alike(make, BEGIN + WAITS)


def test_a_program_that_waits_can_be_killed(here: Path, sandbox: Sandbox) -> None:
    script = BEGIN + "print('waits', flush=True); os.splice(r, out, 9)\n"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "cwd": here}
    with sandbox.popen(python_argv(script), **pipes) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"waits\n"
        program.kill()
        assert program.wait(PATIENCE_S) == -9


def test_where_descriptors_cannot_be_fetched(
    here: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Docker's default profile: the thread lends them."""
    abilities.may_fetch.cache_clear()
    monkeypatch.setattr("recuse.sandbox.tasks.fetch.may_fetch", lambda: False)
    script = """
print(send(one.fileno(), fd, 3, 7), two.recv(99), send(out, native, 0, 9), os.pread(out, 99, 0))
print(send(native, fd, 0, 9), os.pread(native, 99, 0), send(out, native, None, 99))
def take():
    got = 0
    while got < 299999: got += len(two.recv(99999))
thread = threading.Thread(target=take); sent = 0
while sent < 299999:
    sent += send(one.fileno(), big, sent, 299999 - sent)
    if not thread.native_id: thread.start()
thread.join(); print(sent)
"""
    assert client_in(sandbox)(BEGIN + script, cwd=here) == (
        "7 b'3456789' 9 b'nativenat'\n9 b'nativenativenative012345678' 0\n299999\n"
    )


PROGRAMS = """
import shutil
os.mkdir("mnt/d")
data = os.urandom(3000000); open("mnt/d/a", "wb").write(data); open("a", "wb").write(data)
def same(path): return open(path, "rb").read() == data
for old, new in (("mnt/d/a", "mnt/d/b"), ("mnt/d/a", "b"), ("a", "mnt/d/c")):
    shutil.copyfile(old, new); print(same(new))
one, two = socket.socketpair()
def take(got): got.append(b"".join(iter(lambda: two.recv(99999), b"")))
got = []; thread = threading.Thread(target=take, args=(got,)); thread.start()
print(one.sendfile(open("mnt/d/a", "rb"))); one.close(); thread.join(); print(got[0] == data)
"""


def test_python_s_copies(client: Shell) -> None:
    assert client(PROGRAMS) == "True\nTrue\nTrue\n3000000\nTrue\n"


def test_cp_shares_what_it_can(sandbox: Sandbox, here: Path) -> None:
    script = """
import subprocess
open("mnt/a", "wb").write(os.urandom(200000))
for options in ("--reflink=auto", "--sparse=always", "--reflink=never"):
    subprocess.run(["cp", options, "mnt/a", "mnt/b"], check=True)
    print(open("mnt/a", "rb").read() == open("mnt/b", "rb").read())
"""
    assert client_in(sandbox)(script, cwd=here) == "True\nTrue\nTrue\n"


GO = """
package main

import ("fmt"; "io"; "net"; "os")

func main() {
    from, _ := os.Open(os.Args[1])
    to, _ := os.Create(os.Args[2])
    count, err := io.Copy(to, from)
    fmt.Println(count, err, to.Close())
    listener, _ := net.Listen("tcp", "127.0.0.1:0")
    go func() {
        socket, _ := listener.Accept()
        back, _ := os.Create(os.Args[3])
        io.Copy(back, socket)
        back.Close()
        socket.Close()
    }()
    socket, _ := net.Dial("tcp", listener.Addr().String())
    from.Seek(0, 0)
    count, err = io.Copy(socket, from)
    fmt.Println(count, err)
    socket.(*net.TCPConn).CloseWrite()
    io.ReadAll(socket)
}
"""


@pytest.mark.slow
def test_a_go_program_copies(sandbox: Sandbox, here: Path, needs: Needs) -> None:
    go = str(needs("go", "golang-go"))
    (here / "copy.go").write_text(GO)
    environment = {"HOME": str(here), "PATH": "/usr/bin:/bin", "GOFLAGS": "-mod=mod"}
    command = [go, "build", "-o", "copy", "copy.go"]
    subprocess.run(command, cwd=here, check=True, env=environment)
    script = """
import subprocess
data = os.urandom(1000000); open("mnt/a", "wb").write(data)
for to in ("mnt/b", "b"):
    print(subprocess.run(["./copy", "mnt/a", to, "mnt/c"], stdout=subprocess.PIPE).stdout)
    print(open(to, "rb").read() == open("mnt/c", "rb").read() == data)
"""
    line = r"b'1000000 <nil> <nil>\n1000000 <nil>\n'"
    assert client_in(sandbox)(script, cwd=here) == f"{line}\nTrue\n{line}\nTrue\n"


JAVA = """
import java.nio.channels.*;
import java.nio.file.*;

public class Copy {
    public static void main(String[] names) throws Exception {
        try (FileChannel from = FileChannel.open(Path.of(names[0]));
             FileChannel to = FileChannel.open(Path.of(names[1]), StandardOpenOption.CREATE,
                                               StandardOpenOption.WRITE)) {
            System.out.println(from.transferTo(0, from.size(), to));
        }
        Files.copy(Path.of(names[0]), Path.of(names[2]));
    }
}
"""


@pytest.mark.slow
def test_a_java_program_transfers(sandbox: Sandbox, here: Path, needs: Needs) -> None:
    java = str(needs("java", "default-jdk-headless"))
    (here / "Copy.java").write_text(JAVA)
    script = f"""
import subprocess
data = os.urandom(1000000); open("mnt/a", "wb").write(data)
command = [{java!r}, "Copy.java", "mnt/a"]
for to in ("mnt/b", "b"):
    print(subprocess.run([*command, to, "mnt/c" + to[0]], stdout=subprocess.PIPE).stdout)
    print(open(to, "rb").read() == open("mnt/c" + to[0], "rb").read() == data)
"""
    line = r"b'1000000\n'"
    assert client_in(sandbox)(script, cwd=here) == f"{line}\nTrue\n{line}\nTrue\n"


class Failing(Filesystem):
    """A file whose second half cannot be read."""

    def __init__(self) -> None:
        class Half(RegularFile):
            mode = 0o444
            size = 1 << 20
            reads = threading.Lock()

            def read(self, size: int, offset: int) -> bytes:
                if offset + size > 1 << 19:
                    raise OSError(5, "broken")
                return bytes(size)

            def open(self, request: OpenRequest) -> Any:
                return super().open(request)

        super().__init__(Directory({"half": Half()}))


def test_what_could_be_read_is_sent_before_an_error() -> None:
    script = """
half = os.open("mnt/half", os.O_RDONLY); null = os.open("/dev/null", os.O_WRONLY)
sent = []
while isinstance(count := attempt(os.sendfile, null, half, None, 1 << 20), int): sent.append(count)
print(sum(sent) <= 1 << 19, sum(sent) > 0, count, os.lseek(half, 0, 1) == sum(sent))
"""
    assert alike(Failing, script) == "True True EIO True\n"
