"""A tree of files whose every lookup and listing a server answers: a thread of the test."""

import errno
import os
import queue
import threading
from collections.abc import Sequence

from recuse.kernel.caller import Caller
from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Reply, Request
from recuse.kernel.errors import os_error
from recuse.sandbox.trap.call import OnDevice, TrappedCall
from recuse.sandbox.vfs.dentry import Dentry, MemoryTree
from recuse.sandbox.vfs.nodes import AttributeNode, DirectoryNode, Identity, LinkNode
from recuse.wire.fuse import (
    FUSE_INIT,
    FUSE_INTERRUPT,
    FUSE_LOOKUP,
    FUSE_READDIR,
    FUSE_READLINK,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_out_header,
)

from ..patience import PATIENCE_S

_READ_SIZE = 1 << 17
FILESYSTEM = os.makedev(0, 4242)


class ServedTree:
    """The files are in memory, but nothing of them is told before the server has answered.

    The server holds its answers for the names in ``held`` back: what it holds is in ``waiting``.
    An INTERRUPT ends that with EINTR.
    """

    def __init__(self) -> None:
        self._next_inode = 1
        self.memory = MemoryTree(DirectoryNode(self._identity()), b"/")
        self.root = self.memory.root
        self.is_filesystem = False
        self.serial = -1
        self.held: set[bytes] = set()
        self.waiting: queue.SimpleQueue[tuple[bytes, int]] = queue.SimpleQueue()
        self.lookups: list[bytes] = []
        self._pending = threading.Semaphore(0)
        self.connection = Connection(Request(FUSE_INIT), self._accept)
        self._answer(fuse_in_header.unpack(self.connection.read(_READ_SIZE)[:40]).unique)
        self.connection.on_pending = self._pending.release
        self._thread = threading.Thread(target=self._serve, name="tree-server")
        self._thread.start()

    def _accept(self, _: Reply) -> None:
        self.connection.initialised(31, 0)

    def close(self) -> None:
        """End the server."""
        self.connection.abort()
        self._pending.release()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    # Its files

    def directory(self, parent: Dentry, name: str, mode: int = 0o755) -> Dentry:
        return parent.add(name.encode(), DirectoryNode(self._identity(), mode))

    def file(self, parent: Dentry, name: str, content: str, mode: int = 0o644) -> Dentry:
        def show(_: Caller) -> bytes:
            return content.encode()

        node = AttributeNode(self._identity(), mode, show)
        node.size = len(content)
        return parent.add(name.encode(), node)

    def link(self, parent: Dentry, name: str, target: str) -> Dentry:
        return parent.add(name.encode(), LinkNode(self._identity(), target.encode()))

    def _identity(self) -> Identity:
        self._next_inode += 1
        return Identity(self._next_inode, os.geteuid(), os.getegid(), FILESYSTEM)

    # What the sandbox asks of a tree

    def lookup(self, call: TrappedCall, directory: Dentry, name: bytes) -> Dentry | None:
        # Who brings answers has better things to do than what follows from them.
        assert threading.current_thread() is not self._thread
        found: Dentry | None = call.ask(
            (directory, name), lambda: OnDevice(self, self._look_up(call.caller(), directory, name))
        )
        return found

    def list(self, call: TrappedCall, directory: Dentry) -> Sequence[Dentry]:
        return call.ask(directory, lambda: OnDevice(self, self._list(call.caller(), directory)))

    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        return call.ask(
            ("link", link), lambda: OnDevice(self, self._read_link(call.caller(), link))
        )

    def statfs(self, call: TrappedCall) -> bytes:
        return self.memory.statfs(call)

    def _look_up(self, caller: Caller, directory: Dentry, name: bytes) -> Operation[Dentry | None]:
        yield from _request(FUSE_LOOKUP, name, caller)
        return directory.children.get(name)

    def _list(self, caller: Caller, directory: Dentry) -> Operation[Sequence[Dentry]]:
        yield from _request(FUSE_READDIR, directory.name, caller)
        return list(directory.children.values())

    def _read_link(self, caller: Caller, link: Dentry) -> Operation[bytes]:
        yield from _request(FUSE_READLINK, link.name, caller)
        return link.node.read_link()

    # The server

    def release(self, unique: int, error: int = 0) -> None:
        """Answer what was held back."""
        self._answer(unique, error)

    def _answer(self, unique: int, error: int = 0) -> None:
        header = fuse_out_header(len=fuse_out_header.SIZE, error=error, unique=unique)
        self.connection.write(header.pack())

    def _serve(self) -> None:
        while True:
            self._pending.acquire()
            try:
                message = self.connection.read(_READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                return
            header = fuse_in_header.unpack(message[: fuse_in_header.SIZE])
            body = message[fuse_in_header.SIZE :]
            if header.opcode == FUSE_INTERRUPT:
                self._answer(fuse_interrupt_in.unpack(body).unique, -errno.EINTR)
                continue
            name = body.removesuffix(b"\0")
            self.lookups.append(name)
            if name in self.held:
                self.waiting.put((name, header.unique))
            else:
                self._answer(header.unique)


def _request(opcode: int, name: bytes, caller: Caller) -> Operation[None]:
    request = Request(opcode, name + b"\0", 0, 0, caller.pid, caller.uid, caller.gid)
    reply = yield request
    if reply.error:
        raise os_error(-reply.error)
