"""A device to be mapped, and the program that maps it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .mapped import Shared, checked


@pytest.fixture
def device() -> Iterator[Shared]:
    """A device of 16 pages; in the end every mapping has ended once."""
    with checked() as device:
        yield device


@pytest.fixture
def client(needs: Any, compiled: Callable[..., str]) -> str:
    """The C client."""
    needs("gcc")
    return compiled("mapping")
