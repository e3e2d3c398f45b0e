"""What lies above a mount natively may change at any time, and so may what is known in it.

A path that begins with a mount's is not walked natively, as long as all that is as it was. Each
test changes one thing, after the path has been used.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse import Directory, Filesystem, RegularFile
from recuse.sandbox import Sandbox
from recuse.sandbox.vfs.walk import Walk

from ...patience import PATIENCE_S
from ..conftest import Shell, client_in, python_argv
from ..rights import BECOME, root_only
from .conftest import example, served_in

TOLD = (
    "def size(path): return attempt(lambda: os.stat(path).st_size)\n"
    "def text(path): return attempt(lambda: open(path).read())\n"
)
LOOP = TOLD + "for line in sys.stdin: print(eval(line), flush=True)\n"

Told = Callable[[str], str]


class Tree(Filesystem):
    """Everything in it is believed for so long, an hour if nothing else is said."""

    def __init__(self, cache_s: float = 3600.0) -> None:
        self.cache_s = cache_s
        self.top = Directory({"file": RegularFile(b"ours"), "deep": Directory()})
        super().__init__(self.top)


@pytest.fixture
def way(tmp_path: Path) -> Path:
    """A directory with a mount point in it, and another one that looks alike."""
    (tmp_path / "way" / "mnt").mkdir(parents=True)
    (tmp_path / "else" / "mnt").mkdir(parents=True)
    (tmp_path / "else" / "mnt" / "file").write_text("native\n", encoding="utf-8")
    return tmp_path / "way"


@pytest.fixture
def tree(request: pytest.FixtureRequest) -> Tree:
    """What is mounted."""
    return Tree(getattr(request, "param", 3600.0))


@pytest.fixture
def sandbox(way: Path, tree: Tree) -> Iterator[Sandbox]:
    """A sandbox in which it is mounted there."""
    with Sandbox(mounts={way / "mnt": tree}) as sandbox:
        yield sandbox


@pytest.fixture
def told(sandbox: Sandbox) -> Iterator[Told]:
    """Has a program in the sandbox evaluate an expression, and returns what it prints."""
    program = sandbox.popen(
        python_argv(LOOP), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert program.stdin is not None
    assert program.stdout is not None

    def tell(expression: str) -> str:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(expression + "\n")
        program.stdin.flush()
        line: str = program.stdout.readline()
        return line.rstrip("\n")

    yield tell
    program.stdin.close()
    assert program.wait() == 0
    program.stdout.close()


@pytest.fixture
def size(told: Told, way: Path) -> Callable[[], str]:
    """What the program finds in the mount by an absolute path: 4 is the size there."""

    def size() -> str:
        return told(f"size({os.fspath(way / 'mnt' / 'file')!r})")

    assert size() == "4"
    return size


def test_nothing_is_walked_that_is_known(
    size: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was walked")

    monkeypatch.setattr(Walk, "__init__", never)
    assert size() == "4"


def test_nothing_is_walked_from_a_directory_in_it(
    size: Callable[[], str], told: Told, way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was walked")

    assert told(f"os.chdir({os.fspath(way / 'mnt')!r})") == "None"
    monkeypatch.setattr(Walk, "__init__", never)
    assert told("size('file'), size('./file'), size('deep'), size('none')").endswith(" 'ENOENT')")
    told("globals().update(fd=os.open('.', os.O_RDONLY))")
    assert told("os.stat('file', dir_fd=fd).st_size") == "4"
    assert told("attempt(os.stat, 'file/x', dir_fd=fd)") == "ENOTDIR"
    monkeypatch.undo()
    way.rename(way.parent / "moved")
    assert told("size('file'), os.stat('file', dir_fd=fd).st_size") == "(4, 4)"
    assert size() == "ENOENT"
    (way.parent / "moved").rename(way)
    assert (
        told("size('../mnt/file'), size('deep/../file'), size('../../way/mnt/file')").count("4")
        == 3
    )


def test_a_directory_above_is_renamed(size: Callable[[], str], told: Told, way: Path) -> None:
    way.rename(way.parent / "moved")
    assert size() == "ENOENT"
    # What is mounted moves along.
    assert told(f"size({os.fspath(way.parent / 'moved' / 'mnt' / 'file')!r})") == "4"
    way.mkdir()
    assert size() == "ENOENT"
    (way / "mnt").mkdir()
    (way / "mnt" / "file").write_text("another", encoding="utf-8")
    assert size() == "7"
    (way / "mnt" / "file").unlink()
    (way / "mnt").rmdir()
    way.rmdir()
    (way.parent / "moved").rename(way)
    assert size() == "4"


def test_a_directory_above_becomes_a_link(size: Callable[[], str], way: Path) -> None:
    way.rename(way.parent / "moved")
    way.symlink_to("else")
    assert size() == "7"
    way.unlink()
    way.symlink_to("way")
    assert size() == "ELOOP"


def test_the_mount_point_itself_is_replaced(size: Callable[[], str], way: Path) -> None:
    (way / "mnt").rmdir()
    assert size() == "ENOENT"
    (way / "mnt").symlink_to(way.parent / "else" / "mnt")
    assert size() == "7"
    (way / "mnt").unlink()
    (way / "mnt").write_text("", encoding="utf-8")
    assert size() == "ENOTDIR"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every directory")
def test_a_directory_above_is_forbidden(size: Callable[[], str], way: Path) -> None:
    way.chmod(0)
    try:
        assert size() == "EACCES"
    finally:
        way.chmod(0o700)
    assert size() == "4"


@root_only
@pytest.mark.right("other users")
def test_a_directory_above_is_forbidden_to_others(sandbox: Sandbox, way: Path) -> None:
    for directory in (way, *way.parents):
        if directory.stat().st_mode & 0o055 != 0o055 and directory != Path("/tmp"):
            directory.chmod(0o755)
    output = client_in(sandbox)(
        BECOME + TOLD + "path = args[0] + '/mnt/file'\n"
        "print(size(path), flush=True); os.chmod(args[0], 0o700)\n"
        "def other():\n"
        "    become(1234); print(size(path), flush=True); os._exit(0)\n"
        "if os.fork() == 0: other()\n"
        "os.wait(); os.chmod(args[0], 0o755)\n"
        "if os.fork() == 0: other()\n"
        "os.wait(); print(size(path))\n",
        way,
    )
    assert output == "4\nEACCES\n4\n4\n"


NATIVELY = """
import os, subprocess, sys, pathlib
sys.path[:0] = {paths!r}
from recuse import Directory, Filesystem, RegularFile
from recuse.sandbox import Sandbox
class Tree(Filesystem):
    cache_s = 3600.0
way = pathlib.Path(sys.argv[1])
with Sandbox(mounts={{way / 'mnt': Tree(Directory({{'file': RegularFile(b'ours')}}))}}) as sandbox:
    program = sandbox.popen({argv!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def size():
        program.stdin.write(f"size({{str(way / 'mnt' / 'file')!r}})\\n"); program.stdin.flush()
        return program.stdout.readline().strip()
    print(size())
    for where in (way, way / 'mnt'):
        subprocess.run(['mount', '-t', 'tmpfs', 'none', where], check=True)
        print(size())
        subprocess.run(['umount', where], check=True)
        print(size())
    program.stdin.close(); program.wait()
"""


@root_only
def test_something_is_mounted_above_or_on_it_natively(way: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    script = NATIVELY.format(paths=sys.path, argv=python_argv(LOOP))
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script, way],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["4", "ENOENT", "4", "ENOENT", "4"]


def test_something_is_mounted_in_it(sandbox: Sandbox, way: Path) -> None:
    inner = Filesystem(Directory({"file": RegularFile(b"deeper")}))
    output = client_in(sandbox)(
        TOLD + "print(size(args[0] + '/mnt/file'), size(args[0] + '/mnt/deep/file'))\n", way
    )
    assert output == "4 ENOENT\n"
    with Sandbox(mounts={way / "mnt": Tree(), way / "mnt" / "deep": inner}) as other:
        output = client_in(other)(
            TOLD + "print(size(args[0] + '/mnt/file'), size(args[0] + '/mnt/deep/file'))\n"
            "print(size(args[0] + '/mnt/deep/../file'), size(args[0] + '/mnt/deep/./file'))\n",
            way,
        )
    assert output == "4 6\n4 6\n"


def test_another_one_is_mounted_on_it(bare_sandbox: Sandbox, here: Path) -> None:
    output = served_in(bare_sandbox, here)(
        "first = served('mnt'); top = os.getcwd() + '/mnt'\n"
        "def same(): return os.stat(top).st_dev == os.stat('mnt').st_dev == found.st_dev\n"
        "found = os.stat('./mnt/.'); print(same())\n"
        "second = served('mnt'); print(same()); found = os.stat('./mnt/.'); print(same())\n"
        "umount(top); print(same()); found = os.stat('./mnt/.'); print(same())\n"
        "umount('mnt'); print(same(), ended(second), ended(first))\n"
    )
    assert output == "True\nFalse\nTrue\nFalse\nTrue\nFalse 0 0\n"


def test_it_is_unmounted(size: Callable[[], str], told: Told, way: Path) -> None:
    mount = os.fspath(way / "mnt")
    # Where a container refuses umount2, recuse sees it only of threads that it watches.
    watched = "os.close(os.open('/dev/fuse', os.O_RDWR))"
    assert told(f"({watched}, libc.umount2({mount.encode()!r}, 0))[1]") == "0"
    assert size() == "ENOENT"
    (way / "mnt" / "file").write_text("native", encoding="utf-8")
    assert size() == "6"


@root_only
@pytest.mark.parametrize(
    "how",
    [
        "chroot",
        pytest.param("unshare", marks=pytest.mark.right("namespaces")),
        pytest.param("clone3", marks=pytest.mark.right("namespaces", "clone3")),
    ],
)
def test_a_root_or_mounts_of_ones_own(sandbox: Sandbox, way: Path, how: str) -> None:
    mount = way / "mnt"
    jail = way.parent / "jail"
    inside = jail / mount.relative_to("/")
    inside.mkdir(parents=True)
    (inside / "file").write_text("in the jail", encoding="utf-8")
    private = "call('mount', b'none', b'/', None, 0x44000, None)"  # MS_REC, MS_PRIVATE
    hidden = f"{private}, call('mount', b'none', {os.fsencode(way)!r}, b'tmpfs', 0, None)"
    script = {
        "chroot": f"os.chroot({os.fspath(jail)!r})",
        "unshare": f"print(call('unshare', 0x20000), {hidden})",
        "clone3": "a = struct.pack('11Q', 0x20000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)\n"
        "pid = call(435, a, len(a))\n"
        f"if pid: wait(pid); os._exit(0)\nprint(0, {hidden})",
    }[how]
    output = client_in(sandbox)(
        f"{TOLD}path = {os.fspath(mount / 'file')!r}\n"
        f"print(size(path), flush=True)\n{script}\nprint(size(path))\n"
    )
    assert output == ("4\n11\n" if how == "chroot" else "4\n0 0 0\nENOENT\n")


def test_paths_that_only_look_like_the_mounts(told: Told, way: Path) -> None:
    mount = os.fspath(way / "mnt")
    (way / "mnt2").mkdir()
    (way / "mnt2" / "file").write_text("beside", encoding="utf-8")
    found = told(
        f"size({mount!r} + '2/file'), size({mount!r} + '/../mnt2/file'), "
        f"size({mount!r} + '//file'), size({mount!r} + '/./file'), size({mount!r} + '/file/'), "
        f"size({mount!r} + '/file/.'), size({mount!r} + '/deep/../file'), "
        f"size({mount!r} + '/../mnt/file'), "
        f"size({mount!r} + '/none'), size({mount!r} + '/none/x'), size({mount!r} + '/deep/none/')"
    )
    assert found == "(6, 6, 4, 4, 'ENOTDIR', 'ENOTDIR', 4, 4, 'ENOENT', 'ENOENT', 'ENOENT')"


def test_names_that_the_server_takes_back(
    size: Callable[[], str], told: Told, way: Path, tree: Tree
) -> None:
    def becomes(wanted: str) -> bool:
        # The server does not wait until the kernel half knows.
        end = time.monotonic() + PATIENCE_S
        while (found := size()) != wanted and time.monotonic() < end:
            pass
        return found == wanted

    tree.top.children["file"] = RegularFile(b"changed")
    assert size() == "4"
    tree.top.entry_changed("file")
    assert becomes("7")
    del tree.top.children["file"]
    tree.top.entry_expired("file")
    assert becomes("ENOENT")
    tree.top.children["file"] = RegularFile(b"")
    tree.top.entry_changed("file")
    assert becomes("0")
    assert told(f"text({os.fspath(way / 'mnt' / 'file')!r})") == ""


@pytest.mark.parametrize("tree", [0.0], indirect=True)
def test_names_that_are_believed_for_no_time(size: Callable[[], str], tree: Tree) -> None:
    for content in (b"1", b"22", None, b"333"):
        if content is None:
            del tree.top.children["file"]
        else:
            tree.top.children["file"] = RegularFile(content)
        assert size() == ("ENOENT" if content is None else str(len(content)))


def test_links_in_it_lead_everywhere(natively_linked: Shell, way: Path) -> None:
    assert (
        natively_linked(
            "m = args[0] + '/mnt/'\n"
            "os.symlink('file', m + 'same'); os.symlink('../../else/mnt/file', m + 'up')\n"
            "os.symlink(m + 'same', m + 'absolute'); os.symlink('deep/../file', m + 'around')\n"
            "os.symlink('../../../way', m + 'deep/back'); os.symlink('loop', m + 'loop')\n"
            "for name in ('same', 'up', 'absolute', 'around', 'deep/back/mnt/file', 'loop'):\n"
            "    print(size(m + name), end=' ')\n"
            "print(os.lstat(m + 'same').st_size, os.readlink(m + 'same'))\n",
            way,
        )
        == "0 7 0 0 0 ELOOP 4 file\n"
    )


@pytest.fixture
def natively_linked(way: Path) -> Iterator[Shell]:
    """Runs a script on a filesystem in which something can be made."""
    with Sandbox(mounts={way / "mnt": example("memoryfs").MemoryFilesystem()}) as sandbox:
        run = client_in(sandbox)

        def prepared(script: str, *args: object) -> str:
            made = "open(args[0] + '/mnt/file', 'w').close(); os.mkdir(args[0] + '/mnt/deep')\n"
            return run(TOLD + made + script, *args)

        yield prepared


def test_a_relative_path_into_it(told: Told, way: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(f"os.chdir({os.fspath(way.parent)!r})") == "None"
    assert told("size('way/mnt/file'), size('way/mnt/none'), size('way/mnt')").startswith("(4, 'E")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was walked")

    monkeypatch.setattr(Walk, "__init__", never)
    assert told("size('way/mnt/file'), size('way/mnt/file/')") == "(4, 'ENOTDIR')"
    monkeypatch.undo()
    assert told("size('./way/mnt/file'), size('else/../way/mnt/file')") == "(4, 4)"
    way.rename(way.parent / "moved")
    assert told("size('way/mnt/file')") == "ENOENT"
    way.symlink_to("else")
    assert told("size('way/mnt/file')") == "7"
    way.unlink()
    (way.parent / "moved").rename(way)
    assert told("size('way/mnt/file')") == "4"
    # The program's directory is another one now, though it has its old path.
    way.parent.rename(way.parent.with_name("gone"))
    (way / "mnt").mkdir(parents=True)
    (way / "mnt" / "file").write_text("a third", encoding="utf-8")
    assert told("size('way/mnt/file')") == "4"
    assert told(f"size({os.fspath(way / 'mnt' / 'file')!r})") == "7"
    assert told("size(os.getcwd() + '/way/mnt/file')") == "4"
    (way.parent / "way").rename(way.parent / "back")
    way.parent.rename(way.parent.with_name("other"))
    way.parent.with_name("gone").rename(way.parent)
