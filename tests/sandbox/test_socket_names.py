"""Names that bind(2) gives to sockets: no socket is made where the sandbox has a device."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox

from .conftest import Clients, Fifo, Shell

NAME = "/dev/echo9"
DIRECTORY = "/dev/recuse-only9"
"""Exists only in the sandbox."""

BIND = """
def bind(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as s: print(path, attempt(s.bind, path))
"""


@pytest.fixture
def names(make_echo: type[Fifo], clients: Clients) -> Iterator[Shell]:
    """Runs a client script in a sandbox with two devices; nothing may be made of their names."""
    assert not os.path.lexists(NAME)
    inside = f"{DIRECTORY[len('/dev/') :]}/event9"
    try:
        with Sandbox(make_echo(name=NAME[len("/dev/") :]), make_echo(name=inside)) as sandbox:
            client = clients(sandbox)
            yield lambda script, *args: client(BIND + script, *args)
        assert not os.path.lexists(NAME)
        assert not os.path.lexists(DIRECTORY)
    finally:
        for made in NAME, DIRECTORY:
            if os.path.lexists(made) and stat.S_ISSOCK(os.lstat(made).st_mode):
                os.unlink(made)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
def test_a_devices_name_is_in_use(names: Shell, kind: str) -> None:
    script = f"for path in '/dev/null', '/dev/../dev/echo9': bind(path, socket.{kind})"
    assert names(script) == "/dev/null EADDRINUSE\n/dev/../dev/echo9 EADDRINUSE\n"


def test_however_it_is_spelled(names: Shell, tmp_path: Path) -> None:
    (tmp_path / "dir").symlink_to("/dev")
    (tmp_path / "link").symlink_to(NAME)
    script = """
bind('/dev/echo9'); bind('/proc/self/root/dev/echo9')
os.chdir(args[0]); bind('dir/echo9'); bind('link')
os.chdir('dir'); bind('echo9'); bind('./echo9'); bind('echo9/x')
# The longest one has no NUL at its end; bytes after a NUL do not count.
for end in b'/echo9', b'/./echo9\\0':
    name = b'/dev'.ljust(108 - len(end), b'/') + end + b'x' * 9
    with socket.socket(socket.AF_UNIX) as s:
        print(call('bind', s.fileno(), struct.pack('=H', socket.AF_UNIX) + name, 110))
"""
    assert names(script, tmp_path).splitlines() == [
        "/dev/echo9 EADDRINUSE",
        "/proc/self/root/dev/echo9 EADDRINUSE",
        "dir/echo9 EADDRINUSE",
        "link EADDRINUSE",
        "echo9 EADDRINUSE",
        "./echo9 EADDRINUSE",
        "echo9/x ENOTDIR",
        "EADDRINUSE",
        "EADDRINUSE",
    ]


def test_in_a_directory_of_the_sandboxs(names: Shell) -> None:
    script = """
def both(path): bind(path); print(attempt(os.mknod, path))
both('/dev/recuse-only9'); both('/dev/recuse-only9/event9'); both('/dev/recuse-only9/new')
both('/dev/recuse-only9/no/new')
os.chdir('/dev/recuse-only9'); both('event9'); both('new'); both('../echo9')
print(os.listdir())
"""
    assert names(script).splitlines() == [
        *["/dev/recuse-only9 EADDRINUSE", "EEXIST"],
        *["/dev/recuse-only9/event9 EADDRINUSE", "EEXIST"],
        *["/dev/recuse-only9/new EPERM", "EPERM"],
        *["/dev/recuse-only9/no/new ENOENT", "ENOENT"],
        *["event9 EADDRINUSE", "EEXIST", "new EPERM", "EPERM", "../echo9 EADDRINUSE", "EEXIST"],
        "['event9']",
    ]


def test_other_addresses(names: Shell, tmp_path: Path) -> None:
    script = """
os.chdir(args[0])
for path in 'socket', args[0] + '/other':
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as c:
        server.bind(path); server.listen(); c.connect(path)
        print(server.getsockname() == path, stat.S_ISSOCK(os.stat(path).st_mode))
bind('socket'); bind('no/socket')
with socket.socket(socket.AF_UNIX) as s:
    name = b'\\0/dev/echo9\\0%d' % os.getpid()
    s.bind(name); print(s.getsockname() == name)
with socket.socket(socket.AF_UNIX) as s:
    s.bind(''); print(s.getsockname()[:1])
with socket.socket() as s:
    s.bind(('127.0.0.1', 0)); print(s.getsockname()[0])
address = struct.pack('=H', socket.AF_UNIX) + b'/dev/echo9'
with socket.socket(socket.AF_UNIX) as s:
    for where, length in (None, 12), (address.ljust(200, b'\\0'), 111), (address, -1), (address, 1):
        print(call('bind', s.fileno(), where, length))
device = os.open('/dev/echo9', os.O_RDWR)
print(call('bind', device, address, len(address)))
"""
    assert names(script, tmp_path).splitlines() == [
        *["True True", "True True", "socket EADDRINUSE", "no/socket ENOENT"],
        *["True", "b'\\x00'", "127.0.0.1"],
        *["EFAULT", "EINVAL", "EINVAL", "EINVAL", "ENOTSOCK"],
    ]
