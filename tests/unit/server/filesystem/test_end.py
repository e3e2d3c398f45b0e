"""The end of a session, and what is opened meanwhile."""

import asyncio
import errno
import os
import threading
from typing import Any

import pytest

from recuse import Directory, Filesystem, OpenFile, OpenRequest, RegularFile
from recuse.server.filesystem.served import sessions_of
from recuse.wire.filesystem import fuse_attr_out, fuse_create_in, fuse_setattr_in
from recuse.wire.fuse import (
    FATTR_SIZE,
    FUSE_CREATE,
    FUSE_FORGET,
    FUSE_LOOKUP,
    FUSE_OPEN,
    FUSE_OPENDIR,
    FUSE_SETATTR,
    FUSE_TMPFILE,
    fuse_open_in,
)

from ..conftest import WAIT_S, Failure, Told
from .conftest import ServeFilesystem


class Counted(OpenFile):
    """Counts its releases."""

    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


class Slow(RegularFile):
    """Opens only when it is told to."""

    def __init__(self) -> None:
        self.file = Counted()
        self.opening = threading.Event()
        self.go_on = threading.Event()

    def open(self, request: OpenRequest) -> OpenFile:
        self.opening.set()
        assert self.go_on.wait(WAIT_S)
        return self.file


class Making(Directory):
    """Makes one file, again and again."""

    def __init__(self, node: RegularFile) -> None:
        super().__init__({"file": node})

    def create(self, name: str, mode: int) -> Any:
        return self.children["file"]

    def tmpfile(self, mode: int) -> Any:
        return self.children["file"]


@pytest.mark.parametrize("opcode", [FUSE_OPEN, FUSE_CREATE, FUSE_TMPFILE])
def test_an_open_that_ends_after_the_session(
    serve_filesystem: ServeFilesystem, opcode: int
) -> None:
    node = Slow()
    peer = serve_filesystem(Filesystem(Making(node)))
    number = peer.lookup("file").nodeid
    requests: dict[int, Any] = {
        FUSE_OPEN: (FUSE_OPEN, number, fuse_open_in(flags=2)),
        FUSE_CREATE: (FUSE_CREATE, 1, fuse_create_in(flags=2, mode=0o100644), "new"),
        FUSE_TMPFILE: (FUSE_TMPFILE, 1, fuse_create_in(flags=2, mode=0o100644), "new"),
    }
    sent: list[int] = []
    opener = threading.Thread(target=lambda: sent.append(peer.send(*requests[opcode])))
    opener.start()
    assert node.opening.wait(WAIT_S)
    peer.session.close()
    assert node.file.released == 0
    node.go_on.set()
    opener.join(WAIT_S)
    with pytest.raises(Failure) as caught:
        peer.answer(sent[0])
    assert caught.value.number == errno.ENODEV
    assert node.file.released == 1


def test_an_open_while_files_are_released(serve_filesystem: ServeFilesystem) -> None:
    releasing, go_on = threading.Event(), threading.Event()

    class Last(OpenFile):
        def release(self) -> None:
            releasing.set()
            assert go_on.wait(WAIT_S)

    class Opened(RegularFile):
        def open(self, request: OpenRequest) -> OpenFile:
            return Last()

    slow = Slow()
    root = Directory({"first": Opened(), "second": slow})
    peer = serve_filesystem(Filesystem(root))
    peer.open_node(peer.lookup("first").nodeid)
    number = peer.lookup("second").nodeid
    opener = threading.Thread(target=peer.send, args=(FUSE_OPEN, number, fuse_open_in(flags=2)))
    opener.start()
    assert slow.opening.wait(WAIT_S)
    closer = threading.Thread(target=peer.session.close)
    closer.start()
    assert releasing.wait(WAIT_S)
    slow.go_on.set()
    opener.join(WAIT_S)
    go_on.set()
    closer.join(WAIT_S)
    assert slow.file.released == 1


def test_it_ends_once(serve_filesystem: ServeFilesystem) -> None:
    """`close` in many threads at once."""
    for _ in range(50):
        closed: list[int] = []

        class Ending(Filesystem):
            root = Directory()

            def close(self, closed: list[int] = closed) -> None:
                closed.append(1)

        peer = serve_filesystem(Ending())
        together = threading.Barrier(8)

        def end(session: Any = peer.session, together: threading.Barrier = together) -> None:
            together.wait(WAIT_S)
            session.close()

        threads = [threading.Thread(target=end) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert closed == [1]


def test_directories_are_not_opened_after_it(serve_filesystem: ServeFilesystem) -> None:
    peer = serve_filesystem(Filesystem(Directory()))
    peer.session.close()
    assert peer.refuses(FUSE_OPENDIR, 1, fuse_open_in()) == errno.ENODEV


def test_a_file_of_a_node_that_tells_no_attributes(
    serve_filesystem: ServeFilesystem, told: Told
) -> None:
    """The program gets no descriptor, so nobody would release the file later."""

    class Silent(Slow):
        def attributes(self) -> Any:
            raise OSError(errno.EUCLEAN, "no")

    class Mute(Slow):
        async def attributes(self) -> Any:
            raise OSError(errno.EUCLEAN, "no")

    class Wrong(Slow):
        def attributes(self) -> Any:
            return 5

    for kind, number in ((Silent, errno.EUCLEAN), (Mute, errno.EUCLEAN), (Wrong, errno.EIO)):
        node = kind()
        node.go_on.set()
        peer = serve_filesystem(Filesystem(Making(node)))
        request = fuse_create_in(flags=2, mode=0o100644)
        assert peer.refuses(FUSE_CREATE, 1, request, "new") == number
        assert node.file.released == 1
    assert told.line().startswith("Making.create returned 5, not a Node")


def test_nothing_begins_after_it(serve_filesystem: ServeFilesystem) -> None:
    filesystem = Filesystem(Directory())
    peer = serve_filesystem(filesystem)
    peer.session.close()
    with pytest.raises(Failure) as caught:
        peer.init_filesystem()
    assert caught.value.number == errno.ENODEV
    assert sessions_of(filesystem) == []


def test_what_fails_after_the_answer(
    serve_filesystem: ServeFilesystem, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged; there is no second answer, and the channel's thread goes on."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    peer = serve_filesystem(Filesystem(Directory({"file": RegularFile(b"")})))
    monkeypatch.setattr(peer.session._level, "undelivered", fail)
    monkeypatch.setattr(peer.session._level, "forget", fail)
    peer.refuse = OSError(errno.ENOENT, "gone")
    peer.send(FUSE_LOOKUP, 1, b"", "file")
    line, _ = told.traceback()
    assert line.startswith("internal error in request")
    peer.refuse = None
    unique = peer.send(FUSE_FORGET, 1, bytes(8))
    assert unique not in peer.answers
    assert told.traceback()[0].startswith("internal error in request")


def test_what_comes_at_the_end_may_be_waited_for(serve_filesystem: ServeFilesystem) -> None:
    ended: list[str] = []

    class File(RegularFile):
        def __init__(self, name: str) -> None:
            super().__init__(b"")
            self.name = name

        async def forgotten(self) -> None:
            await asyncio.sleep(0)
            ended.append(self.name)

    class Tree(Filesystem):
        async def close(self) -> None:
            await asyncio.sleep(0)
            ended.append("close")

    peer = serve_filesystem(Tree(Directory({"a": File("a"), "b": File("b")})))
    peer.lookup("b")
    peer.forget(peer.lookup("a").nodeid, 1)
    peer.session.close()
    assert ended == ["a", "b", "close"]


def test_what_has_not_begun_is_forgotten_with_all_that_it_waits_for(
    serve_filesystem: ServeFilesystem,
) -> None:
    """An open that truncates first is three coroutines, one in the other."""
    begun: list[int] = []

    class File(RegularFile):
        async def truncate(self, size: int) -> None:
            begun.append(size)
            # On the loop, so that the open's task is made before the first step of the end.
            second.append(
                peer.send(FUSE_OPEN, number, fuse_open_in(flags=os.O_WRONLY | os.O_TRUNC))
            )
            peer.session.close()

    second: list[int] = []
    peer = serve_filesystem(Filesystem(Directory({"file": File(b"text")})))
    number = peer.lookup("file").nodeid
    body = fuse_setattr_in(valid=FATTR_SIZE, size=5)
    assert fuse_attr_out.unpack(peer.ask(FUSE_SETATTR, number, body)).attr.size == 4
    with pytest.raises(Failure, match="ECONNABORTED"):
        peer.answer(second[0])
    assert begun == [5]
    for thread in threading.enumerate():
        if thread.name == "recuse-async":  # which ends later, as the session was closed on it
            thread.join(WAIT_S)
