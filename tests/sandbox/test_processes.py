"""Programs of many kinds: how they are built, what they are written in, how they start others."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.tasks import fetch
from tests.conftest import Needs

from .conftest import Clients, Compiled, Fifo, Shell, Start

WAYS = [
    *("fork", "vfork", "clone", "shared", "thread"),
    *(pytest.param(way, marks=pytest.mark.right("clone3")) for way in ("clone3", "clone3-into")),
]


@pytest.fixture
def build(compiled: Compiled, needs: Needs) -> Compiled:
    """The fixture compiled, if there is a compiler."""
    needs("gcc", "gcc")
    return compiled


@pytest.mark.parametrize("flags", [(), ("-static",)], ids=["dynamic", "static"])
@pytest.mark.parametrize("way", WAYS)
def test_threads_and_processes_made_by_bare_calls(
    echo: Fifo, sandbox: Sandbox, build: Compiled, flags: tuple[str, ...], way: str
) -> None:
    program = build("raw", *flags)
    done = sandbox.run([program, way], stdout=subprocess.PIPE, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, f"0 main{way}!end\n")
    assert echo.opened >= 2


ECHOED = "hello from {}\n"


def test_perl(sandbox: Sandbox, needs: Needs) -> None:
    needs("perl", "perl")
    script = (
        "open(my $f, '+<', '/dev/echo') or die $!; syswrite $f, \"hello from perl\\n\";"
        "sysread $f, my $x, 99; print $x; print -c '/dev/echo' ? 1 : 0, -s _ ? 1 : 0;"
        "opendir(my $d, '/dev'); print scalar grep { $_ eq 'echo' } readdir $d;"
    )
    assert sandbox.run(["perl", "-e", script], stdout=subprocess.PIPE).stdout == (
        b"hello from perl\n101"
    )


def test_busybox(sandbox: Sandbox, needs: Needs, echo: Fifo) -> None:
    # A static program that forks and execs itself.
    busybox = str(needs("busybox", "busybox-static"))
    script = (
        f"{busybox} echo hello > /dev/echo; {busybox} cat /dev/echo; {busybox} ls /dev/echo;"
        f"{busybox} dd if=/dev/zero of=/dev/echo bs=10 count=3 2>/dev/null;"
        f"{busybox} wc -c < /dev/echo; {busybox} stat -c %F /dev/echo; {busybox} ls /dev"
    )
    done = sandbox.run([busybox, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    assert lines[:4] == ["hello", "/dev/echo", "30", "character special file"]
    assert "echo" in lines[4:]
    assert echo.writes[-1] == bytes(10)


def test_node(sandbox: Sandbox, needs: Needs) -> None:
    # Its files are served by a pool of threads, or by io_uring.
    needs("node", "nodejs")
    script = """
const fs = require('fs');
fs.writeFileSync('/dev/echo', 'hello from node\\n');
const f = fs.openSync('/dev/echo', 'r+');
const b = Buffer.alloc(99);
console.log(b.toString('utf8', 0, fs.readSync(f, b)), fs.fstatSync(f).isCharacterDevice());
(async () => {
  const h = await fs.promises.open('/dev/echo', 'r+');
  await h.write('async'); console.log((await h.read(b, 0, 99, null)).bytesRead);
  await h.close();
  console.log((await fs.promises.readdir('/dev')).includes('echo'));
  console.log(require('child_process').execSync('cat /dev/echo; echo x').toString());
})();
"""
    done = sandbox.run(["node", "-e", script], stdout=subprocess.PIPE, text=True, timeout=30)
    assert done.stdout == "hello from node\n true\n5\ntrue\nx\n\n"


def test_java(sandbox: Sandbox, needs: Needs, tmp_path: Path, echo: Fifo) -> None:
    java, compiler = (needs(name, "default-jdk-headless") for name in ("java", "javac"))
    (tmp_path / "Echo.java").write_text(
        "import java.io.*; import java.nio.file.*;\n"
        "public class Echo { public static void main(String[] a) throws Exception {\n"
        '  try (RandomAccessFile f = new RandomAccessFile("/dev/echo", "rw")) {\n'
        '    f.write("hello from java".getBytes()); byte[] b = new byte[99];\n'
        "    System.out.println(new String(b, 0, f.read(b))); }\n"
        '  try (OutputStream o = Files.newOutputStream(Paths.get("/dev/echo"))) { o.write(65); }\n'
        '  System.out.println(Files.exists(Paths.get("/dev/echo"))); } }\n'
    )
    subprocess.run([compiler, "-d", tmp_path, tmp_path / "Echo.java"], check=True)
    done = sandbox.run([java, "-cp", tmp_path, "Echo"], stdout=subprocess.PIPE, text=True,
                       timeout=60)  # fmt: skip
    assert done.stdout == "hello from java\ntrue\n"
    assert echo.writes[-1] == b"A"


def test_python(sandbox: Sandbox, client: Shell, echo: Fifo) -> None:
    output = client(
        "with open('/dev/echo', 'r+b', buffering=0) as f:\n"
        "    print(f.write(b'hello'), f.read(9), f.seekable())\n"
        "with open('/dev/echo', 'w') as f: print('text', file=f)\n"
        "print(open('/dev/echo').readlines())\n"
        "import subprocess, select\n"
        "print(subprocess.run(['cat', '/dev/echo'], input=b'', capture_output=True).returncode)\n"
    )
    assert output == "5 b'hello' True\n['text\\n']\n0\n"


def test_exec_keeps_and_close_on_exec_closes(echo: Fifo, client: Shell) -> None:
    script = """
keep, shut, late = (os.open('/dev/echo', os.O_RDWR | flag) for flag in (0, os.O_CLOEXEC, 0))
os.set_inheritable(keep, True); os.set_inheritable(late, True)
fcntl.fcntl(late, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
dup = fcntl.fcntl(keep, fcntl.F_DUPFD_CLOEXEC, 20)
dup3 = call('dup3', keep, 30, os.O_CLOEXEC); dup2 = os.dup2(dup, 31)
fcntl.ioctl(fcntl.fcntl(keep, fcntl.F_DUPFD, 40), 0x5451)  # FIOCLEX
print([fcntl.fcntl(n, fcntl.F_GETFD) for n in (keep, shut, late, dup, dup3, dup2, 40)], flush=True)
os.execv('/bin/sh', ['sh', '-c', 'cd /proc/self/fd; for n in *; do test -c $n && echo $n; done; :'])
"""
    output = client(script, stdin=subprocess.DEVNULL).split("\n", 1)
    assert output[0] == "[0, 1, 1, 1, 1, 0, 1]"
    assert output[1].split() == ["0", "3", "31"]
    assert echo.opened == echo.released == 3


def test_a_shell_script_with_jobs_and_pipes(sandbox: Sandbox, shell: Shell, echo: Fifo) -> None:
    script = """
for i in 1 2 3 4 5 6 7 8; do (echo $i > /dev/echo; cat /dev/echo >/dev/null) & done; wait
echo a b c | tr ' ' '\\n' | tee /dev/echo | wc -l
sort -r < /dev/echo | head -n 1
x=$(cat /dev/echo; echo y > /dev/echo; cat /dev/echo); echo "x=$x"
"""
    assert shell(script) == "3\nc\nx=y\n"


def test_close_range_spares_a_device_or_not(echo: Fifo, client: Shell) -> None:
    assert (
        client(
            "a, b, c = (os.open('/dev/echo', os.O_RDWR) for _ in range(3))\n"
            "call(436, b, b, 0)\n"
            "print(attempt(os.write, b, b'x'), os.write(a, b'a'), os.write(c, b'c'))\n"
            "call(436, a, c, 4); print(fcntl.fcntl(a, 1), fcntl.fcntl(c, 1), os.read(a, 9))\n"
            "call(436, a, 0xffffffff, 0); print(attempt(os.write, c, b'x'))\n"
        )
        == "EBADF 1 1\n1 1 b'ac'\nEBADF\n"
    )


@pytest.mark.right("pidfd_getfd")
def test_descriptors_between_processes(echo: Fifo, client: Shell) -> None:
    # SCM_RIGHTS to a process that did not open the device, pidfd_getfd from one that did.
    script = """
a, b = socket.socketpair()
pid = os.fork()
if pid == 0:
    fd = socket.recv_fds(b, 9, 1)[1][0]
    os.write(fd, b'child'); mine = os.open('/dev/echo', os.O_RDWR); os.write(mine, b' own')
    b.send(bytes([mine])); b.recv(1); os._exit(0)
fd = os.open('/dev/echo', os.O_RDWR)
socket.send_fds(a, [b'x'], [fd, fd])
theirs = a.recv(1)[0]
copy = call(438, os.pidfd_open(pid), theirs, 0)
print(copy > 2, os.write(copy, b' copy'), os.read(fd, 99), os.read(copy, 9))
print(stat.S_ISCHR(os.fstat(copy).st_mode), os.readlink(f'/proc/{pid}/fd/{theirs}'))
a.send(b'!'); print(wait(pid), os.write(copy, b'still'), os.read(copy, 9))
"""
    assert client(script) == "True 5 b'child own copy' b''\nTrue /dev/echo\n0 5 b'still'\n"
    assert echo.opened == echo.released == 2


CHROOT = """
mkdir {0}/dev
cp {1} {0}/busybox
: > {0}/file
chroot {0} /busybox sh -c 'echo x > /dev/echo; /busybox cat /dev/echo; /busybox ls /dev'
exec 5<>/dev/echo
chroot {0} /busybox sh -c 'echo held >&5; /busybox cat <&5; /busybox cat /file'
echo outside > /dev/echo; cat /dev/echo; ls /dev/echo; cd /dev; echo outside > echo; cat ./echo
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_a_chroot_has_its_own_dev(shell: Shell, needs: Needs, tmp_path: Path, echo: Fifo) -> None:
    busybox = needs("busybox", "busybox-static")
    # In it there is no device; what was opened outside is usable inside.
    assert shell(CHROOT.format(tmp_path, busybox)) == (
        "x\necho\nheld\noutside\n/dev/echo\noutside\n"
    )
    assert (tmp_path / "dev/echo").read_text() == "x\n"
    assert b"x\n" not in echo.writes


NAMESPACES = {
    "mounts": "-m",
    "user": "-r",
    "user and mounts": "-rm",
    "network": "-rn",
    "pids": "-rpf",
    "pids with a proc of their own": "-rpfm --mount-proc",
}


@pytest.mark.right("namespaces", "user namespaces")
@pytest.mark.parametrize("flags", NAMESPACES.values(), ids=NAMESPACES)
def test_namespaces(shell: Shell, flags: str, echo: Fifo) -> None:
    if os.geteuid() != 0 and "r" not in flags:
        pytest.skip("needs root")
    script = (
        "echo x > /dev/echo; cat /dev/echo; cd /dev; ls echo; cat < echo; exec 5<>/dev/echo;"
        "echo five >&5; head -c5 /proc/self/fd/5; readlink /proc/self/fd/5; ln -s /dev/echo $0;"
        "echo l > $0; cat $0; rm $0"
    )
    link = f"/tmp/recuse-link-{os.getpid()}"
    assert shell(f"unshare {flags} sh -c '{script}' {link}") == ("x\necho\nfive\n/dev/echo\nl\n")


def test_a_process_group_and_session_of_its_own(shell: Shell) -> None:
    assert (
        shell("setsid -w sh -c 'echo x > /dev/echo; cat /dev/echo'; setsid cat /dev/echo") == "x\n"
    )


def test_orphans_are_served(sandbox: Sandbox, start: Start, echo: Fifo) -> None:
    script = """
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.read(0, 1)  # by now its parent has ended
        fd = os.open('/dev/echo', os.O_RDWR); os.write(fd, b'orphan'); print(os.read(fd, 9))
    sys.exit(0)
os.wait()
"""
    with start(sandbox, script) as program:
        program.stdin.write(b"x")
        assert program.stdout.read() == b"b'orphan'\n"
    assert program.returncode == 0


def test_an_exec_by_a_thread(echo: Fifo, client: Shell) -> None:
    script = """
fd = os.open('/dev/echo', os.O_RDWR); os.set_inheritable(fd, True)
def exec_sh(command): os.execv('/bin/sh', ['sh', '-c', command])
def other():
    os.write(fd, b'thread '); exec_sh(f'printf exec >&{fd}; cat /dev/echo')
threading.Thread(target=other).start()
signal.pause()
"""
    assert client(script) == "thread exec"
    assert echo.left_open == 0


def test_an_x32_call_does_not_get_by(client: Shell) -> None:
    assert client("print(call(0x40000000 + 2, b'/dev/echo', 2))") == "ENOSYS\n"


def test_programs_of_two_sandboxes_pass_a_device(
    make_echo: type[Fifo], clients: Clients, start: Start, tmp_path: Path
) -> None:
    # A descriptor of one sandbox's device would be nothing but a socket in another.
    one, two = make_echo(), make_echo()
    path = str(tmp_path / "socket")
    sender = """
fd = os.open('/dev/echo', os.O_RDWR)
s = socket.socket(socket.AF_UNIX); s.bind(args[0]); s.listen()
print('ready', flush=True)
c = s.accept()[0]; print(attempt(socket.send_fds, c, [b'x'], [fd]), end=' ')
socket.send_fds(c, [b'x'], [1]); c.recv(1)
print(os.write(fd, b'mine'))
"""
    receiver = """
c = socket.socket(socket.AF_UNIX); c.connect(args[0])
(fd,) = socket.recv_fds(c, 1, 1)[1]
own = os.open('/dev/echo', os.O_RDWR)
print(os.write(own, b'own'), stat.S_ISCHR(os.fstat(fd).st_mode)); os.close(fd); c.send(b'x')
"""
    with (
        Sandbox(one) as first,
        Sandbox(two) as second,
        start(first, sender, path) as program,
    ):
        assert program.stdout.readline() == b"ready\n"
        assert clients(second)(receiver, path) == "3 False\n"
        assert program.stdout.read() == b"EPERM 4\n"
    assert (one.writes, two.writes) == ([b"mine"], [b"own"])


OUTSIDE = """
fd = os.open('/dev/echo', os.O_RDWR)
c = socket.socket(socket.AF_UNIX); c.connect(args[0])
null = os.open('/dev/null', os.O_RDWR)
print(attempt(socket.send_fds, c, [b'a'], [fd]), attempt(socket.send_fds, c, [b'b'], [null, fd]))
print(attempt(socket.send_fds, c, [b'c'], [null]), attempt(c.send, b'd'))
class Header(ctypes.Structure):
    _fields_ = [('name', ctypes.c_void_p), ('namelen', ctypes.c_uint), ('iov', ctypes.c_void_p),
        ('iovlen', ctypes.c_size_t), ('control', ctypes.c_void_p), ('controllen', ctypes.c_size_t),
        ('flags', ctypes.c_size_t), ('sent', ctypes.c_size_t)]
data = ctypes.create_string_buffer(b'm', 1)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(data), 1)
def message(*numbers):
    control = struct.pack(f'Qii{len(numbers)}i', 16 + 4 * len(numbers), 1, 1, *numbers)
    keep.append(ctypes.create_string_buffer(control, len(control) + 7 & ~7))
    return Header(iov=ctypes.addressof(vector), iovlen=1, control=ctypes.addressof(keep[-1]),
                  controllen=len(control))
keep = []
messages = (Header * 3)(message(null), message(null, null), message(null, fd))
print(call('sendmmsg', c.fileno(), ctypes.byref(messages), 3, 0))
print(call('sendmmsg', c.fileno(), ctypes.byref(messages), 2, 0), os.write(fd, b'here'))
a, b = socket.socketpair()
sys.stdout.flush()
if os.fork() == 0:
    received = socket.recv_fds(b, 1, 1)[1][0]; print(os.read(received, 9), flush=True); os._exit(0)
print(socket.send_fds(a, [b'x'], [fd]), flush=True)
os.wait()
server = socket.socket(socket.AF_UNIX); server.bind(args[0] + '2'); server.listen()
c = socket.socket(socket.AF_UNIX); c.connect(args[0] + '2'); print(socket.send_fds(c, [b'x'], [fd]))
"""


@pytest.mark.parametrize("fetches", [True, False], ids=["fetched", "lent"])
def test_a_device_is_not_passed_to_a_process_outside(
    client: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetches: bool
) -> None:
    # There it would be a socket, with a byte of recuse's own to read. Which process is at the other
    # end is seen by a copy of the program's socket.
    if not fetches:
        monkeypatch.setattr(fetch, "may_fetch", lambda: False)
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        output = client(OUTSIDE, path).splitlines()
        there, _ = server.accept()
        with there:
            received = []
            while data := socket.recv_fds(there, 1, 9):
                if not data[0]:
                    break
                received.append((data[0], len(data[1])))
                for number in data[1]:
                    os.close(number)
    assert sorted(output) == sorted(
        ["EPERM EPERM", "1 1", "EPERM", "2 4", "1", "b'here'", "1"]
    )  # the child's among them
    assert received == [(b"c", 1), (b"d", 0), (b"m", 1), (b"m", 2)]


def test_a_shell_with_many_children_can_fork(shell: Shell) -> None:
    # dash handles SIGCHLD without SA_RESTART: a fork that were trapped would fail with EINTR.
    loop = "for i in 1 2 3 4 5 6 7 8; do true & done; wait"
    script = "; ".join([loop] * 10)
    assert shell(script, program="dash") == ""
