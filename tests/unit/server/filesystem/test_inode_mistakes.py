"""What authors of inodes do wrong: EIO for the program, and a line for them."""

import enum
import errno
import operator
import stat
from typing import Any

import pytest

from recuse import (
    Attributes,
    InodeEntry,
)
from recuse.wire import fuse
from recuse.wire.filesystem import (
    fuse_create_in,
)

from ..conftest import Told
from .conftest import ServeFilesystem
from .small_inodes import ENTRY, FILE, Small


class Number(enum.IntEnum):
    """A number of a type of its own."""

    FILE = 2


class Index:
    """What is a number for Python, as NumPy's are, and no int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@pytest.mark.parametrize("ino", [Number.FILE, Index(2), True, (1 << 64) - 1])
def test_numbers_of_any_integer_type(serve_filesystem: ServeFilesystem, ino: Any) -> None:
    class Numbered(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry:
            return InodeEntry(ino, FILE)

    assert serve_filesystem(Numbered()).lookup("file").nodeid == operator.index(ino)


@pytest.mark.parametrize("ino", ["a", 1.5, None, -1, 1 << 64, Index(-1), Number])
def test_what_is_no_number(serve_filesystem: ServeFilesystem, told: Told, ino: Any) -> None:
    class Wrong(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry:
            return InodeEntry(ino, FILE)

    peer = serve_filesystem(Wrong())
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "file") == errno.EIO
    line = told.line()
    assert line.startswith("Wrong.lookup returned ")
    assert line.endswith(", not an InodeEntry with a number: EIO for the program")


@pytest.mark.parametrize(
    "entry",
    [
        InodeEntry(2, FILE, generation=-1),
        InodeEntry(2, FILE, generation="a"),  # type: ignore[arg-type]
        InodeEntry(2, Attributes(stat.S_IFREG, size="a")),  # type: ignore[arg-type]
        InodeEntry(2, Attributes(stat.S_IFREG, mtime_ns=1.5)),  # type: ignore[arg-type]
        InodeEntry(2, Attributes("file")),  # type: ignore[arg-type]
        InodeEntry(2, Attributes(-1)),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    serve_filesystem: ServeFilesystem, told: Told, entry: InodeEntry
) -> None:
    class Wrong(Small):
        def lookup(self, parent: int, name: str) -> InodeEntry:
            return entry

    peer = serve_filesystem(Wrong())
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "file") == errno.EIO
    assert told.line().startswith("Wrong.lookup returned ")


class Wrong(Small):
    """Returns what it is told to."""

    returns: Any = None

    def lookup(self, parent: int, name: str) -> Any:
        return self.returns

    def create(self, parent: int, name: str, mode: int, flags: int) -> Any:
        return self.returns

    def getattr(self, ino: int, fh: object) -> Any:
        return self.returns

    def ioctl(self, *arguments: Any) -> Any:
        return self.returns


@pytest.mark.parametrize(
    ("opcode", "returns", "complaint"),
    [
        (fuse.FUSE_LOOKUP, 5, "lookup returned 5, not an InodeEntry"),
        (fuse.FUSE_LOOKUP, InodeEntry(-1, FILE), "not an InodeEntry with a number"),
        (fuse.FUSE_LOOKUP, InodeEntry(2, None), "lookup returned None, not Attributes"),
        (fuse.FUSE_LOOKUP, InodeEntry(2, Attributes(0o644)), "whose mode has no type"),
        (fuse.FUSE_CREATE, ENTRY, "not an InodeEntry and what `open` returns"),
        (fuse.FUSE_CREATE, (5, 6), "create returned 5, not an InodeEntry"),
        (fuse.FUSE_CREATE, (InodeEntry(0, None), 6), "not an InodeEntry with a number"),
        (fuse.FUSE_GETATTR, "x", "getattr returned 'x', not Attributes"),
        (fuse.FUSE_IOCTL, b"too long", "returned 8 bytes, but the program takes 0"),
        (fuse.FUSE_IOCTL, "text", "not a result, bytes, or both"),
        (fuse.FUSE_IOCTL, (-1, b""), "returned -1, not a result"),
    ],
)
def test_mistakes_are_told(
    serve_filesystem: ServeFilesystem, told: Told, opcode: int, returns: Any, complaint: str
) -> None:
    inodes = Wrong()
    inodes.returns = returns
    peer = serve_filesystem(inodes)
    bodies = {fuse.FUSE_CREATE: fuse_create_in(), fuse.FUSE_IOCTL: fuse.fuse_ioctl_in()}
    body = bodies.get(opcode, b"" if opcode == fuse.FUSE_LOOKUP else bytes(16))
    assert peer.refuses(opcode, 2, body, "name" if opcode in bodies or not body else b"") == (
        errno.EIO
    )
    assert complaint in told.line()
    if isinstance(returns, tuple) and opcode == fuse.FUSE_CREATE:
        assert [one[0] for one in inodes.asked] == ["release"]


def test_other_exceptions_are_logged(serve_filesystem: ServeFilesystem, told: Told) -> None:
    class Raising(Small):
        def lookup(self, parent: int, name: str) -> Any:
            raise ZeroDivisionError

    peer = serve_filesystem(Raising())
    assert peer.refuses(fuse.FUSE_LOOKUP, 1, b"", "x") == errno.EIO
    line, error = told.traceback()
    assert line == "Raising.lookup raised ZeroDivisionError"
    assert isinstance(error, ZeroDivisionError)
