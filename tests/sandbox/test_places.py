"""A device wherever its directory is seen, and nothing of it in the machine's own /dev."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.vfs.device_files import majors_in_use
from tests.conftest import Needs

from .conftest import Clients, Fifo, Shell, Shells

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, changes its root, makes nodes"),
    pytest.mark.right("namespaces"),
]

# What programs do with a device by the path $1/NAME; $2/NAME is the one that exists only inside.
USE = """
use() {
    echo written >"$1"/echo && cat "$1"/echo; echo again >>"$1"/./echo; cat <"$1"/../dev/echo
    stat -c '%F' "$1"/echo; test -w "$1"/echo || echo no; ls "$1" | grep -c '^echo$'
    mkdir "$1"/echo 2>/dev/null || echo there; rm "$1"/echo 2>/dev/null || echo stays
    (cd "$1" && echo relative >echo && cat ./echo && ls -d ech? recuse-place/*)
    ls "$1"/recuse-place; echo deep >"$1"/recuse-place/event9
    cat "$1"/recuse-place/../recuse-place/event9; (cd "$1"/recuse-place && cat ../echo && ls)
}
"""
USED = """written
again
character special file
1
there
stays
relative
echo
recuse-place/event9
event9
deep
event9
"""


@pytest.fixture
def box(make_echo: type[Fifo]) -> Iterator[Sandbox]:
    before = set(os.listdir("/dev"))
    with Sandbox(make_echo(), make_echo(name="recuse-place/event9")) as box:
        yield box
    assert set(os.listdir("/dev")) == before


@pytest.fixture
def shell(box: Sandbox, shells: Shells, tmp_path: Path) -> Shell:
    """Runs a command with mounts of its own, in a directory that has `root/dev` in it."""
    (tmp_path / "root/dev").mkdir(parents=True)
    run = shells(box)
    return lambda command: run(
        'exec unshare -m sh -c "$1" "$2"', USE + command, str(tmp_path), cwd=tmp_path
    )


WAYS = {
    "bind mount": ("mount --bind /dev root/dev", "root/dev"),
    "recursive bind mount": ("mount --rbind /dev root/dev", "$PWD/root/dev"),
    "devtmpfs": ("mount -t devtmpfs none root/dev", "root/dev"),
    "moved": ("mount --bind /dev root/dev; mkdir dev; mount --move root/dev dev", "dev"),
    "a link to it": ("mount --bind /dev root/dev; ln -s root/dev dev", "dev/../dev"),
    "over an empty one": ("mount -t tmpfs none /dev; mount -t devtmpfs none root/dev", "root/dev"),
}


@pytest.mark.parametrize(("mount", "path"), WAYS.values(), ids=WAYS)
def test_where_dev_is_mounted(shell: Shell, mount: str, path: str) -> None:
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    if "devtmpfs" in mount and " /dev devtmpfs " not in mounts:
        pytest.skip("this machine's /dev is no devtmpfs, which are all one")
    assert shell(f"{mount}; use {path}") == USED


def test_in_the_supervisors_own_namespace(box: Sandbox, shells: Shells, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    command = USE + 'mount --bind /dev "$1"/dev; use "$1"/dev; umount -l "$1"/dev'
    assert shells(box)(command, str(tmp_path)) == USED


IN_ROOT = """
mount --bind /dev root/dev; cp "$BUSYBOX" root/busybox; mkdir root/proc root/x
mount -t proc none root/proc; ln -s /dev root/link; ln -s /dev/echo root/x/echo
for name in sh cat ls stat mkdir rm grep test sleep; do ln -s busybox root/$name; done
"""


@pytest.mark.parametrize("unshare", ["", "unshare -p -f ", "unshare -mpf "])
def test_in_a_chroot(
    shell: Shell, needs: Needs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unshare: str
) -> None:
    monkeypatch.setenv("BUSYBOX", str(needs("busybox", "busybox-static")))
    inside = USE + (
        "use /dev; use /link; echo x >/../dev/echo; cat /x/echo; cat /x/../../../dev/echo;"
        "cd /x && echo up >../dev/echo && cat ../../../../dev/echo; echo link >echo; cat echo;"
        "exec 9<>/dev/echo; echo nine >&9; cat /proc/self/fd/9; echo nine >/dev/fd/9; cat <&9;"
        "cd /proc && echo self >self/fd/9; cat //proc/./self/fd/9; cat /proc/self/root/dev/echo;"
        "test -e /nothing || ls -d /proc/../dev/echo"
    )
    (tmp_path / "root/script").write_text(inside, encoding="utf-8")
    chroot = f"{unshare}/usr/sbin/chroot root /sh /script"
    output = shell(f"{IN_ROOT}\nPATH=/:$PATH\n{chroot}")
    assert output == USED + USED + "x\nup\nlink\nnine\nnine\nself\n/proc/../dev/echo\n"


def test_a_dev_of_its_own_has_none(shell: Shell) -> None:
    # As outside: what a driver makes is in the machine's, not in a filesystem that a program has
    # mounted there.
    script = "mount -t tmpfs none /dev; echo x >/dev/echo; stat -c %F /dev/echo; ls /dev; cat {}"
    assert shell(script.format("/dev/echo")) == "regular file\necho\nx\n"
    assert shell("mkdir root/dev/recuse-place; ls root/dev/recuse-place; echo >root/dev/echo") == ""


def test_sys_and_proc_of_its_own(shell: Shell) -> None:
    script = """
mkdir sys proc; {} -t sysfs none sys 2>/dev/null || exit 0
cat sys/class/cuse/echo/waiting; ls sys/class/cuse; grep -c echo sys/class/cuse/echo/uevent
(cd sys/class/cuse/echo && cat waiting)
mount -t proc none proc; grep -w echo proc/devices | cut -c 5-
"""
    assert shell(script.format("mount")) == "0\necho\nrecuse-place!event9\n1\n0\necho\n"


def test_one_process_changes_its_root_and_another_does_not(
    shell: Shell, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSYBOX", str(needs("busybox", "busybox-static")))
    script = IN_ROOT + (
        "PATH=/ /usr/sbin/chroot root /sh -c 'echo inside >/dev/echo; echo plain >/echo'\n"
        "cat /dev/echo; cat root/echo; cat root/dev/echo; echo more >root/dev/echo; cat /dev/echo"
    )
    assert shell(script) == "inside\nplain\nmore\n"


# Numbers

NUMBER = """
os.chdir(args[0])
number = os.stat('/dev/' + args[1]).st_rdev
for make in lambda: os.mknod('mine', 0o20600, number), lambda: call(
        'mknod', b'mine', 0o20600, number):
    make()
    found = os.stat('mine')
    print(stat.S_ISCHR(found.st_mode), found.st_rdev == number, oct(found.st_mode & 0o777))
    fd = os.open('mine', os.O_RDWR)
    os.write(fd, b'by number')
    print(os.read(os.open('/dev/' + args[1], os.O_RDWR), 99), os.fstat(fd).st_ino == found.st_ino)
    os.symlink('mine', 'link')
    os.write(os.open('link', os.O_WRONLY | os.O_CREAT), b'by link')
    path = os.open('mine', 0o10000000)
    print(os.read(os.open(f'/proc/self/fd/{path}', os.O_RDONLY), 99))
    os.chmod('mine', 0); os.chmod('.', 0o755)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setuid(65534); print(attempt(os.open, 'mine', os.O_RDWR), flush=True); os._exit(0)
    wait(pid)
    os.unlink('link'); os.unlink('mine')
os.mknod('mine', 0o60600, number)
try: os.open('mine', os.O_RDONLY)
except OSError as error: print('block', error.errno in (errno.ENXIO, errno.ENODEV))
"""


@pytest.mark.parametrize("options", [{}, {"major": 1, "minor": 3}, {"major": 1, "minor": 999}])
def test_a_node_that_is_made_with_a_devices_number(
    make_echo: type[Fifo], clients: Clients, tmp_path: Path, options: dict[str, int]
) -> None:
    assert 1 in majors_in_use()
    with Sandbox(make_echo(**options)) as box:
        lines = clients(box)(NUMBER, tmp_path, "echo").splitlines()
    # Block devices have numbers of their own: 1:3 is ram3, if the machine has it.
    assert lines[:8] == ["True True 0o600", "b'by number' True", "b'by link'", "EACCES"] * 2


def test_a_node_that_was_there_before(
    make_echo: type[Fifo], shells: Shells, tmp_path: Path
) -> None:
    # The null device's number: the author has asked for it.
    os.mknod(tmp_path / "old", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with Sandbox(make_echo(major=1, minor=3)) as box:
        shell = shells(box)
        assert shell('echo ours >"$1"; cat /dev/echo', str(tmp_path / "old")) == "ours\n"
        # By its own name too, also of the machine: the number is what counts.
        assert shell("echo null >/dev/null; cat /dev/echo") == "null\n"
        assert shell("mount -t tmpfs -o nodev none $1; mknod $1/x c 1 3; cat $1/x; umount $1",
                     str(tmp_path)).endswith("Permission denied\n")  # fmt: skip


def test_a_number_is_one_that_no_driver_has(box: Sandbox) -> None:
    lines = Path("/proc/devices").read_text(encoding="utf-8").partition("Block")[0].splitlines()
    drivers = {int(line.split()[0]) for line in lines if line and line.split()[0].isdecimal()}
    assert drivers <= majors_in_use()
    assert box._machine is not None
    assert not drivers & {device.major for device in box._machine.table}
    assert drivers - {int(name.partition(":")[0]) for name in os.listdir("/sys/dev/char")}, (
        "no driver without a device: this shows nothing"
    )
