"""The real kernel still does what was recorded of it (docs/conformance.md)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conformance import records
from ..conformance.places import COMPAT, Place, cases, on_kernel

pytestmark = pytest.mark.leaks("the devices and the client go on from case to case")

Needs = Callable[..., Path]

CASES = [(group, case) for group, names in cases().items() for case in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """This kernel with the suite's devices."""
    with on_kernel(tmp_path_factory.mktemp("client")) as place:
        yield place


@pytest.mark.parametrize(("group", "case"), CASES, ids=[case for _, case in CASES])
def test_as_recorded(place: Place, needs: Needs, group: str, case: str) -> None:
    if group == COMPAT:
        needs("/usr/include/asm", package="gcc-multilib")
    assert place.run(case) == records.read(group)[case]
