"""Runs the kernel half's operations to their end, in the thread that wants their result."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from weakref import WeakSet

from recuse.kernel.connection.operation import Operation, failure
from recuse.kernel.connection.request import Reply, Request
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.optable import OPERATIONS

if TYPE_CHECKING:
    from recuse.kernel.fs.credentials import FileCaller
    from recuse.kernel.fs.files import FilesystemFile

T = TypeVar("T")

Path = str | bytes


class _NoAnswer(TimeoutError):
    """Not to be confused with the filesystem's ETIMEDOUT."""


class Closable(Protocol):
    """An open file."""

    def close(self) -> None:
        """Close it, if that has not been done."""


class Driver:
    """Runs operations on one filesystem. Thread-safe."""

    def __init__(self, superblock: Superblock, timeout_s: float) -> None:
        self.superblock = superblock
        self.timeout_s: Final = timeout_s
        """How long the filesystem may take for one answer."""
        self._waiting: set[Request] = set()
        self._open: WeakSet[Closable] = WeakSet()
        self._lost: deque[tuple[FilesystemFile, FileCaller]] = deque()

    def run(self, operation: Operation[T], *paths: Path) -> T:
        """Return an operation's result.

        Raises OSError with the paths as ``filename`` and ``filename2``; TimeoutError if the
        filesystem does not answer in time, which also ends the connection.
        """
        if self._lost:
            self._close_lost()
        reply: Reply | None = None
        raised: OSError
        try:
            while True:
                request = operation.send(reply)  # type: ignore[arg-type]  # None starts it
                reply = self._reply(request)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except _NoAnswer as exception:
            raised = TimeoutError(*exception.args)
        except Exception as exception:
            error = failure(exception)
            raised = OSError(error.errno, error.strerror, *_names(paths))
        finally:
            operation.close()
            self.superblock.send_forgets()
        # Not from within the clause: what an exception remembers keeps inodes in use.
        raise raised

    def _reply(self, request: Request) -> Reply:
        connection = self.superblock.connection
        # First of all: whoever sees that the filesystem has it, may interrupt it.
        self._waiting.add(request)
        try:
            connection.submit(request)
            if request.reply is None:
                arrived = threading.Event()
                if connection.watch(request, lambda _: arrived.set()):
                    self._wait(request, arrived)
        finally:
            self._waiting.discard(request)
        assert request.reply is not None
        return request.reply

    def _wait(self, request: Request, arrived: threading.Event) -> None:
        connection = self.superblock.connection
        try:
            if arrived.wait(self.timeout_s):
                return
        except KeyboardInterrupt:
            connection.interrupt(request)
            raise
        connection.abort()
        operation = OPERATIONS.get(request.opcode)
        if operation is None:
            what = "this call has waited for another one for"
        else:
            what = f"no answer to {operation.name.removeprefix('FUSE_')} in"
        raise _NoAnswer(
            f"{what} {self.timeout_s:g} s: does a method wait for something that does not come? "
            "One that uses its own mount may wait for itself"
        )

    def opened(self, file: Closable) -> None:
        """Note a file that a test has opened."""
        self._open.add(file)

    def lost(self, file: FilesystemFile, caller: FileCaller) -> None:
        """Close a file that was dropped while it was open, with the next call.

        The collector may find it in any thread, whatever that thread has locked.
        """
        self._lost.append((file, caller))

    def _close_lost(self) -> None:
        while True:
            try:
                file, caller = self._lost.popleft()
            except IndexError:
                return
            for operation in (file.flush(caller), file.release()):
                with contextlib.suppress(OSError):
                    self.run(operation)

    def close_files(self) -> None:
        """Close all files that are still open."""
        self._close_lost()
        for file in list(self._open):
            with contextlib.suppress(OSError):
                file.close()

    def interrupt(self, fatal: bool) -> int:
        """Interrupt all requests that wait for their answer; return how many there were."""
        waiting = list(self._waiting)
        for request in waiting:
            self.superblock.connection.interrupt(request, fatal=fatal)
        return len(waiting)


def _names(paths: tuple[Path, ...]) -> tuple[Path | None, ...]:
    """The last arguments of an OSError about these paths."""
    if len(paths) == 2:
        return paths[0], None, paths[1]
    return paths
