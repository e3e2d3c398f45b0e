"""The rights with which the supervisor touches files: never more than the program has.

Most programs have the supervisor's own rights, and nothing needs to be done. For the others, a
thread of the supervisor acts as the program for a moment: with its user, group, groups and
effective capabilities. So the kernel itself decides about modes, access control lists, owners and
everything else. Each thread has its own rights. The C library's functions of these names would
change all threads, so bare system calls are made (credentials(7), kernel/cred.c; Linux 6.1).

Of a thread's IDs, the filesystem and the effective ones are changed. The kernel decides by the
effective ones too: into whose user namespaces a thread may look (security/commoncap.c,
cap_capable), and which files below /proc/sys it may write (fs/proc/proc_sysctl.c, test_perm). The
real and saved IDs stay. By these it decides who may signal or trace a thread, so a program of that
user can do neither to the supervisor.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar

from recuse.kernel.errors import os_error
from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.runtime.records import NamedTuple
from recuse.sandbox.arch import arch
from recuse.sandbox.tasks.status import ThreadStatus

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_CLONE_FS: Final = 0x200

_CAPABILITY_VERSION: Final = 0x20080522
_CAPABILITY_HEADER: Final = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
_CAPABILITY_DATA: Final = struct.Struct("=6I")
_CHANGE_IDS: Final = 1 << 6 | 1 << 7
"""CAP_SETGID and CAP_SETUID (linux/capability.h)."""
_32_BITS: Final = 0xFFFFFFFF
_SAME: Final = 0xFFFFFFFF
"""Not a valid ID: with it, setfsuid only returns the current one, and others stay unchanged."""

_PAUSE_S: Final = 0.01

_log = Log("recuse.sandbox")

# None of these waits: no other thread that needs the interpreter can run in between.
_libc = ctypes.PyDLL(None, use_errno=True)
_call = _libc.syscall
_SETGROUPS: Final = arch.SYSCALLS["setgroups"]
_SET_USER: Final = arch.SYSCALLS["setresuid"], arch.SYSCALLS["setfsuid"]
_SET_GROUP: Final = arch.SYSCALLS["setresgid"], arch.SYSCALLS["setfsgid"]
_CAPSET: Final = arch.SYSCALLS["capset"]

T = TypeVar("T")


class LostRightsError(BaseException):
    """A thread of the supervisor could not get its own rights back, and must serve nobody any more.

    The code that holds its call answers the call, and then calls :meth:`stop`.
    """

    def stop(self) -> None:
        """Never return. Another thread takes over meanwhile."""
        _log.error("one of recuse's threads cannot get its own rights back, and stops serving")
        threading.Event().wait()


class Rights(NamedTuple):
    """What a thread touches files with (credentials(7)), in the supervisor's user namespace."""

    uid: int
    """The filesystem user ID, which follows the effective one."""
    gid: int
    euid: int
    egid: int
    groups: tuple[int, ...]
    """Sorted."""
    capabilities: int
    """The effective capabilities, as bits."""

    def include(self, others: Rights) -> bool:
        """Whether these rights include all the others, as far as files are concerned."""
        return self[:5] == others[:5] and not others.capabilities & ~self.capabilities


class OwnRights(NamedTuple):
    """The supervisor's rights."""

    rights: Rights
    permitted: int
    inheritable: int
    dumpable: bool
    """Whether others of its user may look into it. A change of IDs takes that away (prctl(2))."""


def labels_of(thread: str) -> tuple[bytes, ...]:
    """What security modules call a thread, by its name in ``/proc``; empty if there are none.

    SELinux, AppArmor and others decide by that, and the supervisor's threads cannot take it on.
    """
    labels = []
    for name in ("current", "apparmor/current"):
        try:
            with open(f"/proc/{thread}/attr/{name}", "rb") as file:
                labels.append(file.read())
        except OSError:
            labels.append(b"")
    return tuple(labels)


def own_rights() -> OwnRights:
    """The rights of the calling thread."""
    status = ThreadStatus("thread-self")
    uids, gids = (status[name].split() for name in (b"Uid", b"Gid"))
    groups = tuple(sorted({int(group) for group in status[b"Groups"].split()}))
    uid, gid, euid, egid = (int(number) for number in (uids[3], gids[3], uids[1], gids[1]))
    rights = Rights(uid, gid, euid, egid, groups, status.number(b"CapEff", 16))
    dumpable = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 1
    permitted, inheritable = status.number(b"CapPrm", 16), status.number(b"CapInh", 16)
    return OwnRights(rights, permitted, inheritable, dumpable)


class _Capabilities:
    """Capability sets that a thread can be given."""

    def __init__(self, effective: int, permitted: int, inheritable: int) -> None:
        low = (effective & _32_BITS, permitted & _32_BITS, inheritable & _32_BITS)
        self._data = _CAPABILITY_DATA.pack(
            *low, *(bits >> 32 for bits in (effective, permitted, inheritable))
        )

    def take(self) -> None:
        _check(_call(_CAPSET, _CAPABILITY_HEADER, self._data))


class _Groups:
    """A list of groups that a thread can be given."""

    def __init__(self, groups: tuple[int, ...]) -> None:
        self._count = len(groups)
        self._array = (ctypes.c_uint32 * max(1, len(groups)))(*groups)

    def take(self) -> None:
        _check(_call(_SETGROUPS, self._count, self._array))


def _check(result: int) -> None:
    if result < 0:
        raise os_error(ctypes.get_errno())


class _IDs:
    """The effective and the filesystem ID of the user, or of the group, that a thread can be given.

    Changing the user takes effective capabilities away. Root gets all the permitted ones.
    """

    def __init__(
        self, numbers: tuple[int, int], effective: int, filesystem: int, capabilities: _Capabilities
    ) -> None:
        """Prepare.

        Args:
            numbers: of setresuid and setfsuid, or of setresgid and setfsgid.
            effective: the one ID.
            filesystem: the other.
            capabilities: what it takes to change them.
        """
        self._set, self._set_filesystem = numbers
        self._effective = effective
        self._filesystem = filesystem
        self._capabilities = capabilities

    def take(self) -> None:
        _check(_call(self._set, _SAME, self._effective, _SAME))
        if self._filesystem != self._effective:
            self._capabilities.take()
            _call(self._set_filesystem, self._filesystem)  # it does not say whether it failed
            if _call(self._set_filesystem, _SAME) & _32_BITS != self._filesystem:
                raise os_error(errno.EPERM)


class _Acts:
    """The threads that have other rights now."""

    def __init__(self) -> None:
        self.lock = new_lock("rights.acts")
        self._count = 0

    def begin(self) -> None:
        with self.lock:
            self._count += 1

    def end(self, own: OwnRights) -> None:
        """Let others look into this process again, which the kernel forbids after a change of IDs.

        This must wait while a thread has another effective user: its files in ``/proc`` would be
        that user's.
        """
        with self.lock:
            self._count -= 1
            if own.dumpable and not self._count:
                _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


_acts = _Acts()


class Acting:
    """In ``with`` blocks the calling thread has a program's rights, or its own if these are less.

    Any number of threads may use it at a time. Code in such a block must not start threads, and
    must call no code but the kernel's.
    """

    __slots__ = ("_can_go_back", "_fewer", "_many", "_own", "_steps", "_theirs", "brief")

    def __init__(self, own: OwnRights, theirs: Rights, *, keeps: int = 0) -> None:
        """Prepare. The thread keeps the supervisor's capabilities that are in ``keeps``."""
        self._own = own
        self._theirs = theirs
        had = own.rights
        # Capabilities that it may need again stay permitted.
        few = self._capabilities | had.capabilities & keeps
        self._fewer = _Capabilities(few, own.permitted, own.inheritable)
        self._many = _Capabilities(had.capabilities, own.permitted, own.inheritable)
        self._steps: list[tuple[Callable[[], object], Callable[[], object]]] = []
        """Pairs of functions: one takes something on, the other takes it back."""
        if theirs.groups != had.groups:
            self._steps.append((_Groups(theirs.groups).take, _Groups(had.groups).take))
        for numbers, ids, had_ids in (
            (_SET_GROUP, (theirs.egid, theirs.gid), (had.egid, had.gid)),
            (_SET_USER, (theirs.euid, theirs.uid), (had.euid, had.uid)),
        ):
            if ids != had_ids:
                both = (_IDs(numbers, *some, self._many).take for some in (ids, had_ids))
                self._steps.append((next(both), next(both)))
        self._can_go_back = not self._steps or not had.capabilities & _CHANGE_IDS & ~few
        self.brief = self if keeps else Acting(own, theirs, keeps=_CHANGE_IDS)
        """The same, except that the thread could change its IDs. That gives no power over files,
        but the thread is shown more of other users' processes. It takes two thirds of the time."""

    @property
    def _capabilities(self) -> int:
        return self._theirs.capabilities & self._own.rights.capabilities

    def __enter__(self) -> None:
        """Take the rights on.

        Raises:
            OSError: EACCES if this process may not. It has its own rights then.
        """
        _acts.begin()
        done = 0
        try:
            for take, _ in self._steps:
                take()
                done += 1
            # A change of the user also adds and removes some.
            self._fewer.take()
        except BaseException as error:
            self._return(done)
            if isinstance(error, OSError):
                raise os_error(errno.EACCES) from None
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take back the thread's own rights. Raises LostRightsError if that fails."""
        self._return(len(self._steps))

    def paused(self) -> _Paused:
        """For a ``with`` block inside such a block: the thread has its own rights in it."""
        return _Paused(self)

    def _return(self, done: int) -> None:
        """Undo the first ``done`` steps."""
        while True:
            try:
                if not self._can_go_back:
                    self._many.take()
                for _, take_back in reversed(self._steps[:done]):
                    take_back()
                self._many.take()
            except MemoryError:  # even this needs memory; wait until there is some
                time.sleep(_PAUSE_S)
            except OSError as error:
                raise LostRightsError(str(error)) from error
            else:
                break
        _acts.end(self._own)

    def become(self) -> None:
        """Take the rights on for good, in a thread that ends afterwards.

        What it opens remembers them, and no right to get others back (struct file, f_cred).

        Raises:
            OSError: EACCES if this process may not.
        """
        few = self._capabilities
        try:
            for take, _ in self._steps:
                take()
            _Capabilities(few, few, self._own.inheritable & few).take()
        except OSError:
            raise os_error(errno.EACCES) from None

    def unbecome(self) -> None:
        """Take back the supervisor's effective IDs, as far as possible."""
        had = self._own.rights
        _call(_SET_USER[0], _SAME, had.euid, _SAME)
        _call(_SET_GROUP[0], _SAME, had.egid, _SAME)


class _Paused:
    """See :meth:`Acting.paused`."""

    __slots__ = ("_acting",)

    def __init__(self, acting: Acting) -> None:
        self._acting = acting

    def __enter__(self) -> None:
        self._acting.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        self._acting.__enter__()


def in_own_thread(acting: Acting | None, umask: int, work: Callable[[int], T]) -> T:
    """Run ``work`` in a new thread that has a program's rights and umask, and then ends.

    Args:
        acting: whose rights it has; None for the supervisor's own.
        umask: for the files that it makes. Normally all threads of a process share one.
        work: what to do. It is given the bits that it must remove from a mode itself, in case the
            thread cannot have its own umask.

    Raises:
        OSError: EACCES if the rights cannot be taken on, EAGAIN if no thread can be started; what
            ``work`` raises.
    """
    if threads.must_not_block():
        raise threads.no_more()
    outcome: list[Any] = []

    def run() -> None:
        try:
            try:
                left = umask
                if _libc.unshare(_CLONE_FS) == 0:  # which containers may refuse
                    _libc.umask(umask)
                    left = 0
                if acting is not None:
                    acting.become()
                outcome.extend((work(left), None))
            finally:
                if acting is not None:
                    acting.unbecome()
        except BaseException as error:
            outcome.extend((None, error))

    if acting is not None:
        _acts.begin()
    try:
        threads.start(run, name="recuse-as-caller").join()
    finally:
        if acting is not None:
            _acts.end(acting._own)
    result, error = outcome
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]
