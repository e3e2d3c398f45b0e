"""Going to directories that exist only in the sandbox."""

import os
from collections.abc import Iterator

import pytest

from recuse.sandbox import Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S
from .conftest import Clients, Compiled, Fifo, Shell, Shells, Start

PLACE = "/dev/recuse-input"


@pytest.fixture
def box(make_echo: type[Fifo]) -> Iterator[Sandbox]:
    with Sandbox(make_echo(), make_echo(name="recuse-input/event9")) as box:
        yield box


@pytest.fixture
def run(box: Sandbox, clients: Clients) -> Shell:
    return clients(box)


@pytest.mark.parametrize("program", ["dash", "bash"])
def test_shells(box: Sandbox, shells: Shells, program: str) -> None:
    script = f"""
cd {PLACE} && pwd && /bin/pwd && pwd -P && ls && ls -a . && echo *
echo hello > event9; cat ./event9 ../recuse-input/event9
cd .. && /bin/pwd && cd recuse-input/ && (cd -P .. && /bin/pwd) && /bin/pwd
cd -P /sys/class/cuse/echo && /bin/pwd && cat dev && cd ../../../../.. && /bin/pwd
cd {PLACE}/../recuse-input/. && /bin/pwd; cd {PLACE}/event9 || cd {PLACE}/nothing || cd ..
sh -c 'cat recuse-input/event9; exec /bin/pwd'
"""
    lines = shells(box)(script, program=program).splitlines()
    assert box._machine is not None
    (device,) = (device for device in box._machine.table if device.name == "echo")
    assert lines[:8] == [PLACE, PLACE, PLACE, "event9", ".", "..", "event9", "event9"]
    assert lines[8:12] == ["hello", "/dev", "/dev", PLACE]
    assert lines[12:14] == ["/sys/devices/virtual/cuse/echo", f"{device.major}:{device.minor}"]
    assert lines[14:16] == ["/", PLACE]
    assert f"{PLACE}/event9" in lines[16]
    assert f"{PLACE}/nothing" in lines[17]
    assert lines[18:] == ["/dev"]


def test_programs(run: Shell) -> None:
    script = """
os.chdir('/dev/recuse-input')
print(os.getcwd(), os.listdir(), os.readlink('/proc/self/cwd'), os.path.realpath('event9'))
there, named = os.stat('.'), os.stat('/dev/recuse-input')
print(there[:3] == named[:3], attempt(os.stat, ''), attempt(os.open, 'new', os.O_CREAT))
buffer = ctypes.create_string_buffer(256)
print(libc.fstatat(-100, b'', buffer, 0x1000), struct.unpack_from('=QQ', buffer)[1] == there.st_ino)
print(attempt(os.fstat, -100), sorted(os.listdir('/proc/self/fd')))
os.chdir('.')
print(os.getcwd(), attempt(os.chdir, 'event9'), attempt(os.chdir, 'nothing'), os.getcwd())
os.chdir('..')
print(os.getcwd(), os.stat('null').st_rdev == os.stat('/dev/null').st_rdev)
os.chdir('recuse-input')
os.chdir('../../etc')
print(os.getcwd(), os.path.exists('passwd'))
"""
    assert run(script).splitlines() == [
        f"{PLACE} ['event9'] {PLACE} {PLACE}/event9",
        "True ENOENT EACCES",
        "0 True",
        "EBADF ['0', '1', '2', '3']",
        f"{PLACE} ENOTDIR ENOENT {PLACE}",
        "/dev True",
        "/etc True",
    ]


def test_it_is_the_process_s(run: Shell) -> None:
    """Its threads', its children's, and that of what it executes."""
    script = """
import subprocess
thread = threading.Thread(target=os.chdir, args=('/dev/recuse-input',))
thread.start()
thread.join()
print(os.getcwd(), flush=True)
if os.fork() == 0:
    print(os.getcwd(), flush=True)
    os.chdir('/')
    os._exit(0)
os.wait()
print(subprocess.run(['/bin/pwd'], stdout=-1).stdout, os.getcwd())
os.chdir('/')
print(subprocess.run(['/bin/pwd'], stdout=-1, cwd='/dev/recuse-input').stdout, os.getcwd())
"""
    assert run(script).splitlines() == [
        *[PLACE] * 2,
        f"b'{PLACE}\\n' {PLACE}",
        f"b'{PLACE}\\n' /",
    ]


@pytest.mark.parametrize("flags", [[], ["-static"], ["-m32", "-static"]])
def test_c_programs(box: Sandbox, compiled: Compiled, needs: Needs, flags: tuple[str, ...]) -> None:
    if "-m32" in flags:
        needs("/usr/include/asm", package="gcc-multilib")
    argv = [compiled("workdir", "-D_GNU_SOURCE", *flags), PLACE, "event9"]
    done = box.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines() == [
        f"{len(PLACE) + 1} {PLACE}",
        "-1 ERANGE",
        "-1 EFAULT",
        "3 3 3",
        "0 /dev",
    ]


@pytest.mark.right("other users")
def test_who_may_not_search_it_may_not_go_there(run: Shell) -> None:
    script = """
os.chmod('/dev/recuse-input', 0o700)
os.chdir('/')
if os.fork() == 0:
    os.setuid(65534)
    print(attempt(os.chdir, '/dev/recuse-input'), os.getcwd(), flush=True)
    os._exit(0)
os.wait()
print(attempt(os.chdir, '/dev/recuse-input'), os.getcwd())
"""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    assert run(script) == "EACCES /\nNone /dev/recuse-input\n"


def test_a_program_with_a_debugger(run: Shell) -> None:
    """Nobody else can make it go there."""
    script = """
if not (child := os.fork()):
    libc.ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    fds = os.listdir('/proc/self/fd')
    print(attempt(os.chdir, '/dev/recuse-input'), os.listdir('/proc/self/fd') == fds, flush=True)
    os._exit(0)
print(wait(child))
"""
    assert run(script) == "EACCES True\n0\n"


def test_a_device_that_goes(box: Sandbox, start: Start) -> None:
    script = f"""
os.chdir({PLACE!r})
print(os.getcwd(), flush=True)
sys.stdin.readline()
print(attempt(os.getcwd), attempt(os.listdir), attempt(os.stat, '.'), attempt(os.stat, 'event9'))
os.chdir('/dev')
print(os.getcwd())
"""
    with start(box, script) as program:
        assert program.stdout.readline().decode() == f"{PLACE}\n"
        assert box._machine is not None
        (device,) = (device for device in box._machine.table if device.name != "echo")
        box._machine.table.remove(device)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.read().decode() == "ENOENT ENOENT ENOENT ENOENT\n/dev\n"
        assert program.wait(PATIENCE_S) == 0


def test_signals_meanwhile(run: Shell) -> None:
    """They wait for a moment, and none is lost."""
    script = """
seen = 0
def handle(*_):
    global seen
    seen += 1
signal.signal(signal.SIGALRM, handle)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
for _ in range(200):
    os.chdir('/dev/recuse-input')
    os.chdir('/')
signal.setitimer(signal.ITIMER_REAL, 0)
print(seen > 0, os.getcwd(), len(os.listdir('/proc/self/fd')))
"""
    assert run(script).startswith("True / ")


def test_a_directory_that_has_gone_is_missing_by_links_to_it(box: Sandbox, start: Start) -> None:
    script = f"""
fd = os.open({PLACE!r}, os.O_RDONLY)
os.chdir({PLACE!r})
print("there", flush=True)
sys.stdin.readline()
for link in f"/proc/self/fd/{{fd}}", "/proc/self/cwd", f"/proc/{{os.getpid()}}/fd/{{fd}}":
    paths = [link + end for end in ("/", "/.", "/event9", "/..")]
    calls = os.stat, os.listdir, os.mkdir, os.readlink, os.chdir, os.open
    print(*{{attempt(call, path, *[0] * (call is os.open)) for path in paths for call in calls}})
"""
    with start(box, script) as program:
        assert program.stdout.readline() == b"there\n"
        assert box._machine is not None
        box._machine._channels[1].close()
        program.stdin.write(b"\n")
        program.stdin.close()
        assert program.stdout.read() == b"ENOENT\n" * 3
        assert program.wait(PATIENCE_S) == 0
