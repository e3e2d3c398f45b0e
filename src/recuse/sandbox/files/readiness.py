"""Threads that sleep in poll, select or epoll until a device is ready, and how they are woken.

A program's call is trapped, and the device is asked. If it is not ready, its descriptor is made to
show that (:mod:`recuse.sandbox.files.native_end`), and the kernel runs the call: it sleeps and
wakes, with signals and timeouts, as it always does. When the device says that something has
changed, it is asked again for those that sleep, and its descriptor is made to show the answer.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from recuse.kernel.caller import Caller
from recuse.kernel.connection.operation import run
from recuse.runtime.locks import new_lock
from recuse.runtime.records import NamedTuple
from recuse.sandbox.files.native_end import (
    EPOLLET,
    POLLERR,
    POLLPRI,
    READABLE,
    READING,
    WRITABLE,
    WRITING,
    NativeEnd,
)
from recuse.sandbox.files.refresher import (
    MANY,
    ReadinessRefresher,
    Sleeper,
    forget_gone,
    watched_by,
)
from recuse.sandbox.trap.call import OnDevice

Key: TypeAlias = tuple[int, int, int]
"""An entry of an epoll: the process and the number by which it was given the file, and the number
of the file's descriptor. A process may have several of either."""

_LOST: Final[Key] = (0, -1, -1)
"""Stands for all epolls that can no longer be found by their numbers. They may be closed, or be
somewhere else: in a child process, or under another number."""


class Watch:
    """An epoll that watches a file."""

    __slots__ = ("due", "events", "listed")

    def __init__(self, events: int) -> None:
        self.events = events
        self.listed = True
        """Whether the file is on the epoll's ready list. A wait then asks the device first."""
        self.due = False
        """Whether the device has reported a change that the epoll does not know of yet."""


Sleeps: TypeAlias = "tuple[tuple[Readiness, Sleeper], ...]"
"""One thread, with everything that its call waits for."""


class Moment(NamedTuple):
    """The moment before a device is asked."""

    number: int
    """A later one has a greater number."""
    changes: int
    """How many changes the device had reported by then."""


class Polled(Protocol):
    """An open file that must be asked for its readiness."""

    end: NativeEnd

    def poll(self, caller: Caller, events: int, waiting: bool) -> int | OnDevice[int]:
        """What the file is ready for; see `FileDescription.poll`."""

    def wake_by(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called when that changes; see `FileDescription.wake_by`."""

    @property
    def is_asked(self) -> bool:
        """Whether it still must be asked."""

    @property
    def ended(self) -> bool:
        """Whether nobody answers any more: it is ready for ever, with an error."""


class Readiness:
    """The readiness of one open file's descriptor, from the first time that a program asks."""

    def __init__(
        self, file: Polled, refresher: ReadinessRefresher, close_end: Callable[[], None]
    ) -> None:
        """Manage the file's end; ``close_end`` closes the supervisor's."""
        self._file = file
        self._close_end = close_end
        self._changes = 0
        """How many changes the device has reported."""
        self._asks = itertools.count(1)
        self._shown = 0
        """The number of the latest question whose answer was shown."""
        self._inode = file.end.link.partition("[")[2][:-1]
        self._end = file.end
        self._refresher = refresher
        self._lock = new_lock("Readiness")
        self._sleepers: dict[int, Sleeper] = {}
        self._passed: dict[int, Sleeps] = {}
        """Threads whose calls the kernel should answer at once, because the device was ready when
        it was asked. If another thread's call makes the end look different before that, they sleep
        after all. They are then in doubt."""
        self._doubtful: dict[int, Sleeps] = {}
        self._too_many = self._too_many_passed = MANY
        self._watches: dict[Key, Watch] = {}
        self._too_many_watches = MANY
        self._woken: dict[int, Sleeper] = {}
        self._wakes = 0
        """How often sleepers had to be woken."""
        self._moves = 0
        """How often an answer was shown, or a thread was found that may sleep."""
        self._queued = False
        file.wake_by(self._changed)

    @property
    def polled(self) -> bool:
        """Whether anybody waits, as far as is known."""
        return bool(self._sleepers or self._watches)

    def asking(self) -> Moment:
        """Note that the device is about to be asked; the result is for :meth:`show` and others."""
        return Moment(next(self._asks), self._changes)

    def awake(self, tid: int) -> None:
        """A thread makes another call, so it no longer sleeps in an earlier one."""
        if tid in self._sleepers or tid in self._passed:
            with self._lock:
                self._sleepers.pop(tid, None)
                self._passed.pop(tid, None)

    def listed(self, key: Key | None = None, events: int = 0) -> bool:
        """Whether a wait asks the device first: for one epoll, or any that watches this file."""
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
        """An epoll is about to watch the file, perhaps for other events than before.

        Raises:
            OSError: EOPNOTSUPP if these cannot be shown here
            (:mod:`recuse.sandbox.files.pipe_end`).
        """
        self._end.check(events)
        with self._lock:
            self._watches[key] = Watch(events)
            self._refresher.watched.add(self)
            too_many = len(self._watches) >= self._too_many_watches
        if too_many:
            self._lose_closed({key, _LOST})

    def _lose_closed(self, kept: set[Key]) -> None:
        """Replace epolls that cannot be found by one: nobody reports that an epoll is closed."""
        others = [(key, watch) for key, watch in list(self._watches.items()) if key not in kept]
        closed = [(key, watch) for key, watch in others if not self._is_watched_by(key)]
        with self._lock:
            for key, watch in closed:
                if self._watches.get(key) is watch:
                    self._watches.setdefault(_LOST, Watch(0)).events |= watch.events
                    del self._watches[key]
            self._too_many_watches = max(MANY, 2 * len(self._watches))

    def _is_watched_by(self, key: Key) -> bool:
        try:
            tgid, epoll, number = key
            return any(
                entry.inode == self._inode and entry.number == number
                for entry in watched_by(tgid, epoll)
            )
        except OSError:
            return False

    def unwatch(self, key: Key) -> None:
        """An epoll no longer watches the file. This is not called when an epoll is closed."""
        with self._lock:
            if self._watches.pop(key, None) is not None and not self._watches:
                self._refresher.watched.discard(self)

    @property
    def hungry(self) -> bool:
        """Whether it has too little left to make an edge-triggered epoll notice something."""
        end = self._end
        return (end.full or (end.spares < 2 and end.writable)) and any(
            watch.events & EPOLLET and (end.full or watch.events & WRITABLE)
            for watch in list(self._watches.values())
        )

    def feed(self, fetch: Callable[[], int]) -> None:
        """Get more of what :attr:`hungry` says is running out. OSError as for :meth:`show`."""
        with self._lock:
            full = self._end.full
            self._end.lower(fetch, drain=full, fill=False, spare=True)
            if full:
                self._end.make_readable()

    def told(self, key: Key, *, listed: bool) -> None:
        """An epoll has the answer now; ``listed`` is whether it stays on its ready list."""
        watch = self._watches.get(key)
        if watch is not None:
            watch.due = False
            watch.listed = watch.listed and listed

    def show(self, bits: int, events: int, asked: Moment, fetch: Callable[[], int]) -> None:
        """Make the end show those of ``events`` that are in ``bits``, and not the others.

        Args:
            bits: the device's answer.
            events: the events that matter.
            asked: from :meth:`asking`, before the device was asked.
            fetch: returns a copy of the programs' end.

        Raises:
            OSError: as ``fetch`` does.
        """
        with self._lock:
            self._show(bits, events, asked, fetch)

    def sleep(self, bits: int, sleeper: Sleeper, asked: Moment, fetch: Callable[[], int]) -> None:
        """Do :meth:`show` for a call that will sleep until one of its events comes."""
        self._end.check(sleeper.events)
        with self._lock:
            self._too_many = forget_gone(self._sleepers, self._too_many)
            self._sleepers[sleeper.caller.pid] = sleeper
            self._show(bits, sleeper.events, asked, fetch)

    def wait(
        self, bits: int, caller: Caller, events: int, asked: Moment, fetch: Callable[[], int]
    ) -> None:
        """Do :meth:`show` for something that waits once, until one of its events comes.

        It waits in the kernel and not in a call, so nothing says whether it still waits.
        """
        if not bits & events:
            with self._lock:
                self._too_many = forget_gone(self._sleepers, self._too_many)
                # No thread has such a number, so no other call takes it out again.
                key = next(self._asks) << 32 | caller.pid
                self._sleepers[key] = Sleeper(caller, "", events)
        self.show(bits, events, asked, fetch)

    def pass_on(
        self, bits: int, sleeps: Sleeps, events: int, asked: Moment, fetch: Callable[[], int]
    ) -> None:
        """Do :meth:`show` for a call that the kernel should answer because something is ready.

        ``sleeps`` is what to register it with if it sleeps after all.
        """
        with self._lock:
            self._pass(sleeps)
            self._show(bits, events, asked, fetch)

    def _pass(self, sleeps: Sleeps) -> None:
        self._too_many_passed = forget_gone(self._passed, self._too_many_passed)
        self._passed[sleeps[0][1].caller.pid] = sleeps

    def _may_sleep(self, sleeper: Sleeper) -> None:
        """Ask the device for a thread that may sleep without being registered."""
        with self._lock:
            self._moves += 1
            # If the thread is registered already, that is for a later call.
            self._sleepers.setdefault(sleeper.caller.pid, sleeper)
            self._put()

    def _show(self, bits: int, events: int, asked: Moment, fetch: Callable[[], int]) -> None:
        end = self._end
        self._shown = max(self._shown, asked.number)
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
                # Urgent data can only be taken out with the rest. The rest was not asked for.
                end.make_readable()
        if events & EPOLLET:
            self._touch(bits & events)
        if self._changes != asked.changes:
            # Something has changed since the device was asked, and sleepers must not miss it.
            self._wake()

    def _raise(self, bits: int, events: int) -> None:
        self._moves += 1
        end = self._end
        if bits & POLLPRI and events & POLLPRI:
            end.make_urgent()
        if bits & READING and not end.readable:
            end.make_readable()
        if bits & WRITING and not end.writable:
            end.make_writable()

    def _changed(self) -> None:
        """The device has reported a change. It may be in the middle of anything."""
        with self._refresher.lock, self._lock:
            self._changes += 1
            self._wake()

    def _wake(self) -> None:
        self._wakes += 1
        for watch in self._watches.values():
            watch.listed = watch.due = True
        if self._watches:
            self._woken.update(self._refresher.sleepers)
        if self.polled:
            self._put()

    def _put(self) -> None:
        if not self._queued:
            self._queued = True
            self._refresher.put(self)

    def refresh(self) -> None:
        """Ask the device again for those that sleep, and wake those that its answer concerns.

        It is not asked for epolls that nobody waits for: they are told that there may be something.
        """
        with self._lock:
            self._queued = False
            woken, self._woken = self._woken, {}
            doubtful, self._doubtful = self._doubtful, {}
            wakes, moves = self._wakes, self._moves
        for sleeps in doubtful.values():
            for readiness, sleeper in sleeps:
                readiness._may_sleep(sleeper)
        watchers = self._refresher.of_epolls(woken, self._inode)
        with self._lock:
            for tid in [tid for tid, who in self._sleepers.items() if not who.sleeps()]:
                del self._sleepers[tid]
            sleepers = [*watchers, *self._sleepers.values()]
        if sleepers:
            self._ask(sleepers, watchers, woken)
            return
        self._tell_nobody(wakes, moves)
        if self._file.ended:
            with self._lock:
                self._told(POLLERR, [])

    def _tell_nobody(self, wakes: int, moves: int) -> None:
        """Hint to the epolls. Ask instead if somebody sleeps who has seen the latest answer.

        A hint would wake that sleeper for nothing. The two numbers are from the moment before it
        was found that nobody slept.
        """
        while True:
            with self._refresher.lock, self._lock:
                if wakes != self._wakes:
                    return  # those that sleep now get a turn of their own, and must not get two
                due = [watch for watch in self._watches.values() if watch.due]
                if not due or moves == self._moves:
                    self._hint(due)
                    return
                moves = self._moves
                polls, waits = list(self._sleepers.values()), self._refresher.sleepers.copy()
            sleepers = self._refresher.of_epolls(waits, self._inode)
            # Whoever has asked since then has seen the change, and must not be told twice.
            watchers = [who for who in sleepers if self._is_due(who)]
            sleepers += [who for who in polls if who.sleeps()]
            if sleepers:
                tids = {who.caller.pid for who in watchers}
                self._ask(sleepers, watchers, {tid: waits[tid] for tid in tids})
                return

    def _is_due(self, who: Sleeper) -> bool:
        watch = self._watches.get((who.tgid, who.epoll, who.number))
        return watch is None or watch.due

    def _hint(self, due: list[Watch]) -> None:
        """Make epolls put the file on their ready lists, where it is looked at later."""
        for watch in due:
            watch.due = False
            if watch.events & EPOLLET:
                self._end.make_readable()
                self._end.touch_writable()
        if due:
            self._raise(READING | WRITING, 0)

    def _touch(self, bits: int) -> None:
        """Make edge-triggered epolls notice what the end shows already."""
        if bits & READING:
            self._end.make_readable()
        elif bits & WRITING:
            self._end.touch_writable()

    def _ask(
        self, sleepers: list[Sleeper], watchers: list[Sleeper], woken: dict[int, Sleeper]
    ) -> None:
        events = functools.reduce(operator.or_, (who.events for who in sleepers))
        asked = self.asking()

        def done(bits: int | None, error: OSError | None) -> None:
            with self._refresher.lock, self._lock:
                if asked.number <= self._shown:
                    # This answer may be out of date: a later question was asked by a call, and its
                    # answer was shown. The caller may have read what there was and now sleep. So
                    # ask again.
                    self._woken.update(woken)
                    self._put()
                    return
                # Whoever has made another call since then was told by that call. Telling it twice
                # would be news to an edge-triggered epoll, perhaps of data read in the meantime.
                waiting = [who for who in watchers if self._refresher.waits(who, woken)]
                self._told(POLLERR if bits is None or error is not None else bits, waiting)

        answer = self._file.poll(sleepers[-1].caller, events, True)
        if isinstance(answer, int):
            done(answer, None)
        else:
            run(answer.device.connection, answer.operation, done)

    def _told(self, bits: int, watchers: list[Sleeper]) -> None:
        """Wake those that wait for what the device has answered. The lock is held."""
        if self._file.ended and self._file.is_asked:
            self._end.sever(self._close_end)
            return
        shown = (READING if self._end.readable else 0) | (WRITING if self._end.writable else 0)
        events = functools.reduce(
            operator.or_, (who.events for who in (*watchers, *self._sleepers.values())), 0
        )
        for who in watchers:
            listed = bool(bits & who.events and not who.events & EPOLLET)
            self.told((who.tgid, who.epoll, who.number), listed=listed)
        self._raise(bits, events)
        for who in watchers:
            if who.events & EPOLLET:
                self._touch(bits & who.events & shown)
        for tid in [tid for tid, who in self._sleepers.items() if who.events & bits]:
            self._pass(((self, self._sleepers.pop(tid)),))
