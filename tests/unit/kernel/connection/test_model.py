"""The connection against a model: any order of what programs, the server and the end can do.

The model is lists of requests, one for each place, and knows nothing of bytes.
"""

from __future__ import annotations

import errno

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Reply, Request, State
from recuse.kernel.connection.submit import ConnectionState
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_SETXATTR,
    FUSE_WRITE,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_out_header,
)

from ..support import BIG, error_of, reply_bytes

MAX_WRITE = 20_000
INIT = 4096


class Submitted:
    """A request with the replies that it got."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.replies: list[Reply] = []


class ConnectionModel(RuleBasedStateMachine):
    """Connection and model side by side."""

    @initialize(connected=st.booleans(), limit=st.sampled_from([12, 1, 2]))
    def open(self, connected: bool, limit: int) -> None:
        self.init = Submitted(Request(INIT, bytes(16), 4, 8, background=True))
        self.connection = Connection(self.init.request, self.init.replies.append)
        self.ends = 0
        self.connection.at_end(self.end)
        self.connection.on_pending = self.count_pending
        self.told = 1
        self.limit = 12
        self.threshold = 9
        self.counted = {self.init}
        self.blocked = False
        self.queued: list[Submitted] = []
        self.state = ConnectionState.INITIALISING
        self.no_interrupt = False
        self.waiting: list[Submitted] = []
        self.pending = [self.init]
        self.processing: list[Submitted] = []
        self.interrupts: list[Submitted] = []
        self.finished: dict[Submitted, tuple[int, bytes]] = {}
        self.interrupted: set[Submitted] = set()
        self.uniques: list[int] = []
        self.limit_the_background(limit)
        if connected:
            self.read(BIG)
            self.connection.write(reply_bytes(2, b"init"))
            self.finish(self.init, 0, b"init")
            self.accept(good=True)

    def end(self) -> None:
        self.ends += 1

    def count_pending(self) -> None:
        self.told += 1

    @property
    def ended(self) -> bool:
        return self.state in (ConnectionState.REFUSED, ConnectionState.ABORTED)

    def finish(self, item: Submitted, error: int, payload: bytes = b"") -> None:
        for place in (self.waiting, self.queued, self.pending, self.processing, self.interrupts):
            if item in place:
                place.remove(item)
        assert item not in self.finished
        self.finished[item] = (error, payload)
        if item in self.counted:
            if len(self.counted) == self.limit:
                self.blocked = False
            self.counted.remove(item)
            self.dequeue()

    def enqueue(self, item: Submitted) -> None:
        """Count a request in the background; its turn comes when it comes."""
        self.counted.add(item)
        self.queued.append(item)
        if len(self.counted) == self.limit:
            self.blocked = True
        self.dequeue()

    def dequeue(self) -> None:
        while self.queued and len(self.counted) - len(self.queued) < self.limit:
            self.pend(self.queued.pop(0))

    def pend(self, item: Submitted) -> None:
        self.pending.append(item)
        self.pended += 1

    pended = 1
    """Requests that have become pending, INIT among them."""

    def admit(self) -> None:
        """Let those go on that wait for INIT, or for others in the background."""
        if self.state is not ConnectionState.CONNECTED:
            return
        for item in list(self.waiting):
            if not item.request.background:
                self.waiting.remove(item)
                self.pend(item)
            elif item.request.force or not self.blocked:
                self.waiting.remove(item)
                self.enqueue(item)

    # Programs

    @rule(
        opcode=st.sampled_from([FUSE_WRITE, FUSE_SETXATTR]),
        size=st.sampled_from([0, 8152, 8153, 30_000]),
        least=st.integers(0, 2),
        room=st.integers(0, 2),
        force=st.booleans(),
        no_reply=st.booleans(),
        background=st.booleans(),
    )
    def submit(  # noqa: PLR0917
        self,
        opcode: int,
        size: int,
        least: int,
        room: int,
        force: bool,
        no_reply: bool,
        background: bool,
    ) -> None:
        request = Request(
            opcode,
            bytes(size),
            least,
            least + room,
            force=force,
            no_reply=no_reply,
            background=background,
        )
        item = Submitted(request)
        self.connection.submit(request, item.replies.append)
        if self.state in (ConnectionState.INITIALISING, ConnectionState.CONNECTED):
            self.waiting.append(item)
            self.admit()
        elif self.state is ConnectionState.REFUSED:
            self.finish(item, -errno.ECONNREFUSED)
        else:
            self.finish(item, -errno.ENOTCONN)

    def everything(self) -> list[Submitted]:
        return [*self.waiting, *self.queued, *self.pending, *self.processing, *self.finished]

    @rule(number=st.integers(0, 5))
    def limit_the_background(self, number: int) -> None:
        self.connection.max_background = self.limit = number
        self.blocked = len(self.counted) >= number
        self.admit()

    @rule(number=st.integers(0, 5))
    def set_the_threshold(self, number: int) -> None:
        self.connection.congestion_threshold = self.threshold = number

    @rule(data=st.data(), fatal=st.booleans())
    def interrupt(self, data: st.DataObject, fatal: bool) -> None:
        item = data.draw(st.sampled_from(self.everything()))
        if item is self.init:
            return
        self.connection.interrupt(item.request, fatal=fatal)
        if item in self.finished:
            return
        if item.request.background and item not in self.waiting:
            return  # nobody waits for it
        if fatal and item not in self.processing and not item.request.force:
            self.finish(item, -errno.EINTR)
            return
        if item in self.interrupted:
            return
        if self.no_interrupt and item not in self.before_no_interrupt:
            return
        self.interrupted.add(item)
        if item in self.processing:
            self.queue_interrupt(item)

    def queue_interrupt(self, item: Submitted) -> None:
        if item not in self.interrupts:
            self.interrupts.append(item)

    # The server: INIT

    @precondition(lambda self: self.init in self.finished)
    @rule(good=st.booleans())
    def accept(self, good: bool) -> None:
        """What CuseChannel makes of the reply; again, it changes nothing."""
        if good:
            fresh = self.state is ConnectionState.INITIALISING
            assert self.connection.initialised(45, MAX_WRITE) == fresh
            if fresh:
                self.state = ConnectionState.CONNECTED
                self.admit()
        elif self.state is ConnectionState.INITIALISING:
            self.connection.refuse()
            self.state = ConnectionState.REFUSED
            self.finish_all(-errno.ECONNREFUSED)

    # The server: read

    @rule(size=st.sampled_from([0, 8191, 8192, MAX_WRITE + 79, MAX_WRITE + 80, BIG]))
    def read(self, size: int) -> None:
        connected = self.state is not ConnectionState.INITIALISING
        if size < (MAX_WRITE + 80 if connected and self.was_connected else 8192):
            assert error_of(self.connection.read, size) == errno.EINVAL
            return
        if self.ended:
            assert error_of(self.connection.read, size) == errno.ENODEV
            return
        if self.interrupts:
            item = self.interrupts.pop(0)
            message = self.connection.read(size)
            unique = item.request.unique
            assert fuse_in_header.unpack(message) == fuse_in_header(
                len=48, opcode=FUSE_INTERRUPT, unique=unique + 1
            )
            assert fuse_interrupt_in.unpack(message, 40).unique == unique
            return
        fresh = False
        while self.pending:
            item = self.pending[0]
            request = item.request
            if 40 + len(request.body) > size:
                too_big = errno.E2BIG if request.opcode == FUSE_SETXATTR else errno.EIO
                self.finish(item, -too_big)
                fresh = True
                continue
            message = self.connection.read(size)
            header = fuse_in_header.unpack(message)
            assert (header.opcode, header.len) == (request.opcode, len(message))
            assert header.unique == request.unique
            assert header.unique not in self.uniques
            self.uniques.append(header.unique)
            if request.no_reply:
                self.finish(item, 0)
                self.admit()
            else:
                self.pending.remove(item)
                self.processing.append(item)
                if item in self.interrupted:
                    self.queue_interrupt(item)
                if fresh:
                    self.admit()
            return
        assert error_of(self.connection.read, size) == errno.EAGAIN
        self.admit()

    # The server: write

    @precondition(lambda self: self.processing)
    @rule(data=st.data(), extra=st.integers(0, 2))
    def reply(self, data: st.DataObject, extra: int) -> None:
        item = data.draw(st.sampled_from(self.processing))
        request = item.request
        payload = b"x" * min(request.min_reply + extra, request.max_reply)
        self.connection.write(reply_bytes(request.unique, payload))
        self.finish(item, 0, payload)
        self.admit()

    @precondition(lambda self: self.processing)
    @rule(data=st.data(), error=st.sampled_from([-1, -errno.ENOSYS, -511]))
    def reply_error(self, data: st.DataObject, error: int) -> None:
        item = data.draw(st.sampled_from(self.processing))
        self.connection.write(reply_bytes(item.request.unique, b"", error))
        self.finish(item, error)
        self.admit()

    @precondition(lambda self: self.processing)
    @rule(data=st.data(), error=st.sampled_from([0, -1]), long=st.booleans())
    def reply_with_bad_payload(self, data: st.DataObject, error: int, long: bool) -> None:
        item = data.draw(st.sampled_from(self.processing))
        request = item.request
        if error:
            size = 1
        elif long or not request.min_reply:
            size = request.max_reply + 1
        else:
            size = request.min_reply - 1
        message = reply_bytes(request.unique, bytes(size), error)
        assert error_of(self.connection.write, message) == errno.EINVAL
        self.finish(item, -errno.EIO)
        self.admit()

    @rule(
        data=st.data(),
        error=st.sampled_from([0, 1, -512, -(2**31)]),
        length=st.sampled_from([15, 17, 2**32 - 1]),
    )
    def malformed(self, data: st.DataObject, error: int, length: int) -> None:
        """Another length than it says, or an error that is none: not even the number counts."""
        item = data.draw(st.sampled_from(self.everything()))
        if error:
            length = 16
        message = fuse_out_header(length, error, item.request.unique or 2).pack()
        assert error_of(self.connection.write, message) == errno.EINVAL

    @rule(data=st.data(), size=st.integers(0, 15))
    def too_short(self, data: st.DataObject, size: int) -> None:
        assert error_of(self.connection.write, bytes(size)) == errno.EINVAL

    @rule(data=st.data())
    def reply_to_no_request(self, data: st.DataObject) -> None:
        """To one that is finished (a double reply), was not read, or never was."""
        known = [
            item.request.unique
            for item in self.everything()
            if item.request.unique and item not in self.processing
        ]
        unique = data.draw(st.sampled_from([*known, 10_000, 2**64 - 2]))
        bit = data.draw(st.integers(0, 1))
        assert error_of(self.connection.write, reply_bytes(unique | bit)) == errno.ENOENT

    @precondition(lambda self: self.processing)
    @rule(data=st.data(), error=st.sampled_from([0, -errno.EINTR, -errno.EAGAIN, -errno.ENOSYS]))
    def reply_to_interrupt(self, data: st.DataObject, error: int) -> None:
        item = data.draw(st.sampled_from(self.processing))
        message = reply_bytes(item.request.unique + 1, b"", error)
        if error == -errno.EAGAIN and item not in self.interrupted:
            assert error_of(self.connection.write, message) == errno.EINVAL
            return
        self.connection.write(message)
        if error == -errno.ENOSYS and not self.no_interrupt:
            self.no_interrupt = True
            self.before_no_interrupt = {one for one in self.everything() if one.request.unique}
        elif error == -errno.EAGAIN and item not in self.interrupts:
            self.interrupts.append(item)

    # The end

    @precondition(lambda self: len(self.finished) > 3)
    @rule()
    def abort(self) -> None:
        self.connection.abort()
        self.state = ConnectionState.ABORTED
        self.finish_all(-errno.ECONNABORTED)

    def finish_all(self, error: int) -> None:
        for item in [*self.processing, *self.pending, *self.queued, *self.waiting]:
            self.finish(item, error)
        self.admit()
        self.pended = self.told  # nobody is told any more

    # What always holds

    was_connected = False

    @invariant()
    def each_request_is_where_the_model_says(self) -> None:
        self.was_connected = self.was_connected or self.state is ConnectionState.CONNECTED
        queue = self.connection._queue
        assert list(queue.waiting) == [item.request for item in self.waiting]
        assert list(queue.background) == [item.request for item in self.queued]
        assert list(queue.pending) == [item.request for item in self.pending]
        assert list(queue.processing.values()) == [item.request for item in self.processing]
        assert list(queue.interrupts) == [item.request for item in self.interrupts]
        for state, items in (
            (State.WAITING, self.waiting),
            (State.QUEUED, self.queued),
            (State.PENDING, self.pending),
            (State.PROCESSING, self.processing),
            (State.FINISHED, self.finished),
        ):
            assert {item.request.state for item in items} <= {state}

    @invariant()
    def each_finished_request_has_one_reply_and_no_other_has_any(self) -> None:
        for item in (*self.waiting, *self.queued, *self.pending, *self.processing):
            assert item.replies == []
        for item, expected in self.finished.items():
            (reply,) = item.replies
            assert (reply.error, bytes(reply.payload)) == expected

    @invariant()
    def the_connection_agrees(self) -> None:
        unfinished = len(self.everything()) - len(self.finished)
        assert self.connection.waiting == unfinished
        assert self.connection.state is self.state
        assert self.connection.ended == self.ended
        assert self.ends == self.ended
        if self.ended:
            assert unfinished == 0

    @invariant()
    def the_background_has_its_limit(self) -> None:
        queue = self.connection._queue
        active = [item for item in self.counted if item not in self.queued]
        assert queue.num_background == len(self.counted)
        assert queue.active_background == len(active)
        assert queue.blocked == self.blocked
        assert self.connection.congested == (len(self.counted) >= self.threshold)
        if not self.ended:
            held = [item for item in self.waiting if item.request.background]
            if self.state is ConnectionState.CONNECTED and held:
                assert self.blocked

    @invariant()
    def the_server_is_told_of_each_request(self) -> None:
        interrupts = self.told - self.pended
        assert self.ended or interrupts >= 0

    @invariant()
    def only_init_is_sent_before_it_is_answered(self) -> None:
        if self.state is ConnectionState.INITIALISING:
            assert self.uniques in ([], [2])


TestConnectionModel = ConnectionModel.TestCase
TestConnectionModel.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True
)
