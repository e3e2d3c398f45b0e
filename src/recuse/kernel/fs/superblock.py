"""One mounted filesystem: its connection, its root and what its server can do.

`struct fuse_conn`, `struct fuse_mount` and `struct super_block` in Linux, where several mounts may
share a connection. INIT is sent as soon as a channel reads.
"""

import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import FINISHED, PAGE_SIZE, Reply, Request
from recuse.kernel.connection.submit import log, tell
from recuse.kernel.errors import os_error
from recuse.kernel.fs.backing import BackingFiles
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import Inode, InodeTable
from recuse.kernel.fs.options import Agreed, MountOptions, agree, offer
from recuse.kernel.fs.together import Together
from recuse.kernel.fs.turns import GRANTED, InodeLock, Turn
from recuse.runtime.locks import new_lock
from recuse.wire.filesystem import (
    fuse_attr,
    fuse_batch_forget_in,
    fuse_forget_in,
    fuse_forget_one,
)
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_FLOCK_LOCKS,
    FUSE_FORGET,
    FUSE_INIT,
    FUSE_MIN_READ_BUFFER,
    FUSE_NOTIFY_REPLY,
    FUSE_POSIX_ACL,
    FUSE_POSIX_LOCKS,
    FUSE_ROOT_ID,
    fuse_in_header,
    fuse_init_out,
    fuse_out_header,
)

_MOST_FORGETS: Final = (
    FUSE_MIN_READ_BUFFER - fuse_in_header.SIZE - fuse_batch_forget_in.SIZE
) // fuse_forget_one.SIZE
"""In one BATCH_FORGET: as many as fit into the smallest buffer that a server may read with."""


MOST_KNOWN: Final = 100_000
"""When more nodes are known, names that nothing uses are forgotten."""
MOST_PAGES_KEPT: Final = (64 << 20) // PAGE_SIZE
"""When more pages are kept that the server has too, they are given up."""
_FLOCK_MINOR: Final = 17
_OPCODE: Final = 4
"""Where the low byte of the opcode is in a message."""
_UNIQUE_AT: Final = 8
_UNIQUE: Final = struct.Struct("=Q")
_HEADER: Final = fuse_out_header.SIZE


class _Granting(threading.local):
    """What a thread has to do for operations that have a lock now.

    An operation that ends gives its lock to the next one, which goes on within that. There may be
    many, so only a few run within each other. The others wait here.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.left: deque[Request] = deque()


_MOST_NESTED: Final = 8
_granting: Final = _Granting()


class FilesystemConnection(Connection):
    """A connection whose operations also wait for each other.

    ``notified`` takes its notifications; it gets the code, what follows the header, and the size
    of that, of which the end may be missing.
    """

    def __init__(
        self,
        init: Request,
        accept: Callable[[Reply], None],
        notified: Callable[[int, bytes, int], None],
    ) -> None:
        super().__init__(init, accept)
        self._notified = notified
        self._retrievals: deque[int] = deque()
        """The numbers that the server gave to the NOTIFY_REPLYs that it has not read."""

    def submit(self, request: Request, done: Callable[[Reply], None] | None = None) -> None:
        """See `recuse.kernel.connection.submit.SubmitSide.submit`."""
        if isinstance(request, Turn):
            request.done = done
            if request.lock.take(request):
                self.grant(request)
        elif isinstance(request, Together):
            request.done = done
            for one in request.requests:
                super().submit(one, lambda _: self.grant(request) if request.ended() else None)
        else:
            super().submit(request, done)

    def interrupt(self, request: Request, *, fatal: bool = True) -> None:
        """See `recuse.kernel.connection.submit.SubmitSide.interrupt`."""
        if not isinstance(request, Turn):
            super().interrupt(request, fatal=fatal)
        elif request.interrupt():
            self.grant(request)

    def grant(self, turn: Request) -> None:
        """Let an operation continue that waits for a lock, or for several replies."""
        with self._lock:
            turn.reply = GRANTED
            turn.state = FINISHED
        if turn.done is None:
            return  # nobody waits for it yet
        if _granting.depth == _MOST_NESTED:
            _granting.left.append(turn)
            return
        _granting.depth += 1
        try:
            tell(turn)
            while _granting.depth == _MOST_NESTED and _granting.left:
                tell(_granting.left.popleft())
        finally:
            _granting.depth -= 1

    def resend(self) -> None:
        """Have the server get all requests once more that it has read and not answered."""
        with self._lock:
            again = self._queue.resend()
        for _ in range(again):
            self._notify_reader()

    def answer_retrieve(self, request: Request, unique: int) -> None:
        """Send a NOTIFY_REPLY, with the number that the server gave to its question."""
        self._retrievals.append(unique)
        self.submit(request)

    def read(self, size: int, finished: list[Request] | None = None) -> bytes:
        """See `recuse.kernel.connection.connection.Connection.read`."""
        message = super().read(size, finished)
        if message[_OPCODE] == FUSE_NOTIFY_REPLY:
            unique = _UNIQUE.pack(self._retrievals.popleft())
            message = message[:_UNIQUE_AT] + unique + message[_UNIQUE_AT + _UNIQUE.size :]
        return message

    def _notification(self, code: int, message: bytes, size: int) -> None:
        self._notified(code, bytes(message[_HEADER:]), size - _HEADER)


class Superblock:
    """A mounted filesystem.

    lacks
        The operations (FUSE_) that the server has answered with ENOSYS: they are not sent again.
    epoch
        Names looked up before the last FUSE_NOTIFY_INC_EPOCH have a smaller one.
    """

    def __init__(
        self,
        options: MountOptions,
        notified: "Callable[[Superblock, int, bytes, int], None]",
        clock: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Mount it.

        ``clock`` returns nanoseconds, by which names and attributes expire, and ``wall_clock``
        those since 1970: the times of files that are written back.
        """
        self.options = options
        self.clock = clock
        self._wall_clock = wall_clock
        self.agreed = Agreed()
        self.lacks: set[int] = set()
        self.no_poll = False
        """The same for POLL, as devices have it."""
        self.epoch = 0
        self.attr_version = 1
        self._versions_lock = new_lock("AttributeVersions")
        self._most_known = MOST_KNOWN
        self._kept_pages = 0
        self._forgets: deque[tuple[int, int]] = deque()
        self.dirty: set[Inode] = set()
        """Inodes with something that the server does not have yet."""
        self.mapped: set[Inode] = set()
        """Inodes with memory that programs have mapped."""
        self.backing = BackingFiles()
        self.inodes = InodeTable(self)
        attr = fuse_attr(ino=FUSE_ROOT_ID, nlink=1, mode=options.root_mode)
        self.root = Dentry(b"", self.inodes.get(FUSE_ROOT_ID, 0, attr, 0, 0))
        self.renaming = Inode(self, 0, 0, fuse_attr())
        """Its lock is held by a rename from one directory to another (s_vfs_rename_mutex)."""
        init = Request(FUSE_INIT, offer(), 0, fuse_init_out.SIZE)
        self.connection = FilesystemConnection(
            init, self._accept, lambda code, body, size: notified(self, code, body, size)
        )
        self.connection.at_end(self.backing.end)

    def _accept(self, reply: Reply) -> None:
        try:
            if reply.error:
                raise os_error(-reply.error)
            self.agreed = agree(reply.payload)
        except OSError as error:
            if not self.connection.ended:
                log.error("FUSE: the server's answer to INIT is no use: %s", error.strerror)
            self.connection.refuse()
            return
        if self.has(FUSE_POSIX_ACL):
            self.options = self.options._replace(default_permissions=True)
        if self.agreed.max_background:
            self.connection.max_background = self.agreed.max_background
        if self.agreed.congestion_threshold:
            self.connection.congestion_threshold = self.agreed.congestion_threshold
        self.connection.initialised(self.agreed.minor, self.agreed.max_write)

    def has(self, flag: int) -> bool:
        """Whether INIT has agreed on a flag (FUSE_)."""
        return bool(self.agreed.flags & flag)

    @property
    def has_flock(self) -> bool:
        """Whether the server keeps locks of flock(2); old servers said it with the other flag."""
        flag = FUSE_FLOCK_LOCKS if self.agreed.minor >= _FLOCK_MINOR else FUSE_POSIX_LOCKS
        return self.has(flag)

    @property
    def max_read(self) -> int:
        """Most bytes of a READ."""
        return min(self.options.max_read, self.agreed.max_pages * PAGE_SIZE)

    @property
    def max_write(self) -> int:
        """Most bytes of a WRITE."""
        return min(self.agreed.max_write, self.agreed.max_pages * PAGE_SIZE)

    def new_version(self) -> int:
        """Return the version of attributes that are changed now; older replies are then stale."""
        with self._versions_lock:
            self.attr_version += 1
            return self.attr_version

    def until(self, seconds: int, nanoseconds: int) -> int:
        """When something expires that is valid for so long; 0 if it was never valid."""
        # fs/fuse/dir.c, time_to_jiffies.
        if not seconds and not nanoseconds:
            return 0
        return self.clock() + seconds * 10**9 + min(nanoseconds, 10**9 - 1)

    def expired(self, until: int) -> bool:
        """Whether that time has come."""
        return until < self.clock()

    def now(self) -> int:
        """The time of a change that is made now, in nanoseconds since 1970 (current_time)."""
        now = self._wall_clock()
        return now - now % self.agreed.time_gran

    # Locks

    def lock(self, inode: Inode, shared: bool = False) -> Operation[None]:
        """Wait for an inode's lock; give it back with `unlock`."""
        return self.take(inode.lock, shared)

    def unlock(self, inode: Inode, shared: bool = False) -> None:
        """Give it back."""
        self.give_back(inode.lock, shared)

    def take(self, lock: InodeLock, shared: bool = False) -> Operation[None]:
        """Wait for a lock; give it back with `give_back`."""
        turn = Turn(lock, shared)
        try:
            yield turn
        except GeneratorExit:
            # Nobody continues the operation, so nobody would give it back.
            lock.leave(turn, self.connection.grant)
            raise

    def give_back(self, lock: InodeLock, shared: bool = False) -> None:
        """Let others have a lock."""
        lock.give_back(shared, self.connection.grant)

    # Forgetting

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back lookups of a node, with the next `send_forgets`. Takes no lock."""
        self._forgets.append((nodeid, lookups))

    def send_forgets(self) -> None:
        """Send FORGET and BATCH_FORGET for all inodes that are gone.

        Whoever drives operations calls this after each, and must not hold any lock.
        """
        # fs/fuse/dev.c, fuse_read_forget.
        if len(self.inodes) > self._most_known:
            self.root.shrink()
            self._most_known = max(MOST_KNOWN, 2 * len(self.inodes))
        while self._forgets and not self.connection.ended:
            batch: list[tuple[int, int]] = []
            try:
                while len(batch) < _MOST_FORGETS:
                    batch.append(self._forgets.popleft())
            except IndexError:
                pass  # another thread may take some as well
            if len(batch) == 1:
                nodeid, lookups = batch[0]
                body = fuse_forget_in(nlookup=lookups).pack()
                request = Request(FUSE_FORGET, body, nodeid=nodeid, no_reply=True)
            else:
                body = fuse_batch_forget_in(count=len(batch)).pack()
                body += b"".join(fuse_forget_one(*one).pack() for one in batch)
                request = Request(FUSE_BATCH_FORGET, body, no_reply=True)
            if batch:
                self.connection.submit(request)

    def keeps(self, inode: Inode, pages: int) -> None:
        """Note that pages of a file are kept now; give up others if there are too many."""
        self._kept_pages += pages
        if self._kept_pages <= MOST_PAGES_KEPT:
            return
        others = [
            other
            for other in self.inodes.all()
            if other is not inode and other.pages.memory is None  # what is mapped stays
        ]
        for other in others:
            other.pages.drop()
        if inode.pages.memory is not None:
            self._kept_pages = 0
            return
        if len(inode.pages) > MOST_PAGES_KEPT:
            inode.pages.drop()
        self._kept_pages = sum(len(one.pages) for one in (inode, *others))

    def drop_caches(self) -> None:
        """Forget all names that nothing uses, with them their inodes, and all content."""
        self.root.shrink()
        for inode in self.inodes.all():
            inode.pages.drop()
