"""When the mirror's nodes are gone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recuse.cli.filesystem_spec import load_filesystem

MIRROR = Path(__file__).parents[2] / "examples/mirrorfs.py"


def test_a_node_is_not_known_any_longer_when_its_descriptor_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on another file may have its number."""
    (tmp_path / "file").touch()
    mirror: Any = load_filesystem(f"{MIRROR},source={tmp_path}")
    node = mirror.root.lookup("file")
    known, descriptor, found = mirror.root.known, node.descriptor, []
    close = os.close

    def watched(number: int) -> None:
        if number == descriptor:
            found.append(len(known))
        close(number)

    monkeypatch.setattr(os, "close", watched)
    del node
    assert found == [0]
