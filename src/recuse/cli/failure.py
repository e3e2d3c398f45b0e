"""Failures that are told in one line, and the exit statuses for them."""

FAILED = 125
"""Recuse itself failed; the status is that of env(1) and timeout(1) for the same."""
NOT_EXECUTABLE = 126
"""There is such a program, but it cannot be executed."""
NOT_FOUND = 127
"""There is no such program."""
INTERRUPTED = 130
"""After Ctrl-C: 128 + SIGINT, as shells have it."""


class Failure(Exception):
    """What the user is told, in one line, and the exit status to exit with."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
