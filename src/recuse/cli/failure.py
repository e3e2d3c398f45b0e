"""Failures that are reported in one line, and their exit statuses."""

import sys
from collections.abc import Callable

USAGE = 2
"""An argument is wrong; click has the same status."""
FAILED = 125
"""Recuse itself failed; env(1) and timeout(1) use the same status."""
NOT_EXECUTABLE = 126
"""The program exists but cannot be executed."""
NOT_FOUND = 127
"""The program was not found."""
INTERRUPTED = 130
"""After Ctrl-C: 128 + SIGINT, as shells have it."""


class Failure(Exception):
    """A message of one line for the user, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def reporting(command: Callable[[], int]) -> int:
    """Run what a command does; report its failure. Returns the exit status."""
    try:
        return command()
    except Failure as failure:
        message = " ".join(line.strip() for line in str(failure).splitlines())
        print(f"recuse: {message}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
