"""Who sleeps in poll, select or epoll until a device is ready, and how they are woken.

A program's call is trapped and the device asked. If it is not ready, its descriptor is made to look
so (:mod:`recuse.sandbox.native`), and then the kernel runs the call: it sleeps and wakes, with
signals and timeouts, as it always does. When the device says that something has changed, it is
asked again, on behalf of those that sleep, and its descriptor made to look as it says.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from recuse.channel.workers import Workers
from recuse.kernel.files import OpenFile
from recuse.kernel.operation import run
from recuse.sandbox.native import (
    EPOLLET,
    POLLERR,
    POLLPRI,
    READABLE,
    READING,
    WRITABLE,
    WRITING,
    NativeEnd,
)

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller

# fs/eventpoll.c, ep_show_fdinfo.
_TARGET = re.compile(rb"^tfd: +(\d+) events: +([0-9a-f]+) .* ino:([0-9a-f]+) ", re.MULTILINE)


_MANY: Final = 64
"""Sleepers, among whom those are looked for that are gone."""

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


def _forget_gone(sleepers: dict[int, Any], limit: int) -> int:
    """If these are too many, forget whose threads have ended; returns how many are too many then.

    Nobody tells of them: a device may never again say that something has changed.
    """
    if len(sleepers) < limit:
        return limit
    for tid in [tid for tid in sleepers if not os.path.exists(f"/proc/{tid}")]:
        del sleepers[tid]
    return max(_MANY, 2 * len(sleepers))


Key: TypeAlias = tuple[int, int]
"""An epoll: the process and the number by which it was given the file."""


class Watch:
    """An epoll that watches a file."""

    __slots__ = ("events", "listed")

    def __init__(self, events: int) -> None:
        self.events = events
        self.listed = True
        """Whether the file is on the epoll's ready list: then a wait asks the device first."""


class Readiness:
    """The readiness of one open file's descriptor, once programs have asked for it."""

    def __init__(self, file: OpenFile, link: str, end: NativeEnd, waker: Waker) -> None:
        """Take care of the end, whose inode is that of ``link``; it is readable and writable."""
        self.file = file
        self.changes = 0
        """How often the device has said that something changed: remember it before you ask."""
        self._inode = link[len("socket:[") : -1]
        self._end = end
        self._waker = waker
        self._lock = threading.Lock()
        self._sleepers: dict[int, Sleeper] = {}
        self._passed: dict[int, Sleeps] = {}
        """Threads that the kernel is to find something ready for in their calls, which was so when
        the device was asked. Should another thread's call make the end look otherwise before, they
        go to sleep all the same: those are in doubt."""
        self._doubtful: dict[int, Sleeps] = {}
        self._too_many = self._too_many_passed = _MANY
        self._watches: dict[Key, Watch] = {}
        self._woken: dict[int, Sleeper] = {}
        self._queued = False
        file.wake_pollers = self._changed

    @property
    def polled(self) -> bool:
        """Whether somebody waits, so far as is known."""
        return bool(self._sleepers or self._watches)

    def awake(self, tid: int) -> None:
        """A thread makes another call, so it does not sleep in one before."""
        if tid in self._sleepers or tid in self._passed:
            with self._lock:
                self._sleepers.pop(tid, None)
                self._passed.pop(tid, None)

    def listed(self, key: Key | None = None, events: int = 0) -> bool:
        """Whether a wait for an epoll, or for any that watches this file, asks the device first."""
        if key is None:
            return any(
                watch.listed or self._shows(watch.events) for watch in list(self._watches.values())
            )
        watch = self._watches.get(key)
        return watch is None or watch.listed or self._shows(events)

    def _shows(self, events: int) -> bool:
        end = self._end
        return not events & EPOLLET and bool(
            (end.readable and events & READABLE) or (end.writable and events & WRITABLE)
        )

    def watch(self, key: Key, events: int) -> None:
        """An epoll is about to watch it, perhaps with other events than before."""
        with self._lock:
            self._watches[key] = Watch(events)
            self._waker.watched.add(self)

    def unwatch(self, key: Key) -> None:
        """An epoll watches it no more; one that is closed is not told of."""
        with self._lock:
            if self._watches.pop(key, None) is not None and not self._watches:
                self._waker.watched.discard(self)

    @property
    def hungry(self) -> bool:
        """Whether the means are used up to make an edge-triggered epoll notice something."""
        end = self._end
        return (end.full or (end.spares < 2 and end.writable)) and any(
            watch.events & EPOLLET and (end.full or watch.events & WRITABLE)
            for watch in list(self._watches.values())
        )

    def feed(self, fetch: Callable[[], int]) -> None:
        """Get more of them; OSError as ``fetch``, which is that of :meth:`show`."""
        with self._lock:
            full = self._end.full
            self._end.lower(fetch, drain=full, fill=False, spare=True)
            if full:
                self._end.make_readable()

    def unlist(self, key: Key) -> None:
        """Take it off an epoll's ready list."""
        watch = self._watches.get(key)
        if watch is not None:
            watch.listed = False

    def show(self, bits: int, events: int, seen: int, fetch: Callable[[], int]) -> None:
        """Make the end show those of ``events`` that are in ``bits``, and the others not.

        Args:
            bits: the device's answer.
            events: the events that matter.
            seen: :attr:`changes` before the device was asked.
            fetch: returns a copy of the programs' end.

        Raises:
            OSError: as ``fetch`` does.
        """
        with self._lock:
            self._show(bits, events, seen, fetch)

    def sleep(self, bits: int, sleeper: Sleeper, seen: int, fetch: Callable[[], int]) -> None:
        """As :meth:`show`, for a call that will sleep until one of its events comes."""
        with self._lock:
            self._too_many = _forget_gone(self._sleepers, self._too_many)
            self._sleepers[sleeper.caller.pid] = sleeper
            self._show(bits, sleeper.events, seen, fetch)

    def pass_on(
        self, bits: int, sleeps: Sleeps, events: int, seen: int, fetch: Callable[[], int]
    ) -> None:
        """As :meth:`show`, for a call that the kernel will find something ready for.

        ``sleeps`` is what it has to be registered with should it not.
        """
        with self._lock:
            self._pass(sleeps)
            self._show(bits, events, seen, fetch)

    def _pass(self, sleeps: Sleeps) -> None:
        self._too_many_passed = _forget_gone(self._passed, self._too_many_passed)
        self._passed[sleeps[0][1].caller.pid] = sleeps

    def _may_sleep(self, sleeper: Sleeper) -> None:
        """Ask the device on behalf of a thread that may sleep unregistered."""
        with self._lock:
            # If there is another, it is in a later call.
            self._sleepers.setdefault(sleeper.caller.pid, sleeper)
            self._put()

    def _show(self, bits: int, events: int, seen: int, fetch: Callable[[], int]) -> None:
        end = self._end
        self._raise(bits, events)
        drain = bool(events & READABLE and not bits & READING and end.readable)
        calm = bool(events & POLLPRI and not bits & POLLPRI and end.urgent)
        fill = bool(events & WRITABLE and not bits & WRITING and end.writable)
        spare = bool(events & EPOLLET and events & WRITABLE and end.spares < 2)
        if drain or calm or fill or spare:
            if self._passed and (drain or calm or fill):
                self._doubtful.update(self._passed)
                self._passed.clear()
                self._put()
            end.lower(fetch, drain=drain or calm, fill=fill, spare=spare)
            if calm and not drain:
                # What is urgent goes only with the rest; and what else there is was not asked.
                end.make_readable()
        if events & EPOLLET:
            self._touch(bits & events)
        if self.changes != seen:
            # Something has changed since the device was asked: who sleeps must not miss it.
            self._wake()

    def _raise(self, bits: int, events: int) -> None:
        end = self._end
        if bits & POLLPRI and events & POLLPRI:
            end.make_urgent()
        if bits & READING and not end.readable:
            end.make_readable()
        if bits & WRITING and not end.writable:
            end.make_writable()

    def _changed(self) -> None:
        """The device has something new; called in the middle of whatever it does."""
        with self._waker.lock, self._lock:
            self.changes += 1
            self._wake()

    def _wake(self) -> None:
        for watch in self._watches.values():
            watch.listed = True
        if self._watches:
            self._woken.update(self._waker.sleepers)
        if self.polled:
            self._put()

    def _put(self) -> None:
        if not self._queued:
            self._queued = True
            self._waker.put(self)

    def refresh(self) -> None:
        """Ask the device again for those that sleep, and wake whom its answer concerns.

        Nobody asks for epolls that nobody waits for: they are told that there may be something.
        """
        with self._lock:
            self._queued = False
            woken, self._woken = self._woken, {}
            doubtful, self._doubtful = self._doubtful, {}
        for sleeps in doubtful.values():
            for readiness, sleeper in sleeps:
                readiness._may_sleep(sleeper)
        watchers = self._waker.of_epolls(woken, self._inode)
        with self._lock:
            for tid in [tid for tid, who in self._sleepers.items() if not who.sleeps()]:
                del self._sleepers[tid]
            sleepers = [*watchers, *self._sleepers.values()]
            if not sleepers:
                self._hint()
        if sleepers:
            self._ask(sleepers, watchers)
        elif self.file.device.connection.ended:
            self._told(POLLERR, [])

    def _hint(self) -> None:
        """Make the epolls take the file into their ready lists, where it is looked at later."""
        listed = [watch for watch in self._watches.values() if watch.listed]
        for watch in listed:
            if watch.events & EPOLLET:
                self._end.make_readable()
                self._end.touch_writable()
        if listed:
            self._raise(READING | WRITING, 0)

    def _touch(self, bits: int) -> None:
        """Make edge-triggered epolls notice what the end shows already."""
        if bits & READING:
            self._end.make_readable()
        elif bits & WRITING:
            self._end.touch_writable()

    def _ask(self, sleepers: list[Sleeper], watchers: list[Sleeper]) -> None:
        events = functools.reduce(operator.or_, (who.events for who in sleepers))

        def done(bits: int | None, error: OSError | None) -> None:
            self._told(POLLERR if bits is None or error is not None else bits, watchers)

        operation = self.file.poll(sleepers[-1].caller, events, True)
        run(self.file.device.connection, operation, done)

    def _told(self, bits: int, watchers: list[Sleeper]) -> None:
        """Wake those that wait for what the device has answered."""
        with self._lock:
            if self.file.device.connection.ended and not self.file.device.no_poll:
                self._end.sever()
                return
            shown = (READING if self._end.readable else 0) | (WRITING if self._end.writable else 0)
            events = functools.reduce(
                operator.or_, (who.events for who in (*watchers, *self._sleepers.values())), 0
            )
            for who in watchers:
                if who.events & EPOLLET or not bits & who.events:
                    self.unlist((who.tgid, who.epoll))
            self._raise(bits, events)
            for who in watchers:
                if who.events & EPOLLET:
                    self._touch(bits & who.events & shown)
            for tid in [tid for tid, who in self._sleepers.items() if who.events & bits]:
                self._pass(((self, self._sleepers.pop(tid)),))


Sleeps: TypeAlias = tuple[tuple[Readiness, Sleeper], ...]
"""One thread, and all that its call waits for."""


class Waker:
    """The threads that ask devices again which have said that something changed.

    They do so when they are in the middle of something, perhaps with a lock held that their answer
    needs: so not there.
    """

    def __init__(self) -> None:
        self.watched: set[Readiness] = set()
        """What epolls watch."""
        self.sleepers: dict[int, Sleeper] = {}
        """The threads that may sleep in a wait for an epoll.

        A thread gets in here only while no device is on its epoll's ready list, and a device gets
        onto that list together with a look in here, both under :attr:`lock`: so either of the two
        asks the device, and not both.
        """
        self.lock = threading.Lock()
        self._too_many = _MANY
        self._queue: queue.SimpleQueue[Readiness | None] = queue.SimpleQueue()
        self._workers: Workers[Readiness] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start working, if that has not been done."""
        with self._lock:
            if self._workers is None:
                self._workers = Workers(self._queue.get, Readiness.refresh, name="recuse-poll")
                self._workers.start()

    @property
    def listed(self) -> bool:
        """Whether there is an epoll that has a device on its ready list, or one to be fed."""
        return any(one.listed() or one.hungry for one in list(self.watched))

    def asleep(self, who: Sleeper) -> None:
        """Somebody may go to sleep; with the lock held."""
        self._too_many = _forget_gone(self.sleepers, self._too_many)
        self.sleepers[who.caller.pid] = who

    def put(self, readiness: Readiness) -> None:
        """Have it refreshed."""
        self._queue.put(readiness)

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
                        found.append(who._replace(events=entry.events))
        return found

    def close(self) -> None:
        """Stop."""
        with self._lock:
            if self._workers is not None:
                self._queue.put(None)
                self._workers.join()


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
