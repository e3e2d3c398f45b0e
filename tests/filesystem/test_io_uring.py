"""FUSE over io_uring: what is different from /dev/fuse, above all when methods block."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recuse
from recuse import Directory, Filesystem, Mount, RegularFile
from recuse.channel import rings as rings_module
from recuse.channel.rings import Rings
from recuse.cli.filesystem_spec import load_filesystem
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.fuse import FUSE_READ

from .conftest import EXAMPLES, PATIENCE_S, Serve, Somebody
from .programs import CPUS, READERS, STAT, Blocking, Gate, Waiting, python, result, tree

MEMORY = f"{EXAMPLES}/memoryfs.py"


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
        gate.open()
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


class Making(Directory):
    """A directory in which making another takes a while, as the kernel locks it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__({})
        self.gate = gate

    def mkdir(self, name: str, mode: int) -> Directory:
        self.gate.pass_through()
        self.children[name] = made = Directory({})
        return made


@pytest.mark.usefixtures("detached")
def test_a_root_directory_that_is_held_up_from_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    know_file = Rings.know_file
    programs = []

    def after_another(self: Rings, root: str) -> None:
        programs.append(python("import os; os.mkdir('made'); print('made')", mount))
        gate.wait_for(1)
        know_file(self, root)

    monkeypatch.setattr(Rings, "know_file", after_another)
    monkeypatch.setattr(rings_module, "_LOOK_UP_S", 0.1)
    gate = Gate()
    mount = Mount(Filesystem(Making(gate)), None, "io_uring")
    with gate, mount:
        assert "a method holds up the root directory" in caplog.text
        gate.open()
        (program,) = programs
        assert result(program) == "made\n"
        assert os.listdir(mount.path) == ["made"]


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

    def note(self: FilesystemSession, message: bytes, reply: Any, gather: Any = None) -> None:
        sizes.add(len(message))
        handle(self, message, reply, gather)

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


class Interruptible(Blocking):
    """A file whose read ends when its program gets a signal."""

    def read(self, size: int, offset: int) -> bytes:
        request = recuse.current_request()
        self.gate.came.release()
        while not request.interrupted:
            time.sleep(0.001)  # a plain method can only look
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
