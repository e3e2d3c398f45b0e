"""A sandbox with a device to be polled."""

from collections.abc import Iterator

import pytest

from recuse.sandbox import Sandbox

from .polled import Box


@pytest.fixture
def box() -> Box:
    """The device."""
    return Box()


@pytest.fixture
def sandbox(box: Box) -> Iterator[Sandbox]:
    """A sandbox with nothing else; every file of it must be released in the end."""
    with Sandbox(box) as sandbox:
        yield sandbox
    assert box.files == []
