"""A request to the server, and the reply that finishes it."""

import mmap
from collections.abc import Callable
from enum import IntEnum

PAGE_SIZE = mmap.PAGESIZE
"""The machine's, in bytes: 4096, or 16 or 64 KiB with some of arm64's kernels. Linux counts in
these too."""
MAX_PAGES = 32
"""Most pages of the caller's memory that one request takes data from or to (Linux's default)."""
MOST_PAGES = 256
"""The same for a device that asked for more: what a filesystem's server can ask for at the most
(FUSE_MAX_MAX_PAGES). The memory of both halves would be theirs to use up otherwise."""


class State(IntEnum):
    """Where a request is; `recuse.kernel.connection.queue` has the transitions."""

    NEW = 0
    """Not submitted yet."""
    WAITING = 1
    """For admission: INIT has not been answered, or too much runs in the background."""
    QUEUED = 2
    """In the background, and it is not its turn yet."""
    PENDING = 3
    """Admitted and numbered; the server has not read it."""
    PROCESSING = 4
    """Read by the server, which owes a reply."""
    FINISHED = 5
    """`Request.reply` is there, and stays."""


# Names of the module: in Python 3.11 reading an enumeration's member takes longer than the rest
# of a transition.
NEW = State.NEW
WAITING = State.WAITING
QUEUED = State.QUEUED
PENDING = State.PENDING
PROCESSING = State.PROCESSING
FINISHED = State.FINISHED


class Reply:
    """What a request came to: error is 0 or a negative errno; payload is what follows the header.

    The payload is empty with an error.  It is bytes, or a memoryview of bytes if it is large.
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
        All that follows the header.
    min_reply, max_reply
        How many bytes of payload a successful reply may carry.  Equal for a structure of fixed
        size; min_reply is the fixed part where data of any length may follow (fs/fuse/dev.c,
        fuse_copy_out_args and its out_argvar).
    pid, uid, gid, nodeid
        Of the header.
    force
        Has to reach the server (RELEASE): an interrupt does not withdraw it.
    no_reply
        Finished when the server has read it (FORGET).
    background
        Nobody waits for it, and only so many of these are sent at a time (CUSE_INIT; a RELEASE
        whose close(2) does not wait for it; with `force` it waits for its turn, but is counted).

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
