"""A request to the server, and the reply that finishes it."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from enum import IntEnum

from recuse.wire.fuse import FUSE_READ, FUSE_WRITE, fuse_read_in, fuse_write_in, fuse_write_out

_pack_read_in = fuse_read_in.CODEC.pack
_pack_write_in = fuse_write_in.CODEC.pack

PAGE_SIZE = mmap.PAGESIZE
"""The machine's, in bytes: 4096, or 16 or 64 KiB with some arm64 kernels. Linux also counts in
these."""
MAX_PAGES = 32
"""Most pages of the caller's memory that one request reads or writes (Linux's default)."""
MOST_PAGES = 256
"""The same for a device that asked for more: the most that a filesystem's server can ask for
(FUSE_MAX_MAX_PAGES). Without it, a server could use up the memory of both halves."""


class State(IntEnum):
    """Where a request is; `recuse.kernel.connection.queue` has the transitions."""

    NEW = 0
    """Not submitted yet."""
    WAITING = 1
    """Waits for admission: INIT has not been answered, or too much runs in the background."""
    QUEUED = 2
    """In the background, waiting for its turn."""
    PENDING = 3
    """Admitted and numbered; the server has not read it."""
    PROCESSING = 4
    """Read by the server, which owes a reply."""
    FINISHED = 5
    """`Request.reply` is set and does not change."""


# Names of the module: in Python 3.11 reading an enumeration's member takes longer than the rest
# of a transition.
NEW = State.NEW
WAITING = State.WAITING
QUEUED = State.QUEUED
PENDING = State.PENDING
PROCESSING = State.PROCESSING
FINISHED = State.FINISHED


class Reply:
    """The result of a request. error is 0 or a negative errno; payload is what follows the header.

    With an error the payload is empty. It is bytes, or a memoryview of bytes if it is large.
    """

    __slots__ = ("error", "payload")

    def __init__(self, error: int, payload: bytes | memoryview = b"") -> None:
        self.error = error
        self.payload = payload

    def __repr__(self) -> str:
        return f"Reply(error={self.error}, payload={len(self.payload)} bytes)"


class Request:
    """One message to the server, from the system call that needs it until its reply.

    opcode
        FUSE_* or CUSE_INIT.
    body
        Everything after the header.
    min_reply, max_reply
        How many bytes of payload a successful reply may carry. They are equal for a structure of
        fixed size. If data of any length may follow, min_reply is the fixed part (fs/fuse/dev.c,
        fuse_copy_out_args and its out_argvar).
    pid, uid, gid, nodeid
        For the header.
    force
        It must reach the server (RELEASE): an interrupt does not withdraw it.
    no_reply
        It is finished when the server has read it (FORGET).
    background
        Nobody waits for it, and only a limited number of these are sent at a time: CUSE_INIT, and a
        RELEASE whose close(2) does not wait. With `force` it is counted and waits for its turn.

    The other attributes belong to the connection that it was submitted to: state, unique (even,
    0 before it is pending), reply (None until it is finished), done, interrupted.
    """

    __slots__ = (
        "background",
        "body",
        "done",
        "force",
        "gid",
        "interrupted",
        "max_reply",
        "min_reply",
        "no_reply",
        "nodeid",
        "opcode",
        "pid",
        "reply",
        "state",
        "uid",
        "unique",
    )

    def __init__(  # noqa: PLR0917  # by position, as one is made for each message
        self,
        opcode: int,
        body: bytes = b"",
        min_reply: int = 0,
        max_reply: int = 0,
        pid: int = 0,
        uid: int = 0,
        gid: int = 0,
        nodeid: int = 0,
        force: bool = False,
        no_reply: bool = False,
        background: bool = False,
    ) -> None:
        self.opcode = opcode
        self.body = body
        self.min_reply = min_reply
        self.max_reply = max_reply
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.nodeid = nodeid
        self.force = force
        self.no_reply = no_reply
        self.background = background
        self.state = NEW
        self.unique = 0
        self.reply: Reply | None = None
        self.done: Callable[[Reply], None] | None = None
        self.interrupted = False

    def __repr__(self) -> str:
        return f"<Request opcode={self.opcode} unique={self.unique} {self.state.name}>"


class Transfer(Request):
    """A READ or WRITE. Its body is made only for a server that reads it as a message.

    A server in this process is given the parts as they are (`Connection.on_transfer`).

    fh, offset, size, file_flags
        As in the body's structure.
    data
        What is written; None for a READ.
    """

    __slots__ = ("_owner", "_transfer_flags", "data", "fh", "file_flags", "offset", "size")

    def __init__(  # noqa: PLR0917
        self,
        fh: int,
        offset: int,
        size: int,
        file_flags: int,
        data: bytes | None,
        transfer_flags: int,
        owner: int,
        pid: int,
        uid: int,
        gid: int,
    ) -> None:
        if data is None:
            self.opcode = FUSE_READ
            self.min_reply = 0
            self.max_reply = size
        else:
            self.opcode = FUSE_WRITE
            self.min_reply = self.max_reply = fuse_write_out.SIZE
        self.fh = fh
        self.offset = offset
        self.size = size
        self.file_flags = file_flags
        self.data = data
        self._transfer_flags = transfer_flags
        self._owner = owner
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.nodeid = 0
        self.force = self.no_reply = self.background = False
        self.state = NEW
        self.unique = 0
        self.reply = None
        self.done = None
        self.interrupted = False

    @property
    def body(self) -> bytes:  # type: ignore[override]
        """See `Request`."""
        data = self.data
        pack = _pack_read_in if data is None else _pack_write_in
        flags, owner = self._transfer_flags, self._owner
        head = pack(self.fh, self.offset, self.size, flags, owner, self.file_flags, 0)
        return head if data is None else head + data
