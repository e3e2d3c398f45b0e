"""Two methods of an author's for one request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


class InTurn:
    """Calls two methods one after the other, either of which may be ``async def``.

    It gets the arguments of the second, returns what that returns, and is called so in the log.
    """

    def __init__(
        self, first: Callable[[], Any], second: Callable[..., Any], *, anyway: bool = False
    ) -> None:
        """Make it; with ``anyway``, the second is called even if the first fails."""
        self._first = first
        self._second = second
        self._anyway = anyway
        self.__self__ = getattr(second, "__self__", None)
        self.__name__ = getattr(second, "__name__", "")

    def __call__(self, *arguments: Any) -> Any:
        try:
            returned = self._first()
        except BaseException as error:
            last: Any = self._second(*arguments) if self._anyway else None
            if hasattr(last, "__await__"):
                return self._fail_after(last, error)
            raise
        if hasattr(returned, "__await__"):
            return self._later(returned, arguments)
        return self._second(*arguments)

    async def _later(self, first: Awaitable[Any], arguments: tuple[Any, ...]) -> Any:
        try:
            await first
        except BaseException:
            if self._anyway:
                await _awaited(self._second(*arguments))
            raise
        return await _awaited(self._second(*arguments))

    async def _fail_after(self, last: Awaitable[Any], error: BaseException) -> None:
        await last
        raise error


async def _awaited(returned: Any) -> Any:
    return await returned if hasattr(returned, "__await__") else returned
