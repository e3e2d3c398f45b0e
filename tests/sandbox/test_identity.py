"""Which descriptor is a device: after copies of every kind, and after a number was used again.

The sandbox remembers by number what it can. In each of these tests a number that was a device has
become an ordinary file while another reference to the device lives on, or the other way round.
"""

import subprocess

import pytest

from recuse.sandbox import Sandbox

from .conftest import Fifo, Shell

# In each: fd is the device. What runs between ends with another reference to it elsewhere.
TURN_INTO_FILE = """
fd = os.open('/dev/echo', os.O_RDWR)
os.write(fd, b'first ')
{between}
os.close(fd)
null = os.open('/dev/null', os.O_RDWR)
print(null == fd, os.write(null, b'stale'), os.read(null, 5), os.fstat(null).st_rdev == 259)
try:
    fcntl.ioctl(null, 0x1234)
except OSError as error:
    print(errno.errorcode[error.errno])
{after}
"""

IN_THREAD = """
made, end = threading.Event(), threading.Event()
def other():
    {copy}
    made.set()
    end.wait()
thread = threading.Thread(target=other)
thread.start()
made.wait()
"""
END_THREAD = "end.set(); thread.join(); print(call('getpid') > 0)"

IN_CHILD = """
r, w = os.pipe()
os.set_inheritable(w, True)
os.set_inheritable(fd, True)
pid = {make}
if pid == 0:
    {copy}
    os.write(w, b'!')
    signal.pause()
assert os.read(r, 1) == b'!'
"""
END_CHILD = "os.kill(pid, 9); print(wait(pid) == -9)"

SHARING = "libc.syscall(SYS['clone'], 0x400 | signal.SIGCHLD, 0, 0, 0, 0)"

COPIES = {
    # Python's own dup is an fcntl, and its dup2 may be a dup3.
    "dup": ("copy = call('dup', fd)", "print(os.write(copy, b'x'))"),
    "dup2": ("call('dup2', fd, 99)", "print(os.write(99, b'x'))"),
    "dup3": ("call('dup3', fd, 99, os.O_CLOEXEC)", "print(os.write(99, b'x'))"),
    "F_DUPFD": ("copy = fcntl.fcntl(fd, fcntl.F_DUPFD, 50)", "print(os.write(copy, b'x'))"),
    "F_DUPFD_CLOEXEC": (
        "copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50)",
        "print(os.write(copy, b'x'))",
    ),
    "fork": (IN_CHILD.format(make="os.fork()", copy="pass"), END_CHILD),
    "clone3": (
        IN_CHILD.format(
            make="libc.syscall(435, struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64)", copy="pass"
        ),
        END_CHILD,
    ),
    "dup by a child that shares the table": (
        IN_CHILD.format(make=SHARING, copy="os.dup(fd)"),
        END_CHILD,
    ),
    "unshare by a child that shares the table": (
        IN_CHILD.format(make=SHARING, copy="assert call('unshare', 0x400) == 0"),
        END_CHILD,
    ),
    "exec by a child that shares the table": (
        IN_CHILD.format(
            make=SHARING,
            copy="os.execv('/bin/sh', ['sh', '-c', f'printf ! >&{w}; exec sleep 1000'])",
        ),
        END_CHILD,
    ),
    "fork by a child that shares the table": (
        IN_CHILD.format(
            make=SHARING,
            # The grandchild ends with the child: PR_SET_PDEATHSIG.
            copy="if os.fork(): signal.pause()\n    libc.prctl(1, 9)",
        ),
        END_CHILD,
    ),
    "dup by a thread": (IN_THREAD.format(copy="os.dup(fd)"), END_THREAD),
    "unshare by a thread": (
        IN_THREAD.format(copy="assert call('unshare', 0x400) == 0"),
        END_THREAD,
    ),
    "close_range by a thread": (
        IN_THREAD.format(copy="assert call(436, 100, 200, 2) == 0"),
        END_THREAD,
    ),
    "fork by a thread": (
        IN_THREAD.format(copy="global pid; pid = os.fork(); pid or signal.pause()"),
        END_CHILD + ";" + END_THREAD,
    ),
    "SCM_RIGHTS": (
        "a, b = socket.socketpair()\n"
        "socket.send_fds(a, [b'x'], [fd])\n"
        "copy = socket.recv_fds(b, 1, 1)[1][0]",
        "print(os.write(copy, b'x'))",
    ),
    "SCM_RIGHTS, not received yet": (
        "a, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [fd])",
        "copy = socket.recv_fds(b, 1, 1)[1][0]\nprint(os.write(copy, b'x'))",
    ),
    "SCM_RIGHTS by a child that shares the table": (
        "a, b = socket.socketpair()\n"
        + IN_CHILD.format(make=SHARING, copy="socket.send_fds(a, [b'x'], [fd])"),
        END_CHILD + "\ncopy = socket.recv_fds(b, 1, 1)[1][0]\nprint(os.write(copy, b'x'))",
    ),
    "pidfd_getfd": (
        "copy = libc.syscall(438, os.pidfd_open(os.getpid()), fd, 0)\nassert copy >= 0",
        "print(os.write(copy, b'x'))",
    ),
}


RIGHTS = {
    "clone3": "clone3",
    "pidfd_getfd": "pidfd_getfd",
    "unshare by a child that shares the table": "namespaces",
    "unshare by a thread": "namespaces",
}
"""What some of them need, that a container may refuse."""


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(copy, marks=[pytest.mark.right(RIGHTS[copy])] if copy in RIGHTS else [])
        for copy in COPIES
    ],
)
def test_a_number_is_what_it_is_now(echo: Fifo, client: Shell, copy: str) -> None:
    between, after = COPIES[copy]
    output = client(TURN_INTO_FILE.format(between=between, after=after), start_new_session=True)
    assert output.startswith("True 5 b'' True\nENOTTY\n"), output
    assert "Traceback" not in output
    assert b"".join(echo.writes).rstrip(b"x") == b"first "


@pytest.mark.parametrize("replace", ["os.dup2(null, fd)", "call('dup3', null, fd, 0o2000000)"])
@pytest.mark.parametrize("copies", ["", "copy = os.dup(fd)"])
def test_a_file_put_over_a_device_is_a_file(
    echo: Fifo, client: Shell, replace: str, copies: str
) -> None:
    output = client(
        "fd = os.open('/dev/echo', os.O_RDWR); null = os.open('/dev/null', os.O_RDWR)\n"
        f"os.write(fd, b'first ')\n{copies}\n{replace}\n"
        "print(os.write(fd, b'stale'), os.fstat(fd).st_rdev == 259)\n"
        "print(attempt(fcntl.ioctl, fd, 0x1234), attempt(os.pread, fd, 5, 0))\n"
    )
    assert output == "5 True\nENOTTY b''\n"
    assert echo.writes == [b"first "]


def test_a_device_put_over_any_number_is_the_device(echo: Fifo, client: Shell) -> None:
    output = client(
        "fd = os.open('/dev/echo', os.O_RDWR); null = os.open('/dev/null', os.O_RDWR)\n"
        "for n in 0, 5, null, 63, 255, 1000:\n"
        "    os.dup2(fd, n); os.write(n, b'%d ' % n); print(stat.S_ISCHR(os.fstat(n).st_mode))\n"
        "os.close(fd)\n"
        "print(os.read(0, 100))\n"
    )
    assert output == "True\n" * 6 + "b'0 5 4 63 255 1000 '\n"


def test_numbers_closed_and_used_again_by_turns(echo: Fifo, client: Shell) -> None:
    # A device, a file, another open of the device, ...: always under the same number.
    output = client(
        "held = []\n"
        "for turn in range(300):\n"
        "    fd = os.open('/dev/echo', os.O_RDWR); os.write(fd, b'd')\n"
        "    if turn % 3 == 0: held.append(os.dup(fd))\n"
        "    os.close(fd)\n"
        "    null = os.open('/dev/null', os.O_RDWR); os.write(null, b'stale'); os.close(null)\n"
        "    assert fd == null\n"
        "    if turn % 7 == 0: [os.close(n) for n in held]; held = []\n"
        "print('ok')\n"
    )
    assert output == "ok\n"
    assert echo.writes == [b"d"] * 300


def test_a_parent_and_its_child_have_numbers_of_their_own(echo: Fifo, client: Shell) -> None:
    output = client(
        "fd = os.open('/dev/echo', os.O_RDWR)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.close(fd); assert os.open('/dev/null', os.O_RDWR) == fd\n"
        "    os.write(fd, b'stale'); os._exit(0)\n"
        "print(wait(pid), os.write(fd, b'parent'))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.write(fd, b' child'); os._exit(0)\n"
        "print(wait(pid), os.read(fd, 100))\n"
    )
    assert output == "0 6\n0 b'parent child'\n"


def test_two_opens_of_a_device_are_two_files(sandbox: Sandbox, client: Shell) -> None:
    assert (
        client(
            "a = os.open('/dev/echo', os.O_RDWR); b = os.open('/dev/echo', os.O_RDONLY)\n"
            "print(os.write(a, b'x'), attempt(os.write, b, b'y'), os.read(b, 1))\n"
            "os.close(a); print(attempt(os.write, a, b'x'), os.read(b, 1))\n"
        )
        == "1 EBADF b'x'\nEBADF b''\n"
    )


def test_an_ordinary_socket_is_not_a_device(sandbox: Sandbox, client: Shell) -> None:
    # What stands for a device in a program is a socket.
    assert (
        client(
            "fd = os.open('/dev/echo', os.O_RDWR); a, b = socket.socketpair()\n"
            "print(os.write(a.fileno(), b'native'), os.read(b.fileno(), 9))\n"
            "print(stat.S_ISSOCK(os.fstat(a.fileno()).st_mode), a.getsockopt(1, 3))\n"
        )
        == "6 b'native'\nTrue 1\n"
    )


def test_an_exec_keeps_a_device_under_its_number(echo: Fifo, client: Shell) -> None:
    script = (
        "fd = os.open('/dev/echo', os.O_RDWR); os.set_inheritable(fd, True)\n"
        "os.dup2(fd, 0); os.dup2(fd, 7)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'echo seven >&7; cat; exec 7>&-; echo no 2>&1 >&7'])"
    )
    assert client(script).startswith("seven\n")


def test_threads_open_and_fork_at_once(echo: Fifo, client: Shell) -> None:
    # What a thread opens while another forks is held by the child, too.
    script = """
import subprocess
def forks():
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
os.close(os.open('/dev/echo', os.O_RDWR))  # what is remembered of the only thread
pids = []
thread = threading.Thread(target=forks)
thread.start()
while thread.is_alive():
    fd = os.open('/dev/echo', os.O_RDWR)
    os.write(fd, b'd')
    os.close(fd)
    null = os.open('/dev/null', os.O_RDWR)
    os.write(null, b'stale')
    os.close(null)
for pid in pids:
    os.kill(pid, 9); wait(pid)
print('ok')
"""
    assert client(script) == "ok\n"
    assert set(echo.writes) == {b"d"}


def test_ordinary_files_are_served_while_a_device_is_open(sandbox: Sandbox) -> None:
    # The numbers 0 to 2 of a program that has a device are still what they were.
    script = "exec 5<>/dev/echo; cat; echo out; echo err >&2; echo dev >&5; head -c 4 <&5"
    done = sandbox.run(["sh", "-c", script], input=b"in\n", capture_output=True)
    assert (done.stdout, done.stderr) == (b"in\nout\ndev\n", b"err\n")
    assert isinstance(done, subprocess.CompletedProcess)


def test_numbers_that_the_supervisor_uses_again(
    sandbox: Sandbox, client: Shell, echo: Fifo
) -> None:
    # While files come and go in every order, so do the numbers by which their ends are compared.
    script = """
import random
random.seed(1)
held = {}
for turn in range(400):
    if held and random.random() < 0.5:
        os.close(held.popitem()[0] if turn % 2 else held.pop(next(iter(held))) or 0)
        continue
    path = random.choice(['/dev/echo', '/sys/class/cuse/echo/dev'])
    number = os.open(path, os.O_RDWR if path == '/dev/echo' else os.O_RDONLY)
    held[number] = number
    assert stat.S_ISCHR(os.fstat(number).st_mode) is (path == '/dev/echo'), (turn, path)
    if path == '/dev/echo': assert os.write(number, b'x') == 1
    else: assert os.read(number, 9) == b'%d:0\\n' % os.major(os.stat('/dev/echo').st_rdev), turn
print('right')
"""
    assert client(script) == "right\n"
