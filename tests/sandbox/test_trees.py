"""Trees of files besides the devices': mounted, added to directories, and slow to answer."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.vfs.resolve import Tree

from ..patience import PATIENCE_S
from .conftest import Fifo, Shell, Start
from .served_tree import ServedTree


def tree_of(sandbox: Sandbox) -> Tree:
    assert sandbox._machine is not None
    return sandbox._machine.tree


@pytest.fixture
def files(sandbox: Sandbox) -> Iterator[ServedTree]:
    """A tree with a few files, which is ended before the sandbox is."""
    tree = ServedTree()
    tree.file(tree.root, "file", "content\n")
    inner = tree.directory(tree.root, "dir")
    tree.file(inner, "inner", "inside\n")
    tree.directory(inner, "deep")
    tree.link(tree.root, "link", "dir/inner")
    tree.link(tree.root, "up", "../beside")
    try:
        yield tree
    finally:
        tree.close()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a file, links, and a directory with something in it."""
    (tmp_path / "beside").write_text("native\n", encoding="utf-8")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt/hidden").write_text("hidden\n", encoding="utf-8")
    (tmp_path / "mnt/native").symlink_to("/")
    (tmp_path / "in").symlink_to("mnt/dir/inner")
    (tmp_path / "dangling").symlink_to(tmp_path / "mnt/nothing")
    return tmp_path


WALK = """
cat "$1"/file "$1"/dir/inner "$1"/link "$1"/up "$1"/dir/deep/../../file; stat -c '%F %s' "$1"/file
cd "$1"/dir && ls && cat inner ../file && cd deep && pwd && cat ../../../beside && cd .. && pwd -P
cat ../up; cd ../.. && cat beside; readlink "$1"/link;
readlink -f "$1"/link; test -e "$1"/no || echo no
"""
WALKED = """content
inside
inside
native
content
regular file 8
deep
inner
inside
content
{0}/dir/deep
native
{0}/dir
native
native
dir/inner
{0}/dir/inner
no
"""


class TestAMount:
    def test_over_a_directory(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell
    ) -> None:
        tree_of(sandbox).mount(files, here / "mnt")
        mount = f"{here}/mnt"
        assert shell(WALK, mount) == WALKED.format(mount)
        assert shell(f"cd {here} && cat in; cd mnt && ls -a; ls -a dir; find . | sort") == (
            "inside\n.\n..\ndir\nfile\nlink\nup\n.\n..\ndeep\ninner\n"
            ".\n./dir\n./dir/deep\n./dir/inner\n./file\n./link\n./up\n"
        )
        # Of what is covered there is nothing.
        gone = f"for name in hidden native/etc native/..; do test -e {mount}/$name || echo no; done"
        assert shell(gone) == "no\nno\nno\n"
        assert shell(f"cd {mount} && cat hidden; cat < {here}/dangling").count("No such") == 2
        assert shell(f"ls {here}; stat -c %i {mount} {mount}/.").endswith("mnt\n2\n2\n")

    def test_what_is_covered_is_not_executed(
        self, sandbox: Sandbox, files: ServedTree, here: Path, client: Shell
    ) -> None:
        (here / "mnt/program").write_text("#!/bin/sh\necho ran\n", encoding="utf-8")
        (here / "mnt/program").chmod(0o755)
        tree_of(sandbox).mount(files, here / "mnt")
        script = """
os.chdir(args[0])
for name in "mnt/program", args[0] + "/mnt/program", "mnt/file", "mnt/dir", "mnt/up":
    pid = os.fork()
    if pid == 0:
        print(attempt(os.execv, name, [name]), flush=True)
        os._exit(0)
    wait(pid)
os.execve(os.open("/bin/echo", os.O_RDONLY), ["echo", "done"], {})
"""
        assert client(script, here).split() == [
            "ENOENT", "ENOENT", "EACCES", "EACCES", "EACCES", "done",
        ]  # fmt: skip

    def test_over_an_empty_one(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell
    ) -> None:
        (here / "empty").mkdir()
        tree_of(sandbox).mount(files, here / "empty")
        mount = f"{here}/empty"
        assert shell(WALK, mount) == WALKED.format(mount)
        assert not tree_of(sandbox).mounts.covers_files
        assert shell(f"cd {here}; stat -c %i empty; ls -a empty") == (
            "2\n.\n..\ndir\nfile\nlink\nup\n"
        )
        # Elsewhere nothing is asked.
        del files.lookups[:]
        assert shell(f"cat {here}/beside {here}/mnt/hidden") == "native\nhidden\n"
        assert not files.lookups

    def test_where_nothing_is(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell
    ) -> None:
        tree_of(sandbox).mount(files, here / "made/there")
        mount = f"{here}/made/there"
        files.link(files.root, "up", "../../beside")
        walk = WALK.replace("../../../beside", "../../../../beside")
        walk = walk.replace("cd ../..", "cd ../../..")
        assert shell(walk, mount) == WALKED.format(mount)
        listed = "beside\ndangling\nin\nmade\nmnt\nthere\n"
        assert shell(f"cd {here}; ls; ls made; rmdir made/there").startswith(listed)
        assert not (here / "made").exists()

    def test_one_on_another(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell
    ) -> None:
        tree_of(sandbox).mount(files, "/dev/recuse-mount")
        second = ServedTree()
        try:
            second.file(second.root, "second", "on top\n")
            tree_of(sandbox).mount(second, "/dev/recuse-mount")
            script = "cd /dev/recuse-mount; ls; cat second ../recuse-mount/second; ls -d ../echo"
            assert shell(script) == "second\non top\non top\n../echo\n"
        finally:
            second.close()

    def test_what_is_between_two(
        self, sandbox: Sandbox, files: ServedTree, here: Path, client: Shell
    ) -> None:
        tree_of(sandbox).mount(files, here / "mnt")
        script = """
os.chdir(args[0])
for old, new in ("beside", "mnt/new"), ("beside", "mnt/file"), ("mnt/file", "other"), (
    "mnt/file", "mnt/new"), ("mnt/dir", "mnt/file"), ("mnt/nothing", "mnt/new"), ("mnt/no", "new"):
    print(old, new, attempt(os.rename, old, new), attempt(os.link, old, new))
"""
        assert client(script, here).splitlines() == [
            "beside mnt/new EXDEV EXDEV",
            "beside mnt/file EXDEV EEXIST",
            "mnt/file other EXDEV EXDEV",
            "mnt/file mnt/new EPERM EPERM",
            "mnt/dir mnt/file EPERM EEXIST",
            "mnt/nothing mnt/new ENOENT ENOENT",
            "mnt/no new EXDEV EXDEV",
        ]


class TestAnAddition:
    def test_to_a_directory(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell
    ) -> None:
        files.file(files.root, "beside", "not seen\n")
        tree_of(sandbox).merge(files, here)
        script = """
cd "$1"; cat file dir/inner link beside; cd dir && ls && cat ../beside ../file
cd deep && cat ../../mnt/hidden && pwd; cd ../..; ls; test -e no || echo no
echo made >new && cat new && mv new newer && rm newer; mkdir new && rmdir new; rm file 2>&1
"""
        assert shell(script, str(here)) == (
            "content\ninside\ninside\nnative\ndeep\ninner\nnative\ncontent\n"
            f"hidden\n{here}/dir/deep\nbeside\ndangling\ndir\nfile\nin\nlink\nmnt\nup\nno\n"
            "made\nrm: cannot remove 'file': Operation not permitted\n[status 1]"
        )

    def test_of_two(self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell) -> None:
        second = ServedTree()
        try:
            second.file(second.root, "file", "of the second\n")
            second.file(second.root, "more", "more\n")
            tree_of(sandbox).merge(files, here)
            tree_of(sandbox).merge(second, here)
            script = f"cd {here}; ls; cat file more"
            listed = "beside\ndangling\ndir\nfile\nin\nlink\nmnt\nmore\nup\n"
            assert shell(script) == f"{listed}content\nmore\n"
        finally:
            second.close()

    def test_whose_server_ends(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell
    ) -> None:
        tree_of(sandbox).merge(files, here)
        script = f"cd {here}; ls | wc -l; cat file; echo new >new; cat new beside; rm new"
        assert shell(script) == "8\ncontent\nnew\nnative\n"
        files.connection.abort()
        assert shell(script) == "4\ncat: file: No such file or directory\nnew\nnative\n"


@pytest.mark.parametrize("name", ["mnt/dir", "mnt/new", "mnt/dir/deep"])
def test_what_a_mount_hides_is_no_place_for_another(
    sandbox: Sandbox, files: ServedTree, here: Path, name: str
) -> None:
    tree = tree_of(sandbox)
    tree.mount(files, here / "mnt")
    for path in here / name, here / "mnt":
        with pytest.raises(OSError, match="Invalid argument"):
            tree.merge(files, path)
    with pytest.raises(OSError, match="Invalid argument"):
        tree.mount(files, here / name)
    with pytest.raises(NotADirectoryError):
        tree.mount(files, here / "beside")


ALL_CALLS = """
base = args[0]
os.chdir(base)
path = base + "/mnt/dir/inner"
b = path.encode()
print(oct(os.stat(path).st_mode), os.lstat("mnt/link").st_size, os.access(path, os.R_OK))
print(os.readlink("mnt/link"), os.listxattr(path), attempt(os.getxattr, path, "user.x"))
print(attempt(os.setxattr, path, "user.x", b""), attempt(os.removexattr, path, "user.x"))
print(os.statvfs(path).f_blocks == os.statvfs("/").f_blocks, attempt(os.truncate, path, 0))
os.chmod(path, 0o640); os.utime(path, (5, 7)); os.chown(path, 0 if os.geteuid() == 0 else -1, -1)
print(oct(os.stat(path).st_mode), os.stat(path).st_mtime, attempt(os.mkdir, "mnt/dir/inner"))
print(attempt(os.mkdir, "mnt/x"), attempt(os.unlink, path), attempt(os.rmdir, "mnt/dir"))
print(attempt(os.symlink, "x", "mnt/x"), attempt(os.mknod, "mnt/x"), attempt(os.open, "mnt/x", 65))
fd = os.open("mnt", os.O_RDONLY)
print(sorted(os.listdir(fd)), os.read(os.open("dir/inner", os.O_RDONLY, dir_fd=fd), 99))
for flag in 8, 16:
    how = struct.pack("QQQ", 0, 0, flag)
    for name in b"link", b"up", b"../beside", b"/dir/inner", b"dir/../dir/inner":
        done = call(SYS["openat2"], fd, name, how, len(how))
        print(flag, name, done if isinstance(done, str) else os.read(done, 99))
os.fchdir(fd); print(os.getcwd() == base + "/mnt"); os.chdir("dir"); print(os.getcwd()[-8:])
os.chdir(".."); os.chdir(".."); print(os.getcwd() == base)
"""
ALL_DONE = """0o100644 9 True
dir/inner [] ENODATA
EPERM EPERM
True None
0o100640 7.0 EEXIST
EPERM EPERM EPERM
EPERM EPERM EACCES
['dir', 'file', 'link', 'up'] b'inside\\n'
8 b'link' b'inside\\n'
8 b'up' EXDEV
8 b'../beside' EXDEV
8 b'/dir/inner' EXDEV
8 b'dir/../dir/inner' b'inside\\n'
16 b'link' b'inside\\n'
16 b'up' ENOENT
16 b'../beside' ENOENT
16 b'/dir/inner' b'inside\\n'
16 b'dir/../dir/inner' b'inside\\n'
True
/mnt/dir
True
"""


def test_all_calls(sandbox: Sandbox, files: ServedTree, here: Path, client: Shell) -> None:
    tree_of(sandbox).mount(files, here / "mnt")
    assert client(ALL_CALLS, here) == ALL_DONE


@pytest.mark.right("other users")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_for_somebody_else(sandbox: Sandbox, files: ServedTree, place: Path, client: Shell) -> None:
    (place / "mnt").mkdir()
    (place / "secret").write_text("secret", encoding="utf-8")
    (place / "secret").chmod(0o600)
    files.file(files.directory(files.root, "private", 0o700), "x", "private")
    files.link(files.root, "secret", "../secret")
    tree_of(sandbox).mount(files, place / "mnt")
    script = """
def look():
    for name in "file", "secret", "private/x", "dir/inner", "dir/../../secret":
        print(name, attempt(lambda: open(args[0] + "/" + name).read()), flush=True)
look()
pid = os.fork()
if pid == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    look()
    os._exit(0)
wait(pid)
look()
"""
    root = [
        "file content", "", "secret secret", "private/x private", "dir/inner inside", "",
        "dir/../../secret secret",
    ]  # fmt: skip
    other = [
        "file content", "", "secret EACCES", "private/x EACCES", "dir/inner inside", "",
        "dir/../../secret EACCES",
    ]  # fmt: skip
    assert client(script, place / "mnt").splitlines() == root + other + root


LOOK = """
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
print("ready", flush=True)
print(call("access", args[0].encode(), 0), flush=True)
"""


class TestAWait:
    @pytest.fixture
    def slow(self, sandbox: Sandbox, files: ServedTree, here: Path) -> str:
        """The path of a file behind a directory whose lookup waits."""
        tree_of(sandbox).mount(files, here / "mnt")
        files.held.add(b"dir")
        return f"{here}/mnt/dir/inner"

    def test_that_ends(self, sandbox: Sandbox, files: ServedTree, slow: str, start: Start) -> None:
        with start(sandbox, LOOK, slow) as program:
            _, unique = files.waiting.get(timeout=PATIENCE_S)
            files.release(unique)
            assert program.stdout.read() == b"ready\n0\n"

    def test_that_fails(self, sandbox: Sandbox, files: ServedTree, slow: str, start: Start) -> None:
        with start(sandbox, LOOK, slow) as program:
            _, unique = files.waiting.get(timeout=PATIENCE_S)
            files.release(unique, -5)
            assert program.stdout.read() == b"ready\nEIO\n"

    def test_that_holds_up_nobody_else(
        self, sandbox: Sandbox, files: ServedTree, slow: str, start: Start, shell: Shell
    ) -> None:
        with start(sandbox, LOOK, slow) as program:
            _, unique = files.waiting.get(timeout=PATIENCE_S)
            mount = slow.removesuffix("/dir/inner")
            assert shell(f"cat {mount}/file {mount}/up; ls {mount}") == (
                "content\nnative\ndir\nfile\nlink\nup\n"
            )
            files.release(unique)
            assert program.stdout.read() == b"ready\n0\n"

    def test_that_a_signal_interrupts(
        self, sandbox: Sandbox, files: ServedTree, slow: str, start: Start
    ) -> None:
        with start(sandbox, LOOK, slow) as program:
            files.waiting.get(timeout=PATIENCE_S)
            program.send_signal(signal.SIGUSR1)
            assert program.stdout.read() == b"ready\nhandled\nEINTR\n"

    def test_that_a_kill_ends(
        self, sandbox: Sandbox, files: ServedTree, slow: str, start: Start, shell: Shell
    ) -> None:
        with start(sandbox, LOOK, slow) as program:
            files.waiting.get(timeout=PATIENCE_S)
            program.kill()
            assert program.wait(PATIENCE_S) == -signal.SIGKILL
        files.held.clear()
        assert shell(f"cat {slow}") == "inside\n"

    def test_whose_server_ends(
        self, sandbox: Sandbox, files: ServedTree, slow: str, start: Start, shell: Shell
    ) -> None:
        with start(sandbox, LOOK, slow) as program:
            files.waiting.get(timeout=PATIENCE_S)
            files.connection.abort()
            assert program.stdout.read() == b"ready\nECONNABORTED\n"
        assert "not connected" in shell(f"cat {slow}")

    def test_that_outlasts_the_sandbox(
        self, make_echo: type[Fifo], tmp_path: Path, start: Start
    ) -> None:
        files = ServedTree()
        try:
            with Sandbox(make_echo()) as box:
                tree_of(box).mount(files, tmp_path / "mnt")
                files.held.add(b"dir")
                program = start(box, LOOK, tmp_path / "mnt/dir")
                files.waiting.get(timeout=PATIENCE_S)
            with program:
                assert program.wait(PATIENCE_S) == -signal.SIGKILL
        finally:
            files.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, changes its root")
@pytest.mark.right("namespaces")
class TestElsewhere:
    """A mount seen from other roots and mount namespaces."""

    @pytest.mark.parametrize("unshare", ["", "unshare -m "])
    def test_in_a_bind_mount(
        self, sandbox: Sandbox, files: ServedTree, here: Path, shell: Shell, unshare: str
    ) -> None:
        tree_of(sandbox).mount(files, here / "mnt")
        (here / "bound").mkdir()
        script = f"""{unshare}sh -c 'cd {here}; mount --bind mnt bound
cat mnt/file; cat bound/hidden bound/file 2>/dev/null; ls bound; umount bound'"""
        # To bind a directory is not to bind what is mounted on it; but in a namespace of its own
        # a directory is known by what it is.
        listed = "dir\nfile\nlink\nup\n"
        there = f"content\n{listed}" if unshare else "hidden\nhidden\nnative\n"
        assert shell(script) == f"content\n{there}"

    def test_in_a_root(
        self, sandbox: Sandbox, files: ServedTree, here: Path, client: Shell
    ) -> None:
        tree_of(sandbox).mount(files, here / "mnt")
        script = """
os.chroot(args[0]); os.chdir("/")
read = lambda name: attempt(lambda: open(name).read())
print([read(name) for name in ("mnt/file", "/in", "mnt/up", "/mnt/../../beside", "mnt/hidden")])
os.chdir("mnt/dir"); print(os.getcwd(), read("../../../beside"), read("/mnt/link"))
os.chdir("/"); os.chroot("mnt"); os.chdir("/")
print([read(name) for name in ("file", "/dir/inner", "../file", "up", "hidden")], os.listdir("/"))
"""
        assert client(script, here).splitlines() == [
            "['content\\n', 'inside\\n', 'native\\n', 'native\\n', 'ENOENT']",
            "/mnt/dir native",
            " inside",
            "",
            "['content\\n', 'inside\\n', 'content\\n', 'ENOENT', 'ENOENT'] "
            "['file', 'dir', 'link', 'up']",
        ]
