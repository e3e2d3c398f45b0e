"""Listings of directories: with what is there natively, then the devices."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox

from .conftest import Clients, Fifo, Shell, Shells

# linux_dirent64: inode, position, length, type, name.
ENTRIES = """
def entries(data):
    while data:
        inode, position, length, kind = struct.unpack_from('=QqHB', data)
        yield data[19:length].split(b'\\0')[0].decode(), position, kind, inode
        data = data[length:]
def getdents(fd, size=32768):
    buffer = ctypes.create_string_buffer(size)
    n = call(217, fd, buffer, size)
    return n if isinstance(n, str) else list(entries(buffer.raw[:n]))
def listing(fd, size=32768):
    found = []
    while new := getdents(fd, size):
        if isinstance(new, str): return new
        found += new
    return found
"""


@pytest.fixture
def devices(make_echo: type[Fifo]) -> list[Fifo]:
    """Three devices, of which one is in a directory that exists nowhere else."""
    return [make_echo(name=name) for name in ("echo", "echo1", "recuse-input/event9")]


@pytest.fixture
def box(devices: list[Fifo]) -> Iterator[Sandbox]:
    with Sandbox(*devices) as sandbox:
        yield sandbox


@pytest.fixture
def run(box: Sandbox, clients: Clients) -> Shell:
    client = clients(box)
    return lambda script, *args: client(ENTRIES + script, *args)


def test_ls(box: Sandbox, shells: Shells) -> None:
    shell = shells(box)
    found = shell("ls -1a /dev").split()
    assert len(found) == len(set(found))
    expected = {*os.listdir("/dev"), ".", "..", "echo", "echo1", "recuse-input", "char"}
    servers = {"cuse", "fuse"}  # which are there, whether the machine has them or not
    assert servers <= set(found)
    assert set(found) - servers == expected - servers
    assert shell("ls /dev/recuse-input; cd /; ls dev/recuse-input/.") == "event9\nevent9\n"
    assert shell("cd /dev; ls -d echo*; echo ech*; echo /dev/recuse*/*[0-9]") == (
        "echo\necho1\necho echo1\n/dev/recuse-input/event9\n"
    )
    assert shell("find /dev -type c -name 'e*[o-z019]' | sort; find /dev/recuse-input") == (
        "/dev/echo\n/dev/echo1\n/dev/recuse-input/event9\n/dev/recuse-input\n"
        "/dev/recuse-input/event9\n"
    )


def test_ls_long(box: Sandbox, shells: Shells, devices: list[Fifo]) -> None:
    shell = shells(box)
    devices[0].mode = 0
    line = shell("ls -l /dev/echo1").split()
    assert line[0] == "crw-rw-rw-"
    assert line[1] == "1"
    assert line[-1] == "/dev/echo1"
    assert box._machine is not None
    device = box._machine.table.by_name("echo1")
    assert device is not None
    assert line[4] == f"{device.major},"
    listed = shell("ls -l /dev | grep echo").splitlines()
    assert [entry.split()[-1] for entry in listed] == ["echo", "echo1"]
    assert shell("ls -ld /dev/recuse-input").startswith("drwxr-xr-x 2 root root 0 ")


@pytest.mark.parametrize("size", [280, 512, 32768])
def test_every_size_of_buffer_gives_the_same(run: Shell, size: int) -> None:
    script = f"""
names = [name for name, *_ in listing(os.open('/dev', os.O_RDONLY), {size})]
print(len(names) == len(set(names)), sorted(set(names) ^ set(os.listdir('/dev'))))
print([name for name in names if name.startswith('ech')])
"""
    assert run(script) == "True ['.', '..']\n['echo', 'echo1']\n"


def test_types_and_inodes_are_those_of_stat(run: Shell) -> None:
    script = """
for name, position, kind, inode in listing(os.open('/dev', os.O_RDONLY)):
    found = os.lstat('/dev/' + name)
    if name not in ('..', 'pts', 'shm', 'mqueue', 'hugepages'):  # mounts
        assert (stat.S_IFMT(found.st_mode) >> 12, found.st_ino) == (kind, inode), name
print([found[:1] + found[2:3] for found in listing(os.open('/dev/recuse-input', os.O_RDONLY))])
"""
    assert run(script) in ("[('.', 4), ('..', 4), ('event9', 2)]\n",
                           "[('..', 4), ('.', 4), ('event9', 2)]\n")  # fmt: skip


def test_a_listing_that_has_ended_stays_ended(run: Shell) -> None:
    script = """
fd = os.open('/dev', os.O_RDONLY)
first = listing(fd)
print([getdents(fd) for _ in range(3)])
os.lseek(fd, 0, os.SEEK_SET)
print([name for name, *_ in listing(fd)] == [name for name, *_ in first])
"""
    assert run(script) == "[[], [], []]\nTrue\n"


def test_a_buffer_that_is_too_small(run: Shell) -> None:
    # As natively: EINVAL when not one entry fits; nothing is lost by it.
    script = """
fd = os.open('/dev', os.O_RDONLY)
print(getdents(fd, 8), getdents(fd, 0))
names = []
size = 24
while True:
    new = getdents(fd, size)
    if new == 'EINVAL':
        size += 8
    elif not new:
        break
    else:
        names += [name for name, *_ in new]
        size = 24
print(sorted(names) == sorted([*os.listdir('/dev'), '.', '..']))
print(call(217, fd, None, 32768), call(217, 99, bytes(300), 300), call(217, 0, bytes(300), 300))
os.lseek(fd, 0, 0)
print(call(217, fd, None, 32768), len(listing(fd)) == len(names))
"""
    output = run(script)
    assert output == "EINVAL EINVAL\nTrue\n0 EBADF ENOTDIR\nEFAULT True\n"


def test_two_listings_at_once(run: Shell) -> None:
    script = """
a, b = os.open('/dev', os.O_RDONLY), os.open('/dev', os.O_RDONLY)
names = [], []
while True:
    new = getdents(a, 280), getdents(b, 280)
    if not any(new): break
    for list_, part in zip(names, new): list_ += [name for name, *_ in part]
print(names[0] == names[1], sorted(names[0]) == sorted([*os.listdir('/dev'), '.', '..']))
"""
    assert run(script) == "True True\n"


@pytest.mark.parametrize("other", ["dup", "fork", "thread"])
def test_copies_of_a_directory_share_its_position(run: Shell, other: str) -> None:
    script = f"""
fd = os.open('/dev', os.O_RDONLY)
all_names = [name for name, *_ in listing(fd)]
os.lseek(fd, 0, 0)
copy = os.dup(fd)
r, w = os.pipe()
def elsewhere():
    if {other!r} == 'dup':
        return [name for name, *_ in getdents(copy, 280)]
    result = []
    if {other!r} == 'thread':
        thread = threading.Thread(target=lambda: result.extend(getdents(fd, 280)))
        thread.start(); thread.join()
        return [name for name, *_ in result]
    pid = os.fork()
    if pid == 0:
        os.write(w, b'\\n'.join([name.encode() for name, *_ in getdents(fd, 280)] + [b'']))
        os._exit(0)
    wait(pid)
    os.write(w, b'!')
    return os.read(r, 4096)[:-1].decode().split()
names = []
while True:
    mine, theirs = [name for name, *_ in getdents(fd, 280)], elsewhere()
    if not mine and not theirs: break
    names += mine + theirs
print(names == all_names or (names, all_names))
"""
    assert run(script) == "True\n"


def test_telldir_and_seekdir(run: Shell) -> None:
    # Each entry's position is where the one after it is found.
    script = """
fd = os.open('/dev', os.O_RDONLY)
found = listing(fd)
for (name, position, *_), following in zip(found, [*found[1:], None]):
    os.lseek(fd, position, 0)
    new = getdents(fd, 280)
    assert (new[0] if new else None) == following, (name, new, following)
print('ok')
"""
    assert run(script) == "ok\n"


def test_the_old_call(box: Sandbox, clients: Clients) -> None:
    script = """
fd = os.open('/dev', os.O_RDONLY)
buffer = ctypes.create_string_buffer(32768)
found = {}
while (n := call(78, fd, buffer, 32768)) > 0:
    data = buffer.raw[:n]
    while data:
        inode, position, length = struct.unpack_from('=QqH', data)
        found[data[18:length].split(b'\\0')[0]] = data[length - 1]
        data = data[length:]
print(n, found[b'echo'], found[b'echo1'], found[b'recuse-input'], found[b'null'])
print(len(found) == len(os.listdir('/dev')) + 2)
"""
    assert clients(box)(script) == "0 2 2 4 2\nTrue\n"


def test_other_directories_are_as_they_are(run: Shell, tmp_path: Path) -> None:
    (tmp_path / "echo").touch()
    script = "print(os.listdir(args[0]), 'echo' in os.listdir('/'), len(os.listdir('/proc')) > 9)"
    assert run(script, tmp_path) == "['echo'] False True\n"


def test_a_device_that_hides_a_node_is_listed_once(make_echo: type[Fifo], shells: Shells) -> None:
    with Sandbox(make_echo(name="null"), make_echo(name="stdin")) as sandbox:
        shell = shells(sandbox)
        assert shell("ls -1 /dev | grep -c -x null; ls -l /dev | grep -c ' stdin$'") == "1\n1\n"
        assert shell("find /dev -type c -name std[i]n; find /dev -type l -name std[i]n") == (
            "/dev/stdin\n"
        )


def test_a_directory_that_exists_only_here(run: Shell, shells: Shells, box: Sandbox) -> None:
    script = """
fd = os.open('/dev/recuse-input', os.O_RDONLY | os.O_DIRECTORY)
found = os.fstat(fd)
named = os.stat('/dev/recuse-input')
print(stat.S_ISDIR(found.st_mode), found.st_ino == named.st_ino, found.st_dev == named.st_dev)
event = os.open('event9', os.O_RDWR, dir_fd=fd)
print(os.write(event, b'x'), stat.S_ISCHR(os.stat('event9', dir_fd=fd).st_mode))
print(attempt(os.stat, 'event8', dir_fd=fd), attempt(os.open, '/dev/recuse-input/x', os.O_RDWR))
print(attempt(os.open, '/dev/recuse-input', os.O_RDWR), os.access('/dev/recuse-input', os.X_OK))
print(attempt(os.open, '/dev/recuse-input', os.O_RDONLY | os.O_CREAT))
print(stat.S_ISCHR(os.stat('../echo', dir_fd=fd).st_mode), os.listdir(fd))
os.fchdir(fd)
print(os.listdir('.'), stat.S_ISCHR(os.stat('event9').st_mode), stat.S_ISDIR(os.stat('.').st_mode))
"""
    assert run(script) == (
        "True True True\n1 True\nENOENT ENOENT\nEISDIR True\nEISDIR\nTrue ['event9']\n"
        "['event9'] True True\n"
    )


def test_ways_out_of_a_directory_that_exists_only_here(
    run: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Natively it is another one, whose parents have other names in them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "recuse-there"))
    (tmp_path / "recuse-there").mkdir()
    script = """
fd = os.open('/dev/recuse-input', os.O_RDONLY | os.O_DIRECTORY)
for up in ('..', '../..', '../../..', '../../../..', 'x/..'):
    for name in ('recuse-there', 'recuse-there/recuse-x'):
        path = f'{up}/{name}'
        print(attempt(os.stat, path, dir_fd=fd), attempt(os.open, path, os.O_RDWR, dir_fd=fd))
    print(attempt(os.open, path, os.O_CREAT | os.O_RDWR, dir_fd=fd),
          attempt(os.mkdir, path, dir_fd=fd), attempt(os.symlink, 'x', path, dir_fd=fd))
"""
    output = run(script)
    assert set(output.split()) == {"ENOENT"}, output
    assert os.listdir(tmp_path) == ["recuse-there"]
    assert os.listdir(tmp_path / "recuse-there") == []


def test_where_only_shared_memory_can_be_written_to(
    make_echo: type[Fifo], shells: Shells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a root directory that is read-only and no /tmp."""

    def nowhere() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with Sandbox(make_echo(name="recuse-there/echo")) as sandbox:
        assert shells(sandbox)("cd /dev/recuse-there && ls") == "echo\n"
