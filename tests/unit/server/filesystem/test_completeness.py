"""docs/protocol.md: it has all of the protocol, and is what the code does."""

import re
from pathlib import Path
from typing import Any

import pytest

import recuse
from recuse import Directory, Filesystem, Inodes
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire import fuse
from recuse.wire.fuse import FUSE_KERNEL_MINOR_VERSION
from recuse.wire.optable import OPERATIONS

from .conftest import FilesystemPeer

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
HEADER = (ROOT / "src" / "recuse" / "wire" / "fuse.py").read_text(encoding="utf-8")

ITSELF = {"FORGET", "BATCH_FORGET", "INIT", "DESTROY", "INTERRUPT", "NOTIFY_REPLY"}
"""Operations that the session has, for both levels."""


def table(section: str) -> dict[str, tuple[str, str]]:
    """The rows of a section's table: what serves each operation for nodes and inodes."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    rows: dict[str, tuple[str, str]] = {}
    for names, nodes, inodes in re.findall(
        r"^\| (`[A-Z].*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE
    ):
        for name in re.findall(r"`(\w+)`", names):
            assert name not in rows
            rows[name] = nodes, inodes
    return rows


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


class EmptyBacking:
    """A kernel half with backing files, of which none is used."""

    def open_backing(self, descriptor: int) -> int:
        raise AssertionError

    def close_backing(self, number: int) -> None:
        raise AssertionError


def method(*_: Any) -> None:
    """A method of an author's, never called."""


METHODS = [
    name for name, value in vars(Inodes).items() if callable(value) and not name.startswith("_")
]


def inodes_with(*names: str) -> Inodes:
    made: Inodes = type("Some", (Inodes,), {name: method for name in names if name in METHODS})()
    set_on(made, names)
    return made


def set_on(served: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if name not in METHODS:
            assert getattr(served, name) in (False, 0)
            setattr(served, name, 1)
    return served


def opcodes(served: Any) -> set[str]:
    """The operations that a session serves, except for those of the session itself."""
    session = FilesystemSession(served)
    try:
        return {OPERATIONS[code].name.removeprefix("FUSE_") for code in session._serve}
    finally:
        session.close()


def flags(served: Any, *, rings: bool = False) -> int:
    peer = FilesystemPeer(served)
    peer.session._backing = EmptyBacking()
    peer.session.offers_rings = rings
    out = peer.init_filesystem()
    peer.session.close()
    return out.flags | out.flags2 << 32


def test_the_version() -> None:
    assert f"FUSE 7.{FUSE_KERNEL_MINOR_VERSION}" in PAGE


def test_every_operation_is_there() -> None:
    known = {
        row.name.removeprefix("FUSE_")
        for row in OPERATIONS.values()
        if row.name.startswith("FUSE_") and "BSWAP" not in row.name
    }
    assert set(table("Operations")) == known


def test_operations_on_nodes() -> None:
    served = {name for name, (nodes, _) in table("Operations").items() if "not" not in nodes}
    assert served == opcodes(Filesystem(Directory())) | ITSELF


def test_operations_on_inodes() -> None:
    everything = opcodes(inodes_with(*METHODS))
    nothing = opcodes(Inodes())
    assert nothing == {"STATFS", "RELEASE", "RELEASEDIR"}
    for name, (_, cell) in table("Operations").items():
        if cell == "not served":
            assert name not in everything | ITSELF
        elif name in ITSELF:
            assert cell == "itself" or hasattr(Inodes, names_in(cell)[0])
        else:
            assert name in everything
            for one in names_in(cell):
                assert one in METHODS, one
                assert name in opcodes(inodes_with(one))
    named = {one for _, cell in table("Operations").values() for one in names_in(cell)}
    assert set(METHODS) <= named


def test_every_capability_is_there() -> None:
    block = HEADER.split("# INIT flags.")[1].split("\n\n")[0]
    known = re.findall(r"^FUSE_(\w+) = 1 << \d+$", block, re.MULTILINE)
    assert len(known) == 43
    assert set(table("Capabilities")) == set(known)


@pytest.mark.parametrize("level", ["nodes", "inodes"])
def test_capabilities(level: str) -> None:
    def make(*names: str) -> Any:
        if level == "inodes":
            return inodes_with(*names)
        return set_on(Filesystem(Directory()), names)

    ordinary = flags(make())
    never = 0
    for name, cells in table("Capabilities").items():
        cell, flag = cells[level == "inodes"], getattr(fuse, f"FUSE_{name}")
        if cell.startswith("always"):
            assert ordinary & flag, name
        elif cell.startswith("no"):
            never |= flag
        elif name == "OVER_IO_URING":
            assert not ordinary & flag
            assert flags(make(), rings=True) & flag
        else:
            assert not ordinary & flag, name
            assert flags(make(*names_in(cell))) & flag, name
    attributes = ("posix_acls", "passthrough", "handle_killpriv", "security_contexts", "idmapped")
    assert (
        not flags(make(*METHODS, *attributes) if level == "inodes" else make(*attributes)) & never
    )


def test_every_notification_is_there() -> None:
    known = re.findall(r"^FUSE_NOTIFY_(\w+) = \d+$", HEADER, re.MULTILINE)
    known.remove("REPLY")
    assert set(table("Notifications")) == set(known)
    for _, cell in table("Notifications").values():
        for name in names_in(cell):
            assert hasattr(Inodes, name)


def test_the_methods_of_nodes_are_there() -> None:
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", PAGE)
    assert len(named) > 40
    for owner, name in named:
        kind = getattr(recuse, owner)
        assert hasattr(kind, name), f"{owner}.{name}"
