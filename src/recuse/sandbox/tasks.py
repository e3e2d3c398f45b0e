"""What the supervisor knows of the threads that it serves: identity, credentials, memory map.

A record is made when a thread first does something with a device, and kept, because reading
``/proc`` costs more than serving a read. What can make a record wrong is trapped and forgets it
first: exec (memory map) and the set*id calls (credentials). An id may come again when its thread
has ended, which is noticed before (:mod:`recuse.sandbox.ends`); of a thread of which it would not
be, nothing is kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import record
from recuse.sandbox.ends import Ends
from recuse.sandbox.memory import WritableMap


@record
class Credentials:
    """Who a thread acts as (credentials(7))."""

    uid: int
    gid: int
    groups: frozenset[int]
    overrides: bool
    """Whether it has CAP_DAC_OVERRIDE, and so passes every permission check."""
    owner_rights: bool
    """Whether it has CAP_FOWNER, and so may change what belongs to others."""
    searches: bool
    """Whether it has CAP_DAC_READ_SEARCH, and so may read every file and search every directory."""
    changes_owners: bool
    """Whether it has CAP_CHOWN, and so may give files away."""
    keeps_suid: bool
    """Whether it has CAP_FSETID, and so may write to set-user-ID files that remain so."""


@record
class Task:
    """One thread, by its id in the supervisor's pid namespace."""

    tid: int
    tgid: int
    owner: int
    """64 bits that its process has in common and no other has; see :func:`lock_owner`."""
    credentials: Credentials
    """As it touches files: with the filesystem ids, which follow the effective ones."""
    real_credentials: Credentials
    """As access(2) asks: with the real ids, and without capabilities unless that is root."""
    writable: WritableMap


_KEY: Final = int.from_bytes(os.urandom(8), "little")
_64_BITS: Final = (1 << 64) - 1

_CAP_CHOWN = 0
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAP_FOWNER = 3
_CAP_FSETID = 4


def read_task(tid: int) -> Task:
    """Read a thread's identity from ``/proc/TID/status``.

    Raises:
        OSError: ESRCH if there is no such thread.
    """
    lines = _read_status(tid)
    uids = [int(uid) for uid in lines[b"Uid"].split()]
    gids = [int(gid) for gid in lines[b"Gid"].split()]
    groups = frozenset(int(group) for group in lines[b"Groups"].split())
    effective, permitted = int(lines[b"CapEff"], 16), int(lines[b"CapPrm"], 16)
    if effective | permitted and not in_our_namespace(tid, "user"):
        # Root of a user namespace of its own has no power over the files of this one.
        effective = permitted = 0
    tgid = int(lines[b"Tgid"])
    return Task(
        tid=tid,
        tgid=tgid,
        owner=lock_owner(tgid),
        credentials=_credentials(uids[3], gids[3], groups, effective),
        real_credentials=_credentials(uids[0], gids[0], groups, 0 if uids[0] else permitted),
        writable=WritableMap(tid),
    )


def lock_owner(tgid: int) -> int:
    """The lock owner that a process's requests have.

    Linux's is its descriptor table's address, encrypted (fs/fuse/file.c, fuse_lock_owner_id; 6.1).
    """
    # Two different numbers stay so with each of these steps. They are splitmix64's, and take a
    # thousandth of the time that it takes to import hashlib.
    mixed = tgid ^ _KEY
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _64_BITS
    return mixed ^ (mixed >> 31)


def _read_status(tid: int, proc: str = "/proc") -> dict[bytes, bytes]:
    try:
        with open(f"{proc}/{tid}/status", "rb") as status:
            return dict(line.split(b":", 1) for line in status.read().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        raise os_error(errno.ESRCH) from None


def parent_of(process: int) -> int:
    """The number of a process's parent, 0 if that is outside of this pid namespace.

    Raises:
        OSError: ESRCH if there is no such process.
    """
    return int(_read_status(process)[b"PPid"])


def numbers_in(proc: int, tid: int) -> tuple[int, int]:
    """The numbers of a thread's process and of the thread in the pid namespace of a ``/proc``.

    Args:
        proc: a descriptor of its root directory.
        tid: the thread's number in the supervisor's.

    Raises:
        OSError: ESRCH if there is no such thread, or it is not in that namespace.
    """
    lines = _read_status(tid)
    processes, threads = lines[b"NStgid"].split(), lines[b"NSpid"].split()
    for level, process in enumerate(processes):
        # A status tells the numbers from that namespace on inwards.
        with contextlib.suppress(OSError):
            found = _read_status(int(process), f"/proc/self/fd/{proc}")
            if found[b"NStgid"].split() == processes[level:]:
                return int(process), int(threads[level])
    raise os_error(errno.ESRCH)


def _credentials(uid: int, gid: int, groups: frozenset[int], capabilities: int) -> Credentials:
    return Credentials(
        uid=uid,
        gid=gid,
        groups=groups,
        overrides=bool(capabilities >> _CAP_DAC_OVERRIDE & 1),
        owner_rights=bool(capabilities >> _CAP_FOWNER & 1),
        searches=bool(capabilities >> _CAP_DAC_READ_SEARCH & 1),
        changes_owners=bool(capabilities >> _CAP_CHOWN & 1),
        keeps_suid=bool(capabilities >> _CAP_FSETID & 1),
    )


def in_our_namespace(tid: int, kind: str) -> bool:
    """Whether a thread has the supervisor's namespace of a kind ("mnt"), so far as can be told."""
    try:
        return os.stat(f"/proc/{tid}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return False


class Tasks:
    """The records, by thread id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[int, Task] = {}
        self._ends = Ends()
        self._poll = self._ends.poll

    def get(self, tid: int) -> Task:
        """The thread's record, made now if there is none.

        Raises:
            OSError: ESRCH if there is no such thread.
        """
        if self._poll(0, 1):
            self.forget_ended()
        task = self._tasks.get(tid)
        if task is None:
            with self._lock:
                kept = self._ends.watch(tid)
                task = read_task(tid)
                if kept:
                    self._tasks[tid] = task
        return task

    def forget(self, tid: int) -> None:
        """The thread's credentials are about to change."""
        if tid in self._tasks:
            with self._lock:
                self._tasks.pop(tid, None)

    def forget_process(self, tid: int) -> None:
        """The thread's process is about to get a new memory image."""
        if not self._tasks:
            return
        with self._lock:
            task = self._tasks.get(tid)
            tgid = task.tgid if task else tid
            if task is None:  # it may be a thread that was never seen, of a process that was
                with contextlib.suppress(OSError):
                    tgid = int(_read_status(tid)[b"Tgid"])
            for other in [task.tid for task in self._tasks.values() if task.tgid == tgid]:
                self._drop(other)

    def forget_ended(self) -> None:
        """Forget what has ended: its ids may come again."""
        with self._lock:
            for tid in self._ends.take():
                self._drop(tid)

    def _drop(self, tid: int) -> None:
        self._ends.forget(tid)
        self._tasks.pop(tid, None)

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tasks.clear()
            self._ends.close()
