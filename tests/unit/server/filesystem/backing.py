"""A kernel half that has backing files, as far as a session sees it."""

import os


class Backing:
    """Has backing files, and may refuse them."""

    def __init__(self, refusal: int = 0) -> None:
        self.refusal = refusal
        self.open: dict[int, int] = {}
        """The descriptors that it has been given, by number."""
        self.asked = 0

    def open_backing(self, descriptor: int) -> int:
        self.asked += 1
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.open[self.asked] = descriptor
        return self.asked

    def close_backing(self, number: int) -> None:
        del self.open[number]
