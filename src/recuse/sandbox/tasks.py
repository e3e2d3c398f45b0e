"""What the supervisor knows of the threads that it serves: identity, credentials, memory map.

A record is made when a thread first does something with a device, and kept, because reading
``/proc`` costs more than serving a read. What can make a record wrong is trapped and forgets it
first: exec (memory map), the set*id calls (credentials), fork (the id of a thread that has ended
may go to the new process). A process's end is seen through its pidfd.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from recuse.sandbox.memory import WritableMap


@dataclass(slots=True)
class Credentials:
    """Who a thread acts as when it touches files: the *filesystem* ids of credentials(7)."""

    uid: int
    gid: int
    groups: frozenset[int]
    overrides: bool
    """Whether it has CAP_DAC_OVERRIDE, and so passes every permission check."""
    owner_rights: bool
    """Whether it has CAP_FOWNER, and so may change what belongs to others."""
    changes_owners: bool
    """Whether it has CAP_CHOWN, and so may give files away."""


@dataclass(slots=True)
class Task:
    """One thread, by its id in the supervisor's pid namespace."""

    tid: int
    tgid: int
    threads: int
    """How many threads its process had when the record was made."""
    credentials: Credentials
    writable: WritableMap


_CAP_CHOWN = 0
_CAP_DAC_OVERRIDE = 1
_CAP_FOWNER = 3


def read_task(tid: int) -> Task:
    """Read a thread's identity from ``/proc/TID/status``.

    Raises:
        OSError: ESRCH if there is no such thread.
    """
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            lines = dict(line.split(b":", 1) for line in status.read().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    tgid = int(lines[b"Tgid"])
    capabilities = int(lines[b"CapEff"], 16)
    return Task(
        tid=tid,
        tgid=tgid,
        threads=int(lines[b"Threads"]),
        credentials=Credentials(
            uid=int(lines[b"Uid"].split()[3]),
            gid=int(lines[b"Gid"].split()[3]),
            groups=frozenset(int(group) for group in lines[b"Groups"].split()),
            overrides=bool(capabilities >> _CAP_DAC_OVERRIDE & 1),
            owner_rights=bool(capabilities >> _CAP_FOWNER & 1),
            changes_owners=bool(capabilities >> _CAP_CHOWN & 1),
        ),
        writable=WritableMap(tid),
    )


class Tasks:
    """The records, by thread id."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}

    def get(self, tid: int) -> Task:
        """The thread's record, made now if there is none.

        Raises:
            OSError: ESRCH if there is no such thread.
        """
        task = self._tasks.get(tid)
        if task is None:
            task = self._tasks[tid] = read_task(tid)
        return task

    def forget(self, tid: int) -> None:
        """The thread's credentials are about to change."""
        self._tasks.pop(tid, None)

    def forget_process(self, tid: int) -> None:
        """The thread's process is about to get a new memory image, or has ended."""
        task = self._tasks.pop(tid, None)
        tgid = task.tgid if task else tid
        for other in [t for t in list(self._tasks.values()) if t.tgid == tgid]:
            self._tasks.pop(other.tid, None)

    def forget_threads(self) -> None:
        """A process is about to be made: ids of ended threads may come again."""
        for task in list(self._tasks.values()):
            if task.tid != task.tgid:
                self._tasks.pop(task.tid, None)
