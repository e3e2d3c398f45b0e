"""Many open files, and none left."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

from recuse.sandbox import Sandbox

from .conftest import Clients, Fifo, Shell


def test_a_program_with_a_thousand_files(echo: Fifo, client: Shell) -> None:
    script = """
resource = __import__('resource'); resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 1200))
fds = [os.open('/dev/echo', os.O_RDWR) for _ in range(1000)]
os.write(fds[0], bytes(1000))
print(sum(len(os.read(fd, 1)) for fd in fds), stat.S_ISCHR(os.fstat(fds[-1]).st_mode), fds[-1])
for fd in fds[::2]: os.close(fd)
os.write(fds[1], bytes(500)); print(sum(len(os.read(fd, 1)) for fd in fds[1::2]))
print(attempt(os.read, fds[0], 1))
"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard > 2000, "this machine's hard limit is low"
    assert client(script) == "1000 True 1002\n500\nEBADF\n"
    assert echo.opened == echo.released == 1000


def test_a_table_that_is_full(echo: Fifo, client: Shell) -> None:
    script = """
resource = __import__('resource'); resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
fds = []
while not isinstance(fd := attempt(os.open, '/dev/echo', os.O_RDWR), str): fds.append(fd)
print(fd, fds, attempt(os.open, '/dev/null', 0), attempt(os.open, '/dev/echo', 0o10000000))
os.close(fds.pop()); print(os.open('/dev/echo', os.O_RDWR), attempt(os.open, '/dev/echo', 0))
print(os.write(fds[0], b'x'), attempt(os.dup, fds[0]), os.read(fds[-1], 2))
"""
    assert client(script) == (
        f"EMFILE {list(range(3, 20))} EMFILE EMFILE\n19 EMFILE\n1 EMFILE b'x'\n"
    )
    # Each failed open was taken back.
    assert echo.opened == echo.released
    assert echo.opened >= 18


SUPERVISOR = """
import resource, subprocess, sys
from recuse import Device, File
from recuse.sandbox import Sandbox
counts = {'open': 0, 'release': 0}
class CountingFile(File):
    def release(self): counts['release'] += 1
    def read(self, size, offset): return b'x'
class Echo(Device):
    name = 'echo'
    def open(self, request):
        counts['open'] += 1
        return CountingFile()
script = '''
import os, resource, sys
sys.stdin.read(1)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
fds = []
try:
    while len(fds) < 300: fds.append(os.open('/dev/echo', os.O_RDWR))
except OSError as error:
    print(error.errno)
print(len(fds) > 10, all(os.read(fd, 1) == b'x' for fd in fds), open('/etc/passwd').read(1) != '')
while fds: os.close(fds.pop())
print(os.open('/dev/echo', os.O_RDWR) < 10)
'''
with Sandbox(Echo()) as sandbox:
    program = sandbox.popen([sys.executable, '-I', '-S', '-c', script], stdin=subprocess.PIPE)
    # Only now, and only for the supervisor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    program.stdin.write(b'x'); program.stdin.close()
    program.wait()
print(counts['open'] == counts['release'], counts['open'] > 11)
"""


def test_a_supervisor_without_descriptors(tmp_path: Path) -> None:
    # The programs' opens fail then, cleanly; what is open goes on.
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR], capture_output=True, text=True, check=False, timeout=60
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("no more descriptors (ulimit -n is 40): ")
    lines = done.stdout.splitlines()
    assert lines[0] in ("24", "23")  # EMFILE, ENFILE
    assert lines[1:] == ["True True True", "True", "True True"]


def descriptors() -> list[str]:
    """What this process has open, but for views of programs' memory, which are kept for a while."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link.partition("[")[0] for link in links if not link.endswith("/mem"))


def test_nothing_stays_open_in_the_supervisor(make_echo: type[Fifo], clients: Clients) -> None:
    # The fixture looks after each test; this is about a sandbox that lives long.
    with Sandbox(make_echo()) as sandbox:
        client = clients(sandbox)
        script = "for _ in range(50): os.close(os.dup(os.open('/dev/echo', os.O_RDWR)))\n"
        script += "print(os.listdir('/dev')[:0])"
        client(script)
        sandbox.run(["true"])
        before = descriptors()
        for _ in range(5):
            assert client(script) == "[]\n"
        sandbox.run(["true"])
        assert descriptors() == before


POLLING = """
import resource, subprocess, sys
from recuse import Device, File
from recuse.sandbox import Sandbox
class EmptyFile(File):
    def poll(self, events): return 4
class Empty(Device):
    name = 'empty'
    def open(self, request): return EmptyFile()
script = '''
import os, select, sys
sys.stdin.read(1)
fds = []
try:
    while len(fds) < 300: fds.append(os.open('/dev/empty', os.O_RDWR))
except OSError as error:
    print(error.errno)
ends = [os.pipe() for _ in range(60)]
os.write(ends[0][1], b'x')
print(len(select.select([fds[0], fds[-1], *(end for end, _ in ends)], fds, fds, 10)[1]) == len(fds))
poll = select.poll()
for fd in fds: poll.register(fd, 1)
print(poll.poll(5))
for fd in fds: poll.modify(fd, 4)
print(len(poll.poll(10)) == len(fds))
epoll = select.epoll()
for fd in fds: epoll.register(fd, 5 | select.EPOLLET)
print({events for _, events in epoll.poll(10, 300)})
for fd in fds: epoll.modify(fd, 1)
print(epoll.poll(0.01), len(fds) > 10)
'''
with Sandbox(Empty()) as sandbox:
    options = {'stdin': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    program = sandbox.popen([sys.executable, '-I', '-S', '-c', script], **options)
    # Only now, and only for the supervisor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    program.stdin.write(b'x'); program.stdin.close()
    program.wait()
"""


def test_files_are_polled_where_there_can_be_no_more() -> None:
    """What a call on one needs for a moment is kept for that."""
    done = subprocess.run(
        [sys.executable, "-c", POLLING], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["23", "True", "[]", "True", "{4}", "[] True"], done.stderr
    assert done.returncode == 0
