"""Processes that let nobody look into them, and what is known of their descriptors all the same.

Such is a process after ``prctl(PR_SET_DUMPABLE, 0)``, and one whose program its user may execute
and not read, for a supervisor without CAP_SYS_PTRACE (kernel/ptrace.c, __ptrace_may_access).
Nothing can be copied to it or from it, so it cannot be served: its calls are the kernel's. But a
device's descriptor is natively a socket with a byte of recuse's own in it, and a read of that, or a
write, must fail rather than succeed.

Which descriptors are devices cannot be asked then. It is known from before: what a thread had under
a number when it was seen last, what a process had when it executed its program, and what its
parents have. What such a process does to its descriptors is not seen: a device that it dup's to
another number is taken for a file, and a file under the number of a device that is open elsewhere
for the device.
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
    """What a program has a descriptor of."""

    link: str
    """As the link in ``/proc/PID/fd`` reads."""


class Unseen:
    """What processes are known to hold that cannot be looked into."""

    def __init__(self, seen: Mapping[tuple[Tid, int], Held], by_link: Mapping[str, Held]) -> None:
        """Use what was found, by thread and number, and what there is."""
        self._seen = seen
        self._by_link = by_link
        self._executed: dict[Tgid, dict[int, Held]] = {}
        """By process: what it had when it executed its program."""
        self._sees_all = bool(int(_field("self", b"CapEff") or b"0", 16) >> _CAP_SYS_PTRACE & 1)
        self._told = False

    def executes(self, tid: Tid) -> None:
        """Remember what a thread has that is about to execute a program."""
        if self._sees_all or not self._by_link:
            return
        held: dict[int, Held] = {}
        try:
            names = os.listdir(f"/proc/{tid}/fd")
        except OSError:
            return  # as before, then
        for name in names:
            with contextlib.suppress(OSError):
                descriptor = self._by_link.get(os.readlink(f"/proc/{tid}/fd/{name}"))
                if descriptor is not None and not _closes_on_exec(tid, name):
                    held[int(name)] = descriptor
        if len(self._executed) >= _MOST:
            self._executed.clear()
        self._executed[_process_of(tid)] = held

    def may_hold(self, tid: Tid, number: int) -> bool:
        """Whether a thread's descriptor may be a device, of what is known."""
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
        """Say once that there is such a process."""
        if not self._told:
            self._told = True
            name = (_field(tid, b"Name") or b"?").decode("utf-8", "replace")
            _log.warning(
                "%s (process %d) lets nobody look into it, by prctl(PR_SET_DUMPABLE) or since its "
                "file may be executed and not read: it finds no devices, and cannot use those that "
                "it has. With CAP_SYS_PTRACE, as root has it, recuse could serve it",
                name,
                _process_of(tid),
            )


def _field(thread: int | str, name: bytes) -> bytes | None:
    with contextlib.suppress(OSError, KeyError):
        return ThreadStatus(thread)[name]
    return None


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
