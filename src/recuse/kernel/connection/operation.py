"""Operations: what a system call does, as a generator that yields requests and is sent replies."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Reply, Request
from recuse.kernel.errors import os_error
from recuse.runtime.log import Log

log = Log("recuse.kernel")

T = TypeVar("T")

Operation: TypeAlias = Generator[Request, Reply, T]
"""Returns the system call's result or raises OSError. Runs in the thread that has the reply."""


def failure(raised: Exception) -> OSError:
    """The error that a caller gets when its operation raised this. For use in an except clause.

    Any exception except an OSError is a mistake: it is logged, and the error is EIO. Only
    MemoryError becomes ENOMEM.
    """
    if isinstance(raised, OSError):
        # The traceback is removed: it holds the caller's frame, and that holds the exception.
        return raised.with_traceback(None)
    if isinstance(raised, MemoryError):
        return os_error(errno.ENOMEM)
    log.exception("an operation failed")
    return os_error(errno.EIO)


class Running:
    """An operation that waits for a reply."""

    __slots__ = ("connection", "done", "fatal", "interrupted", "operation", "request")

    def __init__(
        self,
        connection: Connection,
        operation: Operation[Any],
        done: Callable[[Any, OSError | None], None],
        request: Request,
    ) -> None:
        self.connection = connection
        self.operation = operation
        self.done = done
        self.request = request
        self.interrupted = False
        self.fatal = False

    def interrupt(self, fatal: bool = True) -> None:
        """Tell the server that the caller has a signal; ``done`` is still called.

        This applies to the current request and to later ones of the operation. It does not apply to
        a RELEASE, which no longer concerns the caller. ``fatal`` is as for `Connection.interrupt`.
        """
        self.fatal = self.fatal or fatal
        self.interrupted = True
        self._pass_on(self.request)

    def _pass_on(self, request: Request) -> None:
        if not request.force:
            self.connection.interrupt(request, fatal=self.fatal)

    def _go_on(self, reply: Reply) -> None:
        run(self.connection, self.operation, self.done, reply, self)


def run(
    connection: Connection,
    operation: Operation[T],
    done: Callable[[T | None, OSError | None], None],
    _reply: Reply | None = None,
    _running: Running | None = None,
) -> Running | None:
    """Drive an operation to its end, and call ``done`` once with its result or its error.

    Continues here as long as replies are there when `Connection.submit` returns, and after that in
    the threads that bring the replies. Returns None if the operation has ended. `failure` says
    what happens to exceptions.
    """
    result = None
    error = None
    try:
        while True:
            request = operation.send(_reply)  # type: ignore[arg-type]  # None starts it
            connection.submit(request)
            _reply = request.reply
            if _reply is None:
                if _running is None:
                    _running = Running(connection, operation, done, request)
                else:
                    _running.request = request
                if connection.watch(request, _running._go_on):
                    # From here on another thread may drive the operation.
                    if _running.interrupted:
                        _running._pass_on(request)
                    return _running
                _reply = request.reply
    except StopIteration as stop:
        result = stop.value
    except Exception as exception:
        error = failure(exception)
    done(result, error)
    return None
