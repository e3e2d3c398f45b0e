"""FUSE over io_uring: what is different from /dev/fuse, above all when methods block."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recuse
from recuse import Directory, Filesystem, Mount, RegularFile
from recuse.channel import mount as mount_module
from recuse.channel.io_uring import Ring
from recuse.channel.rings import Rings
from recuse.channel.unmounting import abort
from recuse.cli.filesystem_spec import load_filesystem
from recuse.server import loop
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.fuse import FUSE_READ

from .conftest import EXAMPLES, PATIENCE_S, Serve, Somebody, is_mounted
from .programs import CPUS, STAT, python, result, tree

MEMORY = f"{EXAMPLES}/memoryfs.py"


class Gate:
    """Where methods wait until the test lets them go on."""

    def __init__(self) -> None:
        self.came = threading.Semaphore(0)
        self.open = threading.Event()

    def wait_for(self, count: int) -> None:
        """Wait until so many methods have come here."""
        for _ in range(count):
            assert self.came.acquire(timeout=PATIENCE_S)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()


class Blocking(RegularFile):
    """A file whose read waits, and occupies its thread."""

    size = None

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def read(self, size: int, offset: int) -> Any:
        self.gate.came.release()
        self.gate.open.wait(PATIENCE_S)
        return b"" if offset else b"at last\n"


class Waiting(Blocking):
    """The same, as a coroutine."""

    async def read(self, size: int, offset: int) -> bytes:
        self.gate.came.release()
        while not self.gate.open.is_set():
            await asyncio.sleep(0.001)
        return b"" if offset else b"at last\n"


TRY = """
import os
for _ in range(10):
    try:
        open("hello").read()
    except OSError:
        pass
print("done")
"""
READERS = """
import sys, threading
def read():
    with open(sys.argv[1]) as file:
        texts.append(file.read())
texts = []
threads = [threading.Thread(target=read) for _ in range(int(sys.argv[2]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(set(texts), len(texts))
"""


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("cpu", CPUS)
def test_the_thread_of_a_cpu_serves_it(cpu: int) -> None:
    with Mount(tree(), None, "io_uring") as mount:
        assert mount.uses_io_uring
        (ring,) = [ring for ring in mount._rings._cpus if ring.cpu == cpu]  # type: ignore[union-attr]
        before = ring.taken
        assert result(python("print(open('hello').read())", mount, cpu=cpu)) == "Hello, world!\n\n"
        # LOOKUP, OPEN, READ.
        assert ring.taken >= before + 3
    assert not ring.waiting


@pytest.mark.usefixtures("detached")
def test_where_this_process_may_not_run() -> None:
    if len(CPUS) == 1:
        pytest.skip("there is only one CPU")
    os.sched_setaffinity(0, CPUS[1:])
    try:
        with Mount(tree(), None, "io_uring") as mount:
            assert mount.uses_io_uring
            assert [ring.cpu for ring in mount._rings._cpus] == CPUS[1:]  # type: ignore[union-attr]
            for cpu in CPUS:
                assert result(python(STAT, mount, cpu=cpu)) == "14\n"
    finally:
        os.sched_setaffinity(0, CPUS)


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("kind", [Blocking, Waiting])
@pytest.mark.parametrize("count", [1, 40])
def test_methods_that_wait_hold_nobody_up(kind: type[Blocking], count: int) -> None:
    with Gate() as gate, Mount(tree(waits=kind(gate)), None, "io_uring") as mount:
        readers = python(READERS, mount, "waits", str(count), cpu=CPUS[0])
        gate.wait_for(count)
        for cpu in CPUS:
            assert result(python(STAT, mount, cpu=cpu)) == "14\n"
        gate.open.set()
        assert result(readers) == f"{{'at last\\n'}} {count}\n"


class Meeting(Directory):
    """A directory in which no name is found until so many have been looked for."""

    def __init__(self, count: int) -> None:
        super().__init__({})
        self.barrier = threading.Barrier(count)

    def lookup(self, name: str) -> Any:
        self.barrier.wait(PATIENCE_S)
        return RegularFile(name.encode())


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("count", [2, 20])
def test_lookups_that_wait_for_each_other(count: int, cpu: int) -> None:
    # The kernel knows no file yet: only directories have requests that wait.
    with Mount(Filesystem(Meeting(count)), None, "io_uring") as mount:
        assert mount.uses_io_uring
        programs = [
            python(f"import os; print(os.stat('n{index}').st_size)", mount, cpu=cpu)
            for index in range(count)
        ]
        for index, program in enumerate(programs):
            assert result(program) == f"{len(f'n{index}')}\n"


@pytest.mark.usefixtures("detached")
def test_a_file_of_our_own_is_not_seen() -> None:
    with Mount(Filesystem(Directory({})), None, "io_uring") as mount:
        rings = mount._rings
        assert rings is not None
        assert rings._file is not None
        assert os.listdir(mount.path) == []
        with pytest.raises(FileNotFoundError):
            os.stat(rings._file._name, dir_fd=mount.fileno())


class Recursive(RegularFile):
    """A file that gets its content from the same filesystem."""

    size = None
    directory = ""

    def read(self, size: int, offset: int) -> bytes:
        if offset:
            return b""
        with open(f"{self.directory}/hello", "rb") as file:
            return file.read()


@pytest.mark.usefixtures("detached")
def test_a_method_that_uses_its_own_mount() -> None:
    with Mount(tree(again=Recursive()), None, "io_uring") as mount:
        Recursive.directory = mount.path
        for cpu in CPUS:
            done = python("print(open('again').read(), end='')", mount, cpu=cpu)
            assert result(done) == "Hello, world!\n"


MUCH = """
import os
data = os.urandom(3 << 20)
number = os.open("content", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
assert os.pwrite(number, data, 0) == len(data)
assert os.pread(number, len(data), 0) == data
value = os.urandom(65536)
os.setxattr("content", "user.much", value)
assert os.getxattr("content", "user.much") == value
"""


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("most", [4096, 1 << 20])
def test_large_requests(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    handle = FilesystemSession.handle

    def note(self: FilesystemSession, message: bytes, reply: Any) -> None:
        sizes.add(len(message))
        handle(self, message, reply)

    monkeypatch.setattr(FilesystemSession, "handle", note)
    filesystem = load_filesystem(MEMORY)
    filesystem.max_read = filesystem.max_write = most
    with Mount(filesystem, None, "io_uring") as mount:
        assert mount.uses_io_uring
        result(python(MUCH, mount))
    assert max(sizes) == max(most + 80, 65536 + 66)


@pytest.mark.usefixtures("detached")
def test_long_listings() -> None:
    names = {f"{number:0>250}": RegularFile(b"x" * number) for number in range(2000)}
    with Mount(Filesystem(Directory(dict(names))), None, "io_uring") as mount:
        code = "import os; print(sum(entry.stat().st_size for entry in os.scandir()))"
        assert result(python(code, mount)) == f"{sum(range(2000))}\n"
        (longest,) = [name for name in os.listdir(mount.path) if name.endswith("1999")]
        assert os.stat(longest, dir_fd=mount.fileno()).st_size == 1999


class Stubborn(Blocking):
    """A file whose read, a coroutine, cannot be cancelled."""

    async def read(self, size: int, offset: int) -> bytes:
        self.gate.came.release()
        while not self.gate.open.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)
        return b""


@pytest.mark.usefixtures("detached")
def test_the_end_while_a_coroutine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STOP_WAIT_S", 0.1)
    with Gate() as gate:
        with Mount(tree(waits=Stubborn(gate)), None, "io_uring") as mount:
            reader = python(READERS, mount, "waits", "1", cpu=CPUS[0])
            gate.wait_for(1)
        reader.communicate(timeout=PATIENCE_S)
        rings = mount._rings
        assert rings is not None
        for ring in rings._cpus:
            assert ring._thread is not None
            ring._thread.join(PATIENCE_S)
            assert not ring._thread.is_alive()


class Raising(RegularFile):
    """A file that cannot be read."""

    size = None

    def read(self, size: int, offset: int) -> bytes:
        if offset == 0:
            raise RuntimeError("on purpose")
        raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN))


@pytest.mark.usefixtures("detached")
def test_a_method_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    with Mount(tree(raises=Raising()), None, "io_uring") as mount:
        number = os.open("raises", os.O_RDONLY, dir_fd=mount.fileno())
        for offset, expected in ((0, errno.EIO), (10, errno.EUCLEAN), (0, errno.EIO)):
            with pytest.raises(OSError, match=os.strerror(expected)):
                os.pread(number, 10, offset)
        os.close(number)
    assert "on purpose" in caplog.text


@pytest.mark.usefixtures("detached")
def test_an_internal_error_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = FilesystemSession.handle

    def broken(self: FilesystemSession, message: bytes, reply: Any) -> None:
        if b"hello" in message:
            raise RuntimeError("on purpose")
        handle(self, message, reply)

    monkeypatch.setattr(FilesystemSession, "handle", broken)
    with Mount(tree(), None, "io_uring") as mount:
        for _ in range(3):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.stat("hello", dir_fd=mount.fileno())
        os.listdir(mount.path)
    assert "on purpose" in caplog.text


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize(("owner", "name"), [(Ring, "add"), (Ring, "next"), (Rings, "serve")])
def test_a_lack_of_memory_loses_no_request(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = getattr(owner, name)
    calls: list[bool] = []

    def lacking(*arguments: Any) -> Any:
        # Each second call fails for a while.
        if lacks and len(calls) < 20:
            calls.append(len(calls) % 2 == 1)
            if calls[-1]:
                raise MemoryError
        return usual(*arguments)

    lacks = False
    monkeypatch.setattr(owner, name, lacking)
    with Gate() as gate, Mount(tree(waits=Blocking(gate)), None, "io_uring") as mount:
        readers = python(READERS, mount, "waits", "3", cpu=CPUS[0])
        gate.wait_for(3)
        lacks = True
        programs = [python(TRY, mount, cpu=cpu) for cpu in CPUS]
        gate.open.set()
        for program in programs:
            assert result(program) == "done\n"
        readers.communicate(timeout=PATIENCE_S)
        lacks = False
        assert True in calls
        assert result(python(STAT, mount)) == "14\n"


@pytest.mark.usefixtures("detached")
def test_a_ring_that_breaks_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = Ring.add

    def broken(self: Ring, *arguments: Any) -> None:
        if breaks and threading.current_thread().name == "recuse-ring":
            raise RuntimeError("on purpose")
        add(self, *arguments)

    breaks = False
    monkeypatch.setattr(Ring, "add", broken)
    with Mount(tree(), None, "io_uring") as mount:
        breaks = True
        with pytest.raises(OSError, match=f"{errno.ENOTCONN}|{errno.ECONNABORTED}"):
            os.stat("not there", dir_fd=mount.fileno())
    assert "on purpose" in caplog.text


class Interruptible(Blocking):
    """A file whose read ends when its program gets a signal."""

    def read(self, size: int, offset: int) -> bytes:
        request = recuse.current_request()
        self.gate.came.release()
        while not request.interrupted:
            assert not self.gate.open.wait(0.001)
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))


SIGNALLED = """
import os, signal
def handler(*_): raise KeyboardInterrupt
signal.signal(signal.SIGUSR1, handler)
try:
    open("waits").read()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("kind", [Interruptible, Waiting])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_program_that_gets_a_signal(kind: type[Blocking], number: int) -> None:
    with Gate() as gate, Mount(tree(waits=kind(gate)), None, "io_uring") as mount:
        program = python(SIGNALLED, mount)
        gate.wait_for(1)
        program.send_signal(number)
        output, _ = program.communicate(timeout=PATIENCE_S)
        if number == signal.SIGKILL:
            assert program.returncode == -number
        else:
            assert output == "interrupted\n"
        assert result(python(STAT, mount)) == "14\n"


@pytest.mark.usefixtures("detached")
def test_an_interrupt_that_is_faster_than_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    # The request is there, but its thread has not taken it yet.
    late = threading.Event()
    refused = threading.Event()
    serve = Rings.serve
    interrupt = Rings.interrupt

    def serve_late(self: Rings, entry: Any) -> None:
        if entry._memory[4] == FUSE_READ:
            late.set()
            assert refused.wait(PATIENCE_S)
        serve(self, entry)

    def tell(self: Rings, unique: int, try_to: Callable[[], bool]) -> None:
        def try_and_tell() -> bool:
            could = try_to()
            if not could:
                refused.set()
            return could

        interrupt(self, unique, try_and_tell)

    monkeypatch.setattr(Rings, "serve", serve_late)
    monkeypatch.setattr(Rings, "interrupt", tell)
    with Gate() as gate, Mount(tree(waits=Interruptible(gate)), None, "io_uring") as mount:
        program = python(SIGNALLED, mount)
        assert late.wait(PATIENCE_S)
        program.send_signal(signal.SIGUSR1)
        assert result(program) == "interrupted\n"


@pytest.mark.usefixtures("detached")
def test_many_programs_at_once() -> None:
    code = """
import os, sys, threading
def work(index):
    for turn in range(20):
        with open("hello") as file: assert file.read() == "Hello, world!\\n"
        name = f"{index}-{turn}"
        with open(name, "w") as file: file.write(name)
        os.rename(name, name + "x")
        with open(name + "x") as file: assert file.read() == name
        os.unlink(name + "x")
        done.append(index)
done = []
threads = [threading.Thread(target=work, args=(index,)) for index in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(done), os.listdir())
"""
    with Mount(load_filesystem(MEMORY), None, "io_uring") as mount:
        Path(mount.path, "hello").write_text("Hello, world!\n", encoding="ascii")
        assert result(python(code, mount)) == "1280 ['hello']\n"


def wait_for_end_of(mount: Mount) -> None:
    """Wait until threads that were in methods have ended, too, and closed their rings."""
    rings = mount._rings
    assert rings is not None
    rings.join()
    for ring in rings._cpus:
        assert ring._thread is not None
        ring._thread.join(PATIENCE_S)
        assert not ring._thread.is_alive()


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("kind", [Blocking, Waiting])
def test_the_end_while_methods_wait(kind: type[Blocking]) -> None:
    with Gate() as gate:
        mount = Mount(tree(waits=kind(gate)), None, "io_uring")
        with mount:
            readers = python(READERS, mount, "waits", "5", cpu=CPUS[0])
            gate.wait_for(5)
        readers.communicate(timeout=PATIENCE_S)
        assert readers.returncode == 0  # its threads have failed
    wait_for_end_of(mount)


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("can_abort", [True, False])
@pytest.mark.parametrize("kind", [RegularFile, Blocking, Waiting])
def test_a_file_that_stays_open(
    can_abort: bool, kind: type[RegularFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_abort:  # as for an ordinary user where no fusectl is mounted
        monkeypatch.setattr(mount_module, "abort", lambda connection: None)
    with Gate() as gate:
        file = RegularFile(b"text") if kind is RegularFile else kind(gate)  # type: ignore[arg-type]
        mount = Mount(tree(file=file), None, "io_uring")
        with mount:
            number = os.open("file", os.O_RDONLY, dir_fd=mount.fileno())
            if kind is not RegularFile:
                reader = python(READERS, mount, "file", "1", cpu=CPUS[0])
                gate.wait_for(1)
        for _ in range(3):
            for cpu in CPUS:
                os.sched_setaffinity(0, {cpu})
                with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                    os.read(number, 1)
        os.sched_setaffinity(0, CPUS)
        os.close(number)
        gate.open.set()
        if kind is not RegularFile:
            reader.communicate(timeout=PATIENCE_S)
        # Then the threads end, and what they have open is closed.
        wait_for_end_of(mount)


@pytest.mark.usefixtures("rings", "root")
def test_aborted(directory: Path) -> None:
    ended = threading.Event()
    with Gate() as gate:
        mount = Mount(tree(waits=Blocking(gate)), directory, "io_uring", ended=ended.set)
        with mount:
            readers = python(READERS, mount, "waits", "3", cpu=CPUS[0])
            gate.wait_for(3)
            abort(os.minor(os.stat(directory).st_dev))
            readers.communicate(timeout=PATIENCE_S)
            assert ended.wait(PATIENCE_S)
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.stat(directory / "not known yet")
    wait_for_end_of(mount)
    assert not is_mounted(directory)


@pytest.mark.usefixtures("rings", "root")
def test_unmounted_by_somebody_else(directory: Path) -> None:
    ended = threading.Event()
    with Mount(tree(), directory, "io_uring", ended=ended.set) as mount:
        assert result(python(STAT, mount)) == "14\n"
        subprocess.run(["umount", directory], check=True, timeout=PATIENCE_S)
        assert ended.wait(PATIENCE_S)
        assert mount.join(PATIENCE_S)


@pytest.mark.usefixtures("rings", "root")
def test_a_busy_mount_that_is_closed(directory: Path) -> None:
    with Gate() as gate:
        mount = Mount(tree(waits=Blocking(gate)), directory, "io_uring")
        with mount:
            inside = python("import os\nprint(1, flush=True)\ninput()\nos.stat('hello')", mount)
            reader = python(READERS, mount, "waits", "1")
            gate.wait_for(1)
        # Nobody serves it any more, and nothing hangs.
        reader.communicate(timeout=PATIENCE_S)
        _, errors = inside.communicate("\n", timeout=PATIENCE_S)
        assert os.strerror(errno.ENOTCONN) in errors or "EOF" in errors
    wait_for_end_of(mount)


BUSY = """
import asyncio, os, sys, threading
from recuse import Directory, Filesystem, Mount, RegularFile

class Blocking(RegularFile):
    size = None
    def read(self, size, offset):
        os.write(1, b"reads\\n")
        threading.Event().wait()

class Waiting(RegularFile):
    size = None
    async def read(self, size, offset):
        os.write(1, b"reads\\n")
        await asyncio.Event().wait()

tree = Directory({"hello": RegularFile(b"Hello, world!\\n"), "a": Blocking(), "b": Waiting()})
mount = Mount(Filesystem(tree), sys.argv[1], "io_uring")
mount.start()
assert mount.uses_io_uring
print("mounted", flush=True)
input()
"""


@pytest.mark.usefixtures("rings", "root")
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_server_that_ends_without_closing(directory: Path, end: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", BUSY, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    assert server.stdout.readline() == "mounted\n"
    readers = [subprocess.Popen(["cat", directory / name]) for name in ("a", "b")]
    for _ in readers:
        assert server.stdout.readline() == "reads\n"
    os.stat(directory / "hello")
    if end == "kill":
        server.kill()
    else:
        server.stdin.close()
    server.stdout.close()
    server.wait(PATIENCE_S)
    for reader in readers:
        assert reader.wait(PATIENCE_S) == 1
    # The process that watches over it unmounts it.
    while is_mounted(directory):
        with contextlib.suppress(OSError):
            os.stat(directory)
    server.stdin.close()


@pytest.mark.usefixtures("rings", "root")
def test_passthrough(serve: Serve, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"below\n")
    spec = f"{EXAMPLES}/mirrorfs.py,source={tmp_path}"
    server = serve("-o", "io_uring", spec, str(directory))
    assert server.line() == str(directory)
    assert (directory / "file").read_bytes() == b"below\n"
    (directory / "file").write_bytes(b"written\n")
    assert (tmp_path / "file").read_bytes() == b"written\n"
    assert server.end(signal.SIGTERM) == (0, "")


@pytest.mark.usefixtures("rings")
def test_with_a_trace(serve: Serve, directory: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    server = serve(f"--trace={trace}", "-o", "io_uring", MEMORY, str(directory))
    assert server.line()
    (directory / "file").write_text("text", encoding="ascii")
    assert server.end(signal.SIGTERM) == (0, "")
    text = trace.read_text(encoding="utf-8")
    for part in ("INIT(", 'LOOKUP("file', "CREATE(", "WRITE("):
        assert part in text
    # Each has its answer.
    (created,) = [line for line in text.splitlines() if "CREATE(" in line]
    assert " = " in created, created


@pytest.mark.usefixtures("rings")
def test_an_ordinary_user(somebody: Somebody, needs: Callable[..., Path]) -> None:
    needs("fusermount3", "fuse3")
    spec = f"{somebody.home}/examples/memoryfs.py"
    place = str(somebody.directory)
    done = somebody.recuse("mount", "--background", "-o", "io_uring", spec, place)
    assert (done.stdout, done.stderr, done.returncode) == (f"{place}\n", "", 0)
    try:
        script = f"echo text >{place}/file; cat {place}/file"
        assert somebody.run("sh", "-c", script).stdout == "text\n"
    finally:
        assert somebody.recuse("umount", place).returncode == 0


@pytest.mark.usefixtures("rings")
def test_for_one_program_of_an_ordinary_user(somebody: Somebody) -> None:
    if somebody.run("unshare", "-Urm", "true").returncode:
        pytest.skip("there are no user namespaces for ordinary users")
    spec = f"{somebody.home}/examples/memoryfs.py"
    place = str(somebody.directory)
    script = f"cd {place}; echo text >file; cat file"
    arguments = ["mount", "--private", "-o", "io_uring", spec, place, "--", "sh", "-c", script]
    done = somebody.recuse(*arguments)
    assert (done.stdout, done.stderr, done.returncode) == ("text\n", "", 0)
