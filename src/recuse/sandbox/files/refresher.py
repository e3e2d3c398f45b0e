"""Threads that the kernel may have put to sleep until a device is ready, and their waking."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from recuse.runtime.locks import new_lock
from recuse.runtime.records import NamedTuple

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.sandbox.errands import Errands

# fs/eventpoll.c, ep_show_fdinfo.
_TARGET = rb"(?m)^tfd: +(\d+) events: +([0-9a-f]+) .* ino:([0-9a-f]+) "

MANY: Final = 64
"""From this many sleepers on, those that are gone are looked for."""

_TID: Final = 0xFFFFFFFF
"""The part of a sleeper's key that is the thread's ID."""

_LOOKS: Final = 10
_LOOK_S: Final = 0.0001


class Sleeper(NamedTuple):
    """A thread that the kernel may have put to sleep in a call."""

    caller: Caller
    arguments: str
    """The call's first two arguments, as ``/proc/TID/syscall`` shows them."""
    events: int = 0
    """The events that it waits for, if it polls the file itself."""
    epoll: int = -1
    """The descriptor of the epoll that it waits for, in its process ``tgid``."""
    tgid: int = 0
    number: int = -1
    """The descriptor's number by which the file was added to the epoll."""

    def sleeps(self) -> bool:
        """Whether the thread may still be in its call, or about to be."""
        for _ in range(_LOOKS):
            try:
                with open(f"/proc/{self.caller.pid}/syscall", "rb", 0) as file:
                    state = file.read(256).decode()
            except (FileNotFoundError, ProcessLookupError):
                return False
            except OSError:
                return True
            if not state.startswith("running"):
                return self.arguments in state
            # It is on its way into the call or out of it. Soon it is clear which.
            time.sleep(_LOOK_S)
        return True


def forget_gone(sleepers: dict[int, Any], limit: int) -> int:
    """Forget sleepers whose threads have ended, if there are too many; return the new limit.

    Nobody reports their end, and a device may never report a change again.
    """
    if len(sleepers) < limit:
        return limit
    for key in [key for key in sleepers if not os.path.exists(f"/proc/{key & _TID}")]:
        del sleepers[key]
    return max(MANY, 2 * len(sleepers))


class Entry(NamedTuple):
    """A file that an epoll watches."""

    number: int
    """The number of the descriptor by which it was added."""
    events: int
    inode: str

    @property
    def enabled(self) -> bool:
        """Whether it is not a one-shot entry that has been used."""
        return bool(self.events & 0xFFFF)


def watched_by(tid: int, epoll: int) -> list[Entry]:
    """What an epoll of a thread watches; ``epoll`` is its descriptor.

    Raises:
        OSError: if the thread has no such descriptor.
    """
    with open(f"/proc/{tid}/fdinfo/{epoll}", "rb") as file:
        return [
            Entry(int(number), int(events, 16), str(int(inode, 16)))
            for number, events, inode in re.findall(_TARGET, file.read())
        ]


class Refreshed(Protocol):
    """The readiness of a file, as far as it is refreshed."""

    def listed(self) -> bool:
        """Whether a wait for an epoll that watches the file asks the device first."""

    @property
    def hungry(self) -> bool:
        """Whether it has too little left to make an epoll notice something."""

    def refresh(self) -> None:
        """Ask the device again for those that sleep."""


class ReadinessRefresher:
    """Has devices asked again after they have reported a change.

    A device reports a change in the middle of something, perhaps with a lock held that its answer
    needs. So it is not asked there.
    """

    def __init__(self, errands: Errands) -> None:
        self.watched: set[Refreshed] = set()
        """The readiness of the files that epolls watch."""
        self.sleepers: dict[int, Sleeper] = {}
        """The threads that may sleep in a wait for an epoll.

        A thread is added only while no device is on its epoll's ready list. A device is put on that
        list and this table is searched in one step. Both happen under :attr:`lock`, so exactly one
        of the two asks the device.
        """
        self.lock = new_lock("ReadinessRefresher")
        self._too_many = MANY
        self._errands = errands

    @property
    def listed(self) -> bool:
        """Whether any epoll has a device on its ready list, or one that must be fed."""
        return any(one.listed() or one.hungry for one in list(self.watched))

    def asleep(self, who: Sleeper) -> None:
        """Somebody may go to sleep. The lock is held."""
        self._too_many = forget_gone(self.sleepers, self._too_many)
        self.sleepers[who.caller.pid] = who

    def waits(self, watcher: Sleeper, sleepers: dict[int, Sleeper]) -> bool:
        """Whether a watcher that :meth:`of_epolls` found among ``sleepers`` has made no other call.

        The lock is held.
        """
        tid = watcher.caller.pid
        return self.sleepers.get(tid) is sleepers.get(tid)

    def put(self, readiness: Refreshed) -> None:
        """Have it refreshed."""
        self._errands.put(readiness.refresh)

    def of_epolls(self, sleepers: dict[int, Sleeper], inode: str) -> list[Sleeper]:
        """Those that sleep in a wait for an epoll that watches an inode, with its events."""
        found = []
        for tid, who in sleepers.items():
            sleeps = who.sleeps()
            with self.lock:
                if self.sleepers.get(tid) is not who:
                    continue  # it has made another call since, and that call has asked
                if not sleeps:
                    del self.sleepers[tid]
                    continue
            with contextlib.suppress(OSError):
                for entry in watched_by(who.caller.pid, who.epoll):
                    if entry.inode == inode and entry.enabled:
                        found.append(who._replace(events=entry.events, number=entry.number))
        return found
