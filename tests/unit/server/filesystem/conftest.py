"""A kernel half that is nothing but messages, for tests of filesystems' server half."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from recuse.server.filesystem.served import Served
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.declare import Structure
from recuse.wire.filesystem import (
    create_out,
    fuse_attr_out,
    fuse_create_in,
    fuse_dirent,
    fuse_direntplus,
    fuse_entry_out,
    fuse_forget_in,
)
from recuse.wire.fuse import (
    FUSE_CREATE,
    FUSE_FORGET,
    FUSE_GETATTR,
    FUSE_INIT,
    FUSE_LOOKUP,
    FUSE_OPEN,
    FUSE_OPENDIR,
    FUSE_READ,
    FUSE_READDIR,
    FUSE_READDIRPLUS,
    FUSE_ROOT_ID,
    FUSE_WRITE,
    fuse_in_header,
    fuse_init_in,
    fuse_init_out,
    fuse_open_in,
    fuse_open_out,
    fuse_out_header,
    fuse_read_in,
    fuse_write_in,
    fuse_write_out,
)

from ..conftest import Failure, Peer

ALL_FLAGS = (1 << 64) - 1


class Listed(NamedTuple):
    """One entry of an answer to READDIR or READDIRPLUS."""

    name: str
    ino: int
    kind: int
    offset: int
    entry: fuse_entry_out | None = None


class FilesystemPeer(Peer):
    """Sends requests about nodes to a filesystem's session."""

    def __init__(self, filesystem: Served) -> None:
        super().__init__(FilesystemSession(filesystem))
        self.filesystem = filesystem
        self.notified: list[int] = []
        """The kinds of the notifications that came."""

    def take(self, message: bytes) -> None:
        header = fuse_out_header.unpack(message)
        if header.unique:
            super().take(message)
        else:
            self.notified.append(header.error)

    def send(self, opcode: int, nodeid: int, body: Structure | bytes = b"", data: Any = b"") -> int:
        """Send a request about a node; ``data`` is bytes, or a name. Returns its number."""
        packed = body if isinstance(body, bytes) else body.pack()
        rest = os.fsencode(data) + b"\0" if isinstance(data, str) else data
        unique = next(self.uniques)
        header = fuse_in_header(
            len=fuse_in_header.SIZE + len(packed) + len(rest),
            opcode=opcode,
            unique=unique,
            nodeid=nodeid,
            uid=1000,
            gid=100,
            pid=77,
        )
        self.session.handle(header.pack() + packed + rest, self.take)
        return unique

    def ask(self, *arguments: Any) -> bytes:
        return self.answer(self.send(*arguments))

    def refuses(self, *arguments: Any) -> int:
        """Return the errno that a request fails with."""
        with pytest.raises(Failure) as caught:
            self.ask(*arguments)
        return caught.value.number

    def init_filesystem(self, flags: int = ALL_FLAGS, minor: int = 45) -> fuse_init_out:
        offer = fuse_init_in(
            major=7,
            minor=minor,
            max_readahead=131072,
            flags=flags & 0xFFFFFFFF,
            flags2=flags >> 32,
        )
        return fuse_init_out.unpack(self.ask(FUSE_INIT, 0, offer))

    def lookup(self, name: str, parent: int = FUSE_ROOT_ID) -> fuse_entry_out:
        return fuse_entry_out.unpack(self.ask(FUSE_LOOKUP, parent, b"", name))

    def forget(self, nodeid: int, count: int) -> None:
        self.send(FUSE_FORGET, nodeid, fuse_forget_in(nlookup=count))

    def getattr(self, nodeid: int) -> fuse_attr_out:
        return fuse_attr_out.unpack(self.ask(FUSE_GETATTR, nodeid, bytes(16)))

    def create(self, name: str, mode: int = 0o644, parent: int = FUSE_ROOT_ID) -> create_out:
        body = fuse_create_in(flags=os.O_RDWR | os.O_CREAT, mode=mode | 0o100000)
        return create_out.unpack(self.ask(FUSE_CREATE, parent, body, name))

    def open_node(self, nodeid: int, flags: int = os.O_RDWR) -> fuse_open_out:
        return fuse_open_out.unpack(self.ask(FUSE_OPEN, nodeid, fuse_open_in(flags=flags)))

    def read_node(self, nodeid: int, fh: int, size: int, offset: int = 0) -> bytes:
        return self.ask(FUSE_READ, nodeid, fuse_read_in(fh=fh, offset=offset, size=size))

    def write_node(self, nodeid: int, fh: int, data: bytes, offset: int = 0) -> int:
        body = fuse_write_in(fh=fh, offset=offset, size=len(data))
        return fuse_write_out.unpack(self.ask(FUSE_WRITE, nodeid, body, data)).size

    def list_page(
        self, fh: int, offset: int = 0, size: int = 4096, plus: bool = False, nodeid: int = 1
    ) -> list[Listed]:
        """Ask for entries from an offset on."""
        opcode = FUSE_READDIRPLUS if plus else FUSE_READDIR
        payload = self.ask(opcode, nodeid, fuse_read_in(fh=fh, offset=offset, size=size))
        assert len(payload) <= size
        found = []
        while payload:
            entry = None
            head = 0
            if plus:
                both = fuse_direntplus.unpack(payload)
                entry, one, head = both.entry_out, both.dirent, fuse_entry_out.SIZE
            else:
                one = fuse_dirent.unpack(payload)
            start = head + fuse_dirent.SIZE
            name = os.fsdecode(payload[start : start + one.namelen])
            found.append(Listed(name, one.ino, one.type, one.off, entry))
            payload = payload[start + one.namelen + 7 & ~7 :]
        return found

    def list_all(self, size: int = 4096, plus: bool = False, nodeid: int = 1) -> list[Listed]:
        fh = fuse_open_out.unpack(self.ask(FUSE_OPENDIR, nodeid, bytes(8))).fh
        found: list[Listed] = []
        while page := self.list_page(fh, found[-1].offset if found else 0, size, plus, nodeid):
            found += page
        return found


ServeFilesystem = Callable[[Served], FilesystemPeer]


@pytest.fixture
def serve_filesystem() -> Iterator[ServeFilesystem]:
    """Serves filesystems, which have shaken hands, and ends their sessions."""
    peers: list[FilesystemPeer] = []

    def make(filesystem: Served) -> FilesystemPeer:
        peer = FilesystemPeer(filesystem)
        peers.append(peer)
        peer.init_filesystem()
        return peer

    yield make
    for peer in peers:
        peer.session.close()
