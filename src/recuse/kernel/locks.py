"""Advisory locks of whole files, flock(2): fs/locks.c (Linux 6.1), flock_lock_inode.

A lock belongs to an open file, however many descriptors it has, and counts for all open files of
one device.  It ends with the open file.
"""

from collections.abc import Callable

from recuse.runtime.locks import new_lock

Granted = Callable[[], bool]
"""Told that the lock that was waited for is there; False if nobody wants it any more."""


class FileLocks:
    """The locks of one device, and who waits for them, in order.  Thread-safe; nobody waits here.

    Files are told apart by identity; they may be any objects.
    """

    def __init__(self) -> None:
        self._lock = new_lock("FileLocks")
        self._held: dict[object, bool] = {}
        """By file: whether nobody else may have one."""
        self._waiting: list[tuple[object, bool, Granted]] = []

    def lock(self, file: object, *, exclusive: bool, granted: Granted | None = None) -> bool:
        """Lock a file, or change its lock; return whether that could be done at once.

        If not, the file has no lock any more, whichever it had: changing one is not atomic. Then
        ``granted``, if given, is called once when it has got the one that it wants, by whoever
        makes that possible.
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
        """Let go of a file's lock, if it has one."""
        with self._lock:
            had = self._held.pop(file, None)
        if had is not None:
            self._wake()

    def cancel(self, granted: Granted) -> bool:
        """Wait for a lock no more; False if it was granted meanwhile."""
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
        """Give locks to all that wait and can have one now."""
        while (waiting := self._next()) is not None:
            file, granted = waiting
            if not granted():
                with self._lock:
                    self._held.pop(file, None)

    def _next(self) -> tuple[object, Granted] | None:
        """Lock the first file that waits and can have what it wants."""
        with self._lock:
            for index, (file, exclusive, granted) in enumerate(self._waiting):
                # Another thread that waits with the same file may have got one meanwhile.
                had = self._held.pop(file, None)
                if self._grant(file, exclusive):
                    del self._waiting[index]
                    return file, granted
                if had is not None:
                    self._held[file] = had
        return None
