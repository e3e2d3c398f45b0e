"""The event loop that ``async def`` handlers run on: one for all sessions, in a thread of its own.

It starts with the first coroutine and stops when the last session that ran one has closed.
Imported with the first coroutine as well: programs with plain methods do without asyncio.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from recuse.server.exchange import Exchange

Done = Callable[[Any, BaseException | None], None]
"""Called once, with what a handler returned or with what it raised."""


class Tasks:
    """The tasks of one session, on the shared loop."""

    def __init__(self) -> None:
        self.loop = _acquire()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    def start(self, exchange: Exchange, awaitable: Awaitable[Any], done: Done) -> None:
        """Run a handler's coroutine as a task.  ``done`` is called in the loop's thread.

        The task is cancelled at once if the exchange is interrupted already.
        Raises RuntimeError if the loop has stopped.
        """

        def begin() -> None:
            task = self.loop.create_task(_outcome(awaitable))
            exchange.task = task
            self._tasks.add(task)
            task.add_done_callback(finish)
            if exchange.interrupted or self._ending:
                task.cancel()

        def finish(task: asyncio.Task[tuple[Any, BaseException | None]]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                # Before its first step: `_outcome` would have caught it.
                _discard(awaitable)
                done(None, asyncio.CancelledError())
            else:
                done(*task.result())

        try:
            # The callback, and so the task, run in a copy of this thread's context, which has
            # the current request.
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError:
            _discard(awaitable)
            raise

    def interrupt(self, exchange: Exchange) -> None:
        """Cancel the exchange's task, if it has one by now."""
        task = exchange.task
        if task is not None:
            self.loop.call_soon_threadsafe(task.cancel)

    async def end(self) -> None:
        """Cancel all tasks, those included that begin from now on, and wait for them."""
        self._ending = True
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def in_loop(self) -> bool:
        """Whether the calling thread is the loop's."""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    def wait(self, awaitable: Awaitable[Any], timeout_s: float) -> None:
        """Wait in another thread for an awaitable.  Raises TimeoutError."""
        asyncio.run_coroutine_threadsafe(_plain(awaitable), self.loop).result(timeout_s)

    def release(self) -> None:
        """Give the loop up."""
        _release()


def is_cancellation(error: BaseException) -> bool:
    """Whether a task's end is that it was cancelled."""
    return isinstance(error, asyncio.CancelledError)


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Return what it returns, or what it raises.

    A task that raises KeyboardInterrupt or SystemExit would stop the loop for all.
    """
    try:
        return await awaitable, None
    except BaseException as error:
        return None, error


async def _plain(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _discard(awaitable: Awaitable[Any]) -> None:
    """Forget a coroutine that has not begun, without Python's warning that it never will."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


_lock = threading.Lock()
_running: tuple[threading.Thread, asyncio.AbstractEventLoop, asyncio.Event] | None = None
_users = 0


def _acquire() -> asyncio.AbstractEventLoop:
    global _running, _users
    with _lock:
        if _running is None:
            started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
            # A daemon, so that a program which forgets to close a session can still exit: the
            # interpreter waits for other threads before it runs what is registered with atexit.
            thread = threading.Thread(
                target=lambda: asyncio.run(_serve(started)),
                name="recuse async handlers",
                daemon=True,
            )
            thread.start()
            _running = (thread, *started.result())
        _users += 1
        return _running[1]


def _release() -> None:
    global _users
    with _lock:
        _users -= 1
        last = _users == 0
    if last:
        _stop()


async def _serve(started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
    stop = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()


@atexit.register
def _stop() -> None:
    global _running
    with _lock:
        if _running is None:
            return
        thread, loop, stop = _running
        _running = None
    loop.call_soon_threadsafe(stop.set)
    if thread is not threading.current_thread():
        thread.join()
