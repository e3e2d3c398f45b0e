"""Inode locks: who may change a directory or write to a file now (``i_rwsem`` in Linux).

An operation cannot wait in a thread. It yields a `Turn`, as it yields a request, and gets a reply
when it has the lock. `recuse.kernel.fs.superblock.FilesystemConnection` tells turns and requests
apart.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from recuse.kernel.connection.request import Reply, Request
from recuse.runtime.locks import new_lock

GRANTED: Final = Reply(0)


class Lockable(Protocol):
    """What operations take turns with."""

    def take(self, turn: "Turn") -> bool:
        """Take it, or stand in line; return whether the turn has come."""

    def leave(self, turn: "Turn", grant: "Callable[[Turn], None]") -> None:
        """Give up a place in the line, or the lock if it was granted meanwhile."""


class Turn(Request):
    """An operation's place in the queue for a lock. It is not sent to the server."""

    def __init__(self, lock: Lockable, shared: bool) -> None:
        super().__init__(0)
        self.lock = lock
        self.shared = shared
        self.granted = False

    def interrupt(self) -> bool:
        """Stop waiting because of a signal; False if such a wait is not interrupted."""
        return False


class InodeLock:
    """Held by one operation alone, or shared by several; first come, first served."""

    __slots__ = ("_exclusive", "_shared", "_waiting")

    def __init__(self) -> None:
        self._exclusive = False
        self._shared = 0
        self._waiting: deque[Turn] | None = None

    @property
    def held(self) -> bool:
        """Whether an operation has it."""
        return self._exclusive or self._shared > 0

    def take(self, turn: Turn) -> bool:
        """Take the lock, or stand in line; return whether it was free."""
        with _guard:
            if self._waiting or not self._fits(turn):
                if self._waiting is None:
                    self._waiting = deque()
                self._waiting.append(turn)
                return False
            self._add(turn)
            return True

    def take_now(self) -> bool:
        """Take the lock alone if it is free, as it mostly is; return whether it was."""
        with _guard:
            free = not (self._exclusive or self._shared or self._waiting)
            if free:
                self._exclusive = True
            return free

    def give_back(self, shared: bool, grant: Callable[[Turn], None]) -> None:
        """Release the lock; ``grant`` is called for those who have it now."""
        with _guard:
            self._remove(shared)
            if not self._waiting:
                return
            granted = self._next()
        for turn in granted:
            grant(turn)

    def leave(self, turn: Turn, grant: Callable[[Turn], None]) -> None:
        """Give up a place in the line, or the lock if it was granted meanwhile."""
        with _guard:
            if turn.granted:
                self._remove(turn.shared)
            elif self._waiting and turn in self._waiting:
                self._waiting.remove(turn)
            granted = self._next()
        for other in granted:
            grant(other)

    def _next(self) -> list[Turn]:
        """Those who are first in line and can have the lock now."""
        granted = []
        while self._waiting and self._fits(self._waiting[0]):
            turn = self._waiting.popleft()
            self._add(turn)
            granted.append(turn)
        return granted

    def _fits(self, turn: Turn) -> bool:
        return not self._exclusive and (turn.shared or not self._shared)

    def _add(self, turn: Turn) -> None:
        turn.granted = True
        if turn.shared:
            self._shared += 1
        else:
            self._exclusive = True

    def _remove(self, shared: bool) -> None:
        if shared:
            self._shared -= 1
        else:
            self._exclusive = False


_guard = new_lock("InodeLock")
"""Of all inode locks: it is held for a few instructions, and there are very many of them."""
