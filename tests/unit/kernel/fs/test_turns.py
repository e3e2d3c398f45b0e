"""Locks of inodes: one operation alone, or several that share; first come, first served."""

from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.fs.turns import InodeLock, Turn

from .support import Scripted


def test_others_wait_in_line() -> None:
    lock = InodeLock()
    turns = [Turn(lock, shared) for shared in (True, True, False, True, False)]
    assert [lock.take(turn) for turn in turns] == [True, True, False, False, False]
    granted: list[Turn] = []
    lock.give_back(True, granted.append)
    assert granted == []
    lock.give_back(True, granted.append)
    assert granted == turns[2:3]
    lock.give_back(False, granted.append)
    assert granted == turns[2:4]
    lock.give_back(True, granted.append)
    assert granted == turns[2:]
    assert lock.held
    lock.give_back(False, granted.append)
    assert not lock.held


def test_whoever_leaves_the_line_holds_nobody_up() -> None:
    lock = InodeLock()
    turns = [Turn(lock, shared) for shared in (True, False, True)]
    assert [lock.take(turn) for turn in turns] == [True, False, False]
    granted: list[Turn] = []
    lock.leave(turns[1], granted.append)
    assert granted == turns[2:]
    for turn in (turns[0], turns[2]):
        lock.leave(turn, granted.append)  # they have it
    lock.leave(Turn(lock, False), granted.append)  # it never asked
    assert granted == turns[2:]
    assert not lock.held


def test_many_operations_end_one_after_the_other() -> None:
    superblock = Scripted().superblock
    lock = InodeLock()
    ended: list[int] = []

    def alone(number: int) -> Operation[int]:
        yield from superblock.take(lock)
        superblock.give_back(lock)
        return number

    assert lock.take(Turn(lock, False))
    for number in range(3000):
        run(superblock.connection, alone(number), lambda one, _: ended.append(one or 0))
    assert not ended
    superblock.give_back(lock)
    assert sorted(ended) == list(range(3000))
    assert not lock.held


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_nobody_is_alone_with_others_and_nobody_is_left(steps: list[tuple[bool, bool]]) -> None:
    lock = InodeLock()
    holders: list[Turn] = []
    waiting = 0

    def granted(turn: Turn) -> None:
        nonlocal waiting
        waiting -= 1
        holders.append(turn)

    for takes, shared in [*steps, *[(False, False)] * len(steps)]:
        if takes:
            turn = Turn(lock, shared)
            if lock.take(turn):
                holders.append(turn)
            else:
                waiting += 1
        elif holders:
            lock.give_back(holders.pop(0).shared, granted)
        assert len(holders) <= 1 or all(turn.shared for turn in holders)
        assert holders or not waiting
    while holders:
        lock.give_back(holders.pop(0).shared, granted)
    assert not waiting
    assert not lock.held
