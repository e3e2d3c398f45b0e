"""One connection's server half: requests come in as bytes, answers go out as bytes.

Every request that has an answer is answered exactly once, whatever its handler does.
"""

import errno
import itertools
import logging
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from recuse.server.device import Device, check_device
from recuse.server.dispatch import (
    IOCTL_DATA,
    WRITE_DATA,
    pick_interrupt,
    pick_ioctl,
    pick_open,
    pick_read,
    pick_release,
    pick_write,
    read_answer,
    release_answer,
    write_answer,
)
from recuse.server.errors import Misuse
from recuse.server.exchange import Exchange, Send
from recuse.server.file import File
from recuse.server.memory import Area, MoreMemory
from recuse.server.request import CURRENT, OpenRequest
from recuse.server.rounds import IoctlCall, Round, total
from recuse.wire.cuse import (
    CUSE_INIT,
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_NODE_INFO,
    RECUSE_SEEKABLE,
    cuse_init_in,
    cuse_init_out,
)
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_BATCH_FORGET,
    FUSE_FORGET,
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_IOCTL_UNRESTRICTED,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_NOTIFY_REPLY,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_open_out,
)

if TYPE_CHECKING:
    from recuse.server.loop import Tasks

log = logging.getLogger("recuse.server")

CLOSE_WAIT_S = 5.0
"""How long `Session.close` waits for handlers that it has cancelled."""

LEAST_MINOR = 11
"""The first minor version with CUSE."""

_head = struct.Struct("=IIQ").unpack_from
_HEADER_SIZE = fuse_in_header.SIZE
_NO_REPLY = frozenset({FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_NOTIFY_REPLY})
_ERRNO_END = 512
"""Errnos are below this: from here on are the kernel's internal numbers (ERESTARTSYS)."""


class Session:
    """Serves one `Device` to the kernel half at the other end of one channel."""

    def __init__(self, device: Device) -> None:
        """Make the session; it starts with the kernel half's first request.

        Raises ValueError or TypeError if the device is not well described (`Device`).
        """
        check_device(device)
        self.device = device
        self.minor = FUSE_KERNEL_MINOR_VERSION
        """Minor version of the protocol, 11 to 45: the smaller one of both halves'."""
        self._files: dict[int, File] = {}
        self._handles = itertools.count(1)
        self._live: dict[int, Exchange] = {}
        self._rounds: dict[tuple[int, int], Round] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._tasks: Tasks | None = None
        self._serve: dict[int, Callable[[Exchange], None]] = {
            CUSE_INIT: self._init,
            FUSE_OPEN: self._open,
            FUSE_READ: self._read,
            FUSE_WRITE: self._write,
            FUSE_IOCTL: self._ioctl,
            FUSE_RELEASE: self._release,
            FUSE_INTERRUPT: self._interrupt,
        }

    def handle(self, message: bytes, reply: Send) -> None:
        """Answer one request through ``reply``, exactly once, if it is one that has an answer.

        Plain methods of the author's run here, in the calling thread, and are answered before this
        returns; ``async def`` ones later, from the thread of the event loop.  Any number of
        threads may call this at once.  What ``reply`` raises as OSError is logged.

        Raises WireError if the message is so malformed that it cannot be answered.
        """
        try:
            length, opcode, unique = _head(message)
        except struct.error:
            length = -1
        if length != len(message) or length < _HEADER_SIZE:
            raise WireError(f"{len(message)} bytes that are no request")
        serve = self._serve.get(opcode)
        exchange = Exchange(message, opcode, unique, reply)
        if serve is None:
            if opcode not in _NO_REPLY:
                exchange.fail(errno.ENOSYS)
            return
        if self._closed:
            exchange.fail(errno.ENODEV)
            return
        try:
            serve(exchange)
        except struct.error:
            log.error("request %d of opcode %d is too short", unique, opcode)
            exchange.fail(errno.EIO)

    def close(self) -> None:
        """End the session: the connection is gone, or about to be.

        Cancels ``async def`` methods that run, whose requests are answered with ECONNABORTED, and
        waits for them, 5 seconds at the most; releases the files that are still open; calls
        `Device.close`.  Plain methods that run go on in their threads.  Called by a handler on
        the event loop, it returns at once and does all that soon after.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._tasks is not None and self._tasks.in_loop():
            self._closer = self._tasks.loop.create_task(self._close_later())
            return
        for awaitable in self._ending():
            try:
                self._tasks_now().wait(awaitable, CLOSE_WAIT_S)
            except Exception as error:
                self._close_failed(error)
        if self._tasks is not None:
            self._tasks.release()

    async def _close_later(self) -> None:
        for awaitable in self._ending():
            try:
                await awaitable
            except Exception as error:
                self._close_failed(error)
        if self._tasks is not None:
            self._tasks.release()

    def _close_failed(self, error: BaseException) -> None:
        log.error("closing %s: %r", type(self.device).__name__, error, exc_info=error)

    # Requests

    def _init(self, exchange: Exchange) -> None:
        request = cuse_init_in.unpack(exchange.message, _HEADER_SIZE)
        if request.major != FUSE_KERNEL_VERSION or request.minor < LEAST_MINOR:
            log.error("the kernel half speaks %d.%d, not 7.11+", request.major, request.minor)
            exchange.fail(errno.EPROTO)
            return
        self.minor = min(FUSE_KERNEL_MINOR_VERSION, request.minor)
        device = self.device
        flags = RECUSE_NODE_INFO
        if device.unrestricted:
            flags |= CUSE_UNRESTRICTED_IOCTL
        if device.seekable:
            flags |= RECUSE_SEEKABLE
        flags &= request.flags
        info = {"DEVNAME": device.name}
        if flags & RECUSE_NODE_INFO:
            info["DEVMODE"] = f"{device.mode:04o}"
            if device.uid is not None:
                info["DEVUID"] = str(device.uid)
            if device.gid is not None:
                info["DEVGID"] = str(device.gid)
        answer = cuse_init_out(
            major=FUSE_KERNEL_VERSION,
            minor=self.minor,
            flags=flags,
            max_read=device.max_read,
            max_write=device.max_write,
            dev_major=device.major,
            dev_minor=device.minor,
        )
        strings = "".join(f"{key}={value}\0" for key, value in info.items())
        exchange.reply(answer.pack() + strings.encode("utf-8", "surrogateescape"))

    def _open(self, exchange: Exchange) -> None:
        (flags,) = pick_open(exchange.message)
        self._run(exchange, self.device.open, self._open_answer, flags, OpenRequest(exchange))

    def _read(self, exchange: Exchange) -> None:
        handle, offset, size, flags = pick_read(exchange.message)
        file = self._files.get(handle)
        if file is None:
            exchange.fail(errno.EBADF)
            return
        if file.flags != flags:
            file.flags = flags
        self._run(exchange, file.read, read_answer, size, size, offset)

    def _write(self, exchange: Exchange) -> None:
        message = exchange.message
        handle, offset, size, flags = pick_write(message)
        file = self._files.get(handle)
        if file is None:
            exchange.fail(errno.EBADF)
            return
        if file.flags != flags:
            file.flags = flags
        data = message[WRITE_DATA : WRITE_DATA + size]
        if len(data) != size:
            raise struct.error
        self._run(exchange, file.write, write_answer, size, data, offset)

    def _release(self, exchange: Exchange) -> None:
        (handle,) = pick_release(exchange.message)
        file = self._files.pop(handle, None)
        if file is None:
            exchange.fail(errno.EBADF)
            return
        for key in [key for key in list(self._rounds) if key[0] == handle]:
            self._rounds.pop(key, None)
        self._run(exchange, file.release, release_answer, None)

    def _ioctl(self, exchange: Exchange) -> None:
        message = exchange.message
        pid, handle, flags, command, argument, in_size, out_size = pick_ioctl(message)
        data = message[IOCTL_DATA : IOCTL_DATA + in_size]
        if len(data) != in_size:
            raise struct.error
        file = self._files.get(handle)
        if file is None:
            exchange.fail(errno.EBADF)
            return
        unrestricted = bool(flags & FUSE_IOCTL_UNRESTRICTED)
        handler = file._ioctls.get(command, file._other_ioctls)
        call = IoctlCall(
            file, handler, command, argument, unrestricted=unrestricted, key=(handle, pid)
        )
        last = self._rounds.pop(call.key, None)
        if last is not None and last.answered_by(command, argument, in_size, out_size):
            if last.outcome is not None:
                exchange.reply(last.outcome)
                return
            call.supply(last.inputs, last.outputs, data)
        elif not unrestricted:
            call.supply(_area(argument, in_size), _area(argument, out_size), data)
        else:
            inputs, outputs = call.declared()
            if (in_size, out_size) == (total(inputs), total(outputs)):
                call.supply(inputs, outputs, data)
            elif in_size == out_size == 0:
                exchange.reply(call.ask(inputs, outputs))
                return
            # Otherwise a round that is not remembered: begin again, with nothing.
        self._run(exchange, call.begin, self._ioctl_answer, call)

    def _interrupt(self, exchange: Exchange) -> None:
        (unique,) = pick_interrupt(exchange.message)
        target = self._live.get(unique)
        if target is None:
            # Answered already, then nobody minds; or another thread has read the request and has
            # not come here with it yet, then the kernel half sends this again.
            exchange.fail(errno.EAGAIN)
            return
        target.interrupted = True
        if self._tasks is not None:
            self._tasks.interrupt(target)

    # Calling the author's methods

    def _run(
        self,
        exchange: Exchange,
        method: Callable[..., Any],
        answer: Callable[[Any, Any], bytes],
        context: Any,
        *arguments: Any,
    ) -> None:
        """Call ``method``, and answer with ``answer(what it returned, context)``."""
        live = self._live
        live[exchange.unique] = exchange
        token = CURRENT.set(exchange)
        try:
            returned = method(*arguments)
            if hasattr(returned, "__await__"):
                self._run_later(exchange, method, answer, context, returned)
                return
            payload = answer(returned, context)
        except BaseException as error:
            live.pop(exchange.unique, None)
            self._failed(exchange, method, context, error)
            return
        finally:
            CURRENT.reset(token)
        del live[exchange.unique]
        if not exchange.reply(payload):
            self._undelivered(exchange, payload)

    def _run_later(
        self,
        exchange: Exchange,
        method: Callable[..., Any],
        answer: Callable[[Any, Any], bytes],
        context: Any,
        awaitable: Any,
    ) -> None:
        """Have the event loop await what an ``async def`` method returned, then answer."""

        def done(returned: Any, error: BaseException | None) -> None:
            self._live.pop(exchange.unique, None)
            if error is None:
                try:
                    payload = answer(returned, context)
                except BaseException as caught:
                    error = caught
            if error is not None:
                self._failed(exchange, method, context, error)
            elif not exchange.reply(payload):
                self._undelivered(exchange, payload)

        self._tasks_now().start(exchange, awaitable, done)

    def _tasks_now(self) -> "Tasks":
        with self._lock:
            if self._tasks is None:
                from recuse.server.loop import Tasks  # noqa: PLC0415

                self._tasks = Tasks()
            return self._tasks

    def _open_answer(self, returned: Any, flags: int) -> bytes:
        if not isinstance(returned, File):
            raise Misuse(f"returned {type(returned).__name__}, not a File")
        returned.device = self.device
        returned.flags = flags
        handle = next(self._handles)
        self._files[handle] = returned
        if self._closed:
            self._release_undelivered(handle)
            raise OSError(errno.ENODEV, "the device is gone")
        return fuse_open_out(fh=handle).pack()

    def _undelivered(self, exchange: Exchange, payload: bytes) -> None:
        """Undo an open that the kernel half did not hear of: it will not release the file."""
        if exchange.opcode == FUSE_OPEN:
            self._release_undelivered(fuse_open_out.unpack(payload).fh)

    def _release_undelivered(self, handle: int) -> None:
        file = self._files.pop(handle, None)
        if file is None:
            return
        returned = self._quietly(file.release)
        if hasattr(returned, "__await__"):
            exchange = Exchange(b"", 0, 0, lambda message: None)
            self._tasks_now().start(exchange, returned, lambda *outcome: None)

    def _ioctl_answer(self, returned: Any, call: IoctlCall) -> bytes:
        payload = call.answer(returned)
        if call.next is not None:
            self._rounds[call.key] = call.next
        return payload

    # Failures

    def _failed(
        self, exchange: Exchange, method: Callable[..., Any], context: Any, error: BaseException
    ) -> None:
        """Answer for a handler that has raised ``error``."""
        number = errno.EIO
        if isinstance(error, MoreMemory) and isinstance(context, IoctlCall):
            try:
                payload = context.more_memory()
            except Misuse as misuse:
                error = misuse
            else:
                if context.next is not None:
                    self._rounds[context.key] = context.next
                exchange.reply(payload)
                return
        if isinstance(error, OSError) and _is_errno(error.errno):
            number = error.errno
        elif isinstance(error, Misuse):
            log.error("%s %s: EIO for the program", _label(method), error)
        elif exchange.task is not None and _is_cancellation(error) and exchange.interrupted:
            number = errno.EINTR
        elif exchange.task is not None and _is_cancellation(error) and self._closed:
            number = errno.ECONNABORTED
        else:
            log.error(
                "%s raised %s: EIO for the program",
                _label(method),
                type(error).__name__,
                exc_info=error,
            )
        exchange.fail(number)

    def _quietly(self, method: Callable[[], Any]) -> Any:
        """Call a method whose failure nobody waits for."""
        try:
            return method()
        except BaseException as error:
            log.error("%s raised %s", _label(method), type(error).__name__, exc_info=error)
            return None

    def _ending(self) -> Iterator[Awaitable[Any]]:
        """End everything; yield what has to be awaited on the way."""
        if self._tasks is not None:
            yield self._tasks.end()
        for handle in list(self._files):
            file = self._files.pop(handle, None)
            if file is None:
                continue
            returned = self._quietly(file.release)
            if hasattr(returned, "__await__"):
                yield returned
        self._quietly(self.device.close)


def _area(argument: int, size: int) -> list[Area]:
    return [(argument, size)] if size else []


def _is_cancellation(error: BaseException) -> bool:
    from recuse.server.loop import is_cancellation  # noqa: PLC0415

    return is_cancellation(error)


def _is_errno(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and 0 < number < _ERRNO_END


def _label(method: Callable[..., Any]) -> str:
    """Return "Class.method", with the class of the object rather than the one that defines it."""
    owner = getattr(method, "__self__", None)
    if isinstance(owner, IoctlCall):
        return owner.label
    name = getattr(method, "__name__", "?")
    return name if owner is None else f"{type(owner).__name__}.{name}"
