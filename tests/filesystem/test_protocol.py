"""What of FUSE 7.45 the real kernel does with filesystems that want it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recuse import Directory, Filesystem, Lock, Mount, Opened, OpenFile, RegularFile
from recuse.cli.filesystem_spec import load_filesystem
from recuse.wire.fuse import (
    FUSE_ALLOW_IDMAP,
    FUSE_CREATE_SUPP_GROUP,
    FUSE_DIRECT_IO_ALLOW_MMAP,
    FUSE_PASSTHROUGH,
    FUSE_REQUEST_TIMEOUT,
    fuse_in_header,
    fuse_init_in,
)

from .conftest import EXAMPLES, PATIENCE_S
from .recorder import Making, Recorder

pytestmark = pytest.mark.usefixtures("root")

_libc = ctypes.CDLL(None, use_errno=True)
_AT_EMPTY_PATH = 0x1000
_USER = 1000


@contextlib.contextmanager
def mounted(filesystem: Any, directory: Path, offers: int = 0) -> Iterator[Path]:
    """Mount it for all users; skip the test if the kernel does not offer some capabilities."""
    mount = Mount(filesystem, directory, "allow_other,suid")
    offered: list[int] = []
    handle = mount._session.handle

    def first(message: bytes, reply: Any, gather: Any = None) -> None:
        offer = fuse_init_in.unpack(message[fuse_in_header.SIZE :].ljust(fuse_init_in.SIZE, b"\0"))
        offered.append(offer.flags | offer.flags2 << 32)
        mount._session.handle = handle  # type: ignore[method-assign]
        handle(message, reply, gather)

    mount._session.handle = first  # type: ignore[method-assign]
    with mount:
        if offers & ~offered[0]:
            pytest.skip("this kernel is older")
        yield directory


def python(
    directory: Path, script: str, *argv: str, uid: int = 0, groups: tuple[int, ...] = ()
) -> str:
    """Run a script in a directory, as a user who perhaps cannot get there."""
    become = f"os.setgroups({list(groups)}); os.setgid({uid}); os.setuid({uid})"
    done = subprocess.run(
        ["python3", "-c", f"import os, sys; {become}\n{script}", *argv],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=directory,
    )
    return done.stdout + done.stderr


def test_without_open_the_kernel_opens_files(directory: Path) -> None:
    recorder = Recorder()
    recorder.add("file", b"content")
    with mounted(recorder, directory):
        for _ in range(3):
            assert (directory / "file").read_bytes() == b"content"
            assert os.listdir(directory) == ["file"]
        (directory / "file").write_bytes(b"new")
        assert (directory / "file").read_bytes() == b"new"
    assert not {"open", "opendir", "release", "flush"} & set(recorder.asked)
    assert bytes(recorder.contents[2]) == b"new"
    assert "setattr" in recorder.asked, "it is truncated so"


def test_what_is_missing_is_asked_for_once(directory: Path) -> None:
    """Counted by the session: methods that are missing are not called."""
    recorder = Making()
    recorder.add("file", b"content")
    with Mount(recorder, directory) as mount:
        session, asked = mount._session, []
        handle = session.handle

        def count(message: bytes, reply: Any, gather: Any = None) -> None:
            asked.append(int.from_bytes(message[4:8], sys.byteorder))
            handle(message, reply, gather)

        session.handle = count  # type: ignore[method-assign]
        for _ in range(3):
            with open(directory / "file", "rb") as file:
                file.read()
                os.fsync(file.fileno())
                assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 7
                assert os.listdir(directory) == ["file"]
                assert os.statvfs(directory).f_namemax == 255
                with contextlib.suppress(OSError):
                    os.listxattr(directory / "file")
    for missing in (20, 23, 25, 27, 46):
        assert asked.count(missing) == 1, missing


def test_the_time_of_birth(directory: Path) -> None:
    class Born(Recorder):
        def statx(self, ino: int, fh: Any, flags: int, mask: int) -> Any:
            self.note()
            return self.attributes[ino]

    for recorder, birth in ((Recorder(), "0"), (Born(), "1")):
        recorder.add("file")
        with mounted(recorder, directory):
            done = subprocess.run(
                ["stat", "-c", "%W", directory / "file"], capture_output=True, check=True
            )
            assert done.stdout.decode().strip() == birth


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_access (linux/posix_acl_xattr.h)."""
    return struct.pack("=I", 2) + b"".join(struct.pack("=HHI", *entry) for entry in entries)


def test_passthrough(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"content")
    loopback: Any = load_filesystem(f"{EXAMPLES}/loopbackfs.py,source={tmp_path / 'source'}")
    asked: list[Any] = []
    loopback.read = loopback.write = lambda *arguments: asked.append(arguments)
    with mounted(loopback, directory, FUSE_PASSTHROUGH):
        assert (directory / "file").read_bytes() == b"content"
        (directory / "file").write_bytes(b"other content")
    assert (tmp_path / "source" / "file").read_bytes() == b"other content"
    assert asked == []


def test_opens_with_and_without_a_backing_file(directory: Path, tmp_path: Path) -> None:
    """The kernel wants all opens of a file to have it; who reads it, is up to each of them."""

    class Various(Making):
        passthrough = True
        ways: Iterator[Opened]

        def open(self, ino: int, flags: int) -> Any:
            return next(self.ways)

        def read(self, ino: int, fh: Any, size: int, offset: int) -> Any:
            return b"SERVED"[offset : offset + size]

    (tmp_path / "source").write_bytes(b"backed")
    recorder = Various()
    recorder.add("file", b"SERVED", 0o666)
    code = """
import mmap, os
texts = []
for _ in range(4):
    file = os.open("file", os.O_RDWR)
    texts.append((os.pread(file, 6, 0), mmap.mmap(file, 6, prot=mmap.PROT_READ)[:]))
print(texts)
"""
    with open(tmp_path / "source", "r+b", buffering=0) as source:
        backing = source.fileno()
        ways = (
            Opened(backing=backing),
            Opened(),
            Opened(direct=True, backing=backing),
            Opened(nonseekable=True, backing=backing),
        )
        recorder.ways = iter(ways)
        with mounted(recorder, directory, FUSE_PASSTHROUGH):
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=directory, capture_output=True, check=False
            )
    assert done.stderr == b""
    alone, mapped = (b"backed", b"backed"), (b"SERVED", b"backed")
    assert done.stdout.decode() == f"{[alone, mapped, mapped, alone]}\n"


def test_asynchronous_methods(directory: Path) -> None:
    class Later(Making):
        async def lookup(self, parent: int, name: str) -> Any:  # type: ignore[override]
            await asyncio.sleep(0)
            return super().lookup(parent, name)

        async def getattr(self, ino: int, fh: Any) -> Any:  # type: ignore[override]
            await asyncio.sleep(0)
            return super().getattr(ino, fh)

        async def readdir(self, ino: int, fh: Any, offset: int) -> Any:  # type: ignore[override]
            await asyncio.sleep(0)
            return super().readdir(ino, fh, offset)

        async def read(self, ino: int, fh: Any, size: int, offset: int) -> Any:  # type: ignore[override]
            await asyncio.sleep(0)
            return super().read(ino, fh, size, offset)

        async def create(self, parent: int, name: str, mode: int, flags: int) -> Any:
            await asyncio.sleep(0)
            return super().create(parent, name, mode, flags)

    recorder = Later()
    for number in range(300):
        recorder.add(f"file{number}", b"content")
    with mounted(recorder, directory):
        script = "ls | wc -l; cat file7; echo new >new; cat new; ls -l | grep -c file; find | wc -l"
        done = subprocess.run(
            ["sh", "-c", script], cwd=directory, capture_output=True, check=False, text=True
        )
    assert (done.stdout, done.stderr) == ("300\ncontentnew\n300\n302\n", "")


def test_a_program_that_is_killed_while_it_waits(directory: Path) -> None:
    class Slow(Making):
        waiting, over = threading.Event(), threading.Event()

        async def lookup(self, parent: int, name: str) -> Any:  # type: ignore[override]
            self.waiting.set()
            try:
                await asyncio.sleep(1000)
            finally:
                self.over.set()

    recorder = Slow()
    with mounted(recorder, directory):
        program = subprocess.Popen(["cat", "slow"], cwd=directory)
        assert recorder.waiting.wait(PATIENCE_S)
        program.kill()
        assert program.wait(PATIENCE_S) == -signal.SIGKILL
        assert recorder.over.is_set()


def test_access_control_lists(directory: Path) -> None:
    class Controlled(Making):
        posix_acls = True

    recorder = Controlled()
    ino = recorder.add("file", b"secret", 0o600)
    access = acl((1, 6, 2**32 - 1), (2, 4, _USER), (4, 0, 2**32 - 1), (16, 4, 2**32 - 1),
                 (32, 0, 2**32 - 1))  # fmt: skip
    script = "print(open(sys.argv[1]).read())"
    with mounted(recorder, directory):
        path = str(directory / "file")
        assert "Permission denied" in python(directory, script, "file", uid=_USER)
        os.setxattr(path, "system.posix_acl_access", access)
        recorder.attributes[ino].mode = stat.S_IFREG | 0o640
        assert recorder.xattrs[ino, "system.posix_acl_access"] == access
        assert os.getxattr(path, "system.posix_acl_access") == access
        assert python(directory, script, "file", uid=_USER) == "secret\n"
        assert "Permission denied" in python(directory, script, "file", uid=_USER + 1)
        made = "os.umask(0o27); os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o666))"
        assert python(directory, made, "new", uid=_USER) == ""
    told = recorder.last("create")
    assert (told["umask"], recorder.attributes[3].mode & 0o7777) == (0o27, 0o666)


def test_the_umask_is_applied_already(directory: Path) -> None:
    recorder = Making()
    with mounted(recorder, directory):
        made = "os.umask(0o27); os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o666))"
        assert python(directory, made, "new") == ""
    assert (recorder.last("create")["umask"], recorder.attributes[2].mode & 0o777) == (0o27, 0o640)


@pytest.mark.parametrize("handles", [False, True])
def test_set_user_id_is_taken_away(directory: Path, handles: bool) -> None:
    recorder = Making()
    recorder.handle_killpriv = handles
    ino = recorder.add("file", b"x", 0o4777)
    script = "f = os.open(sys.argv[1], os.O_WRONLY); os.write(f, b'y'); os.close(f)"
    with mounted(recorder, directory):
        assert python(directory, script, "file", uid=_USER) == ""
        assert any(one["kill_suidgid"] for one in recorder.requests) == handles
        # Otherwise the kernel does it, by changing the mode. The recorder does nothing of itself.
        assert recorder.attributes[ino].mode & 0o7777 == (0o4777 if handles else 0o777)
        assert python(directory, "os.truncate(sys.argv[1], 0)", "file", uid=_USER) == ""
        assert recorder.last("setattr")["kill_suidgid"] == handles


def test_what_comes_with_what_is_made(directory: Path) -> None:
    class Labelled(Making):
        security_contexts = True

    recorder = Labelled()
    recorder.attributes[1].gid = 2000
    script = "os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o666))"
    with mounted(recorder, directory, FUSE_CREATE_SUPP_GROUP):
        assert python(directory, script, "a", uid=_USER, groups=(3000,)) == ""
        assert recorder.last("create")["groups"] == ()
        assert python(directory, script, "b", uid=_USER, groups=(3000, 2000)) == ""
    told = recorder.last("create")
    assert told["groups"] == (2000,)
    # With SELinux there would be one.
    assert isinstance(told["security_contexts"], dict)
    assert list(recorder.names) == ["a", "b"]


def test_direct_files_can_be_mapped(directory: Path) -> None:
    recorder = Making()
    recorder.opened.direct = True
    recorder.add("file", b"content")
    script = (
        "import mmap; f = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(f, 7);"
        "print(m[:3]); m[0:1] = b'C'; m.flush()"
    )
    try:
        with mounted(recorder, directory, FUSE_DIRECT_IO_ALLOW_MMAP):
            assert python(directory, script, "file") == "b'con'\n"
        assert bytes(recorder.contents[2]) == b"Content"
    finally:
        recorder.opened.direct = False


def test_ioctl_on_files_and_directories(directory: Path) -> None:
    class Controlled(Making):
        def opendir(self, ino: int, flags: int) -> str:
            return "directory"

        def ioctl(self, *arguments: Any) -> Any:
            ino, fh, command, _, data, room = arguments
            if command != 0xC0044501:
                raise OSError(errno.ENOTTY, "unknown")
            assert (fh == "directory") == (ino == 1)
            assert room == len(data) == 4
            return ino, data[::-1]

    recorder = Controlled()
    recorder.add("file")
    script = (
        "import fcntl; b = bytearray(b'abcd'); f = os.open(sys.argv[1], os.O_RDONLY);"
        "print(fcntl.ioctl(f, 0xC0044501, b), bytes(b))"
    )
    with mounted(recorder, directory):
        assert python(directory, script, "file") == "2 b'dcba'\n"
        assert python(directory, script, ".") == "1 b'dcba'\n"


def test_nodes_have_no_ioctl_on_directories(directory: Path) -> None:
    with mounted(Filesystem(Directory()), directory):
        opened = os.open(directory, os.O_RDONLY)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(opened, 0xC0044501, bytearray(4))
        os.close(opened)


def test_poll_is_woken(directory: Path) -> None:
    class Polled(Making):
        ready = 0
        wake: Any = None
        polled = threading.Event()

        def poll(self, ino: int, fh: Any, events: int, wake: Any) -> int:
            if wake is not None:
                self.wake = wake
                self.polled.set()
            return self.ready

    recorder = Polled()
    recorder.add("file")
    with mounted(recorder, directory):
        descriptor = os.open(directory / "file", os.O_RDONLY)
        waiter = select.poll()
        waiter.register(descriptor, select.POLLIN)
        assert waiter.poll(0) == []
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(waiter.poll(PATIENCE_S * 1000)))
        recorder.polled.clear()
        thread.start()
        assert recorder.polled.wait(PATIENCE_S)
        recorder.ready = select.POLLIN
        recorder.wake()
        thread.join(PATIENCE_S)
        assert found == [[(descriptor, select.POLLIN)]]
        os.close(descriptor)


class Locks(OpenFile):
    """fcntl locks of whole files, by owner."""

    def __init__(self, owners: dict[int, Lock]) -> None:
        self.owners = owners

    def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
        if lock.type == fcntl.F_UNLCK:
            self.owners.pop(owner, None)
        elif self.owners.keys() - {owner}:
            raise BlockingIOError(errno.EAGAIN, "another has it")
        else:
            self.owners[owner] = lock


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_locks_end_with_the_file(directory: Path, call: str) -> None:
    """Nobody unlocks; closing does. Linux sends no request of its own for that."""
    owners: dict[int, Lock] = {}

    class Locked(RegularFile):
        def open(self, request: Any) -> OpenFile:
            return Locks(owners)

    filesystem = Filesystem(Directory({"file": Locked(b"x")}))
    filesystem.posix_locks = filesystem.flock_locks = True
    script = (
        "import fcntl; f = os.open(sys.argv[1], os.O_RDWR)\n"
        f"fcntl.{call}(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('locked')"
    )
    with mounted(filesystem, directory):
        path = str(directory / "file")
        assert python(directory, script, "file") == "locked\n"
        assert python(directory, script, "file") == "locked\n"
        with open(path, "r+b") as file:
            getattr(fcntl, call)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert len(owners) == 1
            assert "BlockingIOError" in python(directory, script, "file")
        assert python(directory, script, "file") == "locked\n"
    assert owners == {}


def test_more_than_one_mebibyte_in_a_request(directory: Path) -> None:
    limit = Path("/proc/sys/fs/fuse/max_pages_limit")
    if not limit.exists():
        pytest.skip("this kernel has no limit that can be changed")
    before = limit.read_text()
    sizes: list[int] = []

    class Large(Making):
        max_read = max_write = 4 << 20

        def read(self, ino: int, fh: Any, size: int, offset: int) -> bytes:
            sizes.append(size)
            return super().read(ino, fh, size, offset)

        def write(self, ino: int, fh: Any, data: bytes, offset: int) -> None:
            sizes.append(len(data))
            super().write(ino, fh, data, offset)

    recorder = Large()
    recorder.opened.direct = True
    recorder.add("file")
    content = mmap.mmap(-1, 4 << 20)
    content[:] = os.urandom(4096) * 1024
    try:
        limit.write_text("1024")
        with mounted(recorder, directory):
            descriptor = os.open(directory / "file", os.O_RDWR)
            assert os.pwrite(descriptor, content, 0) == 4 << 20
            found = mmap.mmap(-1, 4 << 20)  # at the beginning of a page
            assert os.preadv(descriptor, [found], 0) == 4 << 20
            assert found[:] == content[:]
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        pytest.skip("the limit may not be changed")
    finally:
        recorder.opened.direct = False
        with contextlib.suppress(OSError):
            limit.write_text(before)
    assert sizes == [4 << 20, 4 << 20]


class FileHandle(ctypes.Structure):
    """struct file_handle (linux/fcntl.h)."""

    _fields_ = (
        ("bytes", ctypes.c_uint),
        ("kind", ctypes.c_int),
        ("data", ctypes.c_ubyte * 128),
    )


def test_file_handles_outlive_what_the_kernel_knows(directory: Path) -> None:
    class Exported(Making):
        export = True
        forgotten = threading.Event()

        def forget(self, inodes: list[tuple[int, int]]) -> None:
            if 2 in (ino for ino, _ in inodes):
                self.forgotten.set()

    recorder = Exported()
    recorder.add("file", b"content")
    with mounted(recorder, directory):
        handle, number = FileHandle(bytes=128), ctypes.c_int()
        arguments = os.fsencode(directory / "file"), ctypes.byref(handle), ctypes.byref(number), 0
        _checked(_libc.name_to_handle_at(-100, *arguments))
        recorder.prune([2])
        if not recorder.forgotten.wait(1):
            pytest.skip("this kernel does not prune")
        recorder.asked.clear()
        root = os.open(directory, os.O_RDONLY)
        try:
            opened = _libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
            descriptor = _checked(opened)
        except PermissionError:
            pytest.skip("this root may not open file handles")
        assert "lookup" in recorder.asked
        assert os.read(descriptor, 100) == b"content"
        os.close(descriptor)
        os.close(root)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@pytest.mark.right("user namespaces")
def test_mounts_with_other_ids(directory: Path, tmp_path: Path) -> None:
    class Mapped(Making):
        idmapped = True

    recorder = Mapped()
    recorder.add("file", b"content")
    other = tmp_path / "other"
    other.mkdir()
    with mounted(recorder, directory, FUSE_ALLOW_IDMAP):
        child = subprocess.Popen(
            ["unshare", "-U", "sh", "-c", "echo; read x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"\n"
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{child.pid}/{kind}").write_text("0 5000 10000")
            users = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY)
        finally:
            child.communicate(b"\n", timeout=PATIENCE_S)
        # open_tree(OPEN_TREE_CLONE), mount_setattr(MOUNT_ATTR_IDMAP), move_mount
        tree = _checked(_libc.syscall(428, -100, os.fsencode(directory), 1 | os.O_CLOEXEC))
        attributes = struct.pack("=QQQQ", 0x00100000, 0, 0, users)
        size = len(attributes)
        _checked(_libc.syscall(442, tree, b"", _AT_EMPTY_PATH, attributes, size))
        _checked(_libc.syscall(429, tree, b"", -100, os.fsencode(other), 4))
        os.close(tree)
        os.close(users)
        try:
            status = os.stat(other / "file")
            assert (status.st_uid, status.st_gid) == (5000, 5000)
            made = "os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o666))"
            assert python(other, made, "new", uid=5007) == ""
        finally:
            subprocess.run(["umount", other], check=True, timeout=PATIENCE_S)
    # What is made is for whoever the user is in there; for the rest nobody asks.
    assert recorder.last("create")["uid"] == 7
    assert recorder.last("lookup")["uid"] is None


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_request_may_take_too_long(directory: Path) -> None:
    class Hanging(Making):
        request_timeout_s = 1
        go_on = threading.Event()

        def read(self, ino: int, fh: Any, size: int, offset: int) -> bytes:
            assert self.go_on.wait(100)
            return b""

    recorder = Hanging()
    recorder.add("file", b"content")
    with mounted(recorder, directory, FUSE_REQUEST_TIMEOUT):
        script = "print(open(sys.argv[1]).read())"
        try:
            assert re.search("Errno (103|107)", python(directory, script, "file"))
        finally:
            recorder.go_on.set()
