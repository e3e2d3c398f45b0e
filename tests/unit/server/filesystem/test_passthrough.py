"""Files that the kernel reads and writes itself: which opens of an inode can be together."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.nodes import Directory, RegularFile
from recuse.server.filesystem.open_file import OpenFile
from recuse.server.filesystem.passthrough import Modes
from recuse.server.request import OpenRequest
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    FUSE_INIT_EXT,
    FUSE_PASSTHROUGH,
    FUSE_RELEASE,
    FUSE_WRITEBACK_CACHE,
    fuse_release_in,
)

from ..conftest import Told
from .backing import Backing
from .conftest import FilesystemPeer


class Machine(RuleBasedStateMachine):
    """Opens and closes in any order, against the rules of fs/fuse/iomode.c."""

    opens = Bundle("opens")

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Backing()
        self.modes = Modes()
        self.modes.channel = self.kernel
        self.handles = 0
        self.kinds: dict[int, tuple[int, int, int]] = {}
        """By handle: the inode, the flags and the backing file."""

    @rule(target=opens, inode=st.integers(1, 3), direct=st.booleans(), backed=st.booleans())
    def open(self, inode: int, direct: bool, backed: bool) -> int:
        self.handles += 1
        descriptor = inode if backed else None
        others = {number for at, _, number in self.kinds.values() if at == inode and number}
        flags, number = self.modes.open(self.handles, inode, descriptor, direct, False)
        assert bool(flags & FOPEN_PASSTHROUGH) == bool(number)
        if number:
            assert backed or others
            assert self.kernel.open[number] == inode
            assert bool(flags & FOPEN_DIRECT_IO) == (direct or not backed)
        if others:
            assert others == {number}
        elif direct and not backed:
            assert flags == FOPEN_DIRECT_IO
        self.kinds[self.handles] = inode, flags, number
        return self.handles

    @rule(handle=consumes(opens))
    def close(self, handle: int) -> None:
        del self.kinds[handle]
        self.modes.close(handle)

    @invariant()
    def opens_agree(self) -> None:
        for inode in range(1, 4):
            mine = [(flags, number) for at, flags, number in self.kinds.values() if at == inode]
            numbers = {number for _, number in mine if number}
            assert len(numbers) <= 1
            if numbers:
                assert all(flags & (FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO) for flags, _ in mine)
            assert (inode in self.kernel.open.values()) == bool(numbers)


TestModes = Machine.TestCase
TestModes.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


class Mirrored(RegularFile):
    """A file of the machine."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def open(self, request: OpenRequest) -> OpenFile:
        return Backed(os.open(self.path, os.O_RDWR))


class Backed(OpenFile):
    """One open of it."""

    def __init__(self, backing: int) -> None:
        self.backing: int = backing

    def release(self) -> None:
        os.close(self.backing)


@pytest.fixture
def filesystem(tmp_path: Path) -> Filesystem:
    (tmp_path / "file").write_bytes(b"some text")
    filesystem = Filesystem(Directory({"file": Mirrored(tmp_path / "file")}))
    filesystem.passthrough = True
    return filesystem


PeerOf = Callable[[Filesystem, Backing | None], FilesystemPeer]


@pytest.fixture
def peer_of() -> Iterator[PeerOf]:
    peers: list[FilesystemPeer] = []

    def make(filesystem: Filesystem, kernel: Backing | None) -> FilesystemPeer:
        peer = FilesystemPeer(filesystem)
        peer.session._backing = kernel
        peers.append(peer)
        return peer

    yield make
    for peer in peers:
        peer.session.close()


def test_the_kernel_has_the_file_until_it_is_released(
    filesystem: Filesystem, peer_of: PeerOf
) -> None:
    kernel = Backing()
    peer = peer_of(filesystem, kernel)
    out = peer.init_filesystem()
    assert out.flags2 << 32 & FUSE_PASSTHROUGH
    assert out.max_stack_depth == 2
    number = peer.lookup("file").nodeid
    first, second = peer.open_node(number), peer.open_node(number)
    assert first.open_flags == FOPEN_PASSTHROUGH | FOPEN_NOFLUSH
    assert first.backing_id == second.backing_id == 1
    peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=first.fh))
    assert list(kernel.open) == [1]
    peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=second.fh))
    assert kernel.open == {}


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ELOOP])
def test_where_it_refuses_the_file_is_served(
    filesystem: Filesystem, peer_of: PeerOf, refusal: int, told: Told
) -> None:
    kernel = Backing(refusal)
    peer = peer_of(filesystem, kernel)
    peer.init_filesystem()
    number = peer.lookup("file").nodeid
    opened = peer.open_node(number)
    assert opened.open_flags == FOPEN_NOFLUSH
    assert peer.read_node(number, opened.fh, 100, 5) == b"text"
    assert peer.write_node(number, opened.fh, b"T", 5) == 1
    assert peer.read_node(number, opened.fh, 100) == b"some Text"
    assert os.strerror(refusal) in told.line()
    peer.ask(FUSE_RELEASE, number, fuse_release_in(fh=opened.fh))
    peer.open_node(number)
    assert kernel.asked == (1 if refusal == errno.EPERM else 2)


@pytest.mark.parametrize("how", ["old", "unwanted", "writeback", "elsewhere"])
def test_it_is_negotiated(filesystem: Filesystem, peer_of: PeerOf, how: str) -> None:
    filesystem.passthrough = how != "unwanted"
    filesystem.writeback = how == "writeback"
    kernel = Backing()
    peer = peer_of(filesystem, None if how == "elsewhere" else kernel)
    every = FUSE_INIT_EXT | FUSE_PASSTHROUGH | FUSE_WRITEBACK_CACHE
    out = peer.init_filesystem(every & ~FUSE_PASSTHROUGH if how == "old" else every)
    assert not out.flags2 << 32 & FUSE_PASSTHROUGH
    assert out.max_stack_depth == 0
    number = peer.lookup("file").nodeid
    opened = peer.open_node(number)
    assert opened.open_flags == FOPEN_NOFLUSH
    assert peer.read_node(number, opened.fh, 4) == b"some"
    assert kernel.asked == 0
