"""Everything without root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import recuse
from tests.conftest import Needs

from .conftest import Compiled, Shell
from .mounts.raw_server import SERVER

PRELUDE = """
import os, subprocess, sys, tempfile
from recuse import Device, File
from recuse.sandbox import Sandbox
class FifoFile(File):
    def read(self, size, offset):
        data = bytes(self.device.data[:size])
        del self.device.data[:size]
        return data
    def write(self, data, offset):
        self.device.data += data
    def release(self):
        self.device.released += 1
class Fifo(Device):
    name = 'echo'
    released = 0
    def __init__(self, **options):
        super().__init__(**options)
        self.data = bytearray()
    def open(self, request):
        self.who = request.uid, request.gid
        return FifoFile()
def python(sandbox, script):
    sandbox.run([sys.executable, '-I', '-S', '-c', 'import ctypes, os, sys, threading\\n' + script])
"""


@pytest.fixture(scope="module")
def nobody() -> Iterator[Shell]:
    """Runs a script, after PRELUDE, as nobody, or as whoever this is if that is not root."""
    python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
    if not Path(python).exists():
        pytest.skip("there is no Python that nobody can run")
    with tempfile.TemporaryDirectory(prefix="unprivileged-") as directory:
        os.chmod(directory, 0o755)
        source = Path(recuse.__file__).parent
        shutil.copytree(source, Path(directory) / "recuse", ignore=shutil.ignore_patterns("*.pyc"))
        drop = []
        if os.geteuid() == 0:
            drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            drop += ["--bounding-set=-all", "--inh-caps=-all"]
            for path in (Path(directory), *Path(directory).rglob("*")):
                os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)

        def run(script: str) -> str:
            done = subprocess.run(
                [*drop, python, "-B", "-c", PRELUDE + script],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=60,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": directory},
                cwd="/",
            )
            return done.stdout if done.returncode == 0 else f"{done.stdout}[{done.returncode}]"

        yield run


def test_a_device_works(nobody: Shell) -> None:
    output = nobody("""
device = Fifo()
with Sandbox(device) as sandbox:
    sandbox.run(['sh', '-c', 'echo hello > /dev/echo; cat /dev/echo; ls /dev/echo; id -u >&2;'
        'exec 5<>/dev/echo; (echo five >&5); cat <&5; chmod 600 /dev/echo; stat -c %a /dev/echo'],
        stderr=subprocess.DEVNULL)
print(device.who == (os.geteuid(), os.getegid()), device.released)
print(sandbox is not None, os.stat('/').st_uid == os.geteuid())
""")
    assert output.splitlines() == ["hello", "/dev/echo", "five", "600", "True 3", "True False"]


@pytest.mark.right("user namespaces")
def test_the_nodes_owner_is_whoever_runs_the_sandbox(nobody: Shell) -> None:
    output = nobody("""
with Sandbox(Fifo()) as sandbox:
    python(sandbox, "s = os.stat('/dev/echo')\\n"
           "print((s.st_uid, s.st_gid) == (os.geteuid(), os.getegid()))")
with Sandbox(Fifo(mode=0o600, uid=0)) as sandbox:
    sandbox.run(['sh', '-c', 'exec 2>&1; cat /dev/echo; stat -c "%u %a" /dev/echo'])
    sandbox.run(['sh', '-c', 'exec 2>&1; chmod 666 /dev/echo'])
    sandbox.run(['sh', '-c', 'unshare -r cat /dev/echo 2>&1; unshare -r chmod 666 /dev/echo 2>&1'])
    sys.stdout.flush()
""")
    assert output.splitlines() == [
        "True",
        "cat: /dev/echo: Permission denied",
        "0 600",
        "chmod: changing permissions of '/dev/echo': Operation not permitted",
        "cat: /dev/echo: Permission denied",
        "chmod: changing permissions of '/dev/echo': Operation not permitted",
    ]


TOLD = "lets nobody look into it"

UNDUMPABLE = """
device = Fifo()
with Sandbox(device) as sandbox:
    python(sandbox, '''
{before}
libc = ctypes.CDLL(None)
assert libc.prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
print(open('/etc/passwd').readline() != '', os.stat('/etc/passwd').st_size > 0)
print('null' in os.listdir('/dev'), os.access('/etc/passwd', os.R_OK), os.readlink('/bin') != '')
r, w = os.pipe()
print(os.write(w, b'pipe'), os.read(r, 4), os.dup(r) > 2)
thread = threading.Thread(target=lambda: print('thread')); thread.start(); thread.join()
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    print(open('/etc/passwd').readline() != '', flush=True); os._exit(0)
os.wait()
print(os.system('echo system; cat /etc/passwd >/dev/null'))
''')
"""


@pytest.mark.parametrize(
    "before",
    ["", "f = os.open('/dev/echo', os.O_RDWR); os.write(f, b'x')"],
    ids=["", "with device"],
)
def test_a_program_that_nobody_may_look_into_works(nobody: Shell, before: str) -> None:
    # ssh-agent, gpg-agent and others make themselves so. It may see no devices; all else works.
    lines = nobody(UNDUMPABLE.format(before=before).replace("\n{", "\n")).splitlines()
    assert sum(TOLD in line for line in lines) == 1
    assert [line for line in lines if TOLD not in line] == [
        "True True",
        "True True True",
        "4 b'pipe' True",
        "thread",
        "True",
        "system",
        "0",
    ]


HIDDEN = """
device = Fifo()
with Sandbox(device) as sandbox:
    python(sandbox, '''
import array, errno, fcntl, select
libc = ctypes.CDLL(None)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
def attempt(function, *args):
    try: return function(*args)
    except OSError as error: return errno.errorcode[error.errno]
def look(fd):
    print(attempt(os.read, fd, 16), attempt(os.write, fd, b"lost"), attempt(os.fstat, fd),
          attempt(os.readv, fd, [bytearray(9)]), attempt(fcntl.ioctl, fd, 0x703, 5),
          attempt(os.lseek, fd, 0, 0), attempt(fcntl.fcntl, fd, fcntl.F_GETFL), flush=True)
fd = os.open('/dev/echo', os.O_RDWR)
if {used}: os.write(fd, b'before')
libc.prctl(4, 0, 0, 0, 0)
look(fd)
thread = threading.Thread(target=look, args=(fd,)); thread.start(); thread.join()
if os.fork() == 0:
    look(fd); os._exit(0)
os.wait()
null = os.open('/dev/null', os.O_RDWR)
print(os.read(null, 9), os.write(null, b'works'))
libc.prctl(4, 1, 0, 0, 0)
print(os.read(fd, 16))
''')
print(bytes(device.data))
"""


@pytest.mark.parametrize("used", [True, False])
def test_what_it_has_of_a_device_is_an_error(nobody: Shell, used: bool) -> None:
    # Natively it is a socket, which would give a byte of recuse's own and take what is written.
    lines = nobody(HIDDEN.format(used=used)).splitlines()
    (told,) = [line for line in lines if TOLD in line]
    assert told.startswith("python3 (process ")
    lines.remove(told)
    assert lines == [
        *[" ".join(["EIO"] * 7)] * 3,
        "b'' 5",
        str(b"before" if used else b""),
        "b''",
    ]


def test_a_program_that_nobody_may_read_with_a_device(nobody: Shell, needs: Needs) -> None:
    program = needs("cat")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        copy = os.path.join(directory, "hidden-cat")
        shutil.copy(program, copy)
        os.chmod(copy, 0o711)
        output = nobody(f"""
device = Fifo()
with Sandbox(device) as sandbox:
    sandbox.run(['sh', '-c', 'exec 3<>/dev/echo 2>&1; echo hello >&3; {copy} <&3; cat <&3;'
        '{copy} /dev/echo; echo lost | {copy} >&3; echo x | {copy}; {copy} /etc/hostname; cat <&3'])
    sys.stdout.flush()
    sandbox.run(['sh', '-c', 'exec 3<>/dev/echo; exec 2>&1; exec 4<&3 3<&-; {copy} <&4'])
""")
    # Newer ones tell by the last part only who they are.
    lines = [line.replace(copy, "cat").replace("hidden-cat", "cat") for line in output.splitlines()]
    hostname = Path("/etc/hostname").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if TOLD in line]
    assert [line for line in lines if TOLD not in line] == [
        "cat: -: Input/output error",
        "hello",
        "cat: /dev/echo: No such file or directory",
        "cat: standard output: Input/output error",
        "x",
        *hostname,
        "cat: -: Input/output error",
    ]
    assert len(told) == 1


def test_a_program_that_may_be_executed_and_not_read(
    nobody: Shell, compiled: Compiled, needs: Needs
) -> None:
    needs("gcc", "gcc")
    program = compiled("raw", "-DUNREADABLE")
    os.chmod(program, 0o711)
    # Its process cannot be looked into either, from the beginning.
    output = nobody(f"""
with Sandbox(Fifo()) as sandbox:
    print(sandbox.run([{program!r}, 'fork'], stderr=subprocess.STDOUT).returncode)
""")
    assert output.splitlines()[-1] in ("0", "1")
    assert "error while loading shared libraries" not in output


def test_set_user_id_programs_gain_nothing(nobody: Shell, needs: Needs) -> None:
    needs("su")
    output = nobody("""
with Sandbox(Fifo()) as sandbox:
    done = sandbox.run(['su', '-c', 'id -u'], stdin=subprocess.DEVNULL, capture_output=True)
    print(done.returncode != 0, b'0' in done.stdout.split())
""")
    assert output == "True False\n"


def test_sysfs_is_the_users(nobody: Shell) -> None:
    output = nobody("""
device = Fifo()
with Sandbox(device) as sandbox:
    sandbox.run(['sh', '-c', 'cd /sys/class/; cat cuse/echo/waiting; stat -c %a:%u:%g cuse/echo/*;'
        'cat cuse/echo/uevent | tail -1; echo x > cuse/echo/abort; cat cuse/echo/dev 2>&1'])
""")
    modes = ["200", "444", "755", "777", "644", "400"]
    user = f"{os.geteuid()}:{os.getegid()}" if os.geteuid() else "65534:65534"
    assert output.splitlines() == [
        "0",
        *(f"{mode}:{user}" for mode in modes),
        "DEVNAME=echo",
        "cat: cuse/echo/dev: No such file or directory",
    ]


def test_a_program_maps_a_device(nobody: Shell) -> None:
    output = nobody("""
from recuse import Area
class AreaFile(File):
    def mmap(self, request):
        return self.device.area
    def unmapped(self, mapping):
        print('unmapped', bytes(mapping.area[:3]), flush=True)
class Mapped(Device):
    name = 'area'
    area = Area(4096)
    def open(self, request):
        return AreaFile()
with Sandbox(Mapped()) as sandbox:
    python(sandbox, 'import mmap; m = mmap.mmap(os.open("/dev/area", 2), 4096); m[:3] = b"abc"')
""")
    assert output == "unmapped b'abc'\n"


@pytest.mark.right("other users")
def test_going_through_ours_to_a_directory_that_may_only_be_searched(nobody: Shell) -> None:
    # /proc/PID of another user's is one, and so is this.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711 if os.geteuid() == 0 else 0o311)
        Path(directory, "file").write_text("found", encoding="utf-8")
        output = nobody(f"""
with Sandbox(Fifo()) as sandbox:
    python(sandbox, '''
before = len(os.listdir("/proc/self/fd"))
for path in {directory!r}, "/sys/class/cuse/../../../" + {directory!r}:
    os.chdir("/")
    os.chdir(path)
    print(os.getcwd(), open("file").read(), len(os.listdir("/proc/self/fd")) - before)
try: os.chdir("/sys/class/cuse/../../../root")
except OSError as error: print(error.strerror, os.getcwd())
''')
""")
    closed = ["Permission denied", directory] if os.geteuid() == 0 else ["Permission denied"]
    lines = output.splitlines()
    assert lines[:2] == [f"{directory} found 0"] * 2
    assert os.geteuid() != 0 or lines[2] == " ".join(closed)


THROUGH = "/sys/class/cuse/../../.."


@pytest.mark.right("user namespaces")
def test_a_user_namespace_of_its_own_gives_no_more(nobody: Shell) -> None:
    """There is nobody whose rights the supervisor could take on: they are its own, or less."""
    output = nobody(f"""
with tempfile.TemporaryDirectory() as place:
    os.chmod(place, 0o700)
    for name, mode in ('mine', 0o600), ('shut', 0):
        open(f'{{place}}/{{name}}', 'w').write('found')
        os.chmod(f'{{place}}/{{name}}', mode)
    with Sandbox(Fifo()) as sandbox:
        python(sandbox, f'''
import errno
libc = ctypes.CDLL(None)
def tried(path):
    try: return open(path).read()
    except OSError as error: return errno.errorcode[error.errno]
def made(path):
    try: fd = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError as error: return errno.errorcode[error.errno]
    return oct(os.fstat(fd).st_mode)
def look():
    for path in ("{{place}}/mine", "{{place}}/shut", "/root/x"):
        print(tried(path) == tried("{THROUGH}" + path), end=" ")
    print(made("{{place}}") == made("{THROUGH}{{place}}"), made("{THROUGH}/etc"), flush=True)
os.umask(0o027)
look()
assert libc.unshare(0x10000000) == 0
look()
''')
""")
    assert output.splitlines() == ["True True True True EACCES"] * 2


def test_going_to_a_directory_that_exists_only_here(nobody: Shell) -> None:
    output = nobody("""
with Sandbox(Fifo(name='place/echo')) as sandbox:
    sandbox.run(['sh', '-c', 'cd /dev/place && /bin/pwd && ls; cd ../../etc && /bin/pwd'])
    sandbox.run(['sh', '-c', 'exec 2>&1; chmod 600 /dev/place; cd /dev/place || /bin/pwd'])
""")
    assert output.splitlines()[:3] == ["/dev/place", "echo", "/etc"]
    assert output.splitlines()[3].endswith("cd: can't cd to /dev/place")
    assert output.splitlines()[4:] == ["/"]


def test_an_interpreter_that_may_not_be_read_is_named(nobody: Shell) -> None:
    output = nobody("""
import shutil
with tempfile.TemporaryDirectory() as directory:
    python = shutil.copy(os.path.realpath(sys.executable), directory + '/python3')
    os.chmod(python, 0o111)
    environment = os.environ | {'PYTHONHOME': sys.base_prefix}
    done = subprocess.run([python, '-B', '-m', 'recuse', 'run', 'true'], env=environment,
        stderr=subprocess.PIPE, text=True)
    print(done.returncode, f'recuse: {python}: may not be read' in done.stderr, done.stderr)
""")
    assert output.startswith("125 True ")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a directory that is another user's")
def test_mounts_on_a_directory_of_root_s(nobody: Shell, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(0o755)
    output = nobody(
        "with Sandbox() as sandbox:\n"
        f"    python(sandbox, {SERVER!r} + '''\n"
        f"child = served({str(tmp_path)!r})\n"
        f"print(os.listdir({str(tmp_path)!r}), flush=True)\n"
        f"umount({str(tmp_path)!r})''')"
    )
    assert output == "['file']\n"


def test_a_lock_ends_with_its_process(nobody: Shell) -> None:
    """Only root may look into a process that has ended and that nobody has waited for."""
    output = nobody("""
from recuse import Directory, Filesystem, RegularFile
with tempfile.TemporaryDirectory() as here:
    with Sandbox(mounts={here: Filesystem(Directory({'file': RegularFile(b'')}))}) as sandbox:
        python(sandbox, f'''
import fcntl, signal
fd = os.open("{here}/file", os.O_RDWR)
r, w = os.pipe()
def holder():
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(fd, fcntl.LOCK_EX); os.write(w, b"1"); signal.pause()
    os.read(r, 1)
    return pid
for flags in 0, fcntl.LOCK_NB:
    pid = holder()
    os.kill(pid, 9); os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print(fcntl.lockf(fd, fcntl.LOCK_EX | flags), os.waitpid(pid, 0)[1], flush=True)
    fcntl.lockf(fd, fcntl.LOCK_UN)
''')
""")
    assert output == "None 9\n" * 2
