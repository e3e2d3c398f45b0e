"""What a pipe's end is made to show, as the kernel sees it."""

from __future__ import annotations

import errno
import os
import queue
import select
import threading
from collections.abc import Iterator

import pytest

from recuse.sandbox.files.pipe_end import PipeEnd

WAIT_S = 20.0
IN, OUT = select.POLLIN, select.POLLOUT


@pytest.fixture
def end() -> Iterator[PipeEnd]:
    end = PipeEnd()
    yield end
    end.close()


def shown(end: PipeEnd) -> int:
    poll = select.poll()
    poll.register(end.theirs, IN | OUT | select.POLLPRI)
    return poll.poll(0)[0][1]


def test_a_new_one_is_ready_for_both(end: PipeEnd) -> None:
    assert shown(end) == IN | OUT
    assert end.readable
    assert end.writable


def test_each_state_from_each(end: PipeEnd) -> None:
    def lower(drain: bool = False, fill: bool = False) -> None:
        end.lower(None, drain=drain, fill=fill, spare=False)

    for _ in range(3):
        lower(drain=True)
        assert (shown(end), end.readable, end.writable) == (OUT, False, True)
        lower(fill=True)
        assert (shown(end), end.readable, end.writable) == (IN, True, False)
        lower(drain=True, fill=True)
        assert shown(end) == OUT
        end.make_readable()
        assert shown(end) == IN | OUT
        lower(fill=True)
        end.make_writable()
        assert shown(end) == IN | OUT


@pytest.mark.parametrize("state", [OUT, IN | OUT, IN])
def test_what_is_shown_already_is_noticed_once_more(end: PipeEnd, state: int) -> None:
    end.lower(None, drain=state == OUT, fill=state == IN, spare=False)
    with select.epoll() as epoll:
        epoll.register(end.theirs, state | select.EPOLLET)
        assert epoll.poll(0) == [(end.theirs, state)]
        assert epoll.poll(0) == []
        if state & IN:
            end.make_readable()
            assert epoll.poll(0) == [(end.theirs, state)]
            assert epoll.poll(0) == []
        if state & OUT:
            end.touch_writable()
            assert epoll.poll(0) == [(end.theirs, state)]
    assert shown(end) == state


@pytest.mark.parametrize("state", [OUT, IN])
def test_it_shows_nothing_else_meanwhile(end: PipeEnd, state: int) -> None:
    end.lower(None, drain=state == OUT, fill=state == IN, spare=False)
    seen: queue.SimpleQueue[list[tuple[int, int]]] = queue.SimpleQueue()
    with select.epoll() as epoll:
        epoll.register(end.theirs, IN | OUT | select.EPOLLET)

        def wait() -> None:
            for _ in range(300):
                seen.put(epoll.poll(WAIT_S))

        waiter = threading.Thread(target=wait)
        waiter.start()
        for _ in range(300):
            assert seen.get(timeout=WAIT_S) == [(end.theirs, state)]
            (end.touch_writable if state == OUT else end.make_readable)()
        waiter.join()


def test_a_severed_one_wakes_everybody_for_good(end: PipeEnd) -> None:
    end.lower(None, drain=True, fill=False, spare=False)
    end.sever(end.close)
    end.lower(None, drain=True, fill=False, spare=False)
    assert shown(end) == IN | OUT


def test_it_hangs_up_with_the_last_copy() -> None:
    end = PipeEnd()
    copy = os.dup(end.theirs)
    end.hand_over()
    assert not end.hung_up()
    end.make_readable()
    os.close(copy)
    assert end.hung_up()
    end.close()
    assert end.hung_up()
    end.make_readable()
    end.lower(None, drain=True, fill=False, spare=False)


def test_a_wait_that_nothing_can_end_is_refused(end: PipeEnd) -> None:
    for events in (IN, OUT, IN | select.POLLPRI):
        end.check(events)
    for events in (0, select.POLLPRI, select.POLLHUP):
        with pytest.raises(OSError, match="not supported") as error:
            end.check(events)
        assert error.value.errno == errno.EOPNOTSUPP
