"""Calls an author's methods, and makes sure that each request gets its answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Container, Iterator
from typing import TYPE_CHECKING, Any

from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.runtime.threads import LAST_THREADS, must_not_block
from recuse.server.device import File
from recuse.server.dispatch import poll_answer
from recuse.server.errors import Misuse
from recuse.server.ioctl_retries import IoctlCall
from recuse.server.memory import MoreMemory
from recuse.server.pending_reply import PendingReply, answer_fault, discard
from recuse.server.request import CURRENT
from recuse.wire.cuse import RECUSE_MUNMAP
from recuse.wire.fuse import FUSE_OPEN, FUSE_POLL, FUSE_RELEASE
from recuse.wire.poll import DEFAULT_POLLMASK

if TYPE_CHECKING:
    from recuse.server.loop import Done, Tasks

log = Log("recuse.server")

CLOSE_WAIT_S = 5.0
"""How long `Runner.end` waits for handlers that it has cancelled."""

_ERRNO_END = 512
"""Errnos are below this. From here up are the kernel's internal numbers (ERESTARTSYS)."""

_NAMED = {
    BlockingIOError: errno.EAGAIN,
    BrokenPipeError: errno.EPIPE,
    ChildProcessError: errno.ECHILD,
    ConnectionAbortedError: errno.ECONNABORTED,
    ConnectionRefusedError: errno.ECONNREFUSED,
    ConnectionResetError: errno.ECONNRESET,
    FileExistsError: errno.EEXIST,
    FileNotFoundError: errno.ENOENT,
    InterruptedError: errno.EINTR,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    PermissionError: errno.EACCES,
    ProcessLookupError: errno.ESRCH,
}
"""Exceptions that are raised without the errno that their name says.

Not TimeoutError: asyncio and futures raise it as well, and then it is no answer that was meant.
"""

Answer = Callable[[Any, Any], bytes | int | Awaitable[bytes]]
"""Makes an answer's payload from what a method returned and the context given to `Runner.run`.

It may also return an errno, which is quicker than to raise it, or an awaitable of the payload.

Raises Misuse if the author's method returned something invalid.
"""


_MADE = (bytes, int)
"""What an answer is when there is nothing left to wait for."""

Step = tuple[Callable[..., Any], Awaitable[Any]]
"""A method that was called, and what it returned."""


class Runner:
    """The running handlers of one session."""

    def __init__(
        self,
        undelivered: Callable[[PendingReply, bytes], None],
        failed: Callable[[PendingReply], None],
        *,
        refuses_enosys: Container[int] = (FUSE_OPEN,),
    ) -> None:
        """Make it.

        ``undelivered`` is called for successes that the other end does not accept, ``failed`` for
        requests that were answered with an error. Methods may not answer the opcodes in
        ``refuses_enosys`` with ENOSYS, as the kernel half would remember it for ever.
        """
        self._refuses_enosys = refuses_enosys
        self._undelivered = undelivered
        self._after_failure = failed
        self._running: dict[int, PendingReply] = {}
        self._lock = new_lock("Runner")
        self._tasks: Tasks | None = None
        self._ending: Awaitable[None] | None = None
        self._ended = False

    def run(
        self,
        pending: PendingReply,
        method: Callable[..., Any],
        answer: Answer,
        context: Any,
        *arguments: Any,
    ) -> None:
        """Call ``method`` and answer with ``answer(what it returned, context)``.

        If it is ``async def``, this happens later, on the event loop.
        """
        if LAST_THREADS and must_not_block() and _may_block(pending.opcode, method):
            pending.fail(errno.EAGAIN)
            self._after_failure(pending)
            return
        self._running[pending.unique] = pending
        token = CURRENT.set(pending)
        try:
            try:
                returned = method(*arguments)
            except MoreMemory:
                # It has not finished, and `answer` knows what is missing.
                returned = None
            if not isinstance(returned, _MADE) and hasattr(returned, "__await__"):
                self._run_later(pending, method, answer, context, returned)
                return
            payload = answer(returned, context)
            if not isinstance(payload, _MADE):
                self._run_later(pending, method, _as_it_is, None, payload)
                return
        except BaseException as error:
            del self._running[pending.unique]
            self._failed(pending, method, error)
            return
        finally:
            CURRENT.reset(token)
        del self._running[pending.unique]
        self._reply(pending, payload)

    def _reply(self, pending: PendingReply, payload: bytes | int) -> None:
        if isinstance(payload, int):
            pending.fail(payload)
            self._after_failure(pending)
        elif not pending.reply(payload):
            self._undelivered(pending, payload)

    def interrupt(self, unique: int) -> bool:
        """Interrupt the handler of a request; return whether there is one."""
        pending = self._running.get(unique)
        if pending is None:
            return False
        pending.interrupted = True
        if self._tasks is not None:
            self._tasks.interrupt(pending)
        return True

    def quietly(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method whose result nobody waits for; return its awaitable, if it returned one."""
        try:
            returned = method(*arguments)
        except BaseException as error:
            self._log(method, error)
            return None
        return returned if hasattr(returned, "__await__") else None

    def forgiving(self, method: Callable[..., Any], *arguments: Any) -> Awaitable[None] | None:
        """Call a method whose failure changes nothing; what it raises is logged.

        If it is ``async def``, return an awaitable that raises no Exception.
        """
        awaitable = self.quietly(method, *arguments)
        return None if awaitable is None else self._forgive(method, awaitable)

    async def _forgive(self, method: object, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except Exception as error:
            self._log(method, error)

    def complain(self, method: object, error: BaseException) -> None:
        """Log what a method raised, unless it stands for an errno."""
        if errno_of(error) is None:
            self._log(method, error)

    def quietly_later(self, method: Callable[..., Any], *arguments: Any) -> None:
        """Call a method that nobody waits for, even if it is ``async def``."""

        def done(_: Any, error: BaseException | None) -> None:
            if error is not None:
                self._log(method, error)

        awaitable = self.quietly(method, *arguments)
        if awaitable is None:
            return
        try:
            if not self._start(awaitable, done, None):
                log.error("%s did not run: the session has ended", label(method))
        except OSError as error:
            log.error("%s did not run: %s", label(method), error.strerror)

    def end(self, steps: Callable[[], Iterator[Step]]) -> None:
        """Cancel the handlers that run on the loop, then run ``steps`` to their end.

        What the steps yield is awaited. All this has ended when this returns, except in the loop's
        thread, which cannot wait for itself.
        """
        tasks = self._tasks
        if tasks is not None and tasks.in_loop():
            # Keep a reference, as a loop has only weak ones.
            self._ending = tasks.loop.create_task(self._end_in_loop(tasks, steps))
            return
        if tasks is not None and not tasks.loop.is_closed():
            self._wait(tasks, tasks.end, tasks.end())
        for method, awaitable in steps():
            try:
                tasks = self._loop()
            except OSError as error:
                discard(awaitable)
                log.error("%s did not run: %s", label(method), error.strerror)
                continue
            if tasks is not None:
                self._wait(tasks, method, awaitable)
        self._give_up_loop()

    async def _end_in_loop(self, tasks: Tasks, steps: Callable[[], Iterator[Step]]) -> None:
        await tasks.end()
        for method, awaitable in steps():
            try:
                await awaitable
            except BaseException as error:
                self._log(method, error)
        self._give_up_loop()

    def _wait(self, tasks: Tasks, method: object, awaitable: Awaitable[Any]) -> None:
        try:
            if not tasks.wait(awaitable, CLOSE_WAIT_S):
                log.error("%s has not ended after %s s", label(method), CLOSE_WAIT_S)
        except BaseException as error:
            self._log(method, error)

    def _run_later(
        self,
        pending: PendingReply,
        method: Callable[..., Any],
        answer: Answer,
        context: Any,
        awaitable: Awaitable[Any],
    ) -> None:
        def done(returned: Any, error: BaseException | None) -> None:
            try:
                finish(returned, error)
            except BaseException as caught:  # there may be no memory
                answer_fault(pending, caught)

        def finish(returned: Any, error: BaseException | None) -> None:
            self._running.pop(pending.unique, None)
            try:
                if error is not None and not isinstance(error, MoreMemory):
                    raise error
                made = answer(returned, context)
                if not isinstance(made, _MADE):
                    self._running[pending.unique] = pending
                    self._run_later(pending, method, _as_it_is, None, made)
                    return
                payload = made
            except BaseException as caught:
                self._failed(pending, method, caught)
            else:
                self._reply(pending, payload)

        if not self._start(awaitable, done, pending):
            del self._running[pending.unique]
            pending.fail(errno.ECONNABORTED)

    def _start(self, awaitable: Awaitable[Any], done: Done, pending: PendingReply | None) -> bool:
        """Have the loop await something; return whether it will.

        Raises OSError if no loop can be made: EAGAIN if there is no thread for it, and EMFILE.
        """
        try:
            tasks = self._loop()
        except BaseException:
            discard(awaitable)
            raise
        if tasks is not None and tasks.start(awaitable, done, pending):
            return True
        discard(awaitable)
        return False

    def _loop(self) -> Tasks | None:
        """Return the tasks, acquiring the loop if necessary; None after the end."""
        with self._lock:
            if self._tasks is None and not self._ended:
                try:
                    from recuse.server.loop import Tasks  # noqa: PLC0415

                    self._tasks = Tasks()
                except MemoryError as error:
                    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
            return self._tasks

    def _give_up_loop(self) -> None:
        with self._lock:
            self._ended = True
            tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.release()

    def _failed(
        self, pending: PendingReply, method: Callable[..., Any], error: BaseException
    ) -> None:
        """Answer for a method that raised ``error``; only after that, log what has to be logged."""
        complaint: str | None = None
        logged = False
        stands_for = errno_of(error)
        if stands_for is not None:
            number = stands_for
            logged = pending.opcode in (FUSE_RELEASE, RECUSE_MUNMAP)
            if number == errno.ENOSYS and pending.opcode in self._refuses_enosys:
                if pending.opcode == FUSE_POLL:
                    # As if there were no method, for this file alone.
                    pending.reply(poll_answer(DEFAULT_POLLMASK, None))
                    return
                # The kernel half would never send such a request again.
                complaint = "%s raised ENOSYS: EIO for the program"
                number = errno.EIO
        elif self._tasks is not None and self._tasks.has_cancelled(pending, error):
            number = errno.EINTR if pending.interrupted else errno.ECONNABORTED
        else:
            number = errno.EIO
            logged = True
        pending.fail(number)
        self._after_failure(pending)
        if complaint is not None:
            log.error(complaint, label(method))
        elif logged:
            self._log(method, error)

    def _log(self, method: object, error: BaseException) -> None:
        """Report a failure to the author: misuse in one line, others with the traceback."""
        if isinstance(error, Misuse):
            log.error("%s %s: EIO for the program", label(method), error)
            return
        what = type(error).__name__
        if isinstance(error, OSError) and errno_of(error) is None:
            what = f"{what} with errno {error.errno}, which is not one"
        log.error("%s raised %s", label(method), what, exc_info=error)


def _as_it_is(payload: bytes, _: object) -> bytes:
    return payload


def errno_of(error: BaseException) -> int | None:
    """Return the errno that an answer to the program may carry for ``error``, 1 to 511, or None."""
    if not isinstance(error, OSError):
        return None
    number = error.errno
    if number is None:
        return next((number for kind, number in _NAMED.items() if isinstance(error, kind)), None)
    return number if isinstance(number, int) and 0 < number < _ERRNO_END else None


_NEVER_REFUSED = frozenset({FUSE_POLL, FUSE_RELEASE, RECUSE_MUNMAP})
"""Methods that never wait, or that must be reached."""

_CO_COROUTINE = 0x180  # of inspect: CO_COROUTINE | CO_ITERABLE_COROUTINE


def _may_block(opcode: int, method: object) -> bool:
    """Whether a method may block the thread that calls it: a plain one of the author's."""
    if opcode in _NEVER_REFUSED:
        return False
    owner = getattr(method, "__self__", None)
    if isinstance(owner, IoctlCall):
        method = owner.method
    function = getattr(method, "__func__", method)
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & _CO_COROUTINE:
        return False
    return getattr(function, "__module__", None) != File.__module__


def label(method: object) -> str:
    """Return "Class.method", with the class of the object rather than the one that defines it."""
    owner = getattr(method, "__self__", None)
    if isinstance(owner, IoctlCall):
        return owner.label
    name = getattr(method, "__name__", type(method).__name__)
    return name if owner is None else f"{type(owner).__name__}.{name}"
