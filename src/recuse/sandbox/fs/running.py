"""A mounted filesystem, and how operations on it are run for programs' calls.

What an operation needs is usually known already, and then nothing waits. If not, a handler that
only looks is left until the answer is there (`TrappedCall.ask`).
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Hashable
from typing import Final, TypeVar, cast

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.connection.request import Request
from recuse.kernel.connection.submit import ConnectionState
from recuse.kernel.fs.mapping import refresh
from recuse.kernel.fs.superblock import Superblock
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall
from recuse.wire.fuse import FUSE_DESTROY

T = TypeVar("T")

_serials: Final = itertools.count(-1, -1)
"""Devices have positive ones."""


class Mounted:
    """One filesystem. It is a `recuse.sandbox.trap.call.Served`."""

    def __init__(self, superblock: Superblock, files: FileTable) -> None:
        """Begin; ``files`` is the sandbox's table of open files."""
        self.superblock = superblock
        self.files = files
        self.serial: Final = next(_serials)
        self._detached = False
        self._ending = False
        self._settled_for = -1
        """The ID of the last call for which everything was released."""

    @property
    def connection(self) -> Connection:
        """The connection to the server."""
        return self.superblock.connection

    def detach(self) -> bool:
        """See `recuse.sandbox.vfs.filesystem_tree.FilesystemTree`."""
        self._detached = True
        self.closed()
        return self._ending and not self.connection.ended

    def closed(self) -> None:
        """A file may have been closed or unmapped: end if nothing is left of what is detached."""
        if (
            self._detached
            and not self._ending
            and not self.superblock.mapped
            and not self.files.has_closed(self)
            and not any(
                file.group is self and not file.end.hung_up()
                for file in list(self.files.by_link.values())
            )
        ):
            self._ending = True
            self._end()

    def _end(self) -> None:
        """End the connection (fs/fuse/inode.c, fuse_conn_destroy).

        What is on a block device has been written to it before that.
        """
        connection = self.connection
        if self.superblock.options.block_size and connection.state is ConnectionState.CONNECTED:
            request = Request(FUSE_DESTROY, force=True)
            connection.submit(request, lambda _: connection.abort())
        else:
            connection.abort()

    def wait(self, operation: Operation[T]) -> T:
        """Return an operation's result, for the supervisor itself. Raises its OSError."""
        ended: queue.SimpleQueue[tuple[T | None, OSError | None]] = queue.SimpleQueue()
        run(self.connection, self.whole(operation), lambda *told: ended.put(told))
        result, error = ended.get()
        if error is not None:
            raise error
        return cast("T", result)

    def settle(self, call: TrappedCall) -> None:
        """Have released what was closed before the call, or leave the handler until it is.

        For programs, close(2) has waited for the server.
        """
        if self._settled_for != call.id:
            if self.files.has_closed(self):
                call.after(self, self.files.releases(self))
            self._settled_for = call.id

    def has_answered(self, call: TrappedCall, question: Hashable) -> bool:
        """Whether the call has asked that, and has the answer."""
        return call.has_answer((self.serial, question))

    def ask(self, call: TrappedCall, question: Hashable, make: Callable[[], Operation[T]]) -> T:
        """Return an operation's result. If it has to wait, leave the handler meanwhile."""
        question = (self.serial, question)
        self.settle(call)
        if call.has_answer(question):
            return call.ask(question, _unused)
        operation = make()
        try:
            request = next(operation)
        except StopIteration as stop:
            known: T = stop.value
            return known
        rest = self.whole(_resumed(operation, request))
        if call.task.has_ours:
            return call.ask_here(question, self, rest)
        return call.ask(question, lambda: OnDevice(self, rest))

    def run(self, call: TrappedCall, operation: Operation[T]) -> Outcome:
        """Run an operation whose result, or 0 for None, is the call's."""
        if self.files.has_closed(self):
            return self._run_after(operation)
        return call.run(self, self.whole(_number(operation)))

    def _run_after(self, operation: Operation[T]) -> Steps[int]:
        yield self.files.releases(self)
        result: int = yield OnDevice(self, self.whole(_number(operation)))
        return result

    def whole(self, operation: Operation[T]) -> Operation[T]:
        """The same operation; after it, mappings show what it has changed.

        The server is told what is no longer in use.
        """
        try:
            result = yield from operation
        except OSError:
            self.superblock.send_forgets()
            raise
        if self.superblock.mapped:
            yield from refresh(self.superblock)
        self.superblock.send_forgets()
        return result


def _unused() -> OnDevice[T]:
    raise AssertionError("it was answered")


def _resumed(operation: Operation[T], request: Request) -> Operation[T]:
    """Go on with an operation that has made its first request."""
    try:
        while True:
            reply = yield request
            try:
                request = operation.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
    finally:
        operation.close()


def _number(operation: Operation[T]) -> Operation[int]:
    result = yield from operation
    return result if isinstance(result, int) else 0
