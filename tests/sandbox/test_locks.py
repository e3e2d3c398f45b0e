"""flock(2): files of one device exclude each other."""

from __future__ import annotations

import pytest

from recuse.sandbox import Sandbox
from tests.conftest import Needs

from .conftest import Clients, Fifo, Shell

OTHERS = """
def locks(*modes):
    # What another process gets: one file for each mode.
    ends = os.pipe()
    if os.fork() == 0:
        own = lambda: os.open('/dev/echo', os.O_RDWR)
        got = [attempt(fcntl.flock, own(), mode | fcntl.LOCK_NB) for mode in modes]
        os.write(ends[1], ' '.join(map(str, got)).encode()); os._exit(0)
    os.wait()
    return os.read(ends[0], 100).decode()
SH, EX, UN, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB
fd = os.open('/dev/echo', os.O_RDWR)
"""


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("EX", "EAGAIN EAGAIN"),
        ("SH", "None EAGAIN"),
        ("EX, SH", "None EAGAIN"),
        ("SH, EX", "EAGAIN EAGAIN"),
        ("EX, EX | NB", "EAGAIN EAGAIN"),
        ("EX, UN", "None EAGAIN"),  # their own first one
    ],
)
def test_who_may_lock_beside_whom(client: Shell, mine: str, theirs: str) -> None:
    script = f"for mode in ({mine},): fcntl.flock(fd, mode)\nprint(locks(SH, EX))"
    assert client(OTHERS + script) == f"{theirs}\n"


def test_a_lock_belongs_to_the_open_file(client: Shell) -> None:
    script = """
copy = os.dup(fd); fcntl.flock(fd, EX); fcntl.flock(copy, EX)
os.close(fd); print(locks(EX)); os.close(copy); print(locks(EX))
"""
    assert client(OTHERS + script) == "EAGAIN\nNone\n"


def test_a_lock_ends_with_its_process(client: Shell) -> None:
    script = """
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    fcntl.flock(os.open('/dev/echo', os.O_RDWR), EX); os.write(w, b'x'); signal.pause()
os.read(r, 1); print(locks(EX)); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); print(locks(EX))
"""
    assert client(OTHERS + script) == "EAGAIN\nNone\n"


WAITER = """
def waiter(mode):
    # A process that waits for a lock; its end says so, once it waits.
    ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        file = os.open('/dev/echo', os.O_RDWR)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        if restart is not None: signal.siginterrupt(signal.SIGUSR1, not restart)
        os.write(ends[1], b'r')
        if restart is None:
            fcntl.flock(file, mode); got = None
        else:
            got = call('flock', file, mode)
        os.write(ends[1], b'got %s' % str(got).encode()); os._exit(0)
    os.read(ends[0], 1)
    while open(f'/proc/{pid}/syscall').read().split()[0] != str(SYS['flock']): pass
    return pid, ends[0]
restart = None
"""


def test_waiting_for_a_lock(client: Shell) -> None:
    script = """
fcntl.flock(fd, EX); pid, end = waiter(EX); fcntl.flock(fd, UN)
print(os.read(end, 100)); os.waitpid(pid, 0); print(locks(EX))
"""
    assert client(OTHERS + WAITER + script) == "b'got None'\nNone\n"


def test_many_wait_and_shared_ones_get_it_together(client: Shell) -> None:
    script = """
fcntl.flock(fd, EX); ends = [waiter(SH)[1] for _ in range(3)]; fcntl.flock(fd, SH)
print([os.read(end, 100) for end in ends])
"""
    assert client(OTHERS + WAITER + script) == "[b'got None', b'got None', b'got None']\n"


def test_a_killed_waiter_is_forgotten(client: Shell) -> None:
    script = """
fcntl.flock(fd, EX); pid, end = waiter(EX); os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
fcntl.flock(fd, UN); print(locks(EX))
"""
    assert client(OTHERS + WAITER + script) == "None\n"


@pytest.mark.parametrize(("restart", "got"), [(False, "b'got EINTR'"), (True, "b'got 0'")])
def test_a_signal_while_waiting(client: Shell, restart: bool, got: str) -> None:
    script = f"""
restart = {restart}
fcntl.flock(fd, EX); pid, end = waiter(EX); os.kill(pid, signal.SIGUSR1)
if restart:
    while open(f'/proc/{{pid}}/status').read().split('ShdPnd:')[1].split()[0].strip('0'): pass
    fcntl.flock(fd, UN)
print(os.read(end, 100))
"""
    assert client(OTHERS + WAITER + script) == f"{got}\n"


def test_devices_and_sandboxes_do_not_share_locks(make_echo: type[Fifo], clients: Clients) -> None:
    one, two = make_echo(name="echo"), make_echo(name="other")
    script = """
a, b = os.open('/dev/echo', os.O_RDWR), os.open('/dev/other', os.O_RDWR)
print(*(attempt(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB) for file in (a, b)))
"""
    with Sandbox(one, two) as sandbox:
        assert clients(sandbox)(script) == "None None\n"


def test_util_linux_flock(shell: Shell, needs: Needs) -> None:
    needs("flock", "util-linux")
    command = "exec 3<>/dev/echo; flock 3; flock -n /dev/echo true || echo busy; flock -u 3; "
    command += "flock -n /dev/echo echo free; flock -w 5 /dev/echo echo waited"
    assert shell(command) == "busy\nfree\nwaited\n"


def test_what_flock_refuses(client: Shell) -> None:
    script = """
path = os.open('/dev/echo', os.O_PATH)
print(attempt(fcntl.flock, path, EX), attempt(fcntl.flock, fd, 0), attempt(fcntl.flock, fd, 3))
"""
    assert client(OTHERS + script) == "EBADF EINVAL EINVAL\n"
