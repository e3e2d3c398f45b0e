"""The event loop that ``async def`` handlers run on: one for all sessions, in a thread of its own.

It starts with the first coroutine and stops when the last session that ran one has closed. This
module is imported with the first coroutine too, so programs with plain methods need no asyncio.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import inspect
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log, report
from recuse.runtime.records import NamedTuple
from recuse.runtime.room import check_room
from recuse.server.arrivals import Arrivals
from recuse.server.pending_reply import PendingReply, discard

log = Log("recuse.server")

STOP_WAIT_S = 5.0
"""How long to wait for the loop's tasks to end after they were cancelled."""

_PAUSE_S = 0.01

Done = Callable[[Any, BaseException | None], None]
"""Called once, with what a handler returned or raised."""


class Tasks:
    """The tasks of one session, on the shared loop, which it holds until `release`."""

    def __init__(self) -> None:
        self.loop, self._arrivals = shared.acquire()
        self._tasks: dict[asyncio.Task[Any], PendingReply | None] = {}
        self._ending = False

    def start(self, awaitable: Awaitable[Any], done: Done, pending: PendingReply | None) -> bool:
        """Run a handler's coroutine as a task; return False if the loop has stopped.

        ``done`` is called in the loop's thread. The task is cancelled by `end`, and if its request
        is interrupted, even before this call. A task without a request is never cancelled.
        """

        def begin() -> None:
            running = self._run(awaitable, done, pending)
            try:
                task = self.loop.create_task(running, context=context)
            except MemoryError as error:
                running.close()
                discard(awaitable)
                done(None, error)
                return
            self._tasks[task] = pending
            if pending is not None:
                pending.task = task

        # This thread's context has the current request.
        context = copy_context()
        try:
            self._arrivals.call(begin)
        except RuntimeError:
            return False
        return True

    # The task tells of its end itself, as a callback of the loop's would run a turn later. So it
    # must not be cancelled before its first step.

    async def _run(
        self, awaitable: Awaitable[Any], done: Done, pending: PendingReply | None
    ) -> None:
        outcome: tuple[Any, BaseException | None]
        if pending is not None and (pending.interrupted or self._ending):
            discard(awaitable)
            outcome = None, asyncio.CancelledError()
        else:
            try:
                outcome = await awaitable, None
            except BaseException as error:
                # If the task raised KeyboardInterrupt or SystemExit, the loop would stop for all.
                outcome = None, error
        task = asyncio.current_task()
        assert task is not None
        self._tasks.pop(task, None)
        done(*outcome)

    def interrupt(self, pending: PendingReply) -> None:
        """Cancel the request's task, if it has one by now."""
        task = pending.task
        if task is not None:
            # RuntimeError: the loop has just ended, and so has the task.
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(task.cancel)

    def has_cancelled(self, pending: PendingReply, error: BaseException) -> bool:
        """Whether the request's task raised ``error`` because it was cancelled from here."""
        return (
            isinstance(error, asyncio.CancelledError)
            and pending.task is not None
            and (pending.interrupted or self._ending)
        )

    async def end(self) -> None:
        """Cancel the tasks, including those that begin from now on, and wait for all."""
        self._ending = True
        for task, pending in self._tasks.items():
            coroutine = task.get_coro()
            assert inspect.iscoroutine(coroutine)
            if pending is not None and inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED:
                task.cancel()
        while tasks := self._tasks.keys() - {asyncio.current_task()}:
            await asyncio.wait(tasks)

    def in_loop(self) -> bool:
        """Whether the calling thread is the loop's."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def wait(self, awaitable: Awaitable[Any], timeout_s: float) -> bool:
        """Wait in another thread for an awaitable; return whether it ended in time.

        Raises what the awaitable raises; RuntimeError if the loop has stopped.
        """

        async def wait() -> None:
            await awaitable

        waiting = wait()
        try:
            future = asyncio.run_coroutine_threadsafe(waiting, self.loop)
        except RuntimeError:
            waiting.close()
            discard(awaitable)
            raise
        try:
            future.result(timeout_s)
        except TimeoutError:
            if future.done():
                raise
            return False
        return True

    def release(self) -> None:
        """Give up the loop."""
        shared.release()


class SharedLoop:
    """The loop, while sessions use it."""

    def __init__(self) -> None:
        self._lock = new_lock("server.loop")
        self._running: tuple[threading.Thread, _Started] | None = None
        self._users = 0
        self._told_of_lack = False

    @property
    def running(self) -> bool:
        """Whether the loop is running."""
        return self._running is not None

    def acquire(self) -> tuple[asyncio.AbstractEventLoop, Arrivals]:
        """Start the loop if it is not running.

        Raises OSError: EAGAIN if no thread can be started for it, or the error of making its
        descriptors.
        """
        with self._lock:
            if self._running is None:
                try:
                    self._running = _start()
                except OSError as error:
                    if not self._told_of_lack:
                        self._told_of_lack = True
                        log.error("async handlers cannot run: %s", error.strerror)
                    raise
                self._told_of_lack = False
            self._users += 1
            started = self._running[1]
            return started.loop, started.arrivals

    def release(self) -> None:
        """Give up the loop; the last user stops it."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.stop()

    def stop(self) -> None:
        """Stop the loop, even if sessions still use it."""
        with self._lock:
            if self._running is None:
                return
            thread, (loop, _, stop) = self._running
            self._running = None
        loop.call_soon_threadsafe(stop.set)
        if thread is not threading.current_thread():
            thread.join(STOP_WAIT_S)
            if thread.is_alive():
                log.error(
                    "the event loop has not ended after %s s: a handler still runs", STOP_WAIT_S
                )


shared = SharedLoop()
atexit.register(shared.stop)


class _Started(NamedTuple):
    """A loop that runs."""

    loop: asyncio.AbstractEventLoop
    arrivals: Arrivals
    stop: asyncio.Event


def _start() -> tuple[threading.Thread, _Started]:
    started: Future[_Started] = Future()
    # A daemon thread, so that a program which forgets to close a session can still exit: the
    # interpreter waits for other threads before it runs the functions registered with atexit.
    thread = threads.start(_run, started, name="recuse-async")
    try:
        return thread, started.result()
    except OSError as error:
        # Raised in the other thread. EMFILE would look like a problem of the program's.
        number = errno.ENFILE if error.errno == errno.EMFILE else error.errno
        raise OSError(number, error.strerror) from error
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error


def _check_room() -> None:
    """Raise OSError if there are too few descriptors for a loop: it would be left half made.

    A loop has an epoll, an eventfd and a socket pair. One that is half made raises again when it is
    deleted.
    """
    first, second = socket.socketpair()
    with first, second, Arrivals() as arrivals:
        check_room(arrivals.fileno())


def _run(started: Future[_Started]) -> None:
    try:
        _check_room()
        arrivals = Arrivals()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(arrivals)) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(_tell)
            stop = asyncio.Event()
            waiting = loop.create_task(_wait(stop))
            started.set_result(_Started(loop, arrivals, stop))
            while not (waiting.done() or loop.is_closed()):
                try:
                    loop.run_until_complete(waiting)
                except BaseException as error:
                    # A callback's SystemExit, for example. It must not end the shared loop.
                    report(error)
                    time.sleep(_PAUSE_S)
            if not loop.is_closed():
                # What is left begins before the runner cancels it.
                loop.run_until_complete(asyncio.sleep(0))
    except BaseException as error:
        if started.done():
            report(error)
        else:
            started.set_exception(error)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a callback or a forgotten task has raised, as the loop does by default.

    The loop continues, whatever happens while logging.
    """
    try:
        loop.default_exception_handler(context)
    except BaseException as error:
        report(error)
