"""Processes that nobody may look into, and what is known of their descriptors nevertheless.

If the supervisor lacks CAP_SYS_PTRACE, these are processes after ``prctl(PR_SET_DUMPABLE, 0)``, and
those whose program their user may execute but not read (kernel/ptrace.c, __ptrace_may_access).
Nothing can be copied to them or from them, so they cannot be served, and the kernel runs their
calls. But natively a device's descriptor is a socket with a byte of recuse's in it. Reading or
writing that must fail rather than succeed.

Such a process cannot be asked which of its descriptors are devices. What is known is from before:
what a thread had under a number when it was last seen, and what a process had when it executed its
program. The same is known of its parents. What the process does to its descriptors is not seen. If
it dup's a device to another number, that is taken for a file. If it has a file under the number of
a device that is open elsewhere, that is taken for the device.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Final, Protocol

from recuse.runtime.log import Log
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.wire.ids import NO_PROCESS, Tgid, Tid

_log = Log("recuse.sandbox")

_MOST: Final = 4096
_GENERATIONS: Final = 16
_CAP_SYS_PTRACE: Final = 19


class Held(Protocol):
    """The file behind a program's descriptor."""

    link: str
    """What the link in ``/proc/PID/fd`` reads."""


class Unseen:
    """What is known of descriptors in processes that nobody may look into."""

    def __init__(self, seen: Mapping[tuple[Tid, int], Held], by_link: Mapping[str, Held]) -> None:
        """Use these tables: what was found, by thread and number, and all open files by link."""
        self._seen = seen
        self._by_link = by_link
        self._executed: dict[Tgid, dict[int, Held]] = {}
        """By process, what it had when it executed its program."""
        self._sees_all = bool(int(_field("self", b"CapEff") or b"0", 16) >> _CAP_SYS_PTRACE & 1)
        self._told = False

    def executes(self, tid: Tid) -> None:
        """Remember what a thread has, because it is about to execute a program."""
        if self._sees_all or not self._by_link:
            return
        held: dict[int, Held] = {}
        try:
            names = os.listdir(f"/proc/{tid}/fd")
        except OSError:
            return  # what was known before stays
        for name in names:
            with contextlib.suppress(OSError):
                descriptor = self._by_link.get(os.readlink(f"/proc/{tid}/fd/{name}"))
                if descriptor is not None and not _closes_on_exec(tid, name):
                    held[int(name)] = descriptor
        if len(self._executed) >= _MOST:
            self._executed.clear()
        self._executed[_process_of(tid)] = held

    def may_hold(self, tid: Tid, number: int) -> bool:
        """Whether a thread's descriptor may be a device, as far as is known."""
        if _has_ended(tid):
            return False
        process = _process_of(tid)
        for _ in range(_GENERATIONS):
            if process <= 1:
                break
            if self._was_seen(process, number):
                return True
            held = self._executed.get(process)
            if held is not None:
                return self._is_open(held.get(number))
            process = _parent_of(process)
            with contextlib.suppress(PermissionError):
                try:
                    return os.readlink(f"/proc/{process}/fd/{number}") in self._by_link
                except FileNotFoundError:
                    break
        return False

    def _was_seen(self, process: Tgid, number: int) -> bool:
        return any(
            of_thread == number
            and self._is_open(descriptor)
            and os.path.exists(f"/proc/{process}/task/{thread}")
            for (thread, of_thread), descriptor in list(self._seen.items())
        )

    def _is_open(self, descriptor: Held | None) -> bool:
        return descriptor is not None and self._by_link.get(descriptor.link) is descriptor

    def tell(self, tid: Tid) -> None:
        """Warn once that there is such a process."""
        if not self._told:
            self._told = True
            name = (_field(tid, b"Name") or b"?").decode("utf-8", "replace")
            _log.warning(
                "%s (process %d) lets nobody look into it, by prctl(PR_SET_DUMPABLE) or because "
                "its file may be executed but not read: it finds no devices, and cannot use those "
                "that it has. With CAP_SYS_PTRACE, which root has, recuse could serve it",
                name,
                _process_of(tid),
            )


def _field(thread: int | str, name: bytes) -> bytes | None:
    with contextlib.suppress(OSError, KeyError):
        return ThreadStatus(thread)[name]
    return None


def _has_ended(thread: Tid) -> bool:
    try:
        return ThreadStatus(thread).has_ended
    except OSError:
        return True


def _process_of(thread: Tid) -> Tgid:
    try:
        return ThreadStatus(thread).tgid
    except OSError:
        return NO_PROCESS


def _parent_of(process: Tgid) -> Tgid:
    try:
        return ThreadStatus(process).parent
    except OSError:
        return NO_PROCESS


def _closes_on_exec(tid: int, name: str) -> bool:
    with open(f"/proc/{tid}/fdinfo/{name}", "rb") as lines:
        flags = next(line for line in lines if line.startswith(b"flags:"))
    return bool(int(flags.split()[1], 8) & os.O_CLOEXEC)
