"""`recuse.Mount` in this process; programs, which are others, use what it mounts."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import recuse
from recuse import Directory, Filesystem, Mount, MountError, RegularFile
from recuse.channel import mount as mount_module
from recuse.channel import mounting, unmounting
from recuse.channel.unmounting import end_mount, identity
from recuse.cli.filesystem_spec import load_filesystem

from .conftest import EXAMPLES, PATIENCE_S, is_mounted

_libc = ctypes.CDLL(None, use_errno=True)


class Text(RegularFile):
    """Keeps what is written, and tells when it was closed."""

    def __init__(self) -> None:
        super().__init__(b"hello\n")
        self.released = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def open(self, request: recuse.OpenRequest) -> recuse.NodeFile:
        return TextFile(self)

    def write(self, data: bytes, offset: int) -> None:
        self.go_on.wait(PATIENCE_S)
        content = bytearray(self.content.ljust(offset + len(data), b"\0"))
        content[offset : offset + len(data)] = data
        self.content, self.size = bytes(content), len(content)

    def truncate(self, size: int) -> None:
        self.content, self.size = self.content[:size].ljust(size, b"\0"), size


class TextFile(recuse.NodeFile):
    node: Text

    def release(self) -> None:
        self.node.released.set()


class Small(Filesystem):
    """One text, and what happened."""

    name = "small"

    def __init__(self) -> None:
        self.text = Text()
        self.closed = False
        super().__init__(Directory({"text": self.text}))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def small() -> Small:
    return Small()


def shell(script: str, cwd: str | Path = "/") -> str:
    done = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=cwd,
    )
    assert done.stderr == ""
    return done.stdout


def options_of(path: Path) -> tuple[str, str, set[str]]:
    """Source, type and options of what is mounted on a path."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        source, point, kind, options, *_ = line.split()
        if point == str(path):
            return source, kind, set(options.split(","))
    raise AssertionError("it is not mounted")


@pytest.mark.usefixtures("mounts")
def test_on_a_directory(small: Small, directory: Path) -> None:
    mount = Mount(small, directory)
    with mount:
        assert mount.path == str(directory)
        assert mount.is_mounted
        assert shell(f"cat {directory}/text; echo bye >{directory}/text") == "hello\n"
        source, kind, options = options_of(directory)
        assert (source, kind) == ("small", "fuse.small")
        assert {"rw", "nosuid", "nodev", "default_permissions"} <= options
        assert "allow_other" not in options
    assert small.text.content == b"bye\n"
    assert small.closed
    assert small.text.released.is_set()
    assert not is_mounted(directory)
    assert not mount.is_mounted
    assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("root")
def test_options(small: Small, directory: Path) -> None:
    text = r"ro,suid,noexec,noatime,allow_other,fsname=a\,b,subtype=kind,max_read=8192"
    with Mount(small, directory, text):
        source, kind, options = options_of(directory)
        assert (source, kind) == ("a,b", "fuse.kind")
        assert {"ro", "nodev", "noexec", "noatime", "allow_other", "max_read=8192"} <= options
        assert "nosuid" not in options
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            os.open(directory / "text", os.O_RDWR)


@pytest.mark.usefixtures("mounts")
def test_another_owner(small: Small, directory: Path) -> None:
    with Mount(small, directory, "uid=12,gid=34,umask=027"):
        for path, kind in ((directory, stat.S_IFDIR), (directory / "text", stat.S_IFREG)):
            status = os.stat(path)
            assert (status.st_uid, status.st_gid) == (12, 34)
            assert status.st_mode == kind | 0o750


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("options", "uid", "result"),
    [
        ("", 1000, "denied"),
        ("allow_other", 1000, "hello"),
        ("allow_root", 1000, "denied"),
        ("allow_root", 0, "hello"),
    ],
)
def test_who_may(small: Small, directory: Path, options: str, uid: int, result: str) -> None:
    # The directories above are for this user only.
    script = f"import os; os.setuid({uid}); print(open('text').read(), end='')"
    with Mount(small, directory, options):
        done = subprocess.run(
            ["python3", "-c", f"import os; os.chdir({str(directory)!r}); {script}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (done.stdout == "hello\n") == (result == "hello")
    assert ("PermissionError" in done.stderr) == (result == "denied")


@pytest.mark.usefixtures("mounts")
def test_how_much_room_there_is(directory: Path) -> None:
    """As a tmpfs says it."""

    def found() -> list[int]:
        lines = shell("df --block-size=4096 --output=size,used,iused .", directory).splitlines()
        return [int(number) for number in lines[-1].split()]

    with Mount(load_filesystem(f"{EXAMPLES}/memoryfs.py"), directory):
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8192
        assert found() == [half, 0, 1]
        (directory / "d").mkdir()
        (directory / "d/file").write_bytes(bytes(8192))
        os.link(directory / "d/file", directory / "other")
        assert found() == [half, 2, 3]
        os.unlink(directory / "d/file")
        os.unlink(directory / "other")
        assert found() == [half, 0, 2]


@pytest.mark.usefixtures("root")
def test_without_a_directory(small: Small) -> None:
    small.name = f"nowhere{os.getpid()}"
    with Mount(small) as mount:
        assert small.name not in Path("/proc/self/mounts").read_text(encoding="utf-8")
        descriptor = os.open("text", os.O_RDONLY, dir_fd=mount.fileno())
        assert os.read(descriptor, 100) == b"hello\n"
        os.close(descriptor)
        # A shell complains that it does not find where it is.
        assert shell(f"cat {mount.path}/text; echo bye >{mount.path}/text") == "hello\n"
        script = "import os; print(os.listdir())"
        done = subprocess.run(
            ["python3", "-c", script], capture_output=True, check=True, cwd=mount.path
        )
        assert done.stdout == b"['text']\n"
    assert small.text.content == b"bye\n"
    assert small.closed
    with pytest.raises(ValueError, match="no descriptor"):
        mount.fileno()


@pytest.mark.usefixtures("root")
def test_read_only_without_a_directory(small: Small) -> None:
    small.read_only = True
    with Mount(small, None, "noexec") as mount, pytest.raises(OSError, match="Read-only"):
        os.open("text", os.O_RDWR, dir_fd=mount.fileno())


@pytest.mark.usefixtures("root")
def test_files_that_are_open_at_the_end(small: Small) -> None:
    with Mount(small) as mount:
        descriptor = os.open("text", os.O_RDWR, dir_fd=mount.fileno())
    assert small.text.released.is_set()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.read(descriptor, 1)
    os.close(descriptor)


@pytest.mark.usefixtures("root")
def test_what_is_mapped_is_written_before_the_end(small: Small, directory: Path) -> None:
    """Other processes map it: this one must not wait for itself."""
    script = (
        "import mmap, os; file = os.open('text', os.O_RDWR); memory = mmap.mmap(file, 6);"
        "memory[:5] = b'HELLO'; print(flush=True); input()"
    )
    with Mount(small, directory):
        program = subprocess.Popen(
            ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory
        )
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
    assert small.text.content == b"HELLO\n"
    program.communicate(b"\n", timeout=PATIENCE_S)


@pytest.mark.usefixtures("root")
def test_a_server_that_does_not_answer_is_unmounted(
    small: Small, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for its changes to be written fails then."""
    monkeypatch.setattr(mount_module, "UNMOUNT_S", 0.2)
    script = (
        "import mmap, os; file = os.open('text', os.O_RDWR); memory = mmap.mmap(file, 6);"
        "memory[:5] = b'HELLO'; print(flush=True); input()"
    )
    with Mount(small, directory):
        program = subprocess.Popen(
            ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory
        )
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
        small.text.go_on.clear()
    assert not is_mounted(directory)
    small.text.go_on.set()
    program.communicate(b"\n", timeout=PATIENCE_S)


@pytest.mark.usefixtures("mounts")
def test_the_end_of_a_connection_that_nothing_aborts(
    small: Small, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is no fusectl: the thread that waits for requests gives up all the same."""
    monkeypatch.setattr(unmounting, "_CONNECTIONS", "/proc/self/status")
    script = "import os; file = os.open('text', 0); print(flush=True); input(); os.read(file, 6)"
    mount = Mount(small, directory)
    mount.start()
    program = subprocess.Popen(
        ["python3", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=directory,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"\n"
    closing = threading.Thread(target=mount.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    _, errors = program.communicate(b"\n", timeout=PATIENCE_S)
    assert b"ENOTCONN" in errors or b"not connected" in errors


@pytest.mark.usefixtures("root")
def test_unmounted_by_somebody_else(small: Small, directory: Path) -> None:
    ended = threading.Event()
    with Mount(small, directory, ended=ended.set) as mount:
        assert shell(f"umount {directory}") == ""
        assert ended.wait(PATIENCE_S)
        assert mount.join(PATIENCE_S)
        assert not mount.is_mounted
        # What somebody else mounts there meanwhile stays.
        assert shell(f"mount -t tmpfs other {directory}") == ""
    assert options_of(directory)[0] == "other"
    assert shell(f"umount {directory}") == ""


@pytest.mark.usefixtures("root")
def test_two_mounts_of_one_filesystem(small: Small, tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "other"]
    for place in places:
        place.mkdir()
    with Mount(small, places[0]), Mount(small, places[1]):
        assert shell(f"echo bye >{places[0]}/text; cat {places[1]}/text") == "bye\n"


@pytest.mark.usefixtures("root")
def test_a_path_with_white_space(small: Small, tmp_path: Path) -> None:
    place = tmp_path / "a \\ b\nc"
    place.mkdir()
    with Mount(small, place) as mount:
        assert mount.is_mounted
        found = identity(str(place))
        assert found is not None
        assert found.point == str(place)
        assert os.listdir(place) == ["text"]
    assert os.listdir(place) == []


@pytest.mark.usefixtures("root")
def test_only_the_mount_that_is_meant_is_unmounted(small: Small, directory: Path) -> None:
    with Mount(small, directory):
        found = identity(str(directory))
        assert found is not None
        end_mount(str(directory), found._replace(device="0:0"))
        assert is_mounted(directory)
        with open(directory / "text", "rb"):
            end_mount(str(directory), found)
        assert not is_mounted(directory)


@pytest.mark.usefixtures("root")
def test_a_mount_that_is_not_known_again_is_taken_away(
    small: Small, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(mount_module, "identity", fail)
    mount = Mount(small, directory)
    with pytest.raises(MountError, match="cannot be served: Too many open files"):
        mount.start()
    assert not is_mounted(directory)
    mount.close()


@pytest.mark.right("user namespaces")
@pytest.mark.usefixtures("mounts")
def test_in_a_user_namespace(tmp_path: Path) -> None:
    """Without a directory, and with one; there is no passthrough, and nothing is missing."""
    script = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from recuse import Mount
from memoryfs import MemoryFilesystem
from mirrorfs import Mirror
os.mkdir("source"); os.mkdir("mount")
for filesystem in (MemoryFilesystem(), Mirror("source")):
    for directory in (None, "mount"):
        with Mount(filesystem, directory) as mount:
            script = "echo text >$0/file; cat $0/file; rm $0/file"
            print(subprocess.check_output(["sh", "-c", script, mount.path]))
"""
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script, EXAMPLES],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.stdout == b"b'text\\n'\n" * 4
    for line in done.stderr.splitlines():
        assert line.startswith(b"the kernel does not take a backing file")


@pytest.mark.usefixtures("mounts")
def test_directories_that_will_not_do(small: Small, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path, "not empty; a mount would hide what is there"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "none", f"there is no such directory: mkdir {tmp_path}/none"),
    ):
        mount = Mount(small, path)
        with pytest.raises(MountError) as caught:
            mount.start()
        mount.close()
        assert str(caught.value) == f"{path}: {reason}"


@pytest.mark.usefixtures("root")
def test_a_directory_that_is_not_empty_if_that_is_said(small: Small, tmp_path: Path) -> None:
    (tmp_path / "hidden").touch()
    with Mount(small, tmp_path, "nonempty"):
        assert os.listdir(tmp_path) == ["text"]
    assert os.listdir(tmp_path) == ["hidden"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[int, OSError]:
    """Has /dev/fuse not be opened."""
    errors: dict[int, OSError] = {}
    real = os.open

    def fail(path: str, *args: int, **more: int) -> int:
        if path == mounting.DEV_FUSE and 0 in errors:
            raise errors[0]
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", fail)
    return errors


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOENT, "this kernel has no FUSE: modprobe fuse; in a container, start it with"),
        (errno.ENODEV, "this kernel has no FUSE: modprobe fuse"),
        (errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
@pytest.mark.parametrize("somewhere", [True, False])
def test_without_dev_fuse(
    small: Small, directory: Path, failing: dict[int, OSError], *,
    number: int, advice: str, somewhere: bool,
) -> None:  # fmt: skip
    failing[0] = OSError(number, os.strerror(number))
    mount = Mount(small, directory if somewhere else None)
    with pytest.raises(MountError) as caught:
        mount.start()
    mount.close()
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_nobody_mounts(
    small: Small, directory: Path, failing: dict[int, OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing[0] = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")
    mount = Mount(small, directory)
    with pytest.raises(MountError, match="there is no fusermount3: install the package fuse3"):
        mount.start()
    mount.close()


def test_an_option_that_is_not_known(small: Small, directory: Path) -> None:
    with pytest.raises(ValueError, match="-o nonsense: is no option"):
        Mount(small, directory, "nonsense")


@pytest.mark.usefixtures("mounts")
def test_in_an_event_loop(directory: Path) -> None:
    """The loop goes on while it is mounted, and while its files are written and released."""

    class Closing(Small):
        def close(self) -> None:
            assert go_on.wait(PATIENCE_S)

    async def main() -> None:
        async with Mount(Closing(), directory) as mount:
            assert mount.is_mounted
            program = await asyncio.create_subprocess_exec(
                "cat", directory / "text", stdout=subprocess.PIPE
            )
            assert (await program.communicate())[0] == b"hello\n"
            asyncio.get_running_loop().call_later(0, go_on.set)
        assert not is_mounted(directory)

    go_on = threading.Event()
    asyncio.run(main())


@pytest.mark.usefixtures("mounts")
def test_in_an_event_loop_where_it_cannot_be_mounted(tmp_path: Path) -> None:
    async def main() -> None:
        async with Mount(Small(), tmp_path / "none"):
            raise AssertionError("it is mounted")

    with pytest.raises(MountError, match="there is no such directory"):
        asyncio.run(main())
