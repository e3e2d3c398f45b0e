"""A few things that must work wherever recuse runs, each tried by the command that a user has.

    python tests/reach/battery.py [CHECK]...

Prints a line of JSON about the system, and one for each check, as soon as it is done: `{"check":
"poll", "outcome": "yes", "why": ""}`. An outcome is `yes`, `no` or `-`, for what cannot be tried
because a program is missing; `why` is what was seen instead. Needs nothing but Python's standard
library and recuse itself: where it runs may be a container or an emulated machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PATIENCE_S = 20 * float(os.environ.get("RECUSE_SLOWNESS", "1"))
"""How long to wait for a command that must end; only a failure takes as long.

An emulated machine is slower, and says how many times.
"""

RECUSE = [sys.executable, "-m", "recuse.cli.main"]
DEVICES = [
    "-d",
    f"{HERE / 'device.py'}:Reach",
    "-d",
    f"{HERE / 'device.py'}:Reach,name=reach.d/other",
]

EXAMPLES = ROOT / "examples"
ECHO = EXAMPLES / "echo.py"

SFTP_SERVER = "/usr/lib/openssh/sftp-server"

PRELUDE = """
import array, fcntl, mmap, os, select, signal, subprocess, sys
def device(name="reach"):
    return os.open("/dev/" + name, os.O_RDWR)
def later(action):
    if os.fork() == 0:
        action()
        os._exit(0)
"""


class Missing(Exception):
    """What a check needs is not here; the message names it."""


class Wrong(Exception):
    """A check has seen something else than what is right."""


def recuse(*argv: str, status: int = 0, devices: list[str] = DEVICES) -> str:
    """Run a program in the sandbox; return what it prints. Raises Wrong."""
    return ran("run", *devices, "--", *argv, status=status)


def ran(*arguments: str, status: int = 0, descriptors: tuple[int, ...] = ()) -> str:
    """Run recuse; return what it and its program print. Raises Wrong."""
    try:
        done = subprocess.run(
            [*RECUSE, *arguments],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise Wrong(f"has not ended after {PATIENCE_S:.0f} s") from None
    if done.returncode != status or done.stderr:
        said = done.stderr.strip().splitlines()
        raise Wrong(said[-1] if said else f"ended with status {done.returncode}")
    return done.stdout


def client(script: str, expected: str) -> None:
    """Run a script after PRELUDE; it must print this. Raises Wrong."""
    printed = recuse(sys.executable, "-I", "-S", "-c", PRELUDE + script)
    if printed.split() != expected.split():
        raise Wrong(f"printed {printed.strip()!r}, not {expected!r}")


def find_programs(*names: str) -> list[str]:
    """The paths of programs. Raises Missing."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin"])
    found = {name: shutil.which(name, path=path) for name in names}
    if lacking := [name for name, program in found.items() if program is None]:
        raise Missing(lacking[0])
    return [program for program in found.values() if program is not None]


def check_write_and_read() -> None:
    client("d = device(); print(os.write(d, b'hello')); print(os.read(d, 100).decode())", "5 hello")


def check_ioctl() -> None:
    client(
        "n = array.array('i', [41]); print(fcntl.ioctl(device(), 0xC0045201, n, True), n[0])",
        "0 42",
    )


# Each: nothing there, then asleep until another program writes, then nothing there again.
ASLEEP = """
print(ready(0))
later(lambda: os.write(device(), b"x"))
print(ready({patience}))
print(os.read(d, 5).decode(), ready(0))
"""


def asleep(prepare: str, seen: str) -> None:
    """Check a way to wait. Raises Wrong."""
    client(f"d = device()\n{prepare}\n{ASLEEP.format(patience=PATIENCE_S)}", f"[] {seen} x []")


def check_poll() -> None:
    ready = "lambda s: [bits for _, bits in p.poll(s * 1000)]"
    asleep(f"p = select.poll(); p.register(d, select.POLLIN)\nready = {ready}", "[1]")


def check_select() -> None:
    asleep("ready = lambda s: [f == d for f in select.select([d], [], [], s)[0]]", "[True]")


def check_epoll() -> None:
    ready = "lambda s: [bits for _, bits in p.poll(s)]"
    asleep(f"p = select.epoll(); p.register(d, select.EPOLLIN)\nready = {ready}", "[1]")


def check_mmap() -> None:
    script = """
with mmap.mmap(device(), 4096) as first, mmap.mmap(device(), 4096) as second:
    print(first[:5].decode())
    first[:5] = b"steps"
    print(second[:5].decode())
"""
    client(script, "ready steps")


def check_signals() -> None:
    script = """
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
d = device()
signal.setitimer(signal.ITIMER_REAL, 0.2)
try: os.read(d, 1)
except Alarm: print("interrupted")
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(write, b"x")
    os.read(d, 1)
os.read(read, 1)
os.kill(pid, signal.SIGKILL)
print(os.waitpid(pid, 0)[1])
"""
    client(script, "interrupted 9")


def check_list() -> None:
    names = recuse("ls", "/dev").split()
    if not {"reach", "reach.d", "null"} <= set(names):
        raise Wrong(f"ls /dev prints {' '.join(names)}")


def check_chdir() -> None:
    printed = recuse(
        "sh", "-c", "cd /dev/reach.d && pwd && ls && echo hi >other && head -c 3 other"
    )
    if printed.split() != ["/dev/reach.d", "other", "hi"]:
        raise Wrong(f"printed {printed!r}")


def check_cuse() -> None:
    script = f"""
server = subprocess.Popen({[*RECUSE, "serve", "--kernel", f"{ECHO},name=inner"]!r},
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={dict(os.environ)!r})
server.stdout.readline()
d = device("inner")
print(os.write(d, b"hello"), os.read(d, 100).decode())
os.close(d)
server.terminate()
print(server.wait())
"""
    client(script, "5 hello 0")


def check_camera() -> None:
    (program,) = find_programs("v4l2-ctl")
    for module in ("numpy", "linuxpy", "simplejpeg"):
        if importlib.util.find_spec(module) is None:
            raise Missing(module)
    command = [program, "-d", "/dev/video9", "--stream-mmap=3", "--stream-count=3"]
    with_output = ["sh", "-c", '"$@" --stream-to=- 2>&3 | wc -c', "sh", *command]
    camera = ["-d", f"{EXAMPLES / 'camera.py'},width=160,height=120"]
    printed = recuse("sh", "-c", 'exec 3>/dev/null; exec "$@"', "sh", *with_output, devices=camera)
    if int(printed) <= 0 or int(printed) % 3:
        raise Wrong(f"three pictures have {printed.strip()} bytes")


def check_end() -> None:
    printed = recuse("sh", "-c", "(sleep 0.2; echo late >/dev/reach; echo said) & exit 3", status=3)
    if printed != "said\n":
        raise Wrong("has not waited for a program in the background")


def check_archive() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("deep/hay", "hay\n" * 20_000)
        archive.writestr("deep/needle", "hay\nneedle\n")
    where = mount_point()
    # Not a file with a name: it may be that nothing can be written to.
    with open(os.memfd_create("a.zip"), "w+b") as file:
        file.write(content.getvalue())
        file.flush()
        mount = f"{where}={EXAMPLES / 'archive.py'},path=/proc/self/fd/{file.fileno()}"
        script = f"find {where} -type f | wc -l; grep -r needle {where}"
        printed = ran("run", "-m", mount, "--", "sh", "-c", script, descriptors=(file.fileno(),))
    if printed != f"2\n{where}/deep/needle:needle\n":
        raise Wrong(f"printed {printed!r}")


def check_fuse() -> None:
    where = mount_point()
    command = shlex.join([*RECUSE, "mount", "--background", f"{EXAMPLES / 'hellofs.py'}", where])
    served(f"{command} >/dev/null && cat {where}/hello && umount {where}", "Hello, world!\n")


def check_sshfs() -> None:
    find_programs("sshfs", "fusermount3", "git", SFTP_SERVER)
    where = mount_point()
    with somewhere() as directory, sftp_server() as port:
        git = f"git -C {directory}/project -c user.name=reach -c user.email=reach@localhost"
        served(
            f"cd {directory} && git init -q project && echo text >project/file && {git} add file &&"
            f"{git} commit -q -m first && echo more >>project/file &&"
            f"sshfs -o directport={port} 127.0.0.1:{directory} {where} &&"
            f"git -C {where}/project status --short; fusermount3 -u {where}",
            " M file\n",
        )


def check_archivemount() -> None:
    find_programs("archivemount", "fusermount", "tar", "gzip")
    where = mount_point()
    with somewhere() as directory:
        served(
            f"cd {directory} && echo text >file && tar -czf files.tgz file &&"
            f"archivemount -o readonly files.tgz {where} && cat {where}/file;"
            f"fusermount -u {where}",
            "text\n",
        )


def check_rclone() -> None:
    find_programs("rclone", "fusermount3")
    with somewhere() as directory:
        # A directory of the user's own: Go programs have fusermount3 mount, which checks that.
        served(
            f"cd {directory} && mkdir mnt files && echo text >files/file &&"
            f"export XDG_CACHE_HOME={directory}/cache &&"
            f"rclone mount --config /dev/null --daemon {directory}/files mnt && cat mnt/file;"
            "fusermount3 -u mnt",
            "text\n",
        )


@contextlib.contextmanager
def sftp_server() -> Iterator[int]:
    """Run an SFTP server outside of the sandbox, for one client; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if pid == 0:
            try:
                client, _ = listener.accept()
                os.dup2(client.fileno(), 0)
                os.dup2(client.fileno(), 1)
                os.execv(SFTP_SERVER, [SFTP_SERVER])
            finally:
                os._exit(1)
        try:
            yield listener.getsockname()[1]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def mount_point() -> str:
    """An empty directory, of root's as a rule. Raises Missing."""
    for path in ("/mnt", "/srv", "/media"):
        with contextlib.suppress(OSError):
            if not os.listdir(path):
                return path
    raise Missing("an empty directory")


@contextlib.contextmanager
def somewhere() -> Iterator[str]:
    """Give a directory to write in. Raises Missing."""
    try:
        made = tempfile.TemporaryDirectory(prefix="reach-")
    except FileNotFoundError:
        raise Missing("a place to write") from None
    with made as directory:
        yield directory


def served(script: str, expected: str) -> None:
    """Run a script that mounts what a server in the sandbox serves. Raises Wrong."""
    printed = ran("run", "--", "sh", "-c", script)
    if printed != expected:
        raise Wrong(f"printed {printed!r}, not {expected!r}")


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_")
}


def outcome(check: str) -> dict[str, str]:
    """Do a check; return what is printed of it."""
    try:
        CHECKS[check]()
    except Missing as error:
        return {"check": check, "outcome": "-", "why": f"{error} is missing"}
    except (Wrong, OSError, ValueError) as error:
        return {"check": check, "outcome": "no", "why": str(error)}
    return {"check": check, "outcome": "yes", "why": ""}


def main() -> None:
    """Do the checks that the arguments name, or all."""
    print(json.dumps({"system": f"{os.uname().release} {os.uname().machine}"}), flush=True)
    for check in sys.argv[1:] or CHECKS:
        print(json.dumps(outcome(check)), flush=True)


if __name__ == "__main__":
    main()
