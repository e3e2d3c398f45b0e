"""Mounting and unmounting in an event loop, which goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol


class Entered(Protocol):
    """What is entered and left by methods that block."""

    def __enter__(self) -> object: ...

    def close(self) -> None: ...


async def enter(entered: Entered) -> None:
    """Enter it; if this is cancelled, it is left again. Raises what entering it raises."""
    try:
        await _to_its_end(entered.__enter__)
    except asyncio.CancelledError:
        await leave(entered)
        raise


async def leave(left: Entered) -> None:
    """Leave it; that is not cut short."""
    await _to_its_end(left.close)


async def _to_its_end(function: Callable[[], object]) -> None:
    """Call a function in another thread; what cancels this waits until it has returned."""
    running: Awaitable[object] = asyncio.ensure_future(asyncio.to_thread(function))
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError as error:
            cancelled = error
            continue
        except BaseException:
            if cancelled is None:
                raise
        if cancelled is not None:
            raise cancelled
        return
