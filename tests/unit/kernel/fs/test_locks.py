"""Locks that the server leaves to the kernel half."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.fs.locks import RecordLocks
from recuse.testing import PathCalls, TestFile
from recuse.wire.fuse import FUSE_FLUSH, FUSE_POSIX_LOCKS, fuse_init_out
from tests.patience import PATIENCE_S

from .support import FLAGS, Scripted, always, entry

_FLOCK = struct.Struct("hhqqi4x")
_ALL = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)


def with_file() -> Scripted:
    mount = Scripted()
    mount.names["a"] = entry(2, valid_s=1000)
    mount.names["b"] = entry(3, valid_s=1000)
    return mount


def another(mount: Scripted, owner: int) -> PathCalls:
    """Another process with the same filesystem."""
    caller = type(mount._caller)(owner, 0, 0, capabilities=-1, owner=owner)
    return PathCalls(mount._driver, caller, 1)


def error_of(function: Callable[..., object], *arguments: object, **named: object) -> str:
    try:
        function(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


class Waiting:
    """A lock that a thread waits for."""

    def __init__(self, mount: Scripted, lock: Callable[..., object], *arguments: Any) -> None:
        self.result: str | None = None

        def wait() -> None:
            named = {} if lock.__name__ == "flock" else {"wait": True}
            self.result = error_of(lock, *arguments, **named)

        self._thread = threading.Thread(target=wait)
        self._thread.start()
        # A request that is watched has been submitted.
        while self._thread.is_alive() and not any(
            request.done for request in list(mount._driver._waiting)
        ):
            self._thread.join(0.001)

    def end(self) -> str | None:
        self._thread.join(PATIENCE_S)
        return self.result


@pytest.fixture
def mount() -> Iterator[Scripted]:
    mount = with_file()
    yield mount
    mount.superblock.connection.abort()


def test_a_process_locks_bytes_against_others(mount: Scripted) -> None:
    theirs = another(mount, 7)
    with mount.open("a", os.O_RDWR) as mine, theirs.open("a", os.O_RDWR) as other:
        mine.lock(fcntl.F_WRLCK, 10, 10)
        assert error_of(other.lock, fcntl.F_RDLCK, 15, 1) == "EAGAIN"
        other.lock(fcntl.F_RDLCK, 20, 5)
        found = other.conflicting_lock(fcntl.F_WRLCK)
        assert found is not None
        assert (found.type, found.start, found.end, found.pid) == (fcntl.F_WRLCK, 10, 19, 1)
        assert mine.conflicting_lock(fcntl.F_WRLCK, 0, 20) is None
        mine.lock(fcntl.F_UNLCK)
        other.lock(fcntl.F_WRLCK)
    assert "SETLK" not in mount.sent


def test_locks_end_when_their_process_closes_any_descriptor(mount: Scripted) -> None:
    mount.answers[FUSE_FLUSH] = always(-errno.EIO)
    with another(mount, 7).open("a", os.O_RDWR) as other:
        mine, second = mount.open("a", os.O_RDWR), mount.open("a")
        mine.lock(fcntl.F_WRLCK)
        assert error_of(other.lock, fcntl.F_WRLCK) == "EAGAIN"
        assert error_of(second.close) == "EIO"
        other.lock(fcntl.F_WRLCK)
        other.lock(fcntl.F_UNLCK)
        mount.answers[FUSE_FLUSH] = always(b"")
        mine.close()


def test_locks_of_an_open_file_end_with_it(mount: Scripted) -> None:
    with mount.open("a", os.O_RDWR) as other:
        mine, third = mount.open("a", os.O_RDWR), mount.open("a")
        mine.lock(fcntl.F_WRLCK, ofd=True)
        found = other.conflicting_lock(fcntl.F_WRLCK, ofd=True)
        assert found is not None
        assert found.pid == -1
        third.close()
        mine.flush()
        assert error_of(other.lock, fcntl.F_WRLCK, ofd=True) == "EAGAIN"
        mine.close()
        other.lock(fcntl.F_WRLCK, ofd=True)


def test_flock_is_for_one_open_of_a_file(mount: Scripted) -> None:
    with mount.open("a") as other:
        mine = mount.open("a")
        mine.flock(fcntl.LOCK_SH)
        other.flock(fcntl.LOCK_SH)
        assert error_of(mine.flock, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        waiting = Waiting(mount, other.flock, fcntl.LOCK_EX)
        assert waiting.end() == ""
        waiting = Waiting(mount, mine.flock, fcntl.LOCK_EX)
        assert waiting.result is None
        other.flock(fcntl.LOCK_UN)
        assert waiting.end() == ""
        waiting = Waiting(mount, other.flock, fcntl.LOCK_SH)
        mine.close()
        assert waiting.end() == ""
    assert "SETLK" not in mount.sent


def test_waiting_ends_with_the_lock(mount: Scripted) -> None:
    with mount.open("a", os.O_RDWR) as mine, another(mount, 7).open("a", os.O_RDWR) as other:
        mine.lock(fcntl.F_WRLCK)
        waiting = Waiting(mount, other.lock, fcntl.F_RDLCK, 5, 5)
        mine.lock(fcntl.F_RDLCK, 0, 10)
        assert waiting.end() == ""
        assert error_of(mine.lock, fcntl.F_WRLCK, 0, 10) == "EAGAIN"


@pytest.mark.parametrize("fatal", [False, True])
def test_waiting_is_interrupted(mount: Scripted, fatal: bool) -> None:
    with mount.open("a", os.O_RDWR) as mine, another(mount, 7).open("a", os.O_RDWR) as other:
        mine.lock(fcntl.F_WRLCK)
        mine.flock(fcntl.LOCK_EX)
        for waiting in (
            Waiting(mount, other.lock, fcntl.F_RDLCK, 5, 5),
            Waiting(mount, other.flock, fcntl.LOCK_EX),
        ):
            mount._driver.interrupt(fatal)
            assert waiting.end() == "EINTR"
        mine.lock(fcntl.F_UNLCK)
        mine.flock(fcntl.LOCK_UN)
        # Nothing was granted to those who have gone.
        mine.lock(fcntl.F_WRLCK)
        mine.flock(fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_would_wait_for_himself_is_refused(mount: Scripted) -> None:
    with (
        mount.open("a", os.O_RDWR) as mine,
        mount.open("b", os.O_RDWR) as mine_too,
        another(mount, 7).open("a", os.O_RDWR) as other,
        another(mount, 7).open("b", os.O_RDWR) as other_too,
    ):
        mine.lock(fcntl.F_WRLCK)
        other_too.lock(fcntl.F_WRLCK)
        waiting = Waiting(mount, other.lock, fcntl.F_WRLCK)
        assert error_of(mine_too.lock, fcntl.F_WRLCK, wait=True) == "EDEADLOCK"
        mine.lock(fcntl.F_UNLCK)
        assert waiting.end() == ""


def test_ranges_are_checked(mount: Scripted) -> None:
    with mount.open("a") as file:
        assert error_of(file.lock, fcntl.F_WRLCK) == "EBADF"
        assert error_of(file.lock, fcntl.F_RDLCK, -1) == "EINVAL"
        assert error_of(file.lock, fcntl.F_RDLCK, 5, -6) == "EINVAL"
        assert error_of(file.lock, fcntl.F_RDLCK, 1 << 62, (1 << 63) - 1) == "EOVERFLOW"
        assert error_of(file.lock, 77) == "EINVAL"
        file.lock(fcntl.F_RDLCK, 10, -5)
        with another(mount, 7).open("a", os.O_RDWR) as other:
            found = other.conflicting_lock(fcntl.F_WRLCK)
        assert found is not None
        assert (found.start, found.end) == (5, 9)


def test_old_servers_have_one_flag_for_both() -> None:
    out = fuse_init_out(7, 16, max_write=131072, flags=FLAGS & 0xFFFF | FUSE_POSIX_LOCKS)
    mount = Scripted(init=out.pack()[:24])
    mount.names["a"] = entry(2)
    with mount.open("a") as file:
        assert error_of(file.flock, fcntl.LOCK_EX) == "ENOSYS"
        assert "SETLKW" in mount.sent
    mount.superblock.connection.abort()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(_ALL),
        st.integers(0, 8),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=12,
)


@given(STEPS)
def test_ranges_are_those_of_linux(steps: list[tuple[int, int, int, int, bool]]) -> None:
    mount = with_file()
    files = [mount.open("a", os.O_RDWR) for _ in range(3)]
    with tempfile.NamedTemporaryFile() as real:
        descriptors = [os.open(real.name, os.O_RDWR) for _ in range(3)]
        try:
            for who, kind, start, length, asks in steps:
                if asks and kind != fcntl.F_UNLCK:
                    packed = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
                    answer = fcntl.fcntl(descriptors[who], fcntl.F_OFD_GETLK, packed)
                    there = _FLOCK.unpack(answer)[0] == fcntl.F_UNLCK
                    here = files[who].conflicting_lock(kind, start, length, ofd=True) is None
                    assert here == there
                    continue
                packed = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
                expected = error_of(fcntl.fcntl, descriptors[who], fcntl.F_OFD_SETLK, packed)
                assert error_of(files[who].lock, kind, start, length, ofd=True) == expected
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            for file in files:
                file.close()
    mount.superblock.connection.abort()


def test_locks_of_one_kind_become_one(mount: Scripted) -> None:
    with mount.open("a", os.O_RDWR) as file:
        for start in (0, 20, 10):
            file.lock(fcntl.F_RDLCK, start, 10)
        assert len(locks_of(file)) == 1
        file.lock(fcntl.F_WRLCK, 5, 1)
        assert len(locks_of(file)) == 3


def locks_of(file: TestFile) -> RecordLocks:
    records = file._file.inode.records
    assert records is not None
    return records
