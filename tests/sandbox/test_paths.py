"""Every way a path may lead to a device, as the program that uses it sees it."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.vfs import resolve

from .conftest import Clients, Fifo, Shells

Look = Callable[..., list[str]]


# What open(path) and stat(path) lead to: the device's own name, or an error.
LOOK = """
def look(path, flags=os.O_RDWR, **options):
    results = []
    for function in (
        lambda: str(os.major(os.fstat(os.open(path, flags, **options)).st_rdev)),
        lambda: str(os.major(os.stat(path, **options).st_rdev)),
    ):
        result = attempt(function)
        results.append({'77': 'echo', '78': 'event9'}.get(result, result))
    print(results[0] if results[0] == results[1] else results)
"""


@pytest.fixture
def box(make_echo: type[Fifo]) -> Iterator[Sandbox]:
    devices = make_echo(major=77), make_echo(name="recuse-input/event9", major=78)
    with Sandbox(*devices) as sandbox:
        yield sandbox


@pytest.fixture
def look(box: Sandbox, clients: Clients) -> Look:
    """Runs a script with the function look in it; returns the words that it prints."""
    client = clients(box)
    return lambda script, *args, **options: client(LOOK + script, *args, **options).splitlines()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dev/echo", "echo"),
        ("//dev///echo", "echo"),
        ("/dev/./echo", "echo"),
        ("/./dev/.//echo", "echo"),
        ("/dev/../dev/echo", "echo"),
        ("/../../dev/echo", "echo"),
        ("/dev/shm/../echo", "echo"),
        ("/dev/recuse-input/event9", "event9"),
        ("/dev/recuse-input//./event9", "event9"),
        ("/dev/recuse-input/../recuse-input/event9", "event9"),
        ("/dev/recuse-input/../echo", "echo"),
        ("/dev/recuse-input/../../dev/echo", "echo"),
        ("/proc/self/root/dev/echo", "echo"),
        ("/proc/self/root/dev/recuse-input/event9", "event9"),
        ("/dev/echo/", "ENOTDIR"),
        ("/dev/echo/.", "ENOTDIR"),
        ("/dev/echo/..", "ENOTDIR"),
        ("/dev/echo//", "ENOTDIR"),
        ("/dev/echo/x", "ENOTDIR"),
        ("/dev/echo/../echo", "ENOTDIR"),
        ("/dev/recuse-input/event9/", "ENOTDIR"),
        ("/etc/passwd/../../dev/echo", "ENOTDIR"),
        ("/dev/null/../echo", "ENOTDIR"),
        ("/dev/nosuch/../echo", "ENOENT"),
        ("/nosuch/../dev/echo", "ENOENT"),
        ("/dev/echo2", "ENOENT"),
        ("/dev/ech", "ENOENT"),
        ("/dev/Echo", "ENOENT"),
        ("/dev/recuse-input/echo", "ENOENT"),
        ("/dev/recuse-inpu", "ENOENT"),
        ("/echo", "ENOENT"),
        ("/dev/event9", "ENOENT"),
        ("/dev/shm/echo", "ENOENT"),
        ("/dev/echo\n", "ENOENT"),
        ("/dev/" + "./" * 2000 + "echo", "echo"),
        ("/dev/" + "./" * 2100 + "echo", "ENAMETOOLONG"),
        ("/dev/" + "x" * 300, "ENAMETOOLONG"),
        ("", "ENOENT"),
    ],
    ids=lambda value: value[:40],
)
def test_an_absolute_path(look: Look, path: str, expected: str) -> None:
    flags = "os.O_RDONLY" if expected.startswith("E") else "os.O_RDWR"
    assert look(f"look({path!r}, {flags})") == [expected]


def test_relative_paths(look: Look, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "echo").symlink_to("dev/echo")
    script = """
look('echo')
os.chdir('/dev'); look('echo'); look('./echo'); look('../dev/echo'); look('recuse-input/event9')
look('echo/', os.O_RDONLY); look('nosuch'); look('.', os.O_RDONLY)
os.chdir('/dev/shm'); look('../echo'); look('../recuse-input/event9'); look('echo')
os.chdir('/'); look('dev/echo'); look('dev/recuse-input/event9'); look('echo')
os.chdir('/proc/self'); look('root/dev/echo'); look('cwd/../../dev/echo')
os.chdir(args[0]); look('dev/echo')
"""
    lines = look(script, tmp_path, cwd=tmp_path)
    assert lines == [
        "ENOENT",
        *["echo", "echo", "echo", "event9", "ENOTDIR", "ENOENT", "0"],
        *["echo", "event9", "ENOENT"],
        *["echo", "event9", "ENOENT"],
        *["echo", "echo"],
        "ENOENT",
    ]


def test_paths_from_a_directorys_descriptor(look: Look, tmp_path: Path) -> None:
    script = """
dev, root, tmp = (os.open(name, os.O_RDONLY) for name in ('/dev', '/', args[0]))
path, event = os.open('/dev', 0o10000000), os.open('/dev/recuse-input', os.O_RDONLY)
look('echo', dir_fd=dev); look('echo', dir_fd=path); look('dev/echo', dir_fd=root)
look('echo', dir_fd=tmp); look('/dev/echo', dir_fd=tmp); look('event9', dir_fd=event)
look('../echo', dir_fd=event); look('../echo', dir_fd=dev); look('recuse-input/event9', dir_fd=dev)
echo = os.open('/dev/echo', os.O_RDWR)
look('x', os.O_RDONLY, dir_fd=echo); look('echo', dir_fd=99); look('', dir_fd=dev)
look('.', os.O_RDONLY, dir_fd=dev)
os.dup2(tmp, dev); look('echo', dir_fd=dev)
"""
    assert look(script, tmp_path) == [
        *["echo", "echo", "echo", "ENOENT", "echo", "event9", "echo", "ENOENT", "event9"],
        *["ENOTDIR", "EBADF", "ENOENT", "0", "ENOENT"],
    ]


def test_symbolic_links(look: Look, tmp_path: Path) -> None:
    links = {
        "direct": "/dev/echo",
        "chain": "direct",
        "up": "x/../direct",
        "relative": os.path.relpath("/dev/echo", tmp_path),
        "odd": "/dev/.//recuse-input/../echo",
        "directory": "/dev",
        "ours": "/dev/recuse-input",
        "theirs": "ours/event9",
        "slash": "/dev/echo/",
        "dangling": "/dev/nosuch",
        "loop": "loop",
        "root": "/",
        "cwd": "/proc/self/cwd",
        "here": ".",
    }
    (tmp_path / "x").mkdir()
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    names = [*["direct", "chain", "up", "relative", "odd", "directory/echo", "ours/event9"],
             *["theirs", "slash", "dangling", "loop", "root/dev/echo", "directory/../dev/echo"],
             *["ours/../echo", "cwd/direct", "here/here/here/chain", "direct/", "direct/x"],
             "x/../x/../direct"]  # fmt: skip
    script = "for name in args: look(name, os.O_RDONLY)"
    expected = [
        *["echo", "echo", "echo", "echo", "echo", "echo", "event9"],
        *["event9", "ENOTDIR", "ENOENT", "ELOOP", "echo", "echo"],
        *["echo", "echo", "echo", "ENOTDIR", "ENOTDIR"],
        "echo",
    ]
    assert look(script, *names, cwd=tmp_path) == expected
    # The same from elsewhere.
    paths = [tmp_path / name for name in names]
    expected[names.index("cwd/direct")] = "ENOENT"
    assert look(script, *map(str, paths), cwd="/") == [
        "echo" if name == "direct/" else result
        for name, result in zip(names, expected, strict=True)
        if name != "nosuch"
    ]


def test_a_link_itself(look: Look, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/echo")
    script = """
link = args[0]
print(attempt(os.open, link, os.O_RDONLY | os.O_NOFOLLOW), os.readlink(link))
print(stat.S_ISLNK(os.lstat(link).st_mode), end=' ')
print(stat.S_ISLNK(os.stat(link, follow_symlinks=False).st_mode))
print(attempt(os.open, link, os.O_RDWR | os.O_CREAT | os.O_EXCL))
path = os.open(link, 0o10000000 | os.O_NOFOLLOW)
print(stat.S_ISLNK(os.fstat(path).st_mode), os.readlink('', dir_fd=path))
print(attempt(os.readlink, '/dev/echo'), stat.S_ISCHR(os.lstat('/dev/echo').st_mode))
os.utime(link, ns=(1, 1), follow_symlinks=False)
print(os.lstat(link).st_mtime_ns, os.stat(link).st_mtime_ns > 1)
how = lambda resolve: struct.pack('3Q', os.O_RDWR, 0, resolve)
print(call(437, -100, link.encode(), how(4), 24))
os.unlink(link)
print(os.path.lexists(link), os.path.exists('/dev/echo'))
"""
    assert look(script, link) == [
        "ELOOP /dev/echo",
        "True True",
        "EEXIST",
        "True /dev/echo",
        "EINVAL True",
        "1 True",
        "ELOOP",
        "False True",
    ]


@pytest.mark.parametrize(
    "flags", ["os.O_RDWR | os.O_CREAT", "os.O_WRONLY | os.O_CREAT | os.O_TRUNC"]
)
def test_a_file_is_not_created_where_a_device_is(look: Look, flags: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/echo")
    script = f"os.umask(0); look('/dev/echo', {flags}); look(args[0], {flags})"
    assert look(script, tmp_path / "link") == ["echo", "echo"]
    assert not os.path.lexists("/dev/echo")


def test_too_many_links(look: Look, tmp_path: Path) -> None:
    (tmp_path / "0").symlink_to("/dev/echo")
    for number in range(1, 45):
        (tmp_path / f"{number}").symlink_to(f"{number - 1}")
    assert look("for n in 38, 40, 44: look(str(n))", cwd=tmp_path) == [
        *["echo", "ELOOP", "ELOOP"],
    ]


SELF = """
os.chdir('/dev')
fd = os.open('echo', os.O_RDWR)
os.dup2(fd, 0)
for path in (f'/proc/{os.getpid()}/root/dev/echo', '/proc/self/cwd/echo',
             '/proc/thread-self/cwd/echo', f'/proc/{os.getpid()}/cwd/echo',
             f'/proc/self/task/{os.getpid()}/cwd/echo', '/proc/self/cwd/../dev/echo',
             f'/proc/self/fd/{fd}', f'/dev/fd/{fd}', f'/proc/thread-self/fd/{fd}',
             f'/proc/{os.getpid()}/fd/{fd}', f'/dev/fd/../fd/{fd}', '/dev/stdin', '/proc/self/fd/0',
             '//proc//self/./fd/0', f'fd/{fd}', 'stdin', '/proc/self/fd/99'):
    look(path)
os.chdir('/proc/self/fd'); look(str(fd)); look(f'./{fd}'); look(f'../fd/{fd}')
os.chdir('/proc/self'); look(f'fd/{fd}')
look(str(fd), dir_fd=os.open('/proc/self/fd', os.O_RDONLY))
look(f'fd/{fd}', dir_fd=os.open('/proc/self', os.O_RDONLY))
"""


def test_proc_self_is_the_program(look: Look, tmp_path: Path) -> None:
    assert look(SELF) == [*["echo"] * 16, "ENOENT", *["echo"] * 6]


SPELLINGS = """
fd = os.open('/dev/echo', os.O_RDWR)
numbers = fd, os.dup2(fd, 900), os.dup2(fd, 1000)
for path in ('/proc/self/fd/N', '//proc/self/fd/N', '/proc//self/fd/N', '/proc/./self/fd//N',
             '/dev/../proc/self/fd/N', '/proc/../proc/self/fd/N', '//proc/thread-self/fd/N',
             f'//proc/{os.getpid()}/fd/N', f'/proc/{os.getpid()}/./task/{os.getpid()}/fd/N',
             f'//proc/self/task/{os.getpid()}/fd/N', '//dev/fd/N', '/dev/./fd/N', 'fds/N',
             'me/fd/N', './self/fd/N', 'proc/self/fd/N', f'{args[0]}/fds/N',
             f'{args[0]}/deep/../fds/./N'):
    wrong = set()
    for number in numbers:
        for place in args[0], '/', '/proc', '/dev':
            os.chdir(place)
            there = {'f': args[0], 'm': args[0], '.': '/proc', 'p': '/'}.get(path[0], place)
            if there != place: continue
            name = path.replace('N', str(number))
            look = [attempt(lambda: os.stat(name).st_rdev >> 8), attempt(os.readlink, name),
                    attempt(lambda: os.fstat(os.open(name, os.O_RDWR)).st_rdev >> 8),
                    attempt(os.access, name, os.W_OK)]
            if look != [77, '/dev/echo', 77, True]: wrong.add((place, *look))
    print(path if wrong else 'right', *wrong)
"""


def test_every_spelling_of_proc_self(box: Sandbox, clients: Clients, tmp_path: Path) -> None:
    (tmp_path / "fds").symlink_to("/proc/self/fd")
    (tmp_path / "me").symlink_to("/proc/self")
    (tmp_path / "deep").mkdir()
    assert clients(box)(SPELLINGS, tmp_path).splitlines() == ["right"] * 18


def test_a_link_through_proc_self_before_anything_is_open(look: Look, tmp_path: Path) -> None:
    for name, target in {"cwd": "/proc/self/cwd", "root": "/proc/thread-self/root"}.items():
        (tmp_path / name).symlink_to(target)
    script = (
        "os.chdir('/dev'); there = args[0]\n"
        "for path in there + '/cwd/echo', there + '/root/dev/echo', '//proc/self/cwd/echo':\n"
        "    print(attempt(lambda: os.major(os.stat(path).st_rdev)))"
    )
    assert look(script, tmp_path) == ["77"] * 3


def test_proc_self_is_not_the_supervisor(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file of the device's name where the *supervisor* is.
    (tmp_path / "echo").touch()
    monkeypatch.chdir(tmp_path)
    assert look("os.chdir('/dev'); look('/proc/self/cwd/echo')") == ["echo"]
    assert look("os.chdir(args[0]); look('/proc/self/cwd/echo')", tmp_path) == ["0"]
    assert look("os.chdir('/etc'); look('/proc/self/cwd/echo')") == ["ENOENT"]


def test_links_to_descriptors(box: Sandbox, shells: Shells, tmp_path: Path) -> None:
    (tmp_path / "in").symlink_to("/proc/self/fd/0")
    (tmp_path / "in2").symlink_to("in")
    (tmp_path / "std").symlink_to("/dev/stdin")
    shell = shells(box)
    for name in "in", "in2", "std":
        assert (
            shell(f"echo {name} > /dev/echo; cat {name} < /dev/echo", cwd=tmp_path) == name + "\n"
        )
        done = box.run(["cat", name], input=b"a pipe", stdout=subprocess.PIPE, cwd=tmp_path)
        assert done.stdout == b"a pipe"


def test_names_of_descriptors(look: Look) -> None:
    script = """
fd = os.open('/dev/echo', os.O_RDWR)
print(os.readlink(f'/proc/self/fd/{fd}'), os.readlink(f'/dev/fd/{fd}'))
print(os.readlink(str(fd), dir_fd=os.open('/proc/self/fd', os.O_RDONLY)))
print(os.path.realpath(f'/proc/self/fd/{fd}'), os.path.samefile(f'/dev/fd/{fd}', '/dev/echo'))
r, w = os.pipe()
print(os.readlink(f'/proc/self/fd/{r}').startswith('pipe:['))
print(os.readlink('/proc/self/fd/%d' % socket.socket().detach()).startswith('socket:['))
print(call('readlink', b'/proc/self/fd/%d' % fd, bytes(5), 5), end=' ')
print(call('readlink', b'/dev/fd/%d' % fd, None, 9))
"""
    assert look(script) == [
        "/dev/echo /dev/echo",
        "/dev/echo",
        "/dev/echo True",
        "True",
        "True",
        "5 EFAULT",
    ]


def test_another_processs_descriptors(box: Sandbox, clients: Clients) -> None:
    script = """
fd = os.open('/dev/echo', os.O_RDWR)
os.write(fd, b'hello')
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(r, 1); os._exit(0)
os.close(fd)
print(os.readlink(f'/proc/{pid}/fd/{fd}'), os.read(os.open(f'/proc/{pid}/fd/{fd}', os.O_RDONLY), 9))
os.close(w); os.kill(pid, 9); wait(pid)
print(attempt(os.open, f'/proc/{pid}/fd/{fd}', os.O_RDONLY))
"""
    assert clients(box)(script) == "/dev/echo b'hello'\nENOENT\n"


def test_a_device_hides_a_node(
    make_echo: type[Fifo], shells: Shells, clients: Clients, tmp_path: Path
) -> None:
    null = make_echo(name="null")
    (tmp_path / "link").symlink_to("/dev/null")
    with Sandbox(null) as sandbox:
        shell = shells(sandbox)
        assert shell(f"echo one > /dev/null; cat {tmp_path}/link; echo two >/dev/../dev/null") == (
            "one\n"
        )
        assert sandbox._machine is not None
        device = sandbox._machine.table.by_name("null")
        assert device is not None
        assert shell(
            "cd /dev; cat null; stat -c %t null; cd /; echo x >dev/null; cat <dev/null"
        ) == (f"two\n{device.major:x}\nx\n")
        # A file that was open before is what it was.
        done = sandbox.run(["cat"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert done.stdout == b""
        assert clients(sandbox)("print(os.fstat(0).st_rdev)", stdin=subprocess.DEVNULL) == "259\n"
    assert null.left_open == 0


def test_a_device_hides_a_symbolic_link(
    make_echo: type[Fifo], shells: Shells, look: Look, tmp_path: Path
) -> None:
    # /dev/stdin is a link to /proc/self/fd/0.
    (tmp_path / "link").symlink_to("/dev/stdin")
    with Sandbox(make_echo(name="stdin")) as sandbox:
        shell = shells(sandbox)
        for path in "/dev/stdin", "/dev/./stdin", f"{tmp_path}/link":
            assert shell(
                f"echo x > {path}; cat {path}; test -h /dev/stdin || echo no", input="y"
            ) == ("x\nno\n")


def test_a_device_in_a_directory_that_exists(make_echo: type[Fifo], shells: Shells) -> None:
    with Sandbox(make_echo(name="shm/echo")) as sandbox:
        assert shells(sandbox)("echo x > /dev/shm/echo; cd /dev/shm; ls echo; cat echo") == (
            "echo\nx\n"
        )


def test_a_device_hides_a_file_that_comes_later(
    make_echo: type[Fifo], shells: Shells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "LOOK_AGAIN_S", 0)
    native = Path("/dev/shm/recuse-later")
    (tmp_path / "link").symlink_to(native)
    with Sandbox(make_echo(name="shm/recuse-later")) as sandbox:
        shell = shells(sandbox)
        paths = str(native), f"{tmp_path}/link", "/dev/../dev/shm/recuse-later"
        try:
            assert [shell(f"echo x > {path}; cat {path}") for path in paths] == ["x\n"] * 3
            native.write_text("native", encoding="utf-8")
            assert [shell(f"echo x > {path}; cat {path}") for path in paths] == ["x\n"] * 3
            assert native.read_text(encoding="utf-8") == "native"
        finally:
            native.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes nobody")
@pytest.mark.right("other users")
def test_directories_that_may_not_be_searched(box: Sandbox, clients: Clients) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        closed = Path(directory) / "closed"
        closed.mkdir(mode=0o700)
        (closed / "link").symlink_to("/dev/echo")
        script = LOOK + (
            "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "look('/dev/echo'); look(args[0] + '/link'); look(args[0] + '/../../../dev/echo')"
        )
        assert clients(box)(script, closed).splitlines() == ["echo", "EACCES", "EACCES"]
