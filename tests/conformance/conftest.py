"""The place in which the cases run."""

from collections.abc import Iterator

import pytest

from .places import InSandbox, in_sandbox


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InSandbox]:
    """A sandbox with the suite's devices."""
    with in_sandbox(tmp_path_factory.mktemp("client")) as place:
        yield place
