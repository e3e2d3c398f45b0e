"""Nothing is done for a program that it may not do itself: its files through directories of ours.

What a path leads to through a directory that exists only in the sandbox, the kernel cannot find,
and the supervisor opens it. A hostile program would have it open what only the supervisor may.
"""

import ctypes
import os
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox

from ..patience import PATIENCE_S

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
pytestmark = pytest.mark.right("other users", "namespaces")

THROUGH = "/sys/class/cuse/../../.."
"""What makes an absolute path lead through a directory of ours to the same file."""

BECOME = f"""
THROUGH = {THROUGH!r}
O_PATH, O_TMPFILE = os.O_PATH, os.O_TMPFILE
def become(uid, gid=None, groups=()):
    gid = uid if gid is None else gid
    os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
def only(effective, permitted=None):
    permitted = effective if permitted is None else permitted
    parts = [n >> shift & 0xffffffff for shift in (0, 32) for n in (effective, permitted, 0)]
    assert libc.capset(struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *parts)) == 0
def opened(path, flags=0, mode=0o600):
    fd = attempt(os.open, path, flags, mode)
    if isinstance(fd, str): return fd
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    # It is gone when a descriptor leads to the file.
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_NOFOLLOW | os.O_DIRECTORY)
    result = flags, oct(kind), attempt(os.read, fd, 9)
    os.close(fd)
    return result
def looked(path):
    def filesystem(path):
        found = os.statvfs(path)
        return found.f_flag, found.f_bsize, found.f_blocks
    calls = (os.stat, os.lstat, os.readlink, os.listdir, filesystem)
    found = [attempt(one, path) for one in calls]
    # Times of access may change.
    found[:2] = [one if isinstance(one, str) else (*one[:4], one[6]) for one in found[:2]]
    access = [os.access(path, mode, effective_ids=effective)
              for mode in (0, 1, 2, 4) for effective in (False, True)]
    return found, access
def same(function, path, *args):
    ours, theirs = function(THROUGH + path, *args), function(path, *args)
    print(theirs if ours == theirs else f'{{path}} {{args}}: {{ours}} and not {{theirs}}')
"""


@pytest.fixture
def place():
    """A directory that everybody may search, of root."""
    with tempfile.TemporaryDirectory(prefix="rights-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def make(place, name, text="found", *, mode=0o644, uid=0, gid=0):
    """Make a file; returns its path as a string."""
    path = place / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return str(path)


EVERYBODY = 0xFFFFFFFF


def acl(*entries):
    """The value of system.posix_acl_access (linux/posix_acl_xattr.h): (tag, bits, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_acl(path, value, kind="access"):
    """Set an access control list; skips the test where files cannot have any."""
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", value)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")


# What a program with these rights is given of files like these, natively.
WHO = {
    "root": "pass",
    "another user": "become(65534)",
    "its owner": "become(12)",
    "a member of its group": "become(1000, 34)",
    "a member by a supplementary group": "become(1000, 1000, [5, 34])",
    "by filesystem ids": "libc.setfsgid(34); libc.setfsuid(1000)",
    "by an effective id": "os.seteuid(1000)",
    "by a real id": "os.setresuid(1000, 0, 0)",
    "root without capabilities": "only(0)",
    "with CAP_DAC_READ_SEARCH": "only(1 << 2)",
    "with CAP_DAC_OVERRIDE": "only(1 << 1)",
    "with CAP_FOWNER": "only(1 << 3)",
    "with nothing effective": "only(0, 0xff)",
    "in a user namespace": "become(65534); assert call('unshare', 0x10000000) == 0",
    "root in a user namespace": "assert call('unshare', 0x10000000) == 0",
}


@root_only
@pytest.mark.parametrize("who", WHO.values(), ids=WHO)
def test_files_as_the_kernel_has_them(sandbox, clients, place, who):
    paths = [
        make(place, f"file {mode:03o}", mode=mode, uid=12, gid=34)
        for mode in (0o600, 0o400, 0o040, 0o060, 0o004, 0o642, 0o711, 0o4755, 0)
    ]
    for mode in (0o700, 0o711, 0o070, 0o755):
        paths.append(make(place, f"directory {mode:03o}/file"))
        directory = os.path.dirname(paths[-1])
        os.chown(directory, 12, 34)
        os.chmod(directory, mode)
        paths.append(directory)
        link = str(place / f"link to {mode:03o}")
        os.symlink(paths[-2], link)
        paths.append(link)
    flags = [
        *(os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_NOATIME, os.O_NOFOLLOW),
        *(
            os.O_DIRECTORY,
            os.O_CREAT,
            os.O_PATH,
            os.O_PATH | os.O_NOFOLLOW,
            os.O_WRONLY | os.O_APPEND,
        ),
    ]
    script = f"""{BECOME}{who}
for path in {paths}:
    same(looked, path)
    for flags in {flags}: same(opened, path, flags)
print('end')
"""
    output = clients(sandbox)(script)
    assert [line for line in output.splitlines() if "and not" in line] == []
    assert output.endswith("end\n")


@root_only
def test_an_access_control_list_that_denies(sandbox, clients, place):
    file = make(place, "file")
    set_acl(
        file, acl((1, 6, EVERYBODY), (2, 0, 65534), *((tag, 4, EVERYBODY) for tag in (4, 16, 32)))
    )
    inner = make(place, "directory/file")
    set_acl(
        os.path.dirname(inner),
        acl((1, 7, EVERYBODY), (2, 4, 65534), *((tag, 5, EVERYBODY) for tag in (4, 16, 32))),
    )
    script = f"""{BECOME}become(65534)
for path in {[file, inner]}:
    print(opened(path), opened(THROUGH + path), os.access(THROUGH + path, 4))
same(looked, {file!r}); same(looked, {inner!r})
"""
    lines = clients(sandbox)(script).splitlines()
    assert lines[:2] == ["EACCES EACCES False"] * 2
    assert not [line for line in lines if "and not" in line]


@root_only
def test_an_access_control_list_that_grants(sandbox, clients, place):
    file = make(place, "file", mode=0o600)
    set_acl(
        file,
        acl(
            (1, 6, EVERYBODY),
            (2, 4, 65534),
            (4, 0, EVERYBODY),
            (16, 4, EVERYBODY),
            (32, 0, EVERYBODY),
        ),
    )
    script = f"{BECOME}become(65534)\nsame(opened, {file!r}); same(opened, {file!r}, 2)"
    assert clients(sandbox)(script).splitlines() == ["(32768, '0o100000', b'found')", "EACCES"]


@root_only
def test_a_device_of_that_number_elsewhere_has_its_own_permissions(echo, client, place):
    set_acl(place, acl(*((tag, 7, EVERYBODY) for tag in (1, 4, 32))))
    script = f"""{BECOME}
number = os.stat('/dev/echo').st_rdev
for name in ('shut', 'denied', 'granted'): os.mknod(f'{place}/{{name}}', 0o20666, number)
os.chmod('{place}/shut', 0o600)
every = 0xffffffff
def acl(*entries): return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *e) for e in entries)
os.chmod('{place}/granted', 0o600)
for name, bits, others in (('denied', 0, 6), ('granted', 6, 0)):
    os.setxattr(f'{place}/{{name}}', 'system.posix_acl_access', acl(
        (1, 6, every), (2, bits, 65534), (4, others, every), (16, 6, every), (32, others, every)))
become(65534)
for name in ('shut', 'denied', 'granted'):
    fd = attempt(os.open, f'{place}/{{name}}', os.O_RDWR)
    print(fd if isinstance(fd, str) else os.write(fd, b'x'))
"""
    assert client(script).split() == ["EACCES", "EACCES", "1"]


@root_only
class TestOPath:
    """O_PATH opens nothing, so nothing can be read by it, whoever has opened it."""

    def test_a_directory_cannot_be_listed(self, client):
        script = f"""{BECOME}become(65534)
for path in ('/root', THROUGH + '/root'):
    fd = os.open(path, O_PATH | os.O_DIRECTORY)
    print(attempt(os.listdir, fd), attempt(os.stat, 'x', dir_fd=fd), attempt(os.fchdir, fd),
          fcntl.fcntl(fd, fcntl.F_GETFL) & O_PATH > 0, fcntl.fcntl(fd, fcntl.F_GETFD))
"""
        assert client(script).splitlines() == ["EBADF EACCES EACCES True 1"] * 2

    def test_what_may_be_searched_is_a_place_to_start_from(self, client, place):
        make(place, "directory/file")
        os.chmod(place / "directory", 0o711)
        script = f"""{BECOME}become(65534)
fd = os.open(THROUGH + '{place}/directory', O_PATH)
print(os.stat('file', dir_fd=fd).st_size, attempt(os.listdir, fd), attempt(os.read, fd, 1))
os.fchdir(fd); print(open('file').read(), os.getcwd() == '{place}/directory')
print(attempt(os.listdir, f'/proc/self/fd/{{fd}}'))
"""
        assert client(script).splitlines() == ["5 EBADF EBADF", "found True", "EACCES"]

    def test_flags_and_kinds(self, client, place):
        file = make(place, "file", mode=0)
        os.symlink("nowhere", place / "link")
        os.mkfifo(place / "fifo")
        script = f"""{BECOME}become(65534)
def kept(path, flags):
    fd = attempt(os.open, path, flags | O_PATH)
    if isinstance(fd, str): return fd
    found = (os.fstat(fd)[:3], attempt(os.read, fd, 1), os.get_inheritable(fd),
             fcntl.fcntl(fd, fcntl.F_GETFL) & O_PATH, attempt(os.readlink, '', dir_fd=fd),
             os.readlink(f'/proc/self/fd/{{fd}}'))
    os.close(fd)
    return found
paths = [{file!r}, '/dev/null', '/proc/1/status']
for path in (*paths, '{place}/link', '{place}/fifo', '{place}/none'):
    for flags in (0, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_NOFOLLOW | os.O_DIRECTORY):
        same(kept, path, flags)
"""
        lines = client(script).splitlines()
        assert not [line for line in lines if "and not" in line]
        assert len(lines) == 24

    @pytest.mark.parametrize("refused", ["by a debugger", "by a container"])
    def test_where_the_thread_cannot_open_it_itself(self, client, place, monkeypatch, refused):
        (place / "open").mkdir(mode=0o755)
        (place / "shut").mkdir(mode=0o711)
        file = make(place, "file", mode=0)
        if refused == "by a container":
            monkeypatch.setattr("recuse.sandbox.syscalls.opening.may_open_tree", lambda: False)
        script = f"""{BECOME}
if {refused == "by a debugger"}:
    if os.fork(): print(wait(-1)); os._exit(0)
    libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
become(65534)
print(os.listdir(os.open(THROUGH + '{place}/open', O_PATH)))
print(attempt(os.open, THROUGH + '{place}/shut', O_PATH))
fd = os.open(THROUGH + {file!r}, O_PATH)
print(os.fstat(fd).st_size, attempt(os.read, fd, 1), attempt(os.open, f'/proc/self/fd/{{fd}}', 0))
sys.stdout.flush(); os._exit(0)
"""
        assert client(script).splitlines()[:3] == ["[]", "EACCES", "5 EBADF EACCES"]

    def test_a_directory_of_ours_that_may_not_be_read(self, make_echo, clients):
        with Sandbox(make_echo(name="recuse-input/event9")) as sandbox:
            output = clients(sandbox)(f"""{BECOME}
os.chmod('/dev/recuse-input', 0o711); become(65534)
fd = attempt(os.open, '/dev/recuse-input', O_PATH)
print(fd if isinstance(fd, str) else os.listdir(fd))
""")
        assert output == "EACCES\n"


@root_only
class TestMakingFiles:
    """O_TMPFILE makes one of the caller's, with its mode and umask."""

    SCRIPT = """
def made(path, mode=0o666):
    fd = attempt(os.open, path, O_TMPFILE | os.O_RDWR, mode)
    if isinstance(fd, str): return fd
    status = os.fstat(fd)
    found = (status.st_uid, status.st_gid, oct(status.st_mode), os.write(fd, b'x'),
             attempt(os.getxattr, fd, 'system.posix_acl_access'))
    os.close(fd)
    return found
"""

    @pytest.mark.parametrize("who", ["pass", "become(65534)", "become(12, 34)", "os.seteuid(12)"])
    def test_o_tmpfile(self, client, place, who):
        os.chmod(place, 0o777)
        (place / "shut").mkdir(mode=0o755)
        (place / "shared").mkdir()
        os.chown(place / "shared", 0, 1234)
        os.chmod(place / "shared", 0o2777)
        script = f"""{BECOME}{self.SCRIPT}
{who}
for mask in (0, 0o022, 0o077, 0o707):
    os.umask(mask)
    for mode in (0o666, 0o777, 0, 0o4755):
        for path in ('{place}', '{place}/shut', '{place}/shared'): same(made, path, mode)
"""
        lines = client(script).splitlines()
        assert len(lines) == 48
        assert not [line for line in lines if "and not" in line]

    def test_a_default_list_counts_instead_of_the_umask(self, client, place):
        os.chmod(place, 0o777)
        set_acl(
            place,
            acl((1, 7, EVERYBODY), (2, 7, 1234), *((tag, 7, EVERYBODY) for tag in (4, 16, 32))),
            "default",
        )
        script = f"""{BECOME}{self.SCRIPT}
become(65534); os.umask(0o077); same(made, '{place}'); same(made, '{place}', 0o640)
"""
        lines = client(script).splitlines()
        assert lines[0].startswith("(65534, 65534, '0o100666'")
        assert lines[1].startswith("(65534, 65534, '0o100640'")

    def test_where_threads_cannot_have_a_umask(self, client, place, monkeypatch):
        """Containers refuse unshare(2)."""
        os.chmod(place, 0o777)
        monkeypatch.setattr("recuse.sandbox.rights._CLONE_FS", 0x7FFFFFFF)
        script = f"{BECOME}{self.SCRIPT}become(65534); os.umask(0o027); same(made, '{place}')"
        assert client(script).startswith("(65534, 65534, '0o100640'")

    def test_the_supervisors_umask_stays(self, client, place):
        before = os.umask(0o022)
        try:
            client(
                f"{BECOME}os.umask(0); os.open(THROUGH + '{place}', O_TMPFILE | os.O_RDWR, 0o666)"
            )
            assert os.umask(0o022) == 0o022
        finally:
            os.umask(before)

    def test_truncation(self, client, place):
        mine, theirs = make(place, "mine", uid=65534), make(place, "theirs", mode=0o644)
        script = f"""{BECOME}become(65534)
for path in ({mine!r}, {theirs!r}):
    fd = attempt(os.open, THROUGH + path, os.O_TRUNC)
    print(fd if isinstance(fd, str) else os.stat(path).st_size, os.stat(path).st_size)
"""
        assert client(script).split() == ["0", "0", "EACCES", "5"]

    def test_an_open_file_is_the_callers(self, client, place):
        """Not to be told from one that the program has opened itself: fcntl(2) F_SETOWN, leases."""
        file = make(place, "file", mode=0o666)
        script = f"""{BECOME}become(65534)
fd = os.open(THROUGH + {file!r}, 2)
print(attempt(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_WRLCK), attempt(os.fchmod, fd, 0o777))
"""
        assert client(script) == "EACCES EPERM\n"


@root_only
@pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o777, 0o1755])
def test_directories_for_all(sandbox, clients, place, mode):
    """Files and links that somebody else may have put there (fs.protected_regular, _symlinks)."""
    for uid in (0, 12, 65534):
        make(place, f"{uid}", uid=uid, mode=0o666)
        os.symlink(place / "0", place / f"link {uid}")
        os.lchown(place / f"link {uid}", uid, uid)
    os.chown(place, 12, 65534)
    os.chmod(place, mode)
    script = f"""{BECOME}
def tried(who):
    if (pid := os.fork()) == 0:
        who[0](*who[1:])
        for name in ('0', '12', '65534', 'link 0', 'link 12', 'link 65534'):
            for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL):
                same(opened, '{place}/' + name, flags)
            same(looked, '{place}/' + name)
        sys.stdout.flush(); os._exit(0)
    wait(pid)
tried([lambda: None]); tried([become, 65534]); tried([become, 12])
"""
    lines = clients(sandbox)(script).splitlines()
    assert len(lines) == 72
    assert not [line for line in lines if "and not" in line]


@root_only
class TestProc:
    """/proc tells more to root than to others."""

    def test_other_processes(self, client):
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

    def test_the_supervisor(self, client):
        """It may look into itself, whatever it acts as."""
        link = f"/proc/{os.getpid()}/task/{os.getpid()}/cwd"
        paths = [link, f"{link}/etc", f"/proc/{os.getpid()}/root/etc/hostname"]
        paths += [f"/proc/{number}/cwd" for number in os.listdir("/proc/self/task")]
        script = f"""{BECOME}become(65534)
for path in {paths}:
    for call in (os.stat, os.lstat, os.readlink, os.listdir, os.chdir, open):
        print(attempt(call, THROUGH + path), os.access(THROUGH + path, 0))
"""
        assert set(client(script).splitlines()) == {"EACCES False"}

    def test_its_own(self, echo, client):
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

    def test_hidden_ones(self, client, place, needs):
        """A /proc mounted with hidepid shows a user his own processes only, and recuse's."""
        needs("mount")
        script = f"""{BECOME}
assert call('unshare', 0x20000) == 0
os.system('mount --make-rprivate /; mount -t proc -o hidepid=2 none {place}')
become(65534); libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as exec makes it
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
    def test_no_way_out_of_a_chroot(self, client, place, way):
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

    def test_what_a_mount_hides(self, client, place):
        make(place, "hidden/file", "secret")
        script = f"""{BECOME}
path = THROUGH + '{place}/hidden/file'
print(opened(path))
{self.ROOT}
os.system('mount -t tmpfs none {place}/hidden')
print(opened(path), attempt(os.stat, path))
"""
        assert client(script).splitlines() == ["(32768, '0o100000', b'secret')", "ENOENT ENOENT"]

    def test_what_a_mount_hides_from_a_process_that_clone3_has_made(self, client, place):
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

    def test_a_user_namespace_that_clone3_has_made(self, client, place):
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

    def test_flags_of_mounts(self, client, place):
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


@root_only
def test_going_somewhere_opens_nothing_to_read(client, place):
    """For a moment the program has a descriptor of the directory: also its other threads."""
    make(place, "directory/secret")
    os.chmod(place / "directory", 0o711)
    script = f"""{BECOME}become(65534)
going = True
found = []
def peek():
    lowest = os.dup(0); os.close(lowest)
    while going:
        names = attempt(os.listdir, lowest)
        if not isinstance(names, str): found.append(names)
thread = threading.Thread(target=peek); thread.start()
for _ in range(300):
    os.chdir(THROUGH + '{place}/directory'); os.chdir('/')
going = False
thread.join()
print(found[:1])
"""
    assert client(script) == "[]\n"


@root_only
class TestRaces:
    """A path that leads elsewhere from one moment to the next."""

    TRIES = 2000

    @pytest.fixture
    def swapped(self, place, compiled, needs):
        """Two names in a directory that another process exchanges, outside of the sandbox."""
        needs("gcc", "gcc")
        program = compiled("race")
        os.chown(place, 65534, 65534)
        running = []

        def start(one, other):
            argv = [program, "swap", str(place / one), str(place / other)]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE)
            running.append(process)
            assert process.stdout.readline() == b"swapping\n"
            return program

        yield start
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()

    def _run(self, sandbox, program, path):
        argv = [program, "look", THROUGH + str(path), str(self.TRIES)]
        done = sandbox.run(argv, capture_output=True, text=True, timeout=3 * PATIENCE_S)
        return done.stdout + done.stderr

    def test_a_directory_becomes_a_link(self, sandbox, place, swapped):
        secret = make(place, "root/secret", "SECRET", mode=0o600)
        os.chmod(os.path.dirname(secret), 0o700)
        make(place, "mine/secret", "mine", uid=65534)
        os.symlink(place / "root", place / "link")
        for name in ("mine", "link"):
            os.chown(place / name, 65534, 65534, follow_symlinks=False)
        program = swapped("mine", "link")
        assert self._run(sandbox, program, place / "mine" / "secret") == "opened refused\n"

    def test_a_file_becomes_a_link(self, sandbox, place, swapped):
        secret = make(place, "root/secret", "SECRET", mode=0o600)
        os.chmod(os.path.dirname(secret), 0o700)
        make(place, "mine", "mine", uid=65534)
        os.symlink(secret, place / "link")
        os.chown(place / "link", 65534, 65534, follow_symlinks=False)
        program = swapped("mine", "link")
        assert self._run(sandbox, program, place / "mine") == "opened refused\n"


def threads_of_this():
    """The rights of all threads of this process."""
    names = ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "Umask")
    found = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            text = Path(f"/proc/self/task/{thread}/status").read_text(encoding="utf-8")
        except OSError:
            continue  # it has ended
        lines = (line for line in text.splitlines() if line.partition(":")[0] in names)
        found.add("\n".join(lines))
    return found


@root_only
def test_the_supervisor_has_its_own_rights_again(sandbox, clients, place):
    before = threads_of_this()
    assert len(before) == 1
    file = make(place, "file", mode=0o640, gid=34)
    clients(sandbox)(f"""{BECOME}
become(65534, 65534, [34])
for n in range(50):
    opened(THROUGH + {file!r}); os.stat(THROUGH + {file!r}); os.listdir(THROUGH + '/proc')
    attempt(os.open, THROUGH + '/root/x', 0); attempt(os.stat, '/etc/nothing'); os.stat('/etc')
    opened(THROUGH + '/tmp', O_TMPFILE | os.O_RDWR)
""")
    assert threads_of_this() == before
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1  # PR_GET_DUMPABLE


def test_a_program_of_which_a_security_module_thinks_otherwise(client, monkeypatch):
    """Its rights cannot be taken on."""
    monkeypatch.setattr("recuse.sandbox.tasks.labels_of", lambda thread: (thread,))
    script = f"{BECOME}for at in ('', THROUGH): print(attempt(os.open, at + '/etc/passwd', 0))"
    assert client(script).splitlines() == ["3", "EACCES"]


def test_programs_that_have_restricted_themselves(client):
    """By Landlock, whose rules cannot be asked; and what descends from them."""
    script = f"""{BECOME}
def tell(who):
    print(who, opened(THROUGH + '/etc/passwd') == opened('/etc/passwd'), flush=True)
tell('before')
if os.fork() == 0:
    # The supervisor sees it, whatever the kernel says.
    call(446, -1, 0); tell('itself')
    if (child := os.fork()) == 0:
        tell('child')
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent: pass
            tell('orphan'); os._exit(0)
        os._exit(0)
    wait(child); os._exit(0)
wait(-1); tell('parent')
if os.fork() == 0: tell('other'); os._exit(0)
wait(-1)
"""
    found = dict(line.split() for line in client(script).splitlines())
    assert found == {
        "orphan": "False",
        "before": "True",
        "itself": "False",
        "child": "False",
        "parent": "True",
        "other": "True",
    }
