"""A program's thread in a system call, as the kernel's half of filesystems sees it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING

from recuse.kernel.fs.credentials import CAP_FSETID, FileCaller
from recuse.sandbox.tasks.memory import CallerMemory
from recuse.sandbox.tasks.tasks import umask_of

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
    from recuse.sandbox.tasks.rights import Rights
    from recuse.sandbox.tasks.tasks import Task
    from recuse.sandbox.trap.call import TrappedCall


class ThreadCaller(FileCaller):
    """A thread of a program."""

    __slots__ = ()

    def size_limit(self) -> int | None:
        """See `FileCaller`. None also if the supervisor may not ask: for another user's thread."""
        try:
            limit = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)[0]
        except (PermissionError, ProcessLookupError):
            return None
        return None if limit == resource.RLIM_INFINITY else limit

    def signal_size_limit(self) -> None:
        """See `FileCaller`."""
        send_signal(self.pid, signal.SIGXFSZ)


def send_signal(tid: int, number: int) -> None:
    """Send a thread a signal. It gets that when its call is answered, as it cannot before."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.kill(tid, number)  # this thread gets it, unless it blocks the signal


def looker(call: TrappedCall, *, real: bool = False) -> FileCaller:
    """Who makes a call that only looks, without its memory; the same for all calls of a thread.

    ``real``: with the thread's real IDs, as access(2) is made. OSError: ESRCH if it is gone.
    """
    task = call.task
    if real:
        return _of_task(task, task.real_rights)
    if task.looker is None:
        task.looker = _of_task(task, task.rights)
    return task.looker


def _of_task(task: Task, rights: Rights) -> ThreadCaller:
    return ThreadCaller(
        task.tid,
        rights.uid,
        rights.gid,
        groups=rights.groups,
        capabilities=rights.capabilities,
        umask=0,
        owner=task.owner,
        tgid=task.tgid,
    )


def caller_of(call: TrappedCall, *, creates: bool = False) -> FileCaller:
    """Who makes a call.

    Args:
        call: the call.
        creates: the call may make a file, so the umask is needed.

    Raises:
        OSError: ESRCH if the thread is gone.
    """
    caller = call.file_caller
    if caller is None:
        memory = CallerMemory(call.trap.listener, call.id, call.tid, call.task.writable)
        caller = call.file_caller = looker(call).with_memory(memory)
    if creates:
        caller.umask = umask_of(call.tid)
    return caller


def of_files(caller: Caller) -> FileCaller:
    """A caller who only reads and writes what is open."""
    return ThreadCaller(
        caller.pid,
        caller.uid,
        caller.gid,
        capabilities=CAP_FSETID if caller.keeps_suid else 0,
        owner=caller.owner,
        memory=caller.memory,
    )
