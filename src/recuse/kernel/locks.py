"""Advisory locks of whole files, flock(2): fs/locks.c (Linux 6.1), flock_lock_inode.

A lock belongs to an open file, however many descriptors it has. It applies to all open files of
one device, and ends with the open file.
"""

from __future__ import annotations

from collections.abc import Callable

from recuse.runtime.locks import new_lock

Granted = Callable[[], bool]
"""Called when the lock that was waited for is there; returns False if it is no longer wanted."""


class FileLocks:
    """The locks of one device, and the queue for them. Thread-safe; no method waits.

    Files are compared by identity; they may be any objects.
    """

    def __init__(self) -> None:
        self._lock = new_lock("FileLocks")
        self._held: dict[object, bool] = {}
        """By file: whether its lock is exclusive."""
        self._waiting: list[tuple[object, bool, Granted]] = []

    def lock(self, file: object, *, exclusive: bool, granted: Granted | None = None) -> bool:
        """Lock a file, or change its lock; return whether that was possible at once.

        If not, the file no longer has any lock, even if it had one before: changing one is not
        atomic. Then ``granted``, if given, is called once when the file has the lock that it wants,
        by the code that makes that possible.
        """
        with self._lock:
            had = self._held.get(file)
            if had is exclusive:
                return True
            self._held.pop(file, None)
            done = self._grant(file, exclusive)
            if not done and granted is not None:
                self._waiting.append((file, exclusive, granted))
        if had is not None:
            self._wake()
        return done

    def unlock(self, file: object) -> None:
        """Release a file's lock, if it has one."""
        with self._lock:
            had = self._held.pop(file, None)
        if had is not None:
            self._wake()

    def cancel(self, granted: Granted) -> bool:
        """Stop waiting for a lock; return False if it was granted meanwhile."""
        with self._lock:
            for index, (_, _, waiting) in enumerate(self._waiting):
                if waiting == granted:
                    del self._waiting[index]
                    return True
        return False

    def _grant(self, file: object, exclusive: bool) -> bool:
        if self._held and (exclusive or True in self._held.values()):
            return False
        self._held[file] = exclusive
        return True

    def _wake(self) -> None:
        """Give locks to all files that wait and can have one now."""
        while (waiting := self._next()) is not None:
            file, granted = waiting
            if not granted():
                with self._lock:
                    self._held.pop(file, None)

    def _next(self) -> tuple[object, Granted] | None:
        """Lock the first waiting file that can have the lock it wants."""
        with self._lock:
            for index, (file, exclusive, granted) in enumerate(self._waiting):
                # Another thread that waits for a lock on the same file may have one by now.
                had = self._held.pop(file, None)
                if self._grant(file, exclusive):
                    del self._waiting[index]
                    return file, granted
                if had is not None:
                    self._held[file] = had
        return None
