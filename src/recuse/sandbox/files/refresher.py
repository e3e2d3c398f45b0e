"""Threads that the kernel may have put to sleep until a device is ready, and who wakes them."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from recuse.runtime.locks import new_lock

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.sandbox.errands import Errands

# fs/eventpoll.c, ep_show_fdinfo.
_TARGET = re.compile(rb"^tfd: +(\d+) events: +([0-9a-f]+) .* ino:([0-9a-f]+) ", re.MULTILINE)

MANY: Final = 64
"""Sleepers, among whom those are looked for that are gone."""

_TID: Final = 0xFFFFFFFF
"""What of a sleeper's key is the thread's id."""

_LOOKS: Final = 10
_LOOK_S: Final = 0.0001


class Sleeper(NamedTuple):
    """A thread that the kernel may have put to sleep in a call."""

    caller: Caller
    arguments: str
    """The call's first two, as ``/proc/TID/syscall`` shows them."""
    events: int = 0
    """That it waits for, of the file that it polls."""
    epoll: int = -1
    """The descriptor of the epoll that it waits for, and its process."""
    tgid: int = 0
    number: int = -1
    """Of the epoll's entry, by which the file was added."""

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
            # On its way into the call or out of it: soon it is clear which of them.
            time.sleep(_LOOK_S)
        return True


def forget_gone(sleepers: dict[int, Any], limit: int) -> int:
    """If these are too many, forget whose threads have ended; returns how many are too many then.

    Nobody tells of them: a device may never again say that something has changed.
    """
    if len(sleepers) < limit:
        return limit
    for key in [key for key in sleepers if not os.path.exists(f"/proc/{key & _TID}")]:
        del sleepers[key]
    return max(MANY, 2 * len(sleepers))


class Entry(NamedTuple):
    """A file that an epoll watches."""

    number: int
    """Of the descriptor by which it was added."""
    events: int
    inode: str

    @property
    def enabled(self) -> bool:
        """Whether it is not a one-shot that has been shot."""
        return bool(self.events & 0xFFFF)


def watched_by(tid: int, epoll: int) -> list[Entry]:
    """What an epoll of a thread's watches, ``epoll`` being its descriptor.

    Raises:
        OSError: if it has no such descriptor.
    """
    with open(f"/proc/{tid}/fdinfo/{epoll}", "rb") as file:
        return [
            Entry(int(number), int(events, 16), str(int(inode, 16)))
            for number, events, inode in _TARGET.findall(file.read())
        ]


class Refreshed(Protocol):
    """What is refreshed: the readiness of a file."""

    def listed(self) -> bool:
        """Whether a wait for an epoll that watches the file asks the device first."""

    @property
    def hungry(self) -> bool:
        """Whether the means are used up to make an epoll notice something."""

    def refresh(self) -> None:
        """Ask the device again for those that sleep."""


class ReadinessRefresher:
    """Has devices asked again which have said that something changed.

    They do so when they are in the middle of something, perhaps with a lock held that their answer
    needs: so not there.
    """

    def __init__(self, errands: Errands) -> None:
        self.watched: set[Refreshed] = set()
        """What epolls watch."""
        self.sleepers: dict[int, Sleeper] = {}
        """The threads that may sleep in a wait for an epoll.

        A thread gets in here only while no device is on its epoll's ready list, and a device gets
        onto that list together with a look in here, both under :attr:`lock`: so either of the two
        asks the device, and not both.
        """
        self.lock = new_lock("ReadinessRefresher")
        self._too_many = MANY
        self._errands = errands

    @property
    def listed(self) -> bool:
        """Whether there is an epoll that has a device on its ready list, or one to be fed."""
        return any(one.listed() or one.hungry for one in list(self.watched))

    def asleep(self, who: Sleeper) -> None:
        """Somebody may go to sleep; with the lock held."""
        self._too_many = forget_gone(self.sleepers, self._too_many)
        self.sleepers[who.caller.pid] = who

    def waits(self, watcher: Sleeper, sleepers: dict[int, Sleeper]) -> bool:
        """Whether one of those that :meth:`of_epolls` has found, of these, has made no other call.

        With the lock held.
        """
        tid = watcher.caller.pid
        return self.sleepers.get(tid) is sleepers.get(tid)

    def put(self, readiness: Refreshed) -> None:
        """Have it refreshed."""
        self._errands.put(readiness.refresh)

    def of_epolls(self, sleepers: dict[int, Sleeper], inode: str) -> list[Sleeper]:
        """Those that sleep in a wait for an epoll that watches an inode, with the events."""
        found = []
        for tid, who in sleepers.items():
            sleeps = who.sleeps()
            with self.lock:
                if self.sleepers.get(tid) is not who:
                    continue  # it has made another call since, which has asked
                if not sleeps:
                    del self.sleepers[tid]
                    continue
            with contextlib.suppress(OSError):
                for entry in watched_by(who.caller.pid, who.epoll):
                    if entry.inode == inode and entry.enabled:
                        found.append(who._replace(events=entry.events, number=entry.number))
        return found
