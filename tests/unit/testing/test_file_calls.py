"""Locks, ioctls, poll and birth times of a filesystem in a test."""

import ctypes
import errno
import fcntl
import os
import select
import threading

import pytest

from recuse import IOWR, Directory, Filesystem, Lock, OpenFile, OpenRequest, RegularFile, ioctl
from recuse.testing import TestMount

from .support import error_of, example


class Number(ctypes.Structure):
    _fields_ = [("value", ctypes.c_uint32)]


DOUBLE = IOWR(ord("r"), 1, Number)


class Open(OpenFile):
    """It locks one owner at a time, doubles numbers, and is readable when it has something."""

    held: tuple[int, Lock] | None = None
    ready = False
    events: list[str] = []  # noqa: RUF012 - of all of them

    @ioctl(DOUBLE, Number)
    def double(self, number: Number) -> None:
        number.value *= 2

    def poll(self, events: int) -> int:
        return select.POLLIN if Open.ready else 0

    def get_lock(self, lock: Lock, owner: int) -> Lock:
        if Open.held is None or Open.held[0] == owner:
            return lock._replace(type=fcntl.F_UNLCK)
        return Open.held[1]

    def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
        Open.events.append(f"{'flock' if lock.flock else 'lock'} {lock.type} {wait}")
        if lock.type == fcntl.F_UNLCK:
            Open.held = None
            return
        if Open.held is not None and Open.held[0] != owner:
            raise OSError(errno.EAGAIN, "locked")
        Open.held = owner, lock


class File(RegularFile):
    mode = 0o666

    def open(self, request: OpenRequest) -> OpenFile:
        return Open()


class Files(Filesystem):
    posix_locks = flock_locks = True

    def __init__(self) -> None:
        super().__init__(Directory({"a": File()}))


def test_locks_of_two_processes_exclude_each_other() -> None:
    Open.held = None
    with TestMount(Files()) as mount:
        other = mount.as_user(os.geteuid())
        with mount.open("a", os.O_RDWR) as mine, other.open("a", os.O_RDWR) as theirs:
            mine.lock(fcntl.F_WRLCK, 10, 5)
            assert error_of(theirs.lock, fcntl.F_WRLCK) == "EAGAIN"
            found = theirs.conflicting_lock(fcntl.F_RDLCK)
            assert found == Lock(fcntl.F_WRLCK, 10, 14, os.getpid())
            assert mine.conflicting_lock(fcntl.F_RDLCK) is None
            mine.lock(fcntl.F_UNLCK)
            theirs.lock(fcntl.F_WRLCK, wait=True)
            theirs.lock(fcntl.F_UNLCK)
        with mount.open("a") as file:
            assert error_of(file.lock, fcntl.F_WRLCK) == "EBADF"
            assert error_of(file.lock, 77) == "EINVAL"


def test_flock_belongs_to_the_open_file_and_ends_with_it() -> None:
    Open.held = None
    Open.events.clear()
    with TestMount(Files()) as mount, mount.open("a") as one, mount.open("a") as two:
        one.flock(fcntl.LOCK_EX)
        assert error_of(two.flock, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"
        one.flock(fcntl.LOCK_UN)
        two.flock(fcntl.LOCK_SH)
        assert error_of(two.flock, 77) == "EINVAL"
        two.flock(fcntl.LOCK_UN)
    assert Open.events[:2] == [
        f"flock {fcntl.F_WRLCK} True",
        f"flock {fcntl.F_RDLCK} False",
    ]


def test_an_ioctl_changes_a_structure() -> None:
    with TestMount(Files()) as mount, mount.open("a") as file, mount.recording() as requests:
        assert file.ioctl(DOUBLE, bytes(Number(21))) == bytes(Number(42))
        assert error_of(file.ioctl, IOWR(ord("r"), 2, Number), bytes(Number(21))) == "ENOTTY"
        assert error_of(file.ioctl, DOUBLE, b"") == "EFAULT"
        assert error_of(file.ioctl, DOUBLE, 0) == "EFAULT"
    assert [(sent.name, sent.header.nodeid) for sent in requests][:2] == [("IOCTL", 2)] * 2


def test_poll_waits_until_the_file_is_ready() -> None:
    Open.ready = False
    opened: list[Open] = []
    File.open, original = lambda self, request: opened.append(Open()) or opened[-1], File.open  # type: ignore[method-assign,func-returns-value]
    try:
        with TestMount(Files()) as mount, mount.open("a") as file:
            assert file.poll(select.POLLIN) == 0
            with mount.recording() as requests:
                results: list[int] = []
                thread = threading.Thread(
                    target=lambda: results.append(file.poll(select.POLLIN, 60))
                )
                thread.start()
                while not requests:
                    thread.join(0.001)
                Open.ready = True
                opened[0].wake_pollers()
                thread.join(60)
            assert results == [select.POLLIN]
    finally:
        File.open = original  # type: ignore[method-assign]


def test_files_without_poll_are_always_ready() -> None:
    with TestMount(example("hellofs").Hello()) as mount, mount.open("hello") as file:
        assert file.poll(select.POLLIN | select.POLLOUT) == select.POLLIN | select.POLLOUT


def test_the_birth_time_is_known_if_the_filesystem_says_it() -> None:
    with TestMount(example("memoryfs").MemoryFilesystem()) as mount:
        mount.write_text("a", "")
        mount.utime("a", (1, 2))
        born = mount.birth_time_ns("a")
        assert born is not None
        assert born > 10**18
    with TestMount(example("hellofs").Hello()) as mount:
        assert mount.birth_time_ns("hello") is None


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_stale_node_is_looked_up_once_more(flags: int) -> None:
    """ESTALE: the path is walked again, and the filesystem asked about each name."""
    times = [0]

    class Stale(RegularFile):
        mode = 0o666

        def open(self, request: OpenRequest) -> OpenFile:
            times[0] += 1
            if times[0] == 1:
                raise OSError(errno.ESTALE, "stale")
            return OpenFile()

    with TestMount(Filesystem(Directory({"a": Stale()}))) as mount:
        mount.stat("a")
        with mount.recording() as requests, mount.open("a", flags):
            pass
    names = [sent.name for sent in requests]
    assert names[:3] == ["OPEN", "LOOKUP", "OPEN"]
