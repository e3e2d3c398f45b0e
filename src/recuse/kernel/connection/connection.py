"""The connection between system calls and one server: fs/fuse/dev.c and fs/fuse/inode.c's INIT.

What happens in each state, and the errno that each side gets:

    state         submit           read              write
    INITIALISING  held             INIT, then EAGAIN the reply to INIT
    CONNECTED     sent             requests, EAGAIN  replies, notifications
    REFUSED       ECONNREFUSED     ENODEV            ENOENT
    ABORTED       ENOTCONN *       ENODEV            ENOENT

    * or what the channel has set as error_when_aborted

In the last two states a write fails with ENOENT, since no request is left that it could answer.
POLL notifications are still accepted. (ECONNABORTED for a read is only for filesystems that have
asked for it with FUSE_ABORT_ERROR.) When the connection is aborted, unfinished requests finish with
ECONNABORTED. When it is refused, held requests finish with ECONNREFUSED.

Linux's CUSE counts as initialised from the start, as only INIT can be sent before there is a
device. Holding requests until then is what FUSE does.

Requests in the background (`Request.background`) are limited as in fs/fuse/dev.c of Linux 6.1. At
most `max_background` of them are sent at a time. When there are that many, further ones without
`force` are held. Those with `force` are counted and queued, however many there are. (In 2005 all
requests were counted together, ten at most. A RELEASE that there was no room for was a debt, to be
paid before the next request.) CUSE itself sends only INIT like this: close(2) waits for its RELEASE
(fs/fuse/cuse.c, cuse_release).

Thread-safe: one lock protects the queue and the state. A thread that holds it never waits and never
calls anybody.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NoReturn, Protocol

from recuse.kernel.connection.notify import notified_poller
from recuse.kernel.connection.request import PROCESSING, Reply, Request
from recuse.kernel.connection.submit import ConnectionState, SubmitSide, log, tell
from recuse.kernel.errors import os_error
from recuse.wire.descriptor import BytesWithDescriptor
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_MIN_READ_BUFFER,
    FUSE_SETXATTR,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_out_header,
    fuse_write_in,
)

_pack_in_header = fuse_in_header.CODEC.pack
_unpack_out_header = fuse_out_header.CODEC.unpack_from
_IN_HEADER_SIZE = fuse_in_header.SIZE
_OUT_HEADER_SIZE = fuse_out_header.SIZE

_ERROR_LIMIT = 512
"""Errors from here up are the kernel's own (ERESTARTSYS and so on): no server may send them."""

_COPY_LIMIT = 4096
"""Payloads up to this many bytes are copied from the message, which is faster than a view."""

_INTERRUPT_BIT = 1


class Tap(Protocol):
    """Sees the messages of a connection, for tracing.

    None of the methods may wait, as every request calls them. If one raises, the tap is removed.
    """

    def request(self, message: bytes) -> None:
        """Record a message that the server is about to get."""

    def reply(self, message: bytes) -> None:
        """Record a message from the server, before it takes effect or is refused."""

    def added(self, name: str, major: int, minor: int) -> None:
        """Record that the connection's device has been added."""

    def removed(self) -> None:
        """Record that it has been removed."""


class Connection(SubmitSide):
    """All requests of the programs that use one device, on their way to its server and back.

    The server has to answer init before any other request is sent. accept is called with the reply,
    before the server's `write` of it returns. It has to call `initialised` or `refuse`.

    on_pending, if set, is called without the lock, once for each message that has become readable,
    by the thread that submitted it. It is not called for an INTERRUPT that the server sent back
    with EAGAIN: the code that wrote the EAGAIN has to look again. If on_pending raises, the channel
    is broken, and the connection is aborted.

    on_transfer, if set, is called instead with each `Transfer`. The server has it then, and does
    not read it. The same goes for what it raises.
    """

    def __init__(self, init: Request, accept: Callable[[Reply], None]) -> None:
        super().__init__(init, accept)
        self.tap: Tap | None = None
        self._min_read = FUSE_MIN_READ_BUFFER

    @property
    def readable(self) -> bool:
        """Whether `read` would return a message now."""
        return bool(self._queue.pending or self._queue.interrupts)

    def expect_writes(self, max_write: int) -> None:
        """Require a read buffer for a WRITE of this size, whether INIT succeeds or not."""
        self._min_read = max(FUSE_MIN_READ_BUFFER, _IN_HEADER_SIZE + fuse_write_in.SIZE + max_write)

    def initialised(self, minor: int, max_write: int) -> bool:
        """Let requests through: INIT was answered. False if the connection has ended meanwhile.

        max_write is in bytes. From now on the server's read buffer has to hold a WRITE that large.
        """
        if self.state is not ConnectionState.INITIALISING:
            return False
        self.expect_writes(max_write)
        return self._initialised(minor)

    def read(self, size: int, finished: list[Request] | None = None) -> bytes:
        """Return the next message for the server, for a buffer of ``size`` bytes.

        Raises BlockingIOError (EAGAIN) if there is none; OSError: EINVAL if the buffer is smaller
        than 8192 bytes, or too small for a header, WRITE's structure and max_write bytes; ENODEV if
        the connection has ended.

        A request that does not fit finishes with EIO (SETXATTR with E2BIG, as the caller chose its
        size), and the next one is tried.

        Those who wait for a finished request are told before this returns. They may then make
        requests of this same connection. So a caller that holds a lock which `on_pending` needs
        passes a list: those requests are added to it. The caller then calls `tell_finished`
        without the lock.
        """
        # fs/fuse/dev.c, fuse_dev_do_read.
        queue = self._queue
        unfit: list[Request] | None = None
        self._acquire()
        try:
            if size < self._min_read:
                raise os_error(errno.EINVAL)
            message = _interrupt_message(queue.interrupts.popleft()) if queue.interrupts else b""
            while not message:
                if not queue.pending:
                    raise os_error(errno.ENODEV if self.ended else errno.EAGAIN)
                request = queue.pending[0]
                body = request.body
                length = _IN_HEADER_SIZE + len(body)
                if length > size:
                    too_big = errno.E2BIG if request.opcode == FUSE_SETXATTR else errno.EIO
                    queue.finish(request, Reply(-too_big))
                    unfit = [*(unfit or ()), request]
                    continue
                queue.send()
                if request.no_reply:
                    queue.finish(request, Reply(0))
                    unfit = [*(unfit or ()), request]
                elif request.interrupted:
                    queue.interrupt(request)
                message = message_of(request, body)
        finally:
            self._release()
            if unfit is not None:
                if finished is None:
                    self.tell_finished(unfit)
                else:
                    finished += unfit
        if self.tap is not None:
            self._tell_tap(message)
        return message

    def message(self, request: Request) -> bytes:
        """The message that the server would have read, had it not been given the request itself."""
        message = message_of(request, request.body)
        self._tell_tap(message)
        return message

    def tell_finished(self, requests: list[Request]) -> None:
        """Give the requests that `read` finished to those who wait for them, once each."""
        for request in requests:
            tell(request)
            if request.background:
                self._background_ended()

    def write(self, message: bytes | bytearray | memoryview) -> None:
        """Take one reply, or one notification, from the server.

        A descriptor that comes with a reply goes to the waiting caller with the payload.

        Raises OSError: EINVAL if it is malformed (shorter than its header, another length than
        the header says, an invalid error, an unknown notification); ENOENT if no request in
        processing has its number; EINVAL if its payload is too short or too long for the request,
        which then finishes with EIO; or what `recuse.kernel.connection.notify` says.
        """
        # fs/fuse/dev.c, fuse_dev_do_write and fuse_copy_out_args.
        if type(message) is not bytes and type(message) is not BytesWithDescriptor:
            message = bytes(message)
        tap = self.tap
        if tap is not None:
            try:
                # Without a descriptor, as a tap might keep it.
                tap.reply(bytes(message))
            except Exception:
                self._tap_failed()
        size = len(message)
        if size < _OUT_HEADER_SIZE:
            raise os_error(errno.EINVAL)
        length, error, unique = _unpack_out_header(message)
        if length != size:
            raise os_error(errno.EINVAL)
        if not unique:
            self._notification(error, message, size)
            return
        if error > 0 or error <= -_ERROR_LIMIT:
            raise os_error(errno.EINVAL)
        size -= _OUT_HEADER_SIZE
        request = self._queue.processing.get(unique)
        if request is None:
            with self._lock:
                self._reply_to_interrupt(unique, error, size)
        elif size <= _COPY_LIMIT:
            self.answer(request, Reply(error, message[_OUT_HEADER_SIZE:]))
        else:
            self.answer(request, Reply(error, memoryview(message)[_OUT_HEADER_SIZE:]))

    def answer(self, request: Request, reply: Reply) -> None:
        """Finish a request that the server has read or taken.

        Raises OSError: ENOENT if it has finished already; EINVAL if the payload is too short or too
        long, and then it finishes with EIO.
        """
        # fs/fuse/dev.c, fuse_copy_out_args.
        error, size = reply.error, len(reply.payload)
        malformed = bool(size if error else not request.min_reply <= size <= request.max_reply)
        if malformed:
            reply = Reply(-errno.EIO)
        self._acquire()
        try:
            if request.state is not PROCESSING:
                raise os_error(errno.ENOENT)
            self._queue.finish(request, reply)
        finally:
            self._release()
        if request.done is not None:
            tell(request)
        if request.background:
            self._background_ended()
        if malformed:
            raise os_error(errno.EINVAL)

    def write_torn(self, beginning: bytes, size: int) -> NoReturn:
        """Take a message of ``size`` bytes when only the beginning of it could be read.

        Raises OSError: what `write` raises if the beginning shows that the message is malformed or
        matches no request; otherwise EFAULT, and then the request that it answers finishes with
        EIO.
        """
        # fs/fuse/dev.c, fuse_dev_do_write, where the server's memory is read step by step.
        if size < _OUT_HEADER_SIZE:
            raise os_error(errno.EINVAL)
        if len(beginning) < _OUT_HEADER_SIZE:
            raise os_error(errno.EFAULT)
        length, error, unique = _unpack_out_header(beginning)
        if length != size:
            raise os_error(errno.EINVAL)
        if not unique:
            self._notification(error, beginning, size)
            raise os_error(errno.EFAULT)
        if error > 0 or error <= -_ERROR_LIMIT:
            raise os_error(errno.EINVAL)
        size -= _OUT_HEADER_SIZE
        with self._lock:
            request = self._queue.processing.get(unique)
            if request is None:
                self._reply_to_interrupt(unique, error, size)
                raise os_error(errno.EFAULT)
            self._queue.finish(request, Reply(-errno.EIO))
        tell(request)
        if request.background:
            self._background_ended()
        fits = not error and request.min_reply <= size <= request.max_reply
        raise os_error(errno.EFAULT if fits else errno.EINVAL)

    def _reply_to_interrupt(self, unique: int, error: int, size: int) -> None:
        """Take a reply that may answer an INTERRUPT; called with the lock held.

        EAGAIN asks for the INTERRUPT again, ENOSYS asks for no more INTERRUPTs. Others mean
        nothing.
        """
        request = self._queue.processing.get(unique & ~_INTERRUPT_BIT)
        if request is None:
            raise os_error(errno.ENOENT)
        if size:
            raise os_error(errno.EINVAL)
        if error == -errno.ENOSYS:
            if not self.no_interrupt:
                self.no_interrupt = True
                self._interruptible = self._queue.last_unique
        elif error == -errno.EAGAIN:
            if not request.interrupted:
                raise os_error(errno.EINVAL)
            self._queue.interrupt(request)

    def _notification(self, code: int, message: bytes, size: int) -> None:
        """Take a notification: POLL, even for a file that is gone. All others fail."""
        kh = notified_poller(code, message[_OUT_HEADER_SIZE:], size - _OUT_HEADER_SIZE)
        self.polled.notify(kh)

    def _tell_tap(self, message: bytes) -> None:
        tap = self.tap
        if tap is not None:
            try:
                tap.request(message)
            except Exception:
                self._tap_failed()

    def _tap_failed(self) -> None:
        self.tap = None
        log.exception("a connection's tap failed and was taken off")


def message_of(request: Request, body: bytes) -> bytes:
    """The message by which a server gets a request with that body."""
    head = _pack_in_header(
        _IN_HEADER_SIZE + len(body),
        request.opcode,
        request.unique,
        request.nodeid,
        request.uid,
        request.gid,
        request.pid,
        0,
        0,
    )
    return head + body


def _interrupt_message(request: Request) -> bytes:
    body = fuse_interrupt_in(unique=request.unique).pack()
    unique = request.unique | _INTERRUPT_BIT
    return (
        _pack_in_header(_IN_HEADER_SIZE + len(body), FUSE_INTERRUPT, unique, 0, 0, 0, 0, 0, 0)
        + body
    )
