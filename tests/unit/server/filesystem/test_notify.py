"""What a filesystem tells the kernel half by itself."""

import errno
import os
import threading
from concurrent.futures import Future

import pytest

from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.nodes import Directory, Node, RegularFile
from recuse.wire.fuse import (
    FUSE_EXPIRE_ONLY,
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INC_EPOCH,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_PRUNE,
    FUSE_NOTIFY_REPLY,
    FUSE_NOTIFY_RESEND,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
    FUSE_OPEN,
    fuse_in_header,
    fuse_out_header,
)
from recuse.wire.notify import (
    fuse_notify_delete_out,
    fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out,
    fuse_notify_prune_out,
    fuse_notify_retrieve_in,
    fuse_notify_retrieve_out,
    fuse_notify_store_out,
)

from ..conftest import WAIT_S, Told
from .conftest import FilesystemPeer


class Listening(FilesystemPeer):
    """Keeps notifications, and may refuse them."""

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__(filesystem)
        self.messages: list[tuple[int, bytes]] = []
        self.come = threading.Condition()
        self.refusal: OSError | None = None

    def take(self, message: bytes) -> None:
        header = fuse_out_header.unpack(message)
        if header.unique:
            super().take(message)
            return
        assert header.len == len(message)
        with self.come:
            self.messages.append((header.error, message[fuse_out_header.SIZE :]))
            self.come.notify_all()
        if self.refusal is not None:
            raise self.refusal

    def wait(self, count: int) -> list[tuple[int, bytes]]:
        with self.come:
            assert self.come.wait_for(lambda: len(self.messages) >= count, WAIT_S)
            return self.messages


@pytest.fixture
def file() -> RegularFile:
    return RegularFile(b"some text")


@pytest.fixture
def filesystem(file: RegularFile) -> Filesystem:
    return Filesystem(Directory({"file": file}))


@pytest.fixture
def peer(filesystem: Filesystem) -> Listening:
    peer = Listening(filesystem)
    peer.init_filesystem()
    return peer


def test_what_is_told(peer: Listening, filesystem: Filesystem, file: RegularFile) -> None:
    number = peer.lookup("file").nodeid
    root = filesystem.root
    file.changed(3, 4)
    file.attributes_changed()
    file.store(5, b"data")
    root.entry_changed("name")
    root.entry_expired(os.fsdecode(b"\xff"))
    root.entry_removed("file", file)
    filesystem.names_changed()
    filesystem.prune([file, RegularFile(b"")])
    filesystem.resend()
    assert peer.wait(9) == [
        (FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=number, off=3, len=4).pack()),
        (FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(ino=number, off=-1).pack()),
        (
            FUSE_NOTIFY_STORE,
            fuse_notify_store_out(nodeid=number, offset=5, size=4).pack() + b"data",
        ),
        (
            FUSE_NOTIFY_INVAL_ENTRY,
            fuse_notify_inval_entry_out(parent=1, namelen=4).pack() + b"name\0",
        ),
        (
            FUSE_NOTIFY_INVAL_ENTRY,
            fuse_notify_inval_entry_out(parent=1, namelen=1, flags=FUSE_EXPIRE_ONLY).pack()
            + b"\xff\0",
        ),
        (
            FUSE_NOTIFY_DELETE,
            fuse_notify_delete_out(parent=1, child=number, namelen=4).pack() + b"file\0",
        ),
        (FUSE_NOTIFY_INC_EPOCH, b""),
        (
            FUSE_NOTIFY_PRUNE,
            fuse_notify_prune_out(count=1).pack() + number.to_bytes(8, "little"),
        ),
        (FUSE_NOTIFY_RESEND, b""),
    ]
    peer.session.close()


def test_nobody_waits_for_what_the_kernel_holds_up(peer: Listening, file: RegularFile) -> None:
    """Nor does a method whose own program holds it up."""
    held, go_on = threading.Event(), threading.Event()
    take = peer.take

    def hold(message: bytes) -> None:
        if not fuse_out_header.unpack(message).unique:
            held.set()
            assert go_on.wait(WAIT_S)
        take(message)

    peer.take = hold  # type: ignore[method-assign]
    peer.session._notifications._send = hold
    peer.lookup("file")
    file.changed()
    assert held.wait(WAIT_S)
    file.changed()
    assert peer.lookup("file").nodeid
    go_on.set()
    peer.wait(2)
    peer.session.close()


def test_content_comes_back(peer: Listening, file: RegularFile) -> None:
    number = peer.lookup("file").nodeid
    wanted = file.retrieve(2, 100)
    ((code, body),) = peer.wait(1)
    asked = fuse_notify_retrieve_out.unpack(body)
    assert (code, asked.nodeid, asked.offset, asked.size) == (
        FUSE_NOTIFY_RETRIEVE,
        number,
        2,
        100,
    )
    answer = fuse_notify_retrieve_in(offset=2, size=4).pack() + b"text"
    header = fuse_in_header(
        len=fuse_in_header.SIZE + len(answer),
        opcode=FUSE_NOTIFY_REPLY,
        unique=asked.notify_unique,
        nodeid=number,
    )
    peer.session.handle(header.pack() + answer, peer.take)
    assert wanted.result(WAIT_S) == b"text"
    peer.session.close()


@pytest.mark.parametrize("how", ["refused", "closed", "after"])
def test_content_that_does_not_come(peer: Listening, file: RegularFile, how: str) -> None:
    peer.lookup("file")
    if how == "refused":
        peer.refusal = OSError(errno.ENOENT, "no such node")
    wanted: Future[bytes] | None = None
    if how != "after":
        wanted = file.retrieve(0, 10)
        peer.wait(1)
    if how != "refused":
        peer.session.close()
    with pytest.raises(OSError, match=r"no such|No such device") as caught:
        (wanted or file.retrieve(0, 10)).result(WAIT_S)
    assert caught.value.errno == (errno.ENOENT if how == "refused" else errno.ENODEV)
    peer.session.close()


def test_a_kind_that_is_refused_is_told_once(
    peer: Listening, filesystem: Filesystem, file: RegularFile, told: Told
) -> None:
    peer.lookup("file")
    peer.refusal = OSError(errno.EINVAL, "Invalid argument")
    filesystem.names_changed()
    filesystem.names_changed()
    peer.wait(2)
    peer.session.close()
    assert "kind 8" in told.line()


def test_what_is_usual_is_not_told(peer: Listening, file: RegularFile) -> None:
    peer.lookup("file")
    peer.refusal = OSError(errno.ENOENT, "")
    file.changed()
    peer.wait(1)
    peer.session.close()
    file.changed()
    assert len(peer.messages) == 1


def test_before_and_without_a_kernel_nothing_is_told(filesystem: Filesystem) -> None:
    peer = Listening(filesystem)
    filesystem.names_changed()
    node: Node = RegularFile(b"")
    node.changed()
    peer.session.close()
    assert peer.messages == []
    assert peer.refuses(FUSE_OPEN, 1, bytes(8)) == errno.ENODEV
