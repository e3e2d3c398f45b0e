"""What programs find of a device in /sys and /proc, and what it declares there."""

import asyncio
import errno
import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recuse import Device, File, Link, OpenRequest, current_request
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.cli.spec import load, parse
from recuse.sandbox import Sandbox
from recuse.sandbox.trap.call import TrappedCall
from recuse.server.sysfs import Value
from tests.conftest import Needs

from .conftest import Clients, Fifo, Shell, Shells, Start

CLIENTS = Path(__file__).parent / "clients"
OWN = "/sys/devices/virtual/cuse/echo"


@pytest.mark.skipif(os.geteuid() != 0, reason="the record is of what root may do")
@pytest.mark.right("other users")
def test_all_is_as_on_the_real_kernel() -> None:
    # tests/vm/test_sysfs.py compares the same record with the real kernel.
    with Sandbox(load(parse(f"{CLIENTS}/sysfs_server.py"))) as sandbox:
        done = sandbox.run(
            ["python3", CLIENTS / "sysfs.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    assert done.stdout.splitlines() == (CLIENTS / "sysfs.txt").read_text().splitlines()


def test_ls_and_cat(shell: Shell) -> None:
    assert shell("ls /sys/class/cuse; ls /sys/class/cuse/echo/").split() == [
        "echo", "abort", "dev", "power", "subsystem", "uevent", "waiting",
    ]  # fmt: skip
    number = shell("cat /sys/class/cuse/*/dev").strip()
    assert shell(f"stat -c %Hr:%Lr /dev/echo; readlink /dev/char/{number}") == (
        f"{number}\n../echo\n"
    )
    assert shell(f"echo hello > /dev/char/{number}; cat /dev/echo") == "hello\n"
    listed = shell(f"ls -l /sys/class/cuse/ /sys/dev/char/{number}")
    assert "echo -> ../../devices/virtual/cuse/echo" in listed
    assert f"/sys/dev/char/{number} -> ../../devices/virtual/cuse/echo" in listed


def test_whole_trees(shell: Shell) -> None:
    output = shell(f"ls -R {OWN}")
    assert output.startswith(f"{OWN}:\nabort\ndev\npower\n")
    assert f"{OWN}/power:\nasync\n" in output
    assert shell("find /sys/class/cuse -name echo -type l; find -L /sys/class/cuse/echo -name dev")
    assert shell("find /sys/devices/virtual/cuse -name dev") == f"{OWN}/dev\n"
    found = shell("grep -rs . /sys/devices/virtual/cuse | sort")
    assert f"{OWN}/uevent:DEVNAME=echo\n" in found
    assert f"{OWN}/power/runtime_status:unsupported\n" in found
    assert shell("realpath /sys/class/cuse/echo /sys/class/cuse/echo/subsystem/echo/dev") == (
        f"{OWN}\n{OWN}/dev\n"
    )
    assert shell("cp /sys/class/cuse/echo/uevent /dev/stdout | tail -1") == "DEVNAME=echo\n"


def test_paths_lead_through_it_to_what_is_there_natively(
    shell: Shell, client: Shell, tmp_path: Path
) -> None:
    assert shell(f"cat {OWN}/../../mem/null/dev /sys/class/cuse/echo/../../mem/zero/dev") == (
        "1:3\n1:5\n"
    )
    script = """
up = os.open('/sys/devices/virtual/cuse/..', os.O_RDONLY | os.O_DIRECTORY)
print(os.path.samestat(os.fstat(up), os.stat('/sys/devices/virtual')), 'mem' in os.listdir(up))
print(attempt(os.open, '/sys/class/cuse/../../class/nothing', os.O_RDONLY))
print(attempt(os.open, '/sys/class/cuse/../../class/nothing', os.O_WRONLY | os.O_CREAT))
path = '/sys/class/cuse/../../..' + args[0] + '/made'; os.mkdir(path); os.chmod(path, 0o700)
print(oct(os.stat(args[0] + '/made').st_mode))
"""
    # In containers, /sys is read-only.
    refused = "EROFS" if os.statvfs("/sys").f_flag & os.ST_RDONLY else "EACCES"
    assert client(script, tmp_path) == f"True True\nENOENT\n{refused}\n0o40700\n"


def test_paths_that_must_not_leave_their_directory(client: Shell) -> None:
    script = """
devices = os.open('/sys/devices', os.O_RDONLY)
BENEATH, IN_ROOT = 8, 16
def look(path, resolve):
    fd = call(437, devices, path, struct.pack('QQQ', 0, 0, resolve), 24)
    return fd if isinstance(fd, str) else os.read(fd, 100)[-5:]
own = b'virtual/cuse/echo/'
for path in (own + b'uevent', own + b'../echo/uevent', own + b'subsystem/echo/uevent',
             own + b'../../../../devices/' + own + b'uevent', b'/' + own + b'uevent'):
    print(look(path, BENEATH), look(path, IN_ROOT))
print(look(own + b'../../../../../' + own + b'uevent', IN_ROOT), look(own, BENEATH | IN_ROOT))
"""
    assert client(script).splitlines() == [
        "b'echo\\n' b'echo\\n'",
        "b'echo\\n' b'echo\\n'",
        "EXDEV ENOENT",
        "EXDEV ENOENT",
        "EXDEV b'echo\\n'",
        "b'echo\\n' EINVAL",
    ]


def test_udevadm(shell: Shell, needs: Needs) -> None:
    needs("udevadm", "udev")
    number = shell("stat -c %Hr:%Lr /dev/echo").strip()
    lines = shell("udevadm info -q all -n /dev/echo").splitlines()
    assert {
        "P: /devices/virtual/cuse/echo",
        "U: cuse",
        f"D: c {number}",
        "E: DEVNAME=/dev/echo",
        "E: SUBSYSTEM=cuse",
    } <= set(lines)
    assert shell("udevadm info -q path /sys/class/cuse/echo") == "/devices/virtual/cuse/echo\n"
    assert shell("udevadm trigger --dry-run --verbose --subsystem-match=cuse") == f"{OWN}\n"


def test_proc_devices(shell: Shell) -> None:
    native = Path("/proc/devices").read_text()
    shown = shell("cat /proc/devices")
    (line,) = set(shown.splitlines()) - set(native.splitlines())
    assert line.split() == [shell("stat -c %Hr /dev/echo").strip(), "echo"]
    assert shown.replace(f"{line}\n", "") == native
    assert shell("cd /proc; cat devices; cat /dev/../proc/./devices") == shown * 2
    assert shell("ls -l /proc/devices").split()[:5] == ["-r--r--r--", "1", "root", "root", "0"]
    assert "devices" in shell("ls /proc").split()


def test_devices_come_and_go(make_echo: type[Fifo], shells: Shells) -> None:
    with Sandbox(make_echo()) as sandbox:
        shell = shells(sandbox)
        before = shell("ls /sys/class/cuse /sys/devices/virtual /sys/dev/char /dev/char")
        assert "echo" in before
        assert sandbox._machine is not None
        device = sandbox._machine.table.by_name("echo")
        assert device is not None
        device.connection.abort()
        after = shell("ls -R /sys/class/cuse; ls /sys/devices/virtual; ls /dev/char /dev/echo 2>&1")
        assert "echo" not in after.replace("/dev/echo", "")
        assert "cuse" not in after.replace("/sys/class/cuse", "")
        assert after.count("No such file") == 2


def test_an_open_directory_of_a_device_that_has_gone(make_echo: type[Fifo], start: Start) -> None:
    with Sandbox(make_echo()) as sandbox:
        script = """
fd = os.open('/sys/class/cuse/echo', os.O_RDONLY)
uevent = os.open('uevent', os.O_RDWR, dir_fd=fd)
print(len(os.listdir(fd)), flush=True)
sys.stdin.readline()
print(attempt(os.listdir, fd), attempt(os.open, 'dev', os.O_RDONLY, dir_fd=fd),
      attempt(os.open, 'new', os.O_CREAT | os.O_WRONLY, dir_fd=fd),
      attempt(os.mkdir, 'new', dir_fd=fd),
      attempt(os.read, uevent, 10), attempt(os.write, uevent, b'add'))
"""
        with start(sandbox, "import sys\n" + script) as program:
            assert program.stdout.readline() == b"6\n"
            assert sandbox._machine is not None
            device = sandbox._machine.table.by_name("echo")
            assert device is not None
            device.connection.abort()
            program.stdin.write(b"\n")
            assert program.stdout.readline() == b"ENOENT ENOENT ENOENT ENOENT ENODEV ENODEV\n"


# What a device declares


class DeclaredFile(File):
    def read(self, size: int, offset: int) -> bytes:
        return b""


class Declared(Device):
    name = "input/recuse9"
    subsystem = "class/recuse-input"
    level = 3

    def open(self, request: OpenRequest) -> File:
        return DeclaredFile()

    def show_level(self) -> str:
        return f"{self.level} {current_request().uid}\n"

    async def show_later(self) -> bytes:
        return b"later\n"

    def show_nothing(self) -> str:
        raise OSError(errno.ENODATA, "nothing")

    sysfs: Mapping[str, Value] = {
        "name": "a name\n",
        "device/id/bus": b"\0\xff",
        "level": show_level,
        "later": show_later,
        "nothing": show_nothing,
        "up": Link("device/id"),
        "loop": Link("loop"),
        "uevent": "MAJOR=0\n",
        "/sys/class/recuse-other/x": "x\n",
        "/proc/recuse": "in proc\n",
    }


@pytest.fixture
def declared() -> Declared:
    return Declared()


@pytest.fixture
def look(declared: Declared, shells: Shells) -> Iterator[Shell]:
    with Sandbox(declared) as sandbox:
        yield shells(sandbox)


DIRECTORY = "/sys/class/recuse-input/recuse9"


def test_declared_attributes(look: Shell, declared: Declared) -> None:
    assert look(f"cat {DIRECTORY}/name {DIRECTORY}/later /sys/class/recuse-other/x") == (
        "a name\nlater\nx\n"
    )
    assert look(f"od -An -tx1 {DIRECTORY}/device/id/bus; ls {DIRECTORY}/up") == " 00 ff\nbus\n"
    assert look(f"cat {DIRECTORY}/level") == f"3 {os.geteuid()}\n"
    declared.level = 4
    assert look(f"cat {DIRECTORY}/level") == f"4 {os.geteuid()}\n"
    assert "No data available" in look(f"cat {DIRECTORY}/nothing")
    assert "Too many levels" in look(f"cat {DIRECTORY}/loop")
    assert look(f"cat {DIRECTORY}/uevent; cat /proc/recuse; stat -c %s /proc/recuse") == (
        "MAJOR=0\nin proc\n0\n"
    )
    assert look(f"ls -l {DIRECTORY}/name").split()[:5] == [
        "-r--r--r--",
        "1",
        "root",
        "root",
        "4096",
    ]


def test_one_content_is_read_to_its_end(clients: Clients) -> None:
    made = itertools.count(1)
    with Sandbox(Declared(sysfs={"count": lambda _: f"{next(made)}" * 6})) as sandbox:
        script = f"""
fd = os.open('{DIRECTORY}/count', os.O_RDONLY)
print(os.read(fd, 2), os.read(fd, 2), os.pread(fd, 2, 4), os.read(fd, 9), os.read(fd, 9))
print(os.pread(fd, 9, 0), os.pread(fd, 9, 3), os.lseek(fd, 0, 0), os.read(fd, 9))
"""
        # From the beginning, or from where nobody has stopped reading, it is made anew.
        assert clients(sandbox)(script).splitlines() == [
            "b'11' b'11' b'11' b'22' b''",
            "b'333333' b'444' 0 b'555555'",
        ]


def test_the_declared_class(look: Shell) -> None:
    number = look("stat -c %Hr:%Lr /dev/input/recuse9").strip()
    assert look(f"realpath /sys/dev/char/{number} /sys/dev/char/{number}/subsystem") == (
        "/sys/devices/virtual/recuse-input/recuse9\n/sys/class/recuse-input\n"
    )
    assert look(f"cat {DIRECTORY}/dev '/sys/class/cuse/input!recuse9/dev'") == f"{number}\n" * 2
    assert look(f"ls {DIRECTORY}/ | tr '\\n' ' '") == (
        "dev device later level loop name nothing power subsystem uevent up "
    )
    assert look("echo x > '/sys/class/cuse/input!recuse9/abort'; ls /dev/input /proc/recuse") == (
        "ls: cannot access '/dev/input': No such file or directory\n"
        "ls: cannot access '/proc/recuse': No such file or directory\n[status 2]"
    )


def test_a_bus(make_echo: type[Fifo], shells: Shells) -> None:
    with Sandbox(make_echo(name="recuse9", subsystem="bus/recuse")) as sandbox:
        look = shells(sandbox)
        number = look("stat -c %Hr:%Lr /dev/recuse9").strip()
        assert look(f"realpath /sys/dev/char/{number}/subsystem") == "/sys/bus/recuse\n"
        assert look("cat /sys/bus/recuse/devices/recuse9/dev") == f"{number}\n"
        assert look("ls -d /sys/bus/recuse/devices/*; ls -d /sys/devices/recuse*") == (
            "/sys/bus/recuse/devices/recuse9\n/sys/devices/recuse9\n"
        )


def test_two_devices_of_one_class(make_echo: type[Fifo], shells: Shells) -> None:
    one, two = (
        make_echo(name=name, subsystem="class/recuse", sysfs={"/sys/class/recuse/x": name})
        for name in ("one", "two")
    )
    with Sandbox(one, two) as sandbox:
        look = shells(sandbox)
        assert look("ls /sys/class/recuse; cat /sys/class/recuse/x") == "one\ntwo\nx\none"
        links = "stat -c %h /sys/devices/virtual/recuse /sys/devices/virtual/cuse"
        assert look(links) == "4\n4\n"
        assert look("echo 1 > /sys/class/cuse/two/abort; ls /sys/class/recuse") == "one\nx\n"
        assert look(links) == "3\n3\n"
        assert look("echo 1 > /sys/class/cuse/one/abort; ls /sys/class/recuse 2>&1").endswith(
            "No such file or directory\n[status 2]"
        )


def test_a_server_that_hangs_in_an_attribute(shells: Shells) -> None:
    async def hang(_: Device) -> str:
        await asyncio.sleep(3600)
        return ""

    with Sandbox(Declared(sysfs={"slow": hang, "quick": "q\n"})) as sandbox:
        look = shells(sandbox)
        own = "'/sys/class/cuse/input!recuse9'"
        assert look(
            f"cat {DIRECTORY}/slow 2>&1 & "
            f"while [ $(cat {own}/waiting) = 0 ]; do :; done; "
            f"cat {DIRECTORY}/quick {own}/waiting; echo > {own}/abort; wait; ls {DIRECTORY}"
        ) == (
            f"q\n1\ncat: {DIRECTORY}/slow: Software caused connection abort\n"
            f"ls: cannot access '{DIRECTORY}': No such file or directory\n[status 2]"
        )


def test_a_device_that_is_served_at_a_socket(
    declared: Declared, shells: Shells, clients: Clients, tmp_path: Path
) -> None:
    with (
        closing(DeviceServer(declared, str(tmp_path / "socket"))) as server,
        Sandbox(Remote(server.path)) as one,
        Sandbox(Remote(server.path)) as other,
    ):
        for sandbox in (one, other):
            look = shells(sandbox)
            assert look(f"cat {DIRECTORY}/name {DIRECTORY}/later; ls {DIRECTORY}/up") == (
                "a name\nlater\nbus\n"
            )
            assert look(f"cat {DIRECTORY}/level") == f"3 {os.geteuid()}\n"
        # It ends this sandbox's connection; then the device comes back, by a new one.
        script = """
own = '/sys/class/cuse/input!recuse9/'
held = os.open(own + 'dev', os.O_RDONLY)
open(own + 'abort', 'w').write('1')
while isinstance(found := attempt(os.pread, held, 9, 0), bytes): pass
while isinstance(attempt(os.stat, own + 'dev'), str): pass
print(found, attempt(os.pread, held, 9, 0), stat.S_ISREG(os.fstat(held).st_mode))
"""
        assert clients(other)(script) == "ENODEV ENODEV True\n"
        for sandbox in (one, other):
            assert shells(sandbox)(f"cat {DIRECTORY}/name") == "a name\n"


def test_directories_opened_as_places_only(client: Shell) -> None:
    script = """
fd = os.open('/sys/class/cuse', os.O_PATH | os.O_DIRECTORY)
print(stat.S_ISDIR(os.fstat(fd).st_mode), os.readlink('echo', dir_fd=fd))
echo = os.open('echo', os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
print(stat.S_ISLNK(os.fstat(echo).st_mode), os.readlink('', dir_fd=echo), attempt(os.read, echo, 1))
print(os.path.realpath('/proc/self/fd/%d/echo' % fd), os.readlink('/proc/self/fd/%d' % fd))
up = os.open('..', os.O_PATH, dir_fd=fd)
print(os.path.samestat(os.fstat(up), os.stat('/sys/class')), 'cuse' in os.listdir('/sys/class'))
print(attempt(os.open, '/sys/class/cuse', os.O_TMPFILE | os.O_RDWR))
"""
    assert client(script).splitlines() == [
        "True ../../devices/virtual/cuse/echo",
        "True ../../devices/virtual/cuse/echo EBADF",
        "/sys/devices/virtual/cuse/echo /sys/class/cuse",
        "True True",
        "EISDIR",
    ]


class Stuck(Declared):
    """Its plain methods return when the test is over."""

    subsystem = "class/cuse"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.going_on = threading.Event()

    def open(self, request: OpenRequest) -> File:
        return StuckFile()

    def wait(self) -> bytes:
        assert self.going_on.wait(60)
        return b"late"

    sysfs: Mapping[str, Value] = {"slow": wait}


class StuckFile(DeclaredFile):
    device: Stuck

    def read(self, size: int, offset: int) -> bytes:
        return self.device.wait()[:size]


@pytest.mark.parametrize("path", ["/dev/input/recuse9", "{own}/slow"])
@pytest.mark.parametrize("blocked_before", [False, True])
def test_abort_lets_go_of_who_waits_for_a_plain_method(
    shells: Shells, path: str, blocked_before: bool
) -> None:
    device = Stuck()
    own = "/sys/class/cuse/input!recuse9"
    path = path.format(own=own)
    wait = f"while [ $(cat {own}/waiting) = 0 ]; do :; done"
    with Sandbox(device) as sandbox:
        look = shells(sandbox)
        if blocked_before:

            def wait_longer(timeout: float | None = None) -> bool:
                # Long enough for the sandbox to take note of it.
                time.sleep(0.1)
                return True

            device.going_on.wait = wait_longer  # type: ignore[method-assign]  # of this one only
            assert look(f"head -c1 {path}") == "l"
            del device.going_on.wait
        output = look(f"cat {path} & {wait}; echo 1 > {own}/abort; wait $!")
        assert (
            output.replace("'", "") == f"cat: {path}: Software caused connection abort\n[status 1]"
        )
        device.going_on.set()


@pytest.mark.parametrize("path", ["/dev/input/recuse9", "{own}/slow"])
def test_abort_comes_before_it_is_seen_that_a_method_blocks(
    shells: Shells, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    gone = threading.Event()
    blocks = TrappedCall.blocks

    def late(self: TrappedCall, still: Callable[[], bool]) -> None:
        assert gone.wait(20)
        blocks(self, still)

    class Telling(Stuck):
        def close(self) -> None:
            super().close()
            gone.set()

    monkeypatch.setattr(TrappedCall, "blocks", late)
    device = Telling()
    own = "/sys/class/cuse/input!recuse9"
    path = path.format(own=own)
    wait = f"while [ $(cat {own}/waiting) = 0 ]; do :; done"
    with Sandbox(device) as sandbox:
        output = shells(sandbox)(f"cat {path} & {wait}; echo 1 > {own}/abort; wait $!")
        assert "Software caused connection abort" in output
        device.going_on.set()


def test_the_guide(shells: Shells) -> None:
    guide = Path(__file__).parents[2] / "docs" / "sysfs.md"
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", guide.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(snippet, guide.name, "exec"), names)
    with Sandbox(names["Watchdog"]()) as sandbox:
        look = shells(sandbox)
        own = "/sys/class/watchdog/watchdog9"
        assert look(f"cd /sys; cat {own}/identity {own}/timeleft class/misc/watchdog/dev") == (
            "recuse watchdog\n60\n10:130\n"
        )
        assert look(f"cat {own}/of_node/driver_override") == "(null)\n"
        assert look(f"readlink {own}") == "../../devices/virtual/watchdog/watchdog9\n"
