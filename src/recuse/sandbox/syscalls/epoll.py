"""epoll_ctl and the waits for an epoll (fs/eventpoll.c; Linux 6.1).

The kernel keeps the epolls themselves. A device is asked when it is added or changed. It is also
asked before a wait, if it is on the epoll's ready list
(:class:`recuse.sandbox.files.readiness.Watch`). Then its descriptor is made to show the answer, and
the kernel runs the call.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.files.native_end import EPOLLET, POLLERR, POLLHUP
from recuse.sandbox.files.refresher import Sleeper, watched_by
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.poll_query import PolledFile, ask
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.trap.borrowing import Borrowing
from recuse.sandbox.trap.call import Outcome, Steps, TrappedCall

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine

_EPOLL_CTL_ADD: Final = 1
_EPOLL_CTL_DEL: Final = 2
_EPOLL_CTL_MOD: Final = 3
_EPOLLONESHOT: Final = 1 << 30
_EVENT = struct.Struct("=I8x")


def epoll_ctl(call: TrappedCall, machine: Machine) -> Outcome:
    """``epoll_ctl(epoll, operation, fd, event)``."""
    operation = signed32(call.a1)
    if machine.tree.mounts.filesystems:
        target = machine.files.find_opened(call.tid, call.a2)
        if target is not None and not target.has_events:
            raise os_error(errno.EPERM)
    if not machine.files.polled or not _EPOLL_CTL_ADD <= operation <= _EPOLL_CTL_MOD:
        return PROCEED
    number = call.a2 & 0xFFFFFFFF
    file = machine.files.find(call.tid, number)
    if file is None or not file.is_asked:
        return PROCEED
    if not file.opened:
        raise os_error(errno.EBADF)
    key = (call.task.tgid, call.a0 & 0xFFFFFFFF, number)
    readiness = machine.files.readiness(file)
    if operation == _EPOLL_CTL_DEL:
        readiness.unwatch(key)
        return PROCEED
    event = read_memory(call.tid, call.a3, _EVENT.size)
    if len(event) < _EVENT.size:
        return PROCEED
    events = _EVENT.unpack(event)[0] | POLLERR | POLLHUP
    readiness.watch(key, events)
    return _add(call, machine, PolledFile(0, number, events, file), key)


def _add(
    call: TrappedCall, machine: Machine, one: PolledFile, key: tuple[int, int, int]
) -> Steps[int]:
    """Ask a device that is added or changed, and have its descriptor show the answer."""
    yield from ask(call, machine, call.caller(), [one], 0)
    if one.readiness is not None:
        one.readiness.told(key, listed=bool(one.bits & one.events))
    with Borrowing(call) as borrowing:
        one.show(borrowing)
        return borrowing.finish(PROCEED)


def epoll_wait(call: TrappedCall, machine: Machine) -> Outcome:
    """``epoll_wait(epoll, events, count, timeout)``, epoll_pwait and epoll_pwait2."""
    refresher = machine.files.refresher
    if not refresher.watched:
        return PROCEED
    number = call.a0 & 0xFFFFFFFF
    epoll = (call.task.tgid, number)
    arguments = f" {call.a0:#x} {call.a1:#x} "
    sleeper = Sleeper(call.caller(), arguments, epoll=number, tgid=epoll[0])
    with refresher.lock:
        listed = refresher.listed
        if listed:
            refresher.sleepers.pop(call.tid, None)
        else:
            refresher.asleep(sleeper)
    asked, hungry = _listed(call, machine, epoll) if listed else ([], [])
    if not asked and not hungry:
        with refresher.lock:
            refresher.asleep(sleeper)
        return PROCEED

    return _wait(call, machine, sleeper, asked, hungry)


def _wait(
    call: TrappedCall,
    machine: Machine,
    sleeper: Sleeper,
    asked: list[PolledFile],
    hungry: list[PolledFile],
) -> Steps[int]:
    """Ask devices before a wait for an epoll, and have their descriptors show the answers."""
    yield from ask(call, machine, sleeper.caller, asked, 0)
    epoll = (call.task.tgid, call.a0 & 0xFFFFFFFF)
    refresher = machine.files.refresher
    with refresher.lock:
        refresher.asleep(sleeper)
    with Borrowing(call) as borrowing:
        for one in hungry:
            if one.file.readiness is not None:
                one.file.readiness.feed(one.fetcher(borrowing))
        for one in asked:
            if one.readiness is not None:
                once = one.events & (EPOLLET | _EPOLLONESHOT)
                listed = bool(one.bits & one.events and not once)
                one.readiness.told((*epoll, one.number), listed=listed)
            one.show(borrowing)
        return borrowing.finish(PROCEED)


def _listed(
    call: TrappedCall, machine: Machine, epoll: tuple[int, int]
) -> tuple[list[PolledFile], list[PolledFile]]:
    """The devices to ask before a wait for an epoll, and those to feed (`Readiness.feed`)."""
    found: list[PolledFile] = []
    hungry: list[PolledFile] = []
    try:
        entries = watched_by(call.tid, epoll[1])
    except OSError:
        return found, hungry
    for index, entry in enumerate(entries):
        file = machine.files.by_inode(entry.inode)
        if file is None or file.readiness is None or not entry.enabled:
            continue
        one = PolledFile(index, entry.number, entry.events, file)
        if file.is_asked and file.readiness.listed((*epoll, entry.number), entry.events):
            found.append(one)
        elif file.readiness.hungry:
            hungry.append(one)
    return found, hungry


HANDLERS: Final[dict[str, Handler]] = {
    "epoll_ctl": epoll_ctl,
    "epoll_wait": epoll_wait,
    "epoll_pwait": epoll_wait,
    "epoll_pwait2": epoll_wait,
}
