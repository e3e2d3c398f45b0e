"""`recuse mount` and `recuse umount`: real processes and the real kernel."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import EXAMPLES, PATIENCE_S, RECUSE, Serve, Somebody, is_mounted, require

Command = Callable[..., subprocess.CompletedProcess[str]]

HELLO = str(EXAMPLES / "hellofs.py")
MEMORY = str(EXAMPLES / "memoryfs.py")


def servers_of(directory: Path) -> list[int]:
    """Processes that name a directory: servers in the background, and guards."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(directory) in arguments:
            found.append(int(entry.name))
    return found


def until(condition: Callable[[], object]) -> None:
    """Wait for another process."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_served_until_a_signal(serve: Serve, directory: Path, number: int) -> None:
    server = serve(HELLO, str(directory))
    assert server.line() == str(directory)
    with open(directory / "clock", "rb", buffering=0) as file:
        assert file.read(100).endswith(b"\n")
        # Open at the end: that is no hindrance.
        assert server.end(number) == (0, "")
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            file.read(1)
    assert not is_mounted(directory)
    until(lambda: servers_of(directory) == [])


def test_unmounting_ends_the_server(serve: Serve, command: Command, directory: Path) -> None:
    server = serve(HELLO, str(directory), "-o", "ro", "-o", "fsname=x")
    assert server.line() == str(directory)
    done = command("umount", str(directory))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert server.end() == (0, "")


def test_a_busy_mount_is_unmounted_if_that_is_said(
    serve: Serve, command: Command, directory: Path
) -> None:
    server = serve(HELLO, str(directory))
    assert server.line()
    with open(directory / "hello", "rb"):
        done = command("umount", str(directory))
        assert (done.returncode, done.stderr) == (
            1,
            f"recuse: {directory}: a program uses it: end that, or unmount it all the same "
            "with --lazy\n",
        )
        assert command("umount", "--lazy", str(directory)).returncode == 0
        assert not is_mounted(directory)
    assert server.end() == (0, "")


def test_what_is_not_unmounted(command: Command, directory: Path) -> None:
    for path, reason in (
        (str(directory), "no FUSE filesystem is mounted there"),
        ("/proc", "no FUSE filesystem is mounted there"),
        (f"{directory}/none", "No such file or directory"),
    ):
        done = command("umount", path)
        assert (done.returncode, done.stderr) == (1, f"recuse: {path}: {reason}\n")


def test_a_filesystem_of_inodes(command: Command, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    spec = f"{EXAMPLES}/loopbackfs.py,source={tmp_path / 'source'},name=mine,read_only=1"
    done = command("mount", "--background", spec, str(directory))
    assert (done.stdout, done.stderr, done.returncode) == (f"{directory}\n", "", 0)
    (tmp_path / "source" / "file").write_text("hello")
    assert (directory / "file").read_text() == "hello"
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (directory / "file").write_text("bye")
    assert f" {directory} fuse.mine ro," in Path("/proc/self/mounts").read_text()
    assert command("umount", str(directory)).returncode == 0


def test_in_the_background(command: Command, directory: Path) -> None:
    done = command("mount", "--background", f"{MEMORY},name=mine", str(directory))
    assert (done.stdout, done.stderr, done.returncode) == (f"{directory}\n", "", 0)
    (directory / "file").write_text("hello")
    assert os.listdir(directory) == ["file"]
    assert len(servers_of(directory)) == 2
    assert command("umount", str(directory)).returncode == 0
    until(lambda: servers_of(directory) == [])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.py", "recuse: none.py: no such file\n"),
        (f"{HELLO}:Other", f"recuse: {HELLO}: has no class Other; choose Clock or Hello\n"),
        (f"{HELLO},nothing=1", f"recuse: {HELLO}: Hello has no argument nothing; it takes "),
        (
            f"{EXAMPLES}/echo.py",
            f"recuse: {EXAMPLES}/echo.py: is a device, not a filesystem: "
            f"use `recuse run -d {EXAMPLES}/echo.py PROGRAM`\n",
        ),
        (
            f"{EXAMPLES}/fmmap_client.py",
            f"recuse: {EXAMPLES}/fmmap_client.py: has no filesystem class (a subclass of "
            "recuse.Filesystem or recuse.Inodes)\n",
        ),
        (f"{EXAMPLES}/mirrorfs.py", "Mirror needs source=... after a comma\n"),
        (f"{EXAMPLES}/mirrorfs.py,source=/none", "No such file or directory"),
        (
            f"{EXAMPLES}/loopbackfs.py,source=/,xattrs=1",
            "Loopback has no argument xattrs; it takes source, name, cache_s, read_only",
        ),
    ],
)
def test_what_cannot_be_mounted(command: Command, directory: Path, spec: str, message: str) -> None:
    # The server in the background is what says it with --background.
    done = command("mount", "--background", spec, str(directory))
    assert done.returncode == 1
    assert message.replace("Clock or Hello", "Hello") in done.stderr
    assert done.stderr.count("\n") == 1
    assert not is_mounted(directory)


def test_what_cannot_be_mounted_in_the_foreground(command: Command, directory: Path) -> None:
    done = command("mount", "none.py", str(directory))
    assert (done.returncode, done.stderr) == (1, "recuse: none.py: no such file\n")


def test_what_a_server_in_the_background_says_at_its_start(
    command: Command, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fs.py"
    path.write_text("import sys\nsys.stderr.write('x' * 200_000 + '\\n')\nraise OSError(5, 'no')\n")
    done = command("mount", "--background", str(path), str(directory))
    assert done.returncode == 1
    assert done.stderr == "x" * 200_000 + f"\nrecuse: {path}:3: OSError: [Errno 5] no\n"


@pytest.mark.parametrize("log", ["a file", "systemd's journal"])
def test_what_a_server_in_the_background_says_later(
    command: Command, directory: Path, tmp_path: Path, log: str
) -> None:
    path = tmp_path / "fs.py"
    path.write_text(
        "from recuse import *\n"
        "class Bad(RegularFile):\n    size = None\n    def read(self, size, offset): return 1/0\n"
        "fs = Filesystem(Directory({'bad': Bad()}))\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "log").open("wb") as file:
        errors = file.fileno() if log == "a file" else theirs.fileno()
        status = os.fstat(theirs.fileno())
        done = subprocess.run(
            [*command("--version").args[:-1], "mount", "--background", path, directory],
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
            timeout=PATIENCE_S,
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        )
        theirs.close()
        assert done.stdout == os.fsencode(f"{directory}\n")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (directory / "bad").read_bytes()
        assert command("umount", str(directory)).returncode == 0
        until(lambda: servers_of(directory) == [])
        said = (tmp_path / "log").read_bytes() if log == "a file" else ours.recv(1 << 20)
    assert b"recuse: ZeroDivisionError: division by zero\n" in said


@pytest.mark.parametrize(
    ("end", "ended"),
    [
        ("os.kill(os.getpid(), 9)", (128 + 9, "Killed")),
        ("os._exit(0)", (1, "it did not say why")),
    ],
)
def test_a_server_in_the_background_that_ends_without_a_word(
    command: Command, directory: Path, tmp_path: Path, end: str, ended: tuple[int, str]
) -> None:
    path = tmp_path / "fs.py"
    path.write_text(f"import os\n{end}\n", encoding="utf-8")
    done = command("mount", "--background", str(path), str(directory))
    message = f"recuse: {path}: the server has ended: {ended[1]}\n"
    assert (done.returncode, done.stdout, done.stderr) == (ended[0], "", message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("background", [[], ["--background"]])
def test_a_signal_while_a_filesystem_is_loaded(
    serve: Serve, directory: Path, tmp_path: Path, background: list[str], number: int
) -> None:
    path = tmp_path / "fs.py"
    begun = tmp_path / "begun"
    path.write_text(f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep({PATIENCE_S})\n")
    server = serve(*background, str(path), str(directory))
    until(begun.exists)
    assert server.end(number)[0] != 0
    until(lambda: servers_of(directory) == [])


@pytest.mark.parametrize("root", ["", '"text"'])
def test_a_filesystem_without_a_root(
    command: Command, directory: Path, tmp_path: Path, root: str
) -> None:
    path = tmp_path / "fs.py"
    path.write_text(f"from recuse import *\nfs = Filesystem({root})\n", encoding="utf-8")
    done = command("mount", str(path), str(directory))
    message = f"recuse: {path}: Filesystem has no root: a Directory\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "ro,nonsense"], "-o nonsense: is no option; there are allow_other, "),
        (["--background", "-o", "uid=x"], "-o uid=x: uid is a number (see recuse mount --help)"),
        (["--background", "--trace"], "--background --trace: nobody would see it: add a file, "),
        (["--private"], "--private needs a program: add -- PROGRAM (see recuse mount --help)"),
        (["--", "true"], "mount takes no program without --private"),
        (["--private", "--background", "--", "true"], "cannot be combined"),
    ],
)
def test_arguments_that_are_wrong(
    command: Command, directory: Path, arguments: list[str], message: str
) -> None:
    done = command("mount", HELLO, str(directory), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("directory", "options", "message"),
    [
        ("/dev/fd/0", "default_permissions", "/dev/fd/0: is not /dev/fuse"),
        ("/dev/fd/987", "default_permissions", "/dev/fd/987: Bad file descriptor"),
    ],
)
def test_a_descriptor_that_is_not_mounted(
    command: Command, directory: str, options: str, message: str
) -> None:
    for background in ([], ["--background"]):
        done = command("mount", *background, HELLO, directory, "-o", options)
        assert (done.returncode, done.stderr) == (1, f"recuse: {message}\n")


def test_a_constructor_that_takes_anything(
    serve: Serve, command: Command, directory: Path, tmp_path: Path
) -> None:
    """It does not get what every filesystem has: that is set."""
    path = tmp_path / "fs.py"
    path.write_text(
        "from recuse import ArgumentError, Directory, Filesystem, RegularFile\n"
        "class Any(Filesystem):\n"
        "    def __init__(self, **options):\n"
        "        if 'no' in options: raise ArgumentError(f'no={options[\"no\"]}: no')\n"
        "        super().__init__(Directory(dict.fromkeys(options, RegularFile(b''))))\n"
    )
    server = serve(f"{path},name=any,read_only=yes,colour=1", str(directory))
    assert server.line()
    assert os.listdir(directory) == ["colour"]
    assert re.search(rf" {directory} fuse.any ro,", Path("/proc/self/mounts").read_text())
    assert server.end(signal.SIGTERM) == (0, "")
    done = command("mount", f"{path},cache_s=x", str(directory))
    assert "cache_s must be a number" in done.stderr
    done = command("mount", f"{path},no=1", str(directory))
    assert (done.returncode, done.stderr) == (1, f"recuse: {path}: no=1: no\n")


def test_an_object_of_a_module(
    serve: Serve, command: Command, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fs.py"
    text = (
        "from recuse import Directory, Filesystem, RegularFile\n"
        "class Special(Filesystem):\n    name = 'special'\n"
        "one = Special(Directory({'one': RegularFile(b'')}))\n"
    )
    path.write_text(text)
    server = serve(f"{path},cache_s=0.5,read_only=yes", str(directory))
    assert server.line()
    assert os.listdir(directory) == ["one"]
    assert re.search(rf" {directory} fuse.special ro,", Path("/proc/self/mounts").read_text())
    assert server.end(signal.SIGTERM) == (0, "")
    path.write_text(text + "two = Special(Directory())\n")
    done = command("mount", str(path), str(directory))
    assert done.stderr == (
        f"recuse: {path}: has several filesystems: choose {path}:one or {path}:two\n"
    )
    done = command("mount", f"{path}:one,colour=1", str(directory))
    assert "Special is made already; what can be set is name, cache_s" in done.stderr


def test_after_a_kill_nothing_is_left(serve: Serve, directory: Path) -> None:
    server = serve(HELLO, str(directory))
    assert server.line()
    with open(directory / "hello", "rb"):
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
        until(lambda: not is_mounted(directory))
    until(lambda: servers_of(directory) == [])
    assert serve(HELLO, str(directory)).line() == str(directory)


def test_what_was_mounted_since_is_left_alone(serve: Serve, directory: Path) -> None:
    server = serve(HELLO, str(directory))
    assert server.line()
    other = serve(HELLO, str(directory), "-o", "nonempty,fsname=other")
    assert other.line()
    server.end(signal.SIGKILL)
    until(lambda: len(servers_of(directory)) == 2)
    assert os.listdir(directory) == ["hello", "clock"]
    assert other.end(signal.SIGTERM) == (0, "")
    subprocess.run(["umount", directory], check=True, timeout=PATIENCE_S)


def test_a_mount_that_is_dead(serve: Serve, command: Command, directory: Path) -> None:
    server = serve(HELLO, str(directory))
    assert server.line()
    for process in servers_of(directory):
        if process != server.process.pid:
            os.kill(process, signal.SIGKILL)
    server.end(signal.SIGKILL)
    done = command("mount", HELLO, str(directory))
    assert (done.returncode, done.stderr) == (
        1,
        f"recuse: {directory}: a FUSE filesystem is mounted there: umount {directory}\n",
    )
    assert command("umount", str(directory)).returncode == 0


def test_a_service_manager_is_told(serve: Serve, directory: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        server = serve(HELLO, str(directory), NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(100) == b"READY=1"
        assert is_mounted(directory)
        assert server.end(signal.SIGTERM) == (0, "")


def test_with_a_trace(serve: Serve, directory: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    server = serve(f"--trace={trace}", HELLO, str(directory))
    assert server.line()
    assert (directory / "hello").read_bytes() == b"Hello, world!\n"
    assert server.end(signal.SIGTERM) == (0, "")
    text = trace.read_text(encoding="utf-8")
    for part in ("INIT(", " -- mounted\n", 'LOOKUP("hello', "OPEN(", "READ("):
        assert part in text
    assert text.endswith(f" {directory} -- unmounted\n")
    assert "device" not in text


def test_for_one_program(command: Command, directory: Path) -> None:
    script = f"cd {directory}; echo text >file; cat file; test -e /proc/self; exit 5"
    done = command("mount", "--private", MEMORY, str(directory), "--", "sh", "-c", script)
    assert (done.stdout, done.stderr, done.returncode) == ("text\n", "", 5)
    assert not is_mounted(directory)
    done = command("mount", "--private", MEMORY, str(directory), "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 128 + 9
    done = command("mount", "--private", MEMORY, str(directory), "--", "/there/is/no/such")
    message = "recuse: /there/is/no/such: not found; is it installed, and on the PATH?\n"
    assert (done.returncode, done.stderr) == (127, message)
    done = command("mount", "--private", MEMORY, f"{directory}/none", "--", "true")
    assert done.returncode == 125


def test_a_signal_reaches_the_one_program(serve: Serve, directory: Path) -> None:
    script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do read line; done"
    server = serve("--private", MEMORY, str(directory), "--", "bash", "-c", script)
    assert server.line() == "ready"
    assert server.end(signal.SIGTERM)[0] == 7


def test_signals_that_the_one_program_ignores(directory: Path, command: Command) -> None:
    """They stay ignored: nohup."""
    grep = ["grep", "SigIgn", "/proc/self/status"]
    script = "trap '' HUP INT; exec \"$@\""
    recuse = [*RECUSE, "mount", "--private", MEMORY, str(directory), "--"]
    native, ours = (
        subprocess.run(["sh", "-c", script, "sh", *argv], stdout=subprocess.PIPE, check=True)
        for argv in (grep, [*recuse, *grep])
    )
    assert ours.stdout == native.stdout


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_while_the_one_program_starts(when: str) -> None:
    """It is passed on, too, though nobody knows the program yet."""
    script = f"""
import os, signal, subprocess, sys
from recuse.cli import private
class Started(subprocess.Popen):
    def __init__(self, *arguments):
        if {when == "before"}:
            os.kill(os.getpid(), signal.SIGTERM)
        super().__init__(*arguments)
        if {when == "after"}:
            os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Started
sys.exit(private._run(["sleep", "{PATIENCE_S}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=PATIENCE_S)
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.usefixtures("mounts")
def test_an_ordinary_user(somebody: Somebody, needs: Callable[..., Path]) -> None:
    needs("fusermount3", "fuse3")
    directory = somebody.directory
    spec = f"{somebody.home}/examples/memoryfs.py"
    done = somebody.recuse("mount", "--background", "-o", "relatime", spec, str(directory))
    assert (done.stdout, done.stderr, done.returncode) == (f"{directory}\n", "", 0)
    script = f"echo text >{directory}/file; cat {directory}/file"
    assert somebody.run("sh", "-c", script).stdout == "text\n"
    done = somebody.recuse("umount", str(directory))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    until(lambda: servers_of(directory) == [])


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("transport", ["no_io_uring", "io_uring"])
def test_after_a_kill_nothing_of_an_ordinary_users_is_left(
    somebody: Somebody, needs: Callable[..., Path], transport: str
) -> None:
    require(transport)
    needs("fusermount3", "fuse3")
    directory = somebody.directory
    spec = f"{somebody.home}/examples/memoryfs.py"
    options = ("--background", "-o", transport)
    assert somebody.recuse("mount", *options, spec, str(directory)).returncode == 0
    (server,) = (
        process
        for process in servers_of(directory)
        if b"mount" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    )
    os.kill(server, signal.SIGKILL)
    until(lambda: not is_mounted(directory))
    until(lambda: servers_of(directory) == [])


@pytest.mark.usefixtures("root")
def test_what_an_ordinary_user_may_not(somebody: Somebody, needs: Callable[..., Path]) -> None:
    needs("fusermount3", "fuse3")
    spec = f"{somebody.home}/examples/hellofs.py"
    done = somebody.recuse("mount", spec, str(somebody.home / "examples"))
    assert "not empty" in done.stderr
    (somebody.home / "other").mkdir()
    done = somebody.recuse("mount", spec, str(somebody.home / "other"))
    assert done.returncode == 1
    assert "cannot be mounted: fusermount3: user has no write access to mountpoint" in done.stderr
    if "\nuser_allow_other" not in Path("/etc/fuse.conf").read_text(encoding="utf-8"):
        done = somebody.recuse("mount", spec, str(somebody.directory), "-o", "allow_other")
        assert (done.returncode, done.stderr) == (
            1,
            f"recuse: {somebody.directory}: root has to allow allow_other: "
            "a line user_allow_other in /etc/fuse.conf\n",
        )


@pytest.mark.right("user namespaces")
@pytest.mark.usefixtures("mounts")
def test_for_one_program_of_an_ordinary_user(somebody: Somebody) -> None:
    spec = f"{somebody.home}/examples/memoryfs.py"
    script = f"cd {somebody.directory}; echo text >file; stat -c '%U %s' file; exit 5"
    arguments = ("--private", spec, str(somebody.directory), "--", "sh", "-c", script)
    done = somebody.recuse("mount", *arguments)
    assert (done.stdout, done.stderr, done.returncode) == ("nobody 5\n", "", 5)
