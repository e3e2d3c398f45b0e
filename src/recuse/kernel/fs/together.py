"""Several requests at once, for an operation that continues when all are answered."""

from collections.abc import Sequence

from recuse.kernel.connection.request import Request


class Together(Request):
    """Requests that are sent one after the other, without waiting for the replies in between.

    An operation yields it, as it yields a request. When it continues, each of ``requests`` has its
    reply. `recuse.kernel.fs.superblock.FilesystemConnection` submits it.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__(0)
        self.requests = requests
        # Taking one from a list is atomic, unlike counting.
        self._left = [True] + [False] * (len(requests) - 1)

    def ended(self) -> bool:
        """Note that one of them has its reply; return whether that was the last."""
        return self._left.pop()
