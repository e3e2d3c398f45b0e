"""Who sleeps in poll, select or epoll until a device is ready, and how they are woken.

A program's call is trapped and the device asked. If it is not ready, its descriptor is made to look
so (:mod:`recuse.sandbox.files.native_end`), and then the kernel runs the call: it sleeps and wakes,
with signals and timeouts, as it always does. When the device says that something has changed, it is
asked again, on behalf of those that sleep, and its descriptor made to look as it says.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias

from recuse.kernel.caller import Caller
from recuse.kernel.connection.operation import run
from recuse.runtime.locks import new_lock
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
"""One of an epoll's entries: the process and the number by which it was given the file, and the
number of the file's descriptor, of which it may have several."""

_LOST: Final[Key] = (0, -1, -1)
"""Stands for all epolls that are not to be found there any more. They may be closed, or be
elsewhere: in a child, behind another number."""


class Watch:
    """An epoll that watches a file."""

    __slots__ = ("due", "events", "listed")

    def __init__(self, events: int) -> None:
        self.events = events
        self.listed = True
        """Whether the file is on the epoll's ready list: then a wait asks the device first."""
        self.due = False
        """Whether the device has said that something changed, and the epoll knows nothing of it."""


Sleeps: TypeAlias = "tuple[tuple[Readiness, Sleeper], ...]"
"""One thread, and all that its call waits for."""


class Moment(NamedTuple):
    """The moment before a device is asked."""

    number: int
    """A later one has a greater number."""
    changes: int
    """How often the device had said by then that something changed."""


class Polled(Protocol):
    """An open file whose readiness has to be asked for."""

    end: NativeEnd

    def poll(self, caller: Caller, events: int, waiting: bool) -> int | OnDevice[int]:
        """What it is ready for; see `FileDescription.poll`."""

    def wake_by(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called when that changes; see `FileDescription.wake_by`."""

    @property
    def is_asked(self) -> bool:
        """Whether it still has to be asked."""

    @property
    def ended(self) -> bool:
        """Whether nobody answers any more: it is ready for good, with an error."""


class Readiness:
    """The readiness of one open file's descriptor, once programs have asked for it."""

    def __init__(
        self, file: Polled, refresher: ReadinessRefresher, close_end: Callable[[], None]
    ) -> None:
        """Take care of the file's end; ``close_end`` closes ours."""
        self._file = file
        self._close_end = close_end
        self._changes = 0
        """How often the device has said that something changed."""
        self._asks = itertools.count(1)
        self._shown = 0
        """Whose answer was made visible: that of the latest asking of all whose answers were."""
        self._inode = file.end.link.partition("[")[2][:-1]
        self._end = file.end
        self._refresher = refresher
        self._lock = new_lock("Readiness")
        self._sleepers: dict[int, Sleeper] = {}
        self._passed: dict[int, Sleeps] = {}
        """Threads that the kernel is to find something ready for in their calls, which was so when
        the device was asked. Should another thread's call make the end look otherwise before, they
        go to sleep all the same: those are in doubt."""
        self._doubtful: dict[int, Sleeps] = {}
        self._too_many = self._too_many_passed = MANY
        self._watches: dict[Key, Watch] = {}
        self._too_many_watches = MANY
        self._woken: dict[int, Sleeper] = {}
        self._wakes = 0
        """How often sleepers were to be woken."""
        self._moves = 0
        """How often an answer was made visible, or somebody was found that may sleep."""
        self._queued = False
        file.wake_by(self._changed)

    @property
    def polled(self) -> bool:
        """Whether somebody waits, so far as is known."""
        return bool(self._sleepers or self._watches)

    def asking(self) -> Moment:
        """Take note that the device is about to be asked, for :meth:`show` and its kin."""
        return Moment(next(self._asks), self._changes)

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
        """An epoll is about to watch it, perhaps with other events than before.

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
        """Make those one that are not to be found: nobody tells of the end of an epoll."""
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
        """An epoll watches it no more; one that is closed is not told of."""
        with self._lock:
            if self._watches.pop(key, None) is not None and not self._watches:
                self._refresher.watched.discard(self)

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

    def told(self, key: Key, *, listed: bool) -> None:
        """An epoll is told how things are; ``listed`` is whether it stays on its ready list."""
        watch = self._watches.get(key)
        if watch is not None:
            watch.due = False
            watch.listed = watch.listed and listed

    def show(self, bits: int, events: int, asked: Moment, fetch: Callable[[], int]) -> None:
        """Make the end show those of ``events`` that are in ``bits``, and the others not.

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
        """As :meth:`show`, for a call that will sleep until one of its events comes."""
        self._end.check(sleeper.events)
        with self._lock:
            self._too_many = forget_gone(self._sleepers, self._too_many)
            self._sleepers[sleeper.caller.pid] = sleeper
            self._show(bits, sleeper.events, asked, fetch)

    def wait(
        self, bits: int, caller: Caller, events: int, asked: Moment, fetch: Callable[[], int]
    ) -> None:
        """As :meth:`show`, for something that waits until one of its events comes, once.

        In the kernel, and not in a call, so that nothing tells whether it still does.
        """
        if not bits & events:
            with self._lock:
                self._too_many = forget_gone(self._sleepers, self._too_many)
                # No thread has such a number, nor makes another call that takes it out again.
                key = next(self._asks) << 32 | caller.pid
                self._sleepers[key] = Sleeper(caller, "", events)
        self.show(bits, events, asked, fetch)

    def pass_on(
        self, bits: int, sleeps: Sleeps, events: int, asked: Moment, fetch: Callable[[], int]
    ) -> None:
        """As :meth:`show`, for a call that the kernel will find something ready for.

        ``sleeps`` is what it has to be registered with should it not.
        """
        with self._lock:
            self._pass(sleeps)
            self._show(bits, events, asked, fetch)

    def _pass(self, sleeps: Sleeps) -> None:
        self._too_many_passed = forget_gone(self._passed, self._too_many_passed)
        self._passed[sleeps[0][1].caller.pid] = sleeps

    def _may_sleep(self, sleeper: Sleeper) -> None:
        """Ask the device on behalf of a thread that may sleep unregistered."""
        with self._lock:
            self._moves += 1
            # If there is another, it is in a later call.
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
                # What is urgent goes only with the rest; and what else there is was not asked.
                end.make_readable()
        if events & EPOLLET:
            self._touch(bits & events)
        if self._changes != asked.changes:
            # Something has changed since the device was asked: who sleeps must not miss it.
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
        """The device has something new; called in the middle of whatever it does."""
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
        """Ask the device again for those that sleep, and wake whom its answer concerns.

        Nobody asks for epolls that nobody waits for: they are told that there may be something.
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
        """Hint, unless somebody sleeps by now who was shown how things are: he would wake up.

        The two numbers are those of the moment before it was found that nobody slept.
        """
        while True:
            with self._refresher.lock, self._lock:
                if wakes != self._wakes:
                    return  # who sleeps now is told in a turn of its own, and not twice
                due = [watch for watch in self._watches.values() if watch.due]
                if not due or moves == self._moves:
                    self._hint(due)
                    return
                moves = self._moves
                polls, waits = list(self._sleepers.values()), self._refresher.sleepers.copy()
            sleepers = self._refresher.of_epolls(waits, self._inode)
            # Who has asked since has had the change, if it was one to him: not twice.
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
        """Make epolls take the file into their ready lists, where it is looked at later."""
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
                    # What was so when the device was asked need not be so any more: a call has
                    # asked later and had its answer shown. Its caller may have read what there
                    # was, and now sleeps. So ask again.
                    self._woken.update(woken)
                    self._put()
                    return
                # Who has made another call since is told by that one: not twice, which would be
                # news to an edge-triggered epoll, perhaps of what has been read meanwhile.
                waiting = [who for who in watchers if self._refresher.waits(who, woken)]
                self._told(POLLERR if bits is None or error is not None else bits, waiting)

        answer = self._file.poll(sleepers[-1].caller, events, True)
        if isinstance(answer, int):
            done(answer, None)
        else:
            run(answer.device.connection, answer.operation, done)

    def _told(self, bits: int, watchers: list[Sleeper]) -> None:
        """Wake those that wait for what the device has answered; with the lock held."""
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
