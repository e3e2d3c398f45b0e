"""Nothing is done for a program that it may not do itself: its files through directories of ours.

What a path leads to through a directory that exists only in the sandbox, the kernel cannot find,
and the supervisor opens it. A hostile program would have it open what only the supervisor may.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S
from .conftest import Clients, Compiled, Fifo, Shell
from .rights import BECOME, THROUGH, make, root_only

pytestmark = pytest.mark.right("other users", "namespaces")


EVERYBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_access (linux/posix_acl_xattr.h): (tag, bits, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_acl(path: str | Path, value: bytes, kind: str = "access") -> None:
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
def test_files_as_the_kernel_has_them(
    sandbox: Sandbox, clients: Clients, place: Path, who: str
) -> None:
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
def test_an_access_control_list_that_denies(
    sandbox: Sandbox, clients: Clients, place: Path
) -> None:
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
def test_an_access_control_list_that_grants(
    sandbox: Sandbox, clients: Clients, place: Path
) -> None:
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
def test_a_device_of_that_number_elsewhere_has_its_own_permissions(
    echo: Fifo, client: Shell, place: Path
) -> None:
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

    def test_a_directory_cannot_be_listed(self, client: Shell) -> None:
        script = f"""{BECOME}become(65534)
for path in ('/root', THROUGH + '/root'):
    fd = os.open(path, O_PATH | os.O_DIRECTORY)
    print(attempt(os.listdir, fd), attempt(os.stat, 'x', dir_fd=fd), attempt(os.fchdir, fd),
          fcntl.fcntl(fd, fcntl.F_GETFL) & O_PATH > 0, fcntl.fcntl(fd, fcntl.F_GETFD))
"""
        assert client(script).splitlines() == ["EBADF EACCES EACCES True 1"] * 2

    def test_what_may_be_searched_is_a_place_to_start_from(
        self, client: Shell, place: Path
    ) -> None:
        make(place, "directory/file")
        os.chmod(place / "directory", 0o711)
        script = f"""{BECOME}become(65534)
fd = os.open(THROUGH + '{place}/directory', O_PATH)
print(os.stat('file', dir_fd=fd).st_size, attempt(os.listdir, fd), attempt(os.read, fd, 1))
os.fchdir(fd); print(open('file').read(), os.getcwd() == '{place}/directory')
print(attempt(os.listdir, f'/proc/self/fd/{{fd}}'))
"""
        assert client(script).splitlines() == ["5 EBADF EBADF", "found True", "EACCES"]

    def test_flags_and_kinds(self, client: Shell, place: Path) -> None:
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
    def test_where_the_thread_cannot_open_it_itself(
        self, client: Shell, place: Path, monkeypatch: pytest.MonkeyPatch, refused: str
    ) -> None:
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

    def test_a_directory_of_ours_that_may_not_be_read(
        self, make_echo: type[Fifo], clients: Clients
    ) -> None:
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
    def test_o_tmpfile(self, client: Shell, place: Path, who: str) -> None:
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

    def test_a_default_list_counts_instead_of_the_umask(self, client: Shell, place: Path) -> None:
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

    def test_where_threads_cannot_have_a_umask(
        self, client: Shell, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Containers refuse unshare(2)."""
        os.chmod(place, 0o777)
        monkeypatch.setattr("recuse.sandbox.tasks.rights._CLONE_FS", 0x7FFFFFFF)
        script = f"{BECOME}{self.SCRIPT}become(65534); os.umask(0o027); same(made, '{place}')"
        assert client(script).startswith("(65534, 65534, '0o100640'")

    def test_the_supervisors_umask_stays(self, client: Shell, place: Path) -> None:
        before = os.umask(0o022)
        try:
            client(
                f"{BECOME}os.umask(0); os.open(THROUGH + '{place}', O_TMPFILE | os.O_RDWR, 0o666)"
            )
            assert os.umask(0o022) == 0o022
        finally:
            os.umask(before)

    def test_truncation(self, client: Shell, place: Path) -> None:
        mine, theirs = make(place, "mine", uid=65534), make(place, "theirs", mode=0o644)
        script = f"""{BECOME}become(65534)
for path in ({mine!r}, {theirs!r}):
    fd = attempt(os.open, THROUGH + path, os.O_TRUNC)
    print(fd if isinstance(fd, str) else os.stat(path).st_size, os.stat(path).st_size)
"""
        assert client(script).split() == ["0", "0", "EACCES", "5"]

    def test_an_open_file_is_the_callers(self, client: Shell, place: Path) -> None:
        """Not to be told from one that the program has opened itself: fcntl(2) F_SETOWN, leases."""
        file = make(place, "file", mode=0o666)
        script = f"""{BECOME}become(65534)
fd = os.open(THROUGH + {file!r}, 2)
print(attempt(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_WRLCK), attempt(os.fchmod, fd, 0o777))
"""
        assert client(script) == "EACCES EPERM\n"


@root_only
@pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o777, 0o1755])
def test_directories_for_all(sandbox: Sandbox, clients: Clients, place: Path, mode: int) -> None:
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
def test_going_somewhere_where_a_security_module_may_refuse_reading(
    client: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the thread goes there by itself, and is given nothing."""
    monkeypatch.setattr("recuse.sandbox.tasks.tasks.labels_of", lambda thread: (thread,))
    monkeypatch.delattr("recuse.sandbox.syscalls.workdir.open_again")
    assert client(f"{BECOME}os.chdir(THROUGH + '/etc'); print(os.getcwd())") == "/etc\n"


@root_only
def test_going_somewhere_opens_nothing_to_read(client: Shell, place: Path) -> None:
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
    def swapped(
        self, place: Path, compiled: Compiled, needs: Needs
    ) -> Iterator[Callable[[str, str], str]]:
        """Two names in a directory that another process exchanges, outside of the sandbox."""
        needs("gcc", "gcc")
        program = compiled("race")
        os.chown(place, 65534, 65534)
        running = []

        def start(one: str, other: str) -> str:
            argv = [program, "swap", str(place / one), str(place / other)]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE)
            running.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == b"swapping\n"
            return program

        yield start
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _run(self, sandbox: Sandbox, program: str, path: Path) -> str:
        argv = [program, "look", THROUGH + str(path), str(self.TRIES)]
        done = sandbox.run(argv, capture_output=True, text=True, timeout=3 * PATIENCE_S)
        output: str = done.stdout + done.stderr
        return output

    def test_a_directory_becomes_a_link(
        self, sandbox: Sandbox, place: Path, swapped: Callable[[str, str], str]
    ) -> None:
        secret = make(place, "root/secret", "SECRET", mode=0o600)
        os.chmod(os.path.dirname(secret), 0o700)
        make(place, "mine/secret", "mine", uid=65534)
        os.symlink(place / "root", place / "link")
        for name in ("mine", "link"):
            os.chown(place / name, 65534, 65534, follow_symlinks=False)
        program = swapped("mine", "link")
        assert self._run(sandbox, program, place / "mine" / "secret") == "opened refused\n"

    def test_a_file_becomes_a_link(
        self, sandbox: Sandbox, place: Path, swapped: Callable[[str, str], str]
    ) -> None:
        secret = make(place, "root/secret", "SECRET", mode=0o600)
        os.chmod(os.path.dirname(secret), 0o700)
        make(place, "mine", "mine", uid=65534)
        os.symlink(secret, place / "link")
        os.chown(place / "link", 65534, 65534, follow_symlinks=False)
        program = swapped("mine", "link")
        assert self._run(sandbox, program, place / "mine") == "opened refused\n"


def threads_of_this() -> set[str]:
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
def test_the_supervisor_has_its_own_rights_again(
    sandbox: Sandbox, clients: Clients, place: Path
) -> None:
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


def test_a_program_of_which_a_security_module_thinks_otherwise(
    client: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rights cannot be taken on."""
    monkeypatch.setattr("recuse.sandbox.tasks.tasks.labels_of", lambda thread: (thread,))
    script = f"{BECOME}for at in ('', THROUGH): print(attempt(os.open, at + '/etc/passwd', 0))"
    assert client(script).splitlines() == ["3", "EACCES"]


def test_programs_that_have_restricted_themselves(client: Shell) -> None:
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
