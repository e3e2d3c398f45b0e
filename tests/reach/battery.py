"""A few things that must work wherever recuse runs, each tried by the command that a user has.

    python tests/reach/battery.py [CHECK]...

Prints a line of JSON about the system, and one for each check, as soon as it is done: `{"check":
"poll", "outcome": "yes", "why": ""}`. An outcome is `yes`, `no` or `-`, for what cannot be tried
because a program is missing; `why` is what was seen instead. Needs nothing but Python's standard
library and recuse itself: where it runs may be a container or an emulated machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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

ECHO = ROOT / "examples" / "echo.py"

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
    command = [*RECUSE, "run", *devices, "--", *argv]
    try:
        done = subprocess.run(
            command,
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
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin"])
    program = shutil.which("v4l2-ctl", path=path)
    if program is None:
        raise Missing("v4l2-ctl")
    for module in ("numpy", "linuxpy", "simplejpeg"):
        if importlib.util.find_spec(module) is None:
            raise Missing(module)
    command = [program, "-d", "/dev/video9", "--stream-mmap=3", "--stream-count=3"]
    with_output = ["sh", "-c", '"$@" --stream-to=- 2>&3 | wc -c', "sh", *command]
    camera = ["-d", f"{ROOT / 'examples' / 'camera.py'},width=160,height=120"]
    printed = recuse("sh", "-c", 'exec 3>/dev/null; exec "$@"', "sh", *with_output, devices=camera)
    if int(printed) <= 0 or int(printed) % 3:
        raise Wrong(f"three pictures have {printed.strip()} bytes")


def check_end() -> None:
    printed = recuse("sh", "-c", "(sleep 0.2; echo late >/dev/reach; echo said) & exit 3", status=3)
    if printed != "said\n":
        raise Wrong("has not waited for a program in the background")


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
