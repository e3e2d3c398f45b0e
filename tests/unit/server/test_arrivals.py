"""What arrives for the event loop from other threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from recuse.server.arrivals import Arrivals

WAIT_S = 20


def test_calls_from_other_threads_come_in_their_order() -> None:
    arrivals = Arrivals()
    happened: list[int | str] = []

    async def main() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            for index in range(1000):
                arrivals.call(lambda index=index: happened.append(index))  # type: ignore[misc]
            arrivals.call(lambda: loop.call_soon(ended.set))

        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.wait_for(ended.wait(), WAIT_S)
        thread.join()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(arrivals)) as runner:
        runner.run(main())
    assert happened == list(range(1000))


def test_what_a_call_raises_keeps_no_other_from_coming() -> None:
    arrivals = Arrivals()
    happened: list[str] = []

    def fail() -> None:
        raise SystemExit

    arrivals.call(fail)
    arrivals.call(lambda: happened.append("second"))
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(arrivals)) as runner:
        with pytest.raises(SystemExit):
            runner.get_loop().run_until_complete(asyncio.sleep(0))
        runner.get_loop().run_until_complete(asyncio.sleep(0))
    assert happened == ["second"]


def test_after_the_end() -> None:
    arrivals = Arrivals()
    asyncio.SelectorEventLoop(arrivals).close()
    with pytest.raises(RuntimeError):
        arrivals.call(lambda: None)
