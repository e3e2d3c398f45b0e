"""Requests in the background: how many are sent at a time, and who waits for that."""

from __future__ import annotations

import errno

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Request
from recuse.wire.fuse import FUSE_FORGET, fuse_in_header

from ..support import BIG, Done, connection, drain, error_of, reply_bytes, submit


def background(made: Connection, force: bool = False, no_reply: bool = False) -> Done:
    done = Done()
    request = Request(FUSE_FORGET, force=force, no_reply=no_reply, background=True)
    made.submit(request, done)
    return done


def test_no_more_than_the_limit_is_sent_and_each_end_lets_one_follow() -> None:
    made = connection()
    calls: list[None] = []
    made.on_pending = lambda: calls.append(None)
    assert (made.max_background, made.congestion_threshold) == (12, 9)
    all_done = [background(made) for _ in range(15)]
    assert made.waiting == 15
    sent = [fuse_in_header.unpack(message).unique for message in drain(made)]
    assert sent == [*range(4, 28, 2)]
    assert len(calls) == 12
    # Those that somebody waits for are not concerned.
    other = submit(made)
    assert fuse_in_header.unpack(made.read(BIG)).unique == 28
    made.write(reply_bytes(28))
    assert other.replies
    made.write(reply_bytes(10))
    assert fuse_in_header.unpack(made.read(BIG)).unique == 30
    assert error_of(made.read, BIG) == errno.EAGAIN
    assert len(calls) == 14
    assert sum(len(done.replies) for done in all_done) == 1
    made.abort()
    assert [len(done.replies) for done in all_done] == [1] * 15
    assert made.waiting == 0


def test_forced_ones_are_a_debt_that_others_wait_for() -> None:
    made = connection()
    made.max_background = 2
    for _ in range(4):
        background(made, force=True)
    held = background(made)
    for unique in (4, 6, 8):
        assert fuse_in_header.unpack(made.read(BIG)).unique == unique
        made.write(reply_bytes(unique))
    # One is left: only now there are fewer than two.
    assert [fuse_in_header.unpack(message).unique for message in drain(made)] == [10, 12]
    made.write(reply_bytes(12))
    assert held.replies


def test_a_higher_limit_lets_go_on_what_is_held() -> None:
    made = connection()
    made.max_background = 0
    calls: list[None] = []
    done = [background(made) for _ in range(3)]
    made.on_pending = lambda: calls.append(None)
    assert error_of(made.read, BIG) == errno.EAGAIN
    made.max_background = 2
    assert len(calls) == 2
    assert len(list(drain(made))) == 2
    assert not any(one.replies for one in done)
    for number in (-1, 65536):
        assert error_of(setattr, made, "max_background", number) == errno.EINVAL
        assert error_of(setattr, made, "congestion_threshold", number) == errno.EINVAL


def test_what_needs_no_reply_takes_no_place_once_it_is_sent() -> None:
    made = connection()
    made.max_background = 1
    all_done = [background(made, no_reply=True) for _ in range(3)]
    assert made.waiting == 3
    assert len(list(drain(made))) == 3
    assert [len(done.replies) for done in all_done] == [1] * 3
    assert made.waiting == 0


def test_congestion_begins_at_its_threshold() -> None:
    made = connection()
    made.congestion_threshold = 2
    seen = []
    for _ in range(3):
        background(made)
        seen.append(made.congested)
    assert seen == [False, True, True]
    list(drain(made))
    made.write(reply_bytes(4))
    made.write(reply_bytes(6))
    assert not made.congested


def test_init_is_one_of_them_until_it_is_answered() -> None:
    made = Connection(Request(4096, max_reply=72, background=True), lambda reply: None)
    made.max_background = 1
    held = [background(made), submit(made)]
    assert [fuse_in_header.unpack(message).unique for message in drain(made)] == [2]
    made.write(reply_bytes(2))
    assert made.initialised(45, 4096)
    assert [fuse_in_header.unpack(message).opcode for message in drain(made)] == [2, 15]
    assert not any(done.replies for done in held)


def test_one_that_does_not_fit_the_buffer_lets_others_follow() -> None:
    made = connection()
    made.max_background = 1
    too_big = Done()
    request = Request(FUSE_FORGET, bytes(9000), background=True)
    made.submit(request, too_big)
    follows = background(made)
    assert error_of(made.read, 8192) == errno.EAGAIN
    assert too_big.error == -errno.EIO
    assert len(list(drain(made))) == 1
    assert not follows.replies
