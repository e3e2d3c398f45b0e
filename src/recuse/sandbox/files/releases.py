"""Releases of files that have started, and what waits for them.

A program's close returns before the supervisor notices it. But whoever opens the same device next
must find the file released, as after a close that waits for RELEASE.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from recuse.sandbox.errands import Errands


class PendingReleases:
    """By group (a device's node, ...), how many files and mappings are being released."""

    def __init__(self, lock: threading.Lock, errands: Errands) -> None:
        """Start with none.

        Args:
            lock: the file table's: a file moves from there to here in one step.
            errands: continue what has waited.
        """
        self._lock = lock
        self._errands = errands
        self._counts: dict[Hashable, int] = {}
        self._settled = threading.Condition(lock)
        self._waiting: list[tuple[Hashable, Callable[[], None]]] = []

    def begin(self, group: Hashable) -> None:
        """Do :meth:`releasing` with the lock held."""
        self._counts[group] = self._counts.get(group, 0) + 1

    def releasing(self, group: Hashable) -> None:
        """A file of the group, or a mapping of one, is being released until :meth:`released`."""
        with self._lock:
            self.begin(group)

    def released(self, group: Hashable) -> None:
        """One of these releases has ended."""
        with self._lock:
            left = self._counts[group] - 1
            if left:
                self._counts[group] = left
                return
            del self._counts[group]
            self._settled.notify_all()
            if not self._waiting:
                return
            ready = [go_on for waited_for, go_on in self._waiting if waited_for is group]
            self._waiting = [waiting for waiting in self._waiting if waiting[0] is not group]
        for go_on in ready:
            # This may be an event loop's thread. What waits may run the device's method, which may
            # block. So it does not run here.
            self._errands.put(go_on)

    def call_after(self, group: Hashable, go_on: Callable[[], None]) -> bool:
        """Call ``go_on`` when everything of the group that was closed is released.

        Return False if it is already; ``go_on`` is not called then.
        """
        with self._lock:
            if group not in self._counts:
                return False
            self._waiting.append((group, go_on))
            return True

    def __contains__(self, group: object) -> bool:
        return group in self._counts

    def is_awaited(self, group: Hashable) -> bool:
        """Whether somebody waits until everything of the group that was closed is released."""
        with self._lock:
            return any(waited_for is group for waited_for, _ in self._waiting)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def wait(self, others: Callable[[], bool], timeout_s: float) -> None:
        """Wait up to ``timeout_s`` until no release is left and ``others`` returns False."""
        with self._settled:
            self._settled.wait_for(lambda: not self._counts and not others(), timeout_s)
