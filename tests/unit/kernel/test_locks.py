"""Locks of whole files, against a model that looks at all of them each time."""

from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.locks import FileLocks

FILES = "abc"
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["try", "wait", "unlock", "cancel", "refuse"]),
        st.sampled_from(FILES),
        st.booleans(),
    ),
    max_size=40,
)


class Waiter:
    """Takes note of being granted; ``wanted`` is whether it still wants to be."""

    def __init__(self, file: str, exclusive: bool) -> None:
        self.file, self.exclusive, self.granted, self.wanted = file, exclusive, 0, True

    def __call__(self) -> bool:
        self.granted += 1
        return self.wanted


@given(STEPS)
def test_nobody_has_what_another_excludes(steps: list[tuple[str, str, bool]]) -> None:
    locks = FileLocks()
    held: dict[str, bool] = {}
    waiting: list[Waiter] = []

    def free(file: str, exclusive: bool) -> bool:
        return not any(exclusive or other for name, other in held.items() if name != file)

    def settle() -> None:
        # In their order, those that can have it do; from the beginning after each.
        for waiter in list(waiting):
            if free(waiter.file, waiter.exclusive):
                waiting.remove(waiter)
                assert waiter.granted == 1
                held.pop(waiter.file, None)
                if waiter.wanted:
                    held[waiter.file] = waiter.exclusive
                return settle()
        assert not any(waiter.granted for waiter in waiting)
        return None

    for step, file, exclusive in steps:
        had = held.get(file)
        if step == "unlock":
            locks.unlock(file)
            if held.pop(file, None) is not None:
                settle()
        elif step == "cancel" and waiting:
            waiter = waiting.pop()
            assert locks.cancel(waiter)
            assert not locks.cancel(waiter)
        elif step == "refuse" and waiting:
            waiting[-1].wanted = False
        elif step in ("try", "wait"):
            waiter = Waiter(file, exclusive)
            done = locks.lock(file, exclusive=exclusive, granted=waiter if step == "wait" else None)
            possible = had is exclusive or free(file, exclusive)
            assert done is possible
            if had is exclusive:
                continue
            held.pop(file, None)
            if possible:
                held[file] = exclusive
            elif step == "wait":
                waiting.append(waiter)
            if had is not None:
                settle()
    for waiter in waiting:
        assert waiter.granted == 0
    for file in FILES * (len(waiting) + 1):  # each may let another one in
        locks.unlock(file)
    assert all(waiter.granted == 1 for waiter in waiting if waiter.wanted)
