"""The sandbox does what the real kernel did when it was recorded (see docs/conformance.md)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import records
from .places import COMPAT, Place, cases

pytestmark = pytest.mark.leaks("the sandbox and the client go on from case to case")

Needs = Callable[..., Path]

CASES = [(group, case) for group, names in cases().items() for case in names]

NEEDED = {
    # A thread that lends its descriptor makes its call twice, and the device is asked twice.
    **dict.fromkeys(
        [
            "poll_that_times_out",
            "poll_that_is_woken",
            "poll_that_is_woken_in_vain",
            "poll_in_two_processes",
            "poll_with_other_files",
            "poll_again_and_again",
            "select_of_a_device",
            "epoll_level",
            "epoll_that_is_woken",
            "notify_without_poller",
            "signal_in_a_poll",
            "same_files",  # by kcmp, which is refused where that is
        ],
        "pidfd_getfd",
    ),
    "paths_that_other_calls_take": "namespaces",  # and with them to mount something
    "commands_that_the_kernel_answers": "namespaces",  # FIFREEZE
    "lock_owners": "namespaces",
    "open_as_somebody": "other users",
}
"""What must be allowed, where it was recorded and here, for the same to happen."""


def parameters() -> Iterator[object]:
    """The cases, with a mark for what they need."""
    for group, case in CASES:
        marks = [pytest.mark.right(NEEDED[case])] if case in NEEDED else []
        yield pytest.param(group, case, id=case, marks=marks)


@pytest.mark.parametrize(("group", "case"), list(parameters()))
def test_as_recorded(place: Place, needs: Needs, group: str, case: str) -> None:
    if group == COMPAT:
        needs("/usr/include/asm", package="gcc-multilib")
    kernel = records.read(group)[case]
    sandbox = records.read(records.SANDBOX).get(case)
    assert sandbox != kernel, "records/sandbox.txt has a difference that is none"
    assert place.run(case) == (sandbox or kernel)


def test_nothing_else_is_kept() -> None:
    known = cases()
    for group, names in known.items():
        assert list(records.read(group)) == names
    assert set(records.read(records.SANDBOX)) <= {case for _, case in CASES}
    assert NEEDED.keys() <= {case for _, case in CASES}


def test_every_difference_has_a_reason() -> None:
    differing = set(records.read(records.SANDBOX))
    assert set(records.reasons()) == differing
    page = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
    assert {case for case in differing if case not in page} == set()
