"""Locks that the server leaves to this half: records (POSIX and OFD) and flock(2) (fs/locks.c).

A record lock belongs to a process (its descriptor table) or, as an OFD lock, to an open file; one
of flock(2) always belongs to an open file.
"""

import errno
import fcntl
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.turns import Turn
from recuse.kernel.locks import FileLocks
from recuse.runtime.locks import new_lock

_MOST_STEPS: Final = 10
"""MAX_DEADLK_ITERATIONS: a longer circle is not found."""

Grant = Callable[[Turn], None]


class Record(NamedTuple):
    """A lock of bytes, or what is wanted instead of one."""

    kind: int
    """F_RDLCK, F_WRLCK, F_UNLCK."""
    start: int
    end: int
    """The last byte."""
    owner: object
    pid: int
    """For F_GETLK: the process; -1 for an OFD lock."""

    @property
    def of_process(self) -> bool:
        """Whether a process owns it, and not an open file (OFD)."""
        return self.pid >= 0

    def conflicts(self, other: "Record") -> bool:
        """Whether only one of the two can be held (posix_locks_conflict)."""
        if self.owner == other.owner or self.start > other.end or other.start > self.end:
            return False
        return fcntl.F_WRLCK in (self.kind, other.kind)


class RecordTurn(Turn):
    """An operation that waits for a record lock."""

    def __init__(self, locks: "RecordLocks", wanted: Record) -> None:
        super().__init__(locks, shared=False)
        self.locks = locks
        self.wanted = wanted
        self.error = 0
        """Why it has ended without the lock."""

    def interrupt(self) -> bool:
        """Stop waiting; False if it has ended already."""
        return self.locks.cancel(self)


class RecordLocks:
    """The record locks of one file. Thread-safe; no method waits."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held: list[Record] = []
        self._waiting: list[RecordTurn] = []

    def __len__(self) -> int:
        return len(self._held)

    def conflicting(self, wanted: Record) -> Record | None:
        """Return a lock that is in the way, None if none is (posix_test_lock)."""
        with _guard:
            return self._conflicting(wanted)

    def set(self, wanted: Record, grant: Grant) -> bool:
        """Lock or unlock at once; False if another lock is in the way.

        ``grant`` is called for those who have their lock because of that.
        """
        with _guard:
            if wanted.kind != fcntl.F_UNLCK and self._conflicting(wanted) is not None:
                return False
            self._apply(wanted)
            granted = self._wake()
        for turn in granted:
            grant(turn)
        return True

    def take(self, turn: Turn) -> bool:
        """Have a `RecordTurn` take its lock, or wait for it; return whether it has ended."""
        assert isinstance(turn, RecordTurn)
        with _guard:
            blocker = self._conflicting(turn.wanted)
            if blocker is None:
                self._apply(turn.wanted)
                return True
            if _would_deadlock(turn.wanted, blocker):
                turn.error = errno.EDEADLK
                return True
            self._waiting.append(turn)
            if turn.wanted.of_process:
                _blocked[turn.wanted.owner] = turn
            return False

    def leave(self, turn: Turn, grant: Grant) -> None:
        """Give up waiting, or the lock if it was granted meanwhile."""
        assert isinstance(turn, RecordTurn)
        if not self.cancel(turn) and not turn.error:
            self.set(turn.wanted._replace(kind=fcntl.F_UNLCK), grant)

    def cancel(self, turn: RecordTurn) -> bool:
        """Stop waiting, with EINTR; False if that has ended already."""
        with _guard:
            if turn not in self._waiting:
                return False
            turn.error = errno.EINTR
            self._stop_waiting(turn)
            return True

    def remove(self, owner: object, grant: Grant) -> None:
        """Give up all locks of an owner (locks_remove_posix)."""
        if any(lock.owner == owner for lock in self._held):
            self.set(Record(fcntl.F_UNLCK, 0, (1 << 63) - 1, owner, 0), grant)

    def blocker_of(self, turn: RecordTurn) -> Record | None:
        """The lock that somebody waits for; only with the guard held."""
        return self._conflicting(turn.wanted)

    def _conflicting(self, wanted: Record) -> Record | None:
        return next((lock for lock in self._held if lock.conflicts(wanted)), None)

    def _apply(self, new: Record) -> None:
        """Have an owner hold this, and nothing else, in a range (posix_lock_inode)."""
        held = []
        start, end = new.start, new.end
        for lock in self._held:
            if lock.owner != new.owner:
                held.append(lock)
            elif lock.kind == new.kind and lock.start <= end + 1 and start <= lock.end + 1:
                # They become one.
                start, end = min(start, lock.start), max(end, lock.end)
            else:
                held += _without(lock, new)
        if new.kind != fcntl.F_UNLCK:
            held.append(new._replace(start=start, end=end))
        self._held = held

    def _wake(self) -> list[RecordTurn]:
        """Give locks to all who wait and can have theirs now."""
        granted: list[RecordTurn] = []
        again = True
        while again:
            again = False
            for turn in list(self._waiting):
                blocker = self._conflicting(turn.wanted)
                if blocker is None:
                    self._apply(turn.wanted)
                elif _would_deadlock(turn.wanted, blocker):
                    turn.error = errno.EDEADLK
                else:
                    continue
                again = True
                self._stop_waiting(turn)
                granted.append(turn)
        return granted

    def _stop_waiting(self, turn: RecordTurn) -> None:
        self._waiting.remove(turn)
        if _blocked.get(turn.wanted.owner) is turn:
            del _blocked[turn.wanted.owner]


def _without(lock: Record, removed: Record) -> Iterator[Record]:
    """What is left of a lock without the bytes of another."""
    if removed.start > lock.end or removed.end < lock.start:
        yield lock
        return
    if lock.start < removed.start:
        yield lock._replace(end=removed.start - 1)
    if lock.end > removed.end:
        yield lock._replace(start=removed.end + 1)


def _would_deadlock(wanted: Record, blocker: Record) -> bool:
    """Whether the blocker waits, maybe by others, for the one who wants (posix_locks_deadlock)."""
    if not wanted.of_process:
        return False
    for _ in range(_MOST_STEPS):
        turn = _blocked.get(blocker.owner)
        if turn is None:
            return False
        following = turn.locks.blocker_of(turn)
        if following is None:
            return False
        if following.owner == wanted.owner:
            return True
        blocker = following
    return False


class FlockTurn(Turn):
    """An operation that waits for a lock of flock(2)."""

    def __init__(self, locks: FileLocks, file: object, kind: int, grant: Grant) -> None:
        super().__init__(self, shared=False)
        self._grant = grant
        self._locks = locks
        self._file = file
        self._exclusive = kind == fcntl.F_WRLCK
        self.error = 0

    def take(self, turn: Turn) -> bool:
        """Take the lock, or wait for it."""
        assert turn is self
        return self._locks.lock(self._file, exclusive=self._exclusive, granted=self._granted)

    def leave(self, turn: Turn, grant: Grant) -> None:
        """Give up waiting, or the lock if it was granted meanwhile."""
        del turn, grant
        if not self._locks.cancel(self._granted) and not self.error:
            self._locks.unlock(self._file)

    def interrupt(self) -> bool:
        """Stop waiting; False if it has ended already."""
        if not self._locks.cancel(self._granted):
            return False
        self.error = errno.EINTR
        return True

    def _granted(self) -> bool:
        self._grant(self)
        return True


def wait_for(turn: RecordTurn | FlockTurn, grant: Grant) -> Operation[None]:
    """Wait for a lock. Raises OSError: EINTR, EDEADLK."""
    try:
        yield turn
    except GeneratorExit:
        turn.lock.leave(turn, grant)
        raise
    if turn.error:
        raise os_error(turn.error)


_guard = new_lock("RecordLocks")
_blocked: dict[object, RecordTurn] = {}
"""By owner: what it waits for. Of all filesystems, as a circle may go through several."""
