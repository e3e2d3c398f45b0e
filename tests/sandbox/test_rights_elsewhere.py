"""Programs' rights where paths lead through /proc, other roots and other mounts."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Needs

from .conftest import Fifo, Shell
from .rights import BECOME, make, root_only

pytestmark = pytest.mark.right("other users", "namespaces")


@pytest.fixture
def in_namespace() -> Iterator[int]:
    """A process outside, in a user namespace of root's. The kernel lets root look into it."""
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


@root_only
class TestProc:
    """/proc tells more to root than to others."""

    def test_other_processes(self, client: Shell) -> None:
        names = ("cwd/etc", "root/etc/hostname", "fd/0", "map_files/x")
        paths = [f"/proc/{os.getppid()}/{name}" for name in names]
        paths += [f"/proc/{os.getppid()}/task/{os.getppid()}/fd/0", "/proc/1/cwd/x"]
        script = f"""{BECOME}become(65534)
def both(path): return looked(path), attempt(os.chdir, path)
for path in {paths}: same(both, path); os.chdir('/')
"""
        lines = client(script).splitlines()
        assert len(lines) == len(paths)
        assert not [line for line in lines if "and not" in line]

    def test_the_supervisor(self, client: Shell) -> None:
        """It may look into itself, whatever it acts as."""
        process, thread = f"/proc/{os.getpid()}", threading.get_native_id()
        paths = [f"{process}/{name}" for name in ("cwd", "root/etc/hostname", "fd/0", "ns/mnt")]
        paths += [f"/proc/{number}/cwd/x" for number in os.listdir("/proc/self/task")]
        # From a directory of it that the program has opened.
        paths += [f"/proc/self/fd/900/{name}" for name in ("cwd", "root/etc", "fd/0", "exe")]
        paths += [f"/proc/self/fd/901/{name}" for name in ("cwd", "root/etc")]
        script = f"""{BECOME}become(65534)
libc.prctl(4, 1, 0, 0, 0)
os.dup2(os.open('{process}/task/{thread}', os.O_RDONLY), 900)
os.dup2(os.open('{process}', os.O_RDONLY), 901)
for path in {paths}:
    for call in (os.stat, os.lstat, os.readlink, os.listdir, os.chdir, open):
        print(path, call.__name__, attempt(call, THROUGH + path), os.access(THROUGH + path, 0))
"""
        lines = client(script).splitlines()
        assert len(lines) == 6 * len(paths)
        assert [line for line in lines if not line.endswith("EACCES False")] == []

    def test_its_own(self, echo: Fifo, client: Shell) -> None:
        """Also that of a program which nobody else of its user may look into."""
        script = f"""{BECOME}
fd = os.open('/dev/echo', os.O_RDWR)
become(65534)
assert libc.prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE
os.chdir('/dev')
numbers = os.getpid(), threading.get_native_id()
for path in (f'/proc/self/fd/{{fd}}', f'/dev/fd/{{fd}}', f'/proc/{{numbers[0]}}/fd/{{fd}}',
             f'/proc/{{numbers[0]}}/task/{{numbers[1]}}/fd/{{fd}}', f'/proc/self/cwd/echo', 'echo',
             './echo', f'../proc/self/fd/{{fd}}', '/proc/self/root/dev/echo'):
    again = attempt(os.open, path, os.O_RDWR)
    print(again if isinstance(again, str) else os.write(again, b'x'), os.stat(path).st_rdev > 0)
"""
        assert client(script).splitlines() == ["1 True"] * 9

    def test_in_user_namespaces(self, client: Shell, in_namespace: int) -> None:
        """What root owns by its effective ID, which a thread that acts for a program keeps."""
        paths = [f"/proc/{in_namespace}/{name}" for name in ("cwd", "root/etc/hostname", "fd/0")]
        script = f"""{BECOME}become(65534)
for path in {paths}:
    for call in (os.stat, os.readlink, os.listdir, os.chdir, open):
        print(path, call.__name__, attempt(call, THROUGH + path), os.access(THROUGH + path, 0))
"""
        lines = client(script).splitlines()
        assert len(lines) == 5 * len(paths)
        assert [line for line in lines if not line.endswith("EACCES False")] == []

    def test_settings(self, client: Shell) -> None:
        """Their modes say "owner", and mean the effective user 0."""
        script = f"""{BECOME}become(65534)
for name in ('kernel/hostname', 'net/ipv4/ip_forward', 'vm/drop_caches', 'fs/file-max'):
    same(looked, '/proc/sys/' + name)
"""
        lines = client(script).splitlines()
        assert len(lines) == 4
        assert not [line for line in lines if "and not" in line]

    @pytest.mark.usefixtures("in_namespace")
    def test_hidden_ones(self, client: Shell, place: Path, needs: Needs) -> None:
        """A /proc mounted with hidepid shows a user his own processes only, and recuse's."""
        needs("mount")
        script = f"""{BECOME}
assert call('unshare', 0x20000) == 0
os.system('mount --make-rprivate /; mount -t proc -o hidepid=2 none {place}')
become(2000000 + os.getpid())  # whose processes nobody else has
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as exec makes it
path = '{place}'
shown = {{int(name) for name in os.listdir(path) if name.isdigit()}}
print(shown - {{{os.getpid()}}} - {{os.getpid()}})
print('devices' in os.listdir(path), os.path.exists(path + '/1'))
print([os.path.exists(THROUGH + path + name) for name in ('/1', '/self/status', '/devices')])
"""
        assert client(script).splitlines() == ["set()", "True False", "[False, True, True]"]


@root_only
class TestRoots:
    """Where a thread has another root, or other mounts, than the supervisor."""

    ROOT = """
assert call('unshare', 0x20000) == 0
os.system('mount --make-rprivate /')
def mounted(*names):
    for name in names:
        os.mkdir(f'{place}/{name}'); os.system(f'mount --rbind /{name} {place}/{name}')
"""

    @pytest.mark.parametrize("way", ["path", "descriptor", "directory"])
    def test_no_way_out_of_a_chroot(self, client: Shell, place: Path, way: str) -> None:
        make(place, "hidden", "secret")
        (place / "root").mkdir()
        script = f"""{BECOME}place = '{place}/root'{self.ROOT}
mounted('dev', 'sys', 'proc')
fd = os.open('/sys/class/cuse', os.O_RDONLY)
if {way == "directory"}: os.chdir('/sys/class/cuse')
os.chroot(place)
if {way != "directory"}: os.chdir('/')
base = {{'path': None, 'descriptor': fd, 'directory': None}}[{way!r}]
start = '/sys/class/cuse/' if {way == "path"} else ''
for up in range(2, 9):
    for name in ('{place}/hidden', '/hidden', '{place}'):
        found = attempt(os.stat, start + '../' * up + name, dir_fd=base)
        fd = attempt(os.open, start + '../' * up + name, os.O_RDONLY, dir_fd=base)
        if not isinstance(found, str) or not isinstance(fd, str): print('out', up, name)
print(attempt(os.stat, start + '../../../etc', dir_fd=base))
print(attempt(os.open, start + 'echo/dev' , os.O_RDONLY, dir_fd=base))
"""
        assert client(script).splitlines()[:1] == ["ENOENT"]

    def test_what_a_mount_hides(self, client: Shell, place: Path) -> None:
        make(place, "hidden/file", "secret")
        script = f"""{BECOME}
path = THROUGH + '{place}/hidden/file'
print(opened(path))
{self.ROOT}
os.system('mount -t tmpfs none {place}/hidden')
print(opened(path), attempt(os.stat, path))
"""
        assert client(script).splitlines() == ["(32768, '0o100000', b'secret')", "ENOENT ENOENT"]

    def test_what_a_mount_hides_from_a_process_that_clone3_has_made(
        self, client: Shell, place: Path
    ) -> None:
        make(place, "hidden/file", "secret")
        script = f"""{BECOME}
args = struct.pack('11Q', 0x20000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)  # CLONE_NEWNS
pid = call(435, args, len(args))
if pid == 0:
    mount = libc.mount
    assert mount(b'none', b'/', None, 0x44000, None) == 0  # MS_REC, MS_PRIVATE
    assert mount(b'none', b'{place}/hidden', b'tmpfs', 0, None) == 0
    path = THROUGH + '{place}/hidden/file'
    print(opened(path), attempt(os.stat, path), flush=True); os._exit(0)
wait(pid)
"""
        assert client(script) == "ENOENT ENOENT\n"

    def test_a_user_namespace_that_clone3_has_made(self, client: Shell, place: Path) -> None:
        """Whose root has no power over files that are not its own."""
        file = make(place, "file", "secret", mode=0o600, uid=12)
        shut = make(place, "shut/file")
        os.chown(place / "shut", 12, 12)
        os.chmod(place / "shut", 0o700)
        script = f"""{BECOME}
print(opened(THROUGH + {file!r})[2], flush=True)
args = struct.pack('11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)  # CLONE_NEWUSER
pid = call(435, args, len(args))
if pid == 0:
    shut = THROUGH + {shut!r}
    print(opened(THROUGH + {file!r}), opened(shut), attempt(os.stat, shut), flush=True); os._exit(0)
wait(pid)
"""
        assert client(script).splitlines() == ["b'secret'", "EACCES EACCES EACCES"]

    def test_flags_of_mounts(self, client: Shell, place: Path) -> None:
        for name in ("ro", "noexec", "nosymfollow", "nodev"):
            make(place, f"{name}/file", mode=0o777)
            os.symlink("file", place / name / "link")
        script = f"""{BECOME}{self.ROOT}
number = os.stat('/dev/echo').st_rdev
os.mknod('{place}/nodev/node', 0o20666, number)
for name in ('ro', 'noexec', 'nosymfollow', 'nodev'):
    at = '{place}/' + name
    os.system(f'mount --bind {{at}} {{at}} && mount -o remount,bind,{{name}} {{at}}')
    for file in ('/file', '/link'):
        same(looked, at + file)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_TRUNC | os.O_WRONLY):
            same(opened, at + file, flags)
    same(opened, at, O_TMPFILE | os.O_RDWR)
print(*(attempt(os.open, at + '{place}/nodev/node', 0) for at in ('', THROUGH)))
print(attempt(os.open, '{place}/ro/file', 1), attempt(os.open, '{place}/nosymfollow/link', 0))
print(os.access(THROUGH + '{place}/noexec/file', 1))
"""
        lines = client(script).splitlines()
        assert not [line for line in lines if "and not" in line]
        assert lines[-3:] == ["EACCES ENOENT", "EROFS ELOOP", "False"]
