"""The sandbox does what the real kernel did when it was recorded (see docs/conformance.md)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from . import records
from .places import COMPAT, Place, cases

pytestmark = pytest.mark.leaks("the sandbox and the client go on from case to case")

Needs = Callable[..., Path]

CASES = [(group, case) for group, names in cases().items() for case in names]


@pytest.mark.parametrize(("group", "case"), CASES, ids=[case for _, case in CASES])
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


def test_every_difference_has_a_reason() -> None:
    differing = set(records.read(records.SANDBOX))
    assert set(records.reasons()) == differing
    page = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
    assert {case for case in differing if case not in page} == set()
