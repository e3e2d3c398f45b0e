"""Logging that never fails its caller.

Handlers and filters belong to the program. A test suite's may raise for each error, ``sys.stderr``
may be closed, memory may be exhausted. None of this may keep a program waiting for its answer, or
end a thread that others need. What logging raises goes to `threading.excepthook`, as if a thread
had ended with it.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any


class Log:
    """The logger with a name, for use within recuse: it loses a message rather than raise.

    The methods are those of `logging.Logger`.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def log(self, level: int, message: str, *arguments: object, **options: Any) -> None:
        """Log a message with a level; ``options`` as for `logging.Logger.log`."""
        self._log(level, message, arguments, options)

    def debug(self, message: str, *arguments: object) -> None:
        """Log what helps to find a bug in recuse."""
        self._log(logging.DEBUG, message, arguments, {})

    def warning(self, message: str, *arguments: object) -> None:
        """Log what the user may want to know."""
        self._log(logging.WARNING, message, arguments, {})

    def error(self, message: str, *arguments: object, **options: Any) -> None:
        """Log what has gone wrong; ``options`` as for `logging.Logger.error`."""
        self._log(logging.ERROR, message, arguments, options)

    def exception(self, message: str, *arguments: object) -> None:
        """Log what has gone wrong, with the traceback of the exception that is handled."""
        self._log(logging.ERROR, message, arguments, {"exc_info": True})

    def _log(
        self, level: int, message: str, arguments: tuple[object, ...], options: dict[str, Any]
    ) -> None:
        try:
            if self._logger.isEnabledFor(level):
                # The record belongs to the third caller from there, for example that of `error`.
                self._logger.log(level, message, *arguments, stacklevel=3, **options)
        except BaseException as error:
            if is_for_main_thread(error):
                raise
            report(error)


def is_for_main_thread(error: BaseException) -> bool:
    """Whether it is Ctrl-C or the like: it ends the program and is raised in its main thread."""
    return (
        not isinstance(error, Exception) and threading.current_thread() is threading.main_thread()
    )


def report(error: BaseException) -> None:
    """Show an exception that nobody can be told about, and that ends nothing."""
    with suppress(BaseException):
        threading.excepthook(
            threading.ExceptHookArgs(
                (type(error), error, error.__traceback__, threading.current_thread())
            )
        )
