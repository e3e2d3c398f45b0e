"""poll, select and related calls (fs/select.c; Linux 6.1).

Each device among the files is asked (FUSE_POLL). If one is ready and all files are devices, the
call is answered here. Otherwise the devices' descriptors are made to show what the devices say, and
the kernel runs the call, because other files are its business.

Other files that come before a device are looked at here: once Linux knows that a call will not
wait, it does not tell the remaining devices that anybody waits for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select as host
import struct
import time
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.abilities import may_borrow
from recuse.sandbox.files.native_end import POLLNVAL
from recuse.sandbox.files.refresher import Sleeper
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed32
from recuse.sandbox.syscalls.poll_files import LEAST_TABLE, Files, PollFiles, SelectFiles
from recuse.sandbox.syscalls.poll_query import PolledFile, ask
from recuse.sandbox.tasks.memory import read_memory, write_memory
from recuse.sandbox.trap.borrowing import Borrowing, close_all
from recuse.sandbox.trap.call import Outcome, Steps, TrappedCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from recuse.sandbox.machine import Machine
    from recuse.wire.ids import Tid

_MOST_FILES: Final = 1 << 20
"""More than any process can have, unless ``fs.nr_open`` was raised."""
_MOST_COPIES: Final = 16
"""How many ordinary files are copied at a time: this process may have no room for more."""

_CALLS_BEFORE_UNMOUNT: Final = 20

TIMESPEC: Final = struct.Struct("=qq")
TIMEVAL: Final = struct.Struct("=qq")
_NANO: Final = 1_000_000_000
_MICRO: Final = 1_000_000


def _is_refused(tid: int, count: int) -> bool:
    """Whether poll refuses that many files, or has none to look at (fs/select.c, do_sys_poll)."""
    if count <= LEAST_TABLE:
        return not count
    try:
        return count > resource.prlimit(tid, resource.RLIMIT_NOFILE)[0]
    except (PermissionError, ProcessLookupError):
        return count > _MOST_FILES


class _Polling:
    """One poll or select with devices among its files."""

    def __init__(  # noqa: PLR0917 - all parts of a call
        self,
        call: TrappedCall,
        machine: Machine,
        files: Files,
        asked: list[PolledFile],
        clock: _Clock,
        registers: tuple[int, int],
    ) -> None:
        self._machine = machine
        self._call = call
        self._files = files
        self._asked = asked
        self._clock = clock
        self._registers = registers
        self._found: dict[int, int] = {}
        """What was ready before the devices were asked, by index. If any was, the call ends."""
        self._others: list[tuple[int, int, int]] = []
        if len(asked) < len(files.entries):
            ours = {one.index for one in asked}
            self._others = [
                (index, number, events)
                for index, (number, events) in enumerate(files.entries)
                if index not in ours and number >= 0
            ]
        self._caller = call.caller()

    def steps(self) -> Steps[int]:
        """Ask the devices, and decide how the call is answered."""
        yield from ask(self._call, self._machine, self._caller, self._asked, self._waits())
        return self._decide()

    def _waits(self) -> int:
        """The index from which no file is waited for: one is ready, or the timeout is 0."""
        if not self._clock.waits:
            return 0
        last = self._asked[-1].index
        before = [other for other in self._others if other[0] < last]
        if not before:
            return last + 1
        with Borrowing(self._call) as borrowing:
            if not borrowing.fetches:
                # The thread would have to be stopped for that. So a device may be told that
                # somebody waits for it although nobody does.
                return last + 1
            found = dict(_poll_others(borrowing, before, strict=self._files.strict))
        if not found or self._has_signalfd():
            return last + 1
        self._found = found
        return min(found)

    def _has_signalfd(self) -> bool:
        """Whether another file is a signalfd, which shows only the caller if it is ready."""
        for _, number, _ in self._others:
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{self._call.tid}/fd/{number}")
                if link == "anon_inode:[signalfd]":
                    return True
        return False

    def _decide(self) -> int:
        ready = any(one.bits & one.events for one in self._asked)
        # If a file before a device was ready, the device was not told that anybody waits for it.
        # If that file were no longer ready, the kernel would let the caller sleep for ever.
        if self._found or (
            (ready or not self._clock.waits) and not (self._others and self._expressible())
        ):
            return self._answer()
        with Borrowing(self._call) as borrowing:
            if not self._clock.waits:
                for one in self._asked:
                    one.show(borrowing)
            else:
                self._leave_to_kernel(borrowing, ready)
            return borrowing.finish(PROCEED)

    def _leave_to_kernel(self, borrowing: Borrowing, ready: bool) -> None:
        """Have the devices' descriptors show what they are ready for, and let the kernel run it.

        Even if one is ready, the kernel may not see it. Another thread's call may come in between,
        find the device not ready any more, and have its descriptor show that.
        """
        arguments = " {:#x} {:#x} ".format(*self._registers)
        waits = [
            (one, one.readiness, Sleeper(self._caller, arguments, one.events))
            for one in self._asked
            if one.readiness is not None
        ]
        sleeps = tuple((readiness, sleeper) for _, readiness, sleeper in waits) if ready else ()
        for one, readiness, sleeper in waits:
            fetch = one.fetcher(borrowing)
            if ready:
                readiness.pass_on(one.bits, sleeps, one.events, one.moment, fetch)
            else:
                readiness.sleep(one.bits, sleeper, one.moment, fetch)

    def _expressible(self) -> bool:
        """Whether the devices' descriptors can show exactly what they are ready for."""
        return all(one.file.end.can_show(one.bits, one.events) for one in self._asked)

    def _answer(self) -> int:
        bits = [0] * len(self._files.entries)
        rest = [other for other in self._others if other[0] not in self._found]
        with Borrowing(self._call) as borrowing:
            others = _poll_others(borrowing, rest, strict=self._files.strict)
            for index, found in (*self._found.items(), *others):
                bits[index] = found
            for one in self._asked:
                bits[one.index] = one.bits & one.events
            if not borrowing.alive():
                return ANSWERED
            result = self._files.answer(self._call.tid, bits)
            self._clock.tell_rest(self._call.tid)
            return borrowing.finish(result)


def _poll_others(
    borrowing: Borrowing, others: list[tuple[int, int, int]], *, strict: bool
) -> list[tuple[int, int]]:
    """What ordinary files are ready for now: pairs of index and bits."""
    if others and not may_borrow():
        # The call reports only devices. If another file is ready, the next call reports that.
        return _missing(borrowing.tid, others, strict=strict)
    found: list[tuple[int, int]] = []
    for at in range(0, len(others), _MOST_COPIES):
        found += _poll_some(borrowing, others[at : at + _MOST_COPIES], strict=strict)
    return found


def _poll_some(
    borrowing: Borrowing, others: list[tuple[int, int, int]], *, strict: bool
) -> list[tuple[int, int]]:
    poll = host.poll()
    found = []
    indices = {}
    copies = borrowing.copies([number for _, number, _ in others])
    try:
        for (index, _, events), copy in zip(others, copies, strict=True):
            if copy is not None:
                indices[copy] = index
                poll.register(copy, events)
            elif strict:
                raise os_error(errno.EBADF)
            else:
                found.append((index, POLLNVAL))
        return found + [(indices[copy], bits) for copy, bits in poll.poll(0)]
    finally:
        close_all(copies)


def _missing(
    tid: int, others: list[tuple[int, int, int]], *, strict: bool
) -> list[tuple[int, int]]:
    missing = [
        (index, POLLNVAL)
        for index, number, _ in others
        if not os.path.lexists(f"/proc/{tid}/fd/{number}")
    ]
    if missing and strict:
        raise os_error(errno.EBADF)
    return missing


class _Clock:
    """A call's timeout."""

    def __init__(self, tid: int, address: int, form: struct.Struct, unit: int) -> None:
        """Read the timeout, if there is one. OSError: EFAULT."""
        self._began = time.monotonic_ns()
        self._address = address
        self._form = form
        self._unit = unit
        self._ns = -1
        if address:
            seconds, parts = form.unpack(read_memory(tid, address, form.size).ljust(form.size))
            wrong = seconds < 0 or not 0 <= parts < _NANO
            self._ns = -2 if wrong else seconds * _NANO + parts * (_NANO // unit)

    @property
    def valid(self) -> bool:
        return self._ns >= -1

    @property
    def waits(self) -> bool:
        return self._ns != 0

    def tell_rest(self, tid: int) -> None:
        """Write back how much of the timeout is left, as Linux does (poll_select_finish)."""
        if self._ns > 0:
            left = max(self._ns - (time.monotonic_ns() - self._began), 0)
            seconds, ns = divmod(left, _NANO)
            write_memory(tid, self._address, self._form.pack(seconds, ns // (_NANO // self._unit)))


class _Milliseconds(_Clock):
    """poll's timeout, which is an argument of the call."""

    def __init__(self, timeout: int) -> None:
        self._ns = max(signed32(timeout), -1)

    def tell_rest(self, tid: int) -> None:
        pass


def _begin(
    call: TrappedCall,
    machine: Machine,
    files: Files,
    clock: _Clock,
    registers: tuple[int, int] | None = None,
) -> Outcome:
    find = machine.files.find
    asked = []
    for index, (number, events) in enumerate(files.entries):
        file = find(call.tid, number) if number >= 0 else None
        if file is not None and file.is_asked:
            asked.append(PolledFile(index, number, events, file))
    if not asked or not clock.valid:
        return PROCEED
    registers = registers or (call.a0, call.a1)
    return _Polling(call, machine, files, asked, clock, registers).steps()


def _may_unmount(call: TrappedCall, machine: Machine, watch: Callable[[Tid, int], None]) -> None:
    """Watch a thread that asks for nothing but errors of its /dev/fuse, as libfuse does.

    It does so before it calls umount2 itself (lib/mount.c, fuse_kern_unmount).
    """
    from recuse.sandbox.files.fuse_file import FuseFile  # noqa: PLC0415 - few sandboxes have any

    entries = PollFiles(call.tid, call.a0, 1).entries
    if entries and entries[0][0] >= 0 and not entries[0][1] & ~(host.POLLERR | host.POLLHUP):
        file = machine.files.find(call.tid, entries[0][0])
        if isinstance(file, FuseFile) and file.tree is not None:
            watch(call.tid, _CALLS_BEFORE_UNMOUNT)


def poll(call: TrappedCall, machine: Machine) -> Outcome:
    """``poll(fds, nfds, timeout)``."""
    count = call.a1 & 0xFFFFFFFF
    if count == 1 and not call.a2 and machine.renumbered is not None:
        _may_unmount(call, machine, machine.renumbered.watch)
    if not machine.files.polled or _is_refused(call.tid, count):
        return PROCEED
    files = PollFiles(call.tid, call.a0, count)
    return _begin(call, machine, files, _Milliseconds(call.a2))


def ppoll(call: TrappedCall, machine: Machine, form: struct.Struct = TIMESPEC) -> Outcome:
    """``ppoll(fds, nfds, timeout, mask, size)``."""
    count = call.a1 & 0xFFFFFFFF
    if not machine.files.polled or _is_refused(call.tid, count):
        return PROCEED
    files = PollFiles(call.tid, call.a0, count)
    return _begin(call, machine, files, _Clock(call.tid, call.a2, form, _NANO))


def select(  # noqa: PLR0917 - as pselect6 and 32-bit programs need it
    call: TrappedCall,
    machine: Machine,
    form: struct.Struct = TIMEVAL,
    unit: int = _MICRO,
    word: int = 8,
    registers: tuple[int, int] | None = None,
) -> Outcome:
    """``select(nfds, in, out, exceptions, timeout)``, and pselect6 with another form of timeout.

    ``registers`` are the first two arguments in the registers, if they are not those of ``call``.
    """
    count = signed32(call.a0)
    if not machine.files.polled or count <= 0:
        return PROCEED
    files = SelectFiles(call.tid, (call.a1, call.a2, call.a3), count, word)
    clock = _Clock(call.tid, call.a4, form, unit)
    return _begin(call, machine, files, clock, registers)


def pselect6(
    call: TrappedCall, machine: Machine, form: struct.Struct = TIMESPEC, word: int = 8
) -> Outcome:
    """``pselect6(nfds, in, out, exceptions, timeout, mask)``."""
    return select(call, machine, form, _NANO, word)


HANDLERS: Final[dict[str, Handler]] = {
    "poll": poll,
    "ppoll": ppoll,
    "select": select,
    "pselect6": pselect6,
}
