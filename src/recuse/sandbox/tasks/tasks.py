"""What the supervisor knows of the threads that it serves: identity, credentials, memory map.

A record is made when a thread first does something with a device. It is kept, because reading
``/proc`` costs more than serving a read. Calls that make a record wrong are trapped, and the record
is forgotten first: exec (memory map) and the set*id calls (credentials). When a thread has ended,
its ID may be used again. That is noticed before (:mod:`recuse.sandbox.tasks.thread_ends`), and
nothing is kept about threads for which it would not be noticed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from time import monotonic
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.records import record
from recuse.sandbox.tasks.memory import WritableMap
from recuse.sandbox.tasks.rights import Acting, Rights, labels_of, own_rights
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.sandbox.tasks.thread_ends import ThreadEnds
from recuse.wire.ids import Tgid, Tid

if TYPE_CHECKING:
    from recuse.kernel.fs.credentials import FileCaller


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
    """One thread, by its ID in the supervisor's pid namespace."""

    tid: Tid
    tgid: Tgid
    owner: int
    """64 bits that are the same for its whole process and no other; see :func:`lock_owner`."""
    credentials: Credentials
    """For access to files: with the filesystem IDs, which follow the effective ones."""
    real_credentials: Credentials
    """For access(2): with the real IDs, and without capabilities unless that is root."""
    writable: WritableMap
    rights: Rights
    """What it touches files with."""
    acting: Acting | None
    """Lets a supervisor's thread use the thread's rights; None if no less than the supervisor's."""
    real_rights: Rights
    """The rights that access(2) checks."""
    has_ours: bool
    """Whether neither are less than the supervisor's: no thread ever acts as this one."""
    looker: FileCaller | None = None
    """The thread as filesystems see it (`recuse.sandbox.fs.caller`), after the first look."""
    in_our_mounts: bool = False
    """Whether it is known to be in the supervisor's mount namespace. What takes it to another one
    is trapped, and makes the record wrong."""

    def shares_mounts(self) -> bool:
        """Whether it is in the supervisor's mount namespace, as far as is known."""
        self.in_our_mounts = self.in_our_mounts or in_our_namespace(self.tid, "mnt")
        return self.in_our_mounts


_KEY: Final = int.from_bytes(os.urandom(8), "little")
_64_BITS: Final = (1 << 64) - 1

_CAP_CHOWN = 0
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAP_FOWNER = 3
_CAP_FSETID = 4

_MOST_RIGHTS: Final = 256


def lock_owner(tgid: Tgid) -> int:
    """The lock owner in a process's requests.

    Linux uses the encrypted address of its descriptor table (fs/fuse/file.c, fuse_lock_owner_id;
    6.1).
    """
    # Each of these steps maps different numbers to different numbers. They are splitmix64's, and
    # take a thousandth of the time of importing hashlib.
    mixed = tgid ^ _KEY
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _64_BITS
    return mixed ^ (mixed >> 31)


def parent_of(process: Tgid) -> Tgid:
    """The ID of a process's parent; 0 if the parent is outside this pid namespace.

    Raises:
        OSError: ESRCH if there is no such process.
    """
    return ThreadStatus(process).parent


def numbers_in(proc: int, tid: int) -> tuple[int, int]:
    """The IDs of a thread's process and of the thread in the pid namespace of a ``/proc``.

    Args:
        proc: a descriptor of its root directory.
        tid: the thread's ID in the supervisor's namespace.

    Raises:
        OSError: ESRCH if there is no such thread, or it is not in that namespace.
    """
    status = ThreadStatus(tid)
    processes, threads = status[b"NStgid"].split(), status[b"NSpid"].split()
    for level, process in enumerate(processes):
        # The status has the IDs from that namespace inwards.
        with contextlib.suppress(OSError):
            found = ThreadStatus(process.decode(), f"/proc/self/fd/{proc}")
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
    """Whether a thread has the supervisor's namespace of a kind ("mnt"), as far as is known."""
    try:
        return os.stat(f"/proc/{tid}/ns/{kind}").st_ino == _own_namespace(kind)
    except OSError:
        return False


@functools.cache
def _own_namespace(kind: str) -> int:
    """The inode number of the supervisor's namespace."""
    return os.stat(f"/proc/self/ns/{kind}").st_ino


def umask_of(tid: int) -> int:
    """A thread's umask. OSError: ESRCH if there is no such thread."""
    return ThreadStatus(tid).number(b"Umask", 8)


class Tasks:
    """The records, by thread ID."""

    def __init__(self) -> None:
        self._lock = new_lock("Tasks")
        self._tasks: dict[Tid, Task] = {}
        self._ends = ThreadEnds()
        self._own = own_rights()
        self._acting: dict[Rights, Acting] = {}
        self.alike = True
        """Whether all programs have the supervisor's rights, as far as has been seen.

        A thread that has made a user namespace by clone3(2) is not seen until it executes
        something. So this is good enough for leaving a path to the kernel, but not for opening a
        file."""

        self._begun: set[Tgid] = set()
        """The sandbox's programs from which all others descend."""
        self._restricted: set[Tgid] = set()
        """Processes that have restricted themselves by landlock_restrict_self(2)."""

    def get(self, tid: Tid) -> Task:
        """The thread's record. It is made if there is none yet.

        Raises:
            OSError: ESRCH if there is no such thread.
        """
        if monotonic() > self._ends.known_until and self._ends.some():
            self.forget_ended()
        task = self._tasks.get(tid)
        if task is None:
            with self._lock:
                kept = self._ends.watch(tid)
                task = self._read(tid)
                if kept:
                    self._tasks[tid] = task
        return task

    def _read(self, tid: Tid) -> Task:
        """Read a thread's identity from ``/proc/TID/status``.

        Raises:
            OSError: ESRCH if there is no such thread.
        """
        status = ThreadStatus(tid)
        uids = [int(uid) for uid in status[b"Uid"].split()]
        gids = [int(gid) for gid in status[b"Gid"].split()]
        groups = frozenset(int(group) for group in status[b"Groups"].split())
        effective, permitted = status.number(b"CapEff", 16), status.number(b"CapPrm", 16)
        if effective | permitted and not in_our_namespace(tid, "user"):
            # Root in another user namespace has no power over the files of this one.
            effective = permitted = 0
        tgid = status.tgid
        at_access = 0 if uids[0] else permitted
        in_order = tuple(sorted(groups))
        rights = Rights(uids[3], gids[3], uids[1], gids[1], in_order, effective)
        real_rights = Rights(uids[0], gids[0], uids[0], gids[0], in_order, at_access)
        acting = self.acting_as(rights)
        return Task(
            tid=tid,
            tgid=tgid,
            owner=lock_owner(tgid),
            credentials=_credentials(uids[3], gids[3], groups, effective),
            real_credentials=_credentials(uids[0], gids[0], groups, at_access),
            writable=WritableMap(tid),
            rights=rights,
            acting=acting,
            real_rights=real_rights,
            has_ours=acting is None and real_rights.include(self._own.rights),
        )

    def acting_as(self, rights: Rights) -> Acting | None:
        """Lets a supervisor's thread use these rights; None if no less than the supervisor's."""
        if rights.include(self._own.rights):
            return None
        acting = self._acting.get(rights)
        if acting is None:
            if len(self._acting) >= _MOST_RIGHTS:
                self._acting.clear()
            acting = self._acting[rights] = Acting(self._own, rights)
        return acting

    def begins(self, process: Tgid) -> None:
        """All programs will descend from this process, which is about to execute the first one.

        Raises:
            OSError: ESRCH if it is gone.
        """
        self._begun.add(process)
        if self._read(process).acting is not None:
            self.alike = False

    def check_confinement(self, tid: Tid) -> None:
        """Raise EACCES if a security module may give a thread less than it gives the supervisor.

        What Landlock allows a program cannot be found out.
        """
        if self._restricted and self._may_be_restricted(tid):
            raise os_error(errno.EACCES)
        if labels_of(str(tid)) != labels_of("thread-self"):
            raise os_error(errno.EACCES)

    def restrict(self, tid: Tid) -> None:
        """The thread is about to restrict itself and its descendants by Landlock."""
        self._restricted.add(self.get(tid).tgid)

    def _may_be_restricted(self, tid: Tid) -> bool:
        process = self.get(tid).tgid
        while process > 1:
            if process in self._restricted:
                return True
            if process in self._begun:
                return False
            process = parent_of(process)
        return True  # its parents have ended, and one may have been restricted

    def change(self, tid: Tid) -> None:
        """The thread's credentials are about to change."""
        self.alike = False
        self.forget(tid)

    def forget(self, tid: Tid) -> None:
        """What is known of the thread may no longer be true."""
        if tid in self._tasks:
            with self._lock:
                self._tasks.pop(tid, None)

    def forget_process(self, tid: Tid) -> None:
        """The thread's process is about to get a new memory image."""
        if not self._tasks:
            return
        with self._lock:
            task = self._tasks.get(tid)
            tgid = task.tgid if task else Tgid(tid)
            if task is None:  # the thread may be new, but its process known
                with contextlib.suppress(OSError):
                    tgid = ThreadStatus(tid).tgid
            for other in [task.tid for task in self._tasks.values() if task.tgid == tgid]:
                self._drop(other)

    def forget_ended(self) -> None:
        """Forget threads that have ended: their IDs may be used again."""
        with self._lock:
            for tid in self._ends.take():
                self._drop(tid)

    def _drop(self, tid: Tid) -> None:
        self._ends.forget(tid)
        self._tasks.pop(tid, None)

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tasks.clear()
            self._ends.close()
