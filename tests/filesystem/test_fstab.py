"""mount(8), fstab and systemd with filesystems of the type fuse.recuse, in mounts of their own."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import EXAMPLES, NOBODY, PATIENCE_S, Somebody, require
from .test_command import servers_of, until

HELLO = EXAMPLES / "hellofs.py"
MEMORY = EXAMPLES / "memoryfs.py"

GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")

PLACE = "/usr/local/sbin"
"""Where a shell without a PATH looks for `recuse` first."""

pytestmark = pytest.mark.usefixtures("root")


class Machine:
    """Mounts of its own (a mount namespace), with `recuse` installed."""

    def __init__(self, command: str) -> None:
        script = f"mount -t tmpfs none {PLACE} && cat >{PLACE}/recuse && chmod 755 {PLACE}/recuse"
        self._keeper = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{script} && echo made && exec sleep inf"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with self._keeper.stdin as pipe:
            pipe.write(f"#!/bin/sh\n{command}\n".encode())
        with self._keeper.stdout as pipe:
            assert pipe.read(5) == b"made\n"

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()

    def run(
        self, *argv: str | Path, cwd: str | Path = "/", somebody: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, without an environment, as at the machine's start."""
        enter = ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", f"--wdns={cwd}"]
        drop = NOBODY if somebody else []
        return subprocess.run(
            [*enter, *drop, "env", "-i", *map(str, argv)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def succeed(self, *argv: str | Path, cwd: str | Path = "/", somebody: bool = False) -> None:
        """Run a program that has nothing to say."""
        done = self.run(*argv, cwd=cwd, somebody=somebody)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def fstab(self, line: str, directory: Path) -> None:
        """Have one line in /etc/fstab."""
        path = directory.parent / "fstab"
        path.write_text(f"{line} 0 0\n", encoding="utf-8")
        self.succeed("mount", "--bind", path, "/etc/fstab")

    def mounts(self, directory: Path) -> list[str]:
        """The lines of /proc/mounts about a directory."""
        text = Path(f"/proc/{self._keeper.pid}/mounts").read_text(encoding="utf-8")
        return [line for line in text.splitlines() if f" {directory} " in line]

    def inside(self, path: Path) -> Path:
        """A path that leads to a file of these mounts."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")


Install = Callable[[str], Machine]


@pytest.fixture
def install(needs: Callable[..., Path]) -> Iterator[Install]:
    needs("mount.fuse3", "fuse3")
    machines: list[Machine] = []

    def make(command: str) -> Machine:
        machines.append(Machine(command))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture
def machine(install: Install, directory: Path) -> Iterator[Machine]:
    yield install(f'exec {sys.executable} -m recuse.cli.main "$@"')
    end_servers(directory)


def end_servers(directory: Path) -> None:
    """Have none left, whether or not the test has unmounted."""
    for process in servers_of(directory):
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(process, signal.SIGKILL)
    until(lambda: servers_of(directory) == [])


def test_a_mount(machine: Machine, directory: Path) -> None:
    machine.succeed("mount", "-t", "fuse.recuse", "memoryfs.py", directory, cwd=EXAMPLES)
    (line,) = machine.mounts(directory)
    assert line.startswith(f"{MEMORY} {directory} fuse.recuse rw,relatime,")
    machine.inside(directory / "file").write_text("text", encoding="utf-8")
    assert machine.inside(directory / "file").read_text(encoding="utf-8") == "text"
    assert machine.run("umount", directory, cwd=machine.inside(directory)).returncode == 32
    machine.succeed("umount", directory)
    assert machine.mounts(directory) == []
    until(lambda: servers_of(directory) == [])


def test_options(machine: Machine, directory: Path) -> None:
    options = r"ro,nodev,noexec,allow_other,fsname=a\,b,subtype=mine,uid=5,umask=077,max_read=8192"
    machine.succeed("mount", "-t", "fuse.recuse", "-o", options, HELLO, directory)
    (line,) = machine.mounts(directory)
    assert line.startswith(f"a,b {directory} fuse.mine ro,nodev,noexec,relatime,")
    assert ",allow_other,max_read=8192 " in line
    status = os.stat(machine.inside(directory / "hello"))
    assert (status.st_uid, status.st_mode & 0o777) == (5, 0o700)
    machine.succeed("umount", directory)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none.py"], 32, "recuse: none.py: no such file\n"),
        ([f"{HELLO},x=1"], 32, f"recuse: {HELLO}: Hello has no argument x; it takes "),
        ([HELLO, "-o", "nonsense"], 1, "recuse: -o nonsense: is no option; there are "),
        ([HELLO, "-o", "uid=x"], 1, "recuse: -o uid=x: uid is a number"),
        ([HELLO, "-o", "remount,ro"], 32, ": no FUSE filesystem is mounted there\n"),
        ([HELLO, "-o", "remount,nonsense"], 1, "recuse: -o nonsense: is no option; there are "),
    ],
)
def test_what_cannot_be_mounted(
    machine: Machine, directory: Path, arguments: list[str], status: int, message: str
) -> None:
    done = machine.run("mount", "-t", "fuse.recuse", *arguments, directory)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert machine.mounts(directory) == []


def test_remounts(machine: Machine, directory: Path) -> None:
    """Flags change, and nothing else; there is no second server."""
    machine.succeed("mount", "-t", "fuse.recuse", "-o", "noexec,allow_other", MEMORY, directory)
    (before,) = machine.mounts(directory)
    file = machine.inside(directory / "file")
    with open(file, "w", encoding="utf-8") as writer:
        writer.write("text")
        writer.flush()
        done = machine.run("mount", "-o", "remount,ro", directory)
        assert (done.returncode, done.stdout) == (32, "")
        reason = "a program has a file open there, to write it"
        assert done.stderr == f"recuse: {directory}: cannot be remounted: {reason}\n"
    machine.succeed("mount", "-o", "remount,ro", directory)
    assert machine.mounts(directory) == [before.replace(" rw,", " ro,", 1)]
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        file.write_text("other", encoding="utf-8")
    machine.succeed("mount", "-i", "-o", "remount,rw", directory)
    machine.succeed("mount", "-o", "remount,nosuid,exec,noatime", directory)
    (line,) = machine.mounts(directory)
    assert " fuse.recuse rw,nosuid,noatime," in line
    assert file.read_text(encoding="utf-8") == "text"
    assert len(machine.mounts(directory)) == 1
    assert len(servers_of(directory)) == 2  # one, and what watches it
    machine.succeed("umount", directory)


def test_a_remount_by_fstab(machine: Machine, directory: Path) -> None:
    machine.fstab(f"{MEMORY} {directory} fuse.recuse noauto,io_uring,umask=022,x-y", directory)
    machine.succeed("mount", "-o", "no_io_uring", directory)
    machine.succeed("mount", "-o", "remount,ro", directory)
    (line,) = machine.mounts(directory)
    assert " fuse.recuse ro,relatime," in line
    machine.succeed("umount", directory)


def _status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("transport", ["no_io_uring", "io_uring"])
@pytest.mark.parametrize("user", ["", ",setuid=nobody"])
def test_a_server_without_privileges(
    install: Install, somebody: Somebody, user: str, transport: str
) -> None:
    """mount.fuse3 opens /dev/fuse and mounts; the server has no capabilities, and gets none."""
    require(transport)
    machine, directory = _nobodys(install, somebody), somebody.directory
    spec = f"{somebody.home}/examples/memoryfs.py"
    options = f"drop_privileges,default_permissions,fsname={spec},{transport}{user}"
    machine.fstab(f"{spec} {directory} fuse.recuse {options}", directory)
    machine.succeed("mount", "-a")
    machine.succeed("mount", "-a")
    (line,) = machine.mounts(directory)
    assert line.startswith(f"{spec} {directory} fuse.recuse rw,relatime,")
    (server,) = servers_of(Path(spec))
    status = _status_of(server)
    assert status["NoNewPrivs"] == "1"
    assert {status[f"Cap{kind}"] for kind in ("Eff", "Prm", "Bnd", "Inh")} == {"0" * 16}
    assert status["Uid"].split()[0] == ("65534" if user else "0")
    machine.succeed("sh", "-c", f"echo text >{directory}/file", somebody=bool(user))
    done = machine.run("cat", directory / "file", somebody=bool(user))
    assert (done.stdout, done.stderr) == ("text\n", "")
    machine.succeed("umount", directory)
    until(lambda: servers_of(Path(spec)) == [])


def test_the_end_of_a_server_without_privileges(install: Install, somebody: Somebody) -> None:
    """It writes what it has, and leaves the mount: it may not unmount it."""
    machine, directory = _nobodys(install, somebody), somebody.directory
    spec = f"{somebody.home}/examples/memoryfs.py"
    machine.succeed(
        *("mount", "-t", "fuse.recuse", "-o", "drop_privileges,default_permissions"),
        *(spec, directory),
    )
    (server,) = servers_of(Path(spec))
    os.kill(server, signal.SIGTERM)
    until(lambda: servers_of(Path(spec)) == [])
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.listdir(machine.inside(directory))
    machine.succeed("umount", directory)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rw", "mount it with the option default_permissions"),
        ("default_permissions,nonsense", "-o nonsense: is no option; there are "),
    ],
)
def test_what_cannot_be_served_without_privileges(
    machine: Machine, directory: Path, option: str, message: str
) -> None:
    """Without `default_permissions` nobody would check who may do what."""
    options = f"drop_privileges,{option}"
    done = machine.run("mount", "-t", "fuse.recuse", "-o", options, MEMORY, directory)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode in (1, 32)
    # mount.fuse3 has mounted it before it started the server.
    machine.succeed("umount", directory)


def test_at_the_start_of_the_machine(machine: Machine, directory: Path) -> None:
    """`mount -a` knows what is mounted already."""
    directory = directory.parent / "a b"
    directory.mkdir()
    place = str(directory).replace(" ", r"\040")
    options = "_netdev,nofail,silent,comment=x,x-systemd.automount,X-y,allow_other"
    machine.fstab(f"{MEMORY},name=a,read_only=1 {place} fuse.recuse {options}", directory)
    machine.succeed("mount", "-a")
    machine.succeed("mount", "-a")
    assert len(machine.mounts(Path(place))) == 1
    machine.succeed("umount", directory)
    until(lambda: servers_of(directory) == [])


def test_an_automount(machine: Machine, directory: Path) -> None:
    """To look into the directory would have the mount wait for itself."""
    automount = f"""
        import ctypes, os, subprocess, sys
        reader, writer = os.pipe()
        data = f"fd={{writer}},pgrp={{os.getpgrp()}},minproto=5,maxproto=5,direct".encode()
        place = os.fsencode(sys.argv[1])
        assert ctypes.CDLL(None).mount(b"test", place, b"autofs", 0, data) == 0
        done = subprocess.run(
            ["mount", "-t", "fuse.recuse", {str(HELLO)!r}, place],
            process_group=0, timeout={PATIENCE_S}, close_fds=False,
        )
        assert done.returncode == 0 and os.listdir(place) == [b"hello", b"clock"]
        # Another program of the machine, such as df, may be looking at it just then.
        subprocess.run(["umount", "-l", place], check=True)
        subprocess.run(["umount", "-l", place], check=True)
    """
    if "\tautofs\n" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        pytest.skip("this kernel has no autofs")
    machine.succeed(sys.executable, "-c", textwrap.dedent(automount), directory)


def _nobodys(install: Install, somebody: Somebody) -> Machine:
    """A machine whose `recuse` an ordinary user can run, too."""
    run = "import sys; from recuse.cli.main import main; sys.exit(main())"
    return install(f"PYTHONPATH={somebody.home} exec /usr/bin/python3 -B -c '{run}' \"$@\"")


def test_an_ordinary_user(install: Install, somebody: Somebody) -> None:
    machine, directory = _nobodys(install, somebody), somebody.directory
    spec = f"{somebody.home}/examples/memoryfs.py"
    machine.fstab(f"{spec} {directory} fuse.recuse noauto,user", directory)
    machine.succeed("mount", "-a")
    assert machine.mounts(directory) == []
    machine.succeed("mount", directory, somebody=True)
    (line,) = machine.mounts(directory)
    assert line.startswith(f"{spec} {directory} fuse.recuse rw,nosuid,nodev,noexec,")
    assert ",user_id=65534," in line
    machine.succeed("touch", directory / "file", somebody=True)
    machine.succeed("umount", directory, somebody=True)
    until(lambda: servers_of(directory) == [])


def test_served_by_an_ordinary_user(install: Install, somebody: Somebody) -> None:
    machine, directory = _nobodys(install, somebody), somebody.directory
    spec = f"{somebody.home}/examples/memoryfs.py"
    machine.succeed("mount", "-t", "fuse.recuse", "-o", "setuid=nobody", spec, directory)
    (line,) = machine.mounts(directory)
    assert ",user_id=65534," in line
    machine.succeed("umount", directory)
    until(lambda: servers_of(directory) == [])


def test_a_unit_of_systemd(directory: Path, tmp_path: Path, needs: Callable[..., Path]) -> None:
    needs(str(GENERATOR), "systemd")
    needs("systemd-analyze", "systemd")
    (tmp_path / "fstab").write_text(
        f"{HELLO},name=x {directory} fuse.recuse nofail,x-systemd.requires-mounts-for=/srv 0 0\n",
        encoding="utf-8",
    )
    units = tmp_path / "units"
    units.mkdir()
    environment = {**os.environ, "SYSTEMD_FSTAB": str(tmp_path / "fstab")}
    subprocess.run([GENERATOR, units, units, units], env=environment, check=True)
    (unit,) = units.glob("*.mount")
    text = unit.read_text(encoding="utf-8")
    assert f"\nWhat={HELLO},name=x\nWhere={directory}\nType=fuse.recuse\n" in text
    assert "\nRequiresMountsFor=/srv\n" in text
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
