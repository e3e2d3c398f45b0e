"""What blocks, entered and left in an event loop."""

import asyncio
import threading

import pytest

from recuse.channel.awaited import enter, leave

WAIT_S = 60.0


class Slow:
    """Waits at its beginning until it may go on."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.log: list[str] = []

    def __enter__(self) -> None:
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.log.append("entered")

    def close(self) -> None:
        self.log.append("closed")


async def begun(slow: Slow) -> "asyncio.Task[None]":
    """Have it entered, up to where it waits: the loop goes on."""
    task = asyncio.create_task(enter(slow))
    await asyncio.to_thread(slow.begun.wait, WAIT_S)
    return task


def test_the_loop_goes_on() -> None:
    async def main() -> None:
        task = await begun(slow)
        assert not task.done()
        slow.go_on.set()
        await task
        await leave(slow)

    slow = Slow()
    asyncio.run(main())
    assert slow.log == ["entered", "closed"]


def test_what_is_cancelled_is_left_again() -> None:
    async def main() -> None:
        task = await begun(slow)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    slow = Slow()
    asyncio.run(main())
    assert slow.log == ["entered", "closed"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_fails(cancelled: bool) -> None:
    async def main() -> None:
        task = await begun(slow)
        if cancelled:
            task.cancel()
            await asyncio.sleep(0)
        slow.go_on.set()
        with pytest.raises(asyncio.CancelledError if cancelled else OSError):
            await task

    slow = Slow(OSError("no"))
    asyncio.run(main())
    assert slow.log == (["closed"] if cancelled else [])
