"""io_submit, the kernel's own asynchronous I/O (fs/aio.c; Linux 6.1).

The kernel has the contexts and their completions, and does everything that is submitted for
ordinary files. A device's transfer is done before the call returns, like read(2) and write(2). That
is as with Linux's CUSE, whose reads and writes are synchronous. Then the kernel must report in the
context that the transfer has ended. For that, the thread is made to submit another operation by the
same control block, which ends with the same number of bytes (:class:`_Completion`).

If a device's control block comes after another file's, the call ends before it, with the number of
control blocks submitted so far. Programs submit the rest by another call. The call also ends before
a transfer that has failed, or fails if that is the first: no operation can be made to end with any
given error.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.abilities import may_trace
from recuse.sandbox.files.native_end import POLLERR, POLLHUP
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed64
from recuse.sandbox.syscalls.poll_query import PolledFile
from recuse.sandbox.syscalls.rw import (
    IOVEC,
    check_flags,
    plain_segments,
    vector_segments,
    write_flags,
)
from recuse.sandbox.tasks.memory import UnreadableError, read_memory, write_memory
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.sandbox.trap.borrowing import Borrowing
from recuse.sandbox.trap.filter import OURS
from recuse.sandbox.trap.inject import GoneError, Injection

if TYPE_CHECKING:
    from recuse.sandbox.files.description import FileDescription
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

# linux/aio_abi.h
_PREAD: Final = 0
_PWRITE: Final = 1
_FSYNC: Final = 2
_FDSYNC: Final = 3
_POLL: Final = 5
_PREADV: Final = 7
_PWRITEV: Final = 8
_SYNCS: Final = (_FSYNC, _FDSYNC)
_TRANSFERS: Final = (_PREAD, _PWRITE, _PREADV, _PWRITEV)

_IOCB = struct.Struct("=QIIHhIQQqQII")
"""``struct iocb``: data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, reserved2,
flags, resfd."""
_KEY_AT: Final = 8
_AFTER_KEY: Final = 12
_KEY = struct.Struct("=I")
_NO_KEY: Final = 0x52454355
"""The kernel sets this field to 0 (KIOCB_KEY) when it has read the rest."""

_POINTER = struct.Struct("=Q")
COMPAT_POINTER: Final = struct.Struct("=I")

_RING = struct.Struct("=8I")
"""``struct aio_ring``, to which a context's number points: id, nr, head, tail, magic."""
_RING_MAGIC: Final = 0xA10A10A1

_MOST_BLOCKS: Final = 1 << 16
"""The most that is looked at in one call; ``fs.aio-max-nr`` is 65536 unless it was raised."""

_BUFFER_BYTES: Final = 1 << 16
_LOOK_MS: Final = 5
_LOOK_S: Final = 0.0001


class _Block(NamedTuple):
    """A control block, ``struct iocb``, and its device, if it is about one."""

    address: int
    content: bytes
    file: FileDescription | None
    rw_flags: int
    opcode: int
    buffer: int
    size: int
    offset: int

    @property
    def transfers(self) -> bool:
        """Whether the kernel must not do it, because natively the file is a socket."""
        file = self.file
        return file is not None and (self.opcode in (*_TRANSFERS, *_SYNCS) or not file.opened)

    @property
    def is_polled(self) -> bool:
        """Whether the kernel will poll a device that must be asked."""
        return self.opcode == _POLL and self.file is not None and self.file.is_asked


def io_submit(call: TrappedCall, machine: Machine, pointer: struct.Struct = _POINTER) -> int:
    """``io_submit(context, count, blocks)``."""
    count = signed64(call.a1)
    if not len(machine.files) or count <= 0:
        return PROCEED
    blocks = _blocks(call, machine, count, pointer)
    if all(block.file is None for block in blocks):
        return PROCEED
    ours = [index for index, block in enumerate(blocks) if block.transfers]
    if not ours:
        with Borrowing(call) as borrowing:
            _watch(call, machine, blocks, borrowing)
            return borrowing.finish(PROCEED)
    leading = next((index for index, at in enumerate(ours) if at != index), len(ours))
    end = ours[leading] if leading < len(ours) else len(blocks)
    done: list[int] = []
    with contextlib.ExitStack() as stack:
        completion = None
        try:
            if not may_trace() or _has_debugger(call.tid):
                raise os_error(errno.EINVAL)
            borrowing = Borrowing(call)
            if any(block.is_polled for block in blocks[leading:end]) and not borrowing.fetches:
                raise os_error(errno.EINVAL)  # a thread lends nothing on the way
            if leading:
                completion = stack.enter_context(contextlib.closing(_Completion(call.tid)))
            room = _room(call) if leading else 0
            for block in blocks[:leading]:
                if len(done) == room:
                    raise os_error(errno.EAGAIN)
                done.append(_transfer(call, block, pointer))
                if not done[-1]:
                    break  # see `_Completion.submit`
        except OSError as error:
            if not done:
                call.finish(None, error)
                return ANSWERED
        if len(done) < leading:
            end = len(done)
        _watch(call, machine, blocks[len(done) : end], borrowing)
        _submit(call, blocks[:end], done, completion, pointer)
    return ANSWERED


def _blocks(
    call: TrappedCall, machine: Machine, count: int, pointer: struct.Struct
) -> list[_Block]:
    """The control blocks of a call, up to one that cannot be read."""
    blocks: list[_Block] = []
    found: dict[int, FileDescription | None] = {}
    for address, content in read_blocks(call, count, pointer):
        _, _, rw_flags, opcode, _, number, buffer, size, offset, reserved, _, _ = _IOCB.unpack(
            content
        )
        if number not in found:
            found[number] = machine.files.find(call.tid, number)
        # The kernel refuses these before it looks at the file.
        file = None if reserved or size >> 63 else found[number]
        blocks.append(_Block(address, content, file, rw_flags, opcode, buffer, size, offset))
    return blocks


def read_blocks(
    call: TrappedCall, count: int, pointer: struct.Struct
) -> Iterator[tuple[int, bytes]]:
    """The addresses and contents of ``struct iocb``, up to one that cannot be read."""
    try:
        array = read_memory(call.tid, call.a2, min(count, _MOST_BLOCKS) * pointer.size)
        array = array[: len(array) // pointer.size * pointer.size]
        for (address,) in pointer.iter_unpack(array):
            content = read_memory(call.tid, address, _IOCB.size)
            if len(content) < _IOCB.size:
                return
            yield address, content
    except OSError:
        return


def descriptor_of(content: bytes) -> int:
    """The number of the descriptor in a ``struct iocb``."""
    number: int = _IOCB.unpack(content)[5]
    return number


def _has_debugger(tid: int) -> bool:
    """Whether a thread is traced, so that it cannot make calls for recuse. OSError: ESRCH."""
    return ThreadStatus(tid).number(b"TracerPid") != 0


def _room(call: TrappedCall) -> int:
    """How many completions a context has room for, if the program keeps to what it asked for.

    The context has more than twice as much room (ioctx_alloc). What was submitted to it and has not
    ended cannot be seen.

    Raises:
        OSError: EINVAL if it is no context.
    """
    with contextlib.suppress(OSError):
        ring = read_memory(call.tid, call.a0, _RING.size)
        if len(ring) == _RING.size:
            _, number, head, tail, magic, _, _, _ = _RING.unpack(ring)
            if magic == _RING_MAGIC and number:
                return int(max(number // 2 - (tail - head) % number, 0))
    raise os_error(errno.EINVAL)


def _transfer(call: TrappedCall, block: _Block, pointer: struct.Struct) -> int:
    """Do what a control block says; return the number of bytes.

    Raises:
        OSError: what io_submit fails with for it, or what its operation ends with.
    """
    file = block.file
    assert file is not None
    if block.opcode in _SYNCS and file.opened:
        return _sync(call, block, file)
    reads = block.opcode in (_PREAD, _PREADV)
    if not (file.readable if reads else file.writable):
        raise os_error(errno.EBADF)
    if block.opcode not in _TRANSFERS:
        raise os_error(errno.EINVAL)
    check_flags(block.rw_flags)
    if block.opcode in (_PREAD, _PWRITE):
        segments = plain_segments(block.buffer, block.size)
    else:
        iovec = IOVEC[pointer.size]
        segments = vector_segments(call.tid, block.buffer, block.size, iovec)
    caller = call.caller()
    if reads:
        step = file.read_at(caller, segments, block.offset)
    else:
        step = file.write_at(caller, segments, block.offset, write_flags(block.rw_flags))
    return call.complete(step.device, step.operation)


def _sync(call: TrappedCall, block: _Block, file: FileDescription) -> int:
    """Do fsync or fdatasync (aio_fsync). OSError: EINVAL, or what the server answers."""
    if block.buffer or block.offset or block.size or block.rw_flags:
        raise os_error(errno.EINVAL)
    step = file.sync_at(call.caller(), block.opcode == _FDSYNC)
    call.complete(step.device, step.operation)
    return 0


def _watch(call: TrappedCall, machine: Machine, blocks: list[_Block], borrowing: Borrowing) -> None:
    """Ask the devices that the kernel is about to poll, and have their descriptors show that."""
    for index, block in enumerate(blocks):
        file = block.file
        if file is None or not block.is_polled or not file.opened or block.buffer >> 16:
            continue  # the kernel refuses it, if it is polled
        events = block.buffer | POLLERR | POLLHUP
        one = PolledFile(index, descriptor_of(block.content), events, file)
        readiness = one.readiness = machine.files.readiness(file)
        one.moment = readiness.asking()
        caller = call.caller()
        try:
            answer = file.poll(caller, events, True)
            if isinstance(answer, int):
                one.bits = answer
            else:
                one.bits = call.complete(answer.device, answer.operation)
        except OSError:
            one.bits = POLLERR
        fetch = one.fetcher(borrowing)
        readiness.wait(one.bits, caller, events, one.moment, fetch)


def _submit(
    call: TrappedCall,
    blocks: list[_Block],
    done: list[int],
    completion: _Completion | None,
    pointer: struct.Struct,
) -> None:
    """Have the thread submit the control blocks. The first ones are ``done`` already."""
    submitted = 0
    try:
        with Injection(call) as thread:
            try:
                if completion is not None:
                    with completion.given(thread):
                        for block, size in zip(blocks, done, strict=False):
                            at = call.a2 + submitted * pointer.size
                            completion.submit(thread, block, size, call.a0, at)
                            submitted += 1
                left = len(blocks) - len(done)
                if left:
                    at = call.a2 + submitted * pointer.size
                    submitted += thread.call("io_submit", call.a0, left, at, OURS)
            except OSError as error:
                thread.result = -(error.errno or errno.EIO)
            if submitted:
                thread.result = submitted
    except GoneError:
        pass
    except OSError:
        call.fail(errno.EIO if done else errno.EINVAL)


class _Completion:
    """Has the kernel complete control blocks with numbers of bytes that recuse chooses.

    A completion names its control block by address, so the kernel must read another operation
    there. The program's own content must be back before the program can know of the end: another
    thread may notice that at once, and use the control block for anything. So the other operation
    lasts until the content has been put back. It is a write to a socket that is full, or, for no
    bytes, a read from one that is empty.
    """

    def __init__(self, tid: int) -> None:
        """Prepare. OSError: ENFILE."""
        self._tid = tid
        self._number = -1
        try:
            self._ours, self._theirs = socket.socketpair()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise os_error(errno.ENFILE) from None
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._ours.setblocking(False)

    def close(self) -> None:
        """Close the sockets."""
        self._ours.close()
        self._theirs.close()

    @contextlib.contextmanager
    def given(self, thread: Injection) -> Iterator[None]:
        """Give the thread a descriptor of the socket during a ``with`` block."""
        self._number = thread.give(self._theirs.fileno())
        try:
            yield
        finally:
            thread.take_back(self._number)

    def submit(self, thread: Injection, block: _Block, size: int, context: int, at: int) -> None:
        """Submit and complete one.

        Args:
            thread: makes the calls.
            block: what is completed.
            size: the number of bytes; after one with none, nothing more can be done.
            context: its number.
            at: the address where the control block's address is stored.

        Raises:
            OSError: what the thread fails with.
            GoneError: as `Injection.call`.
        """
        # Any readable memory will do. The program may have several buffers, or none any more.
        area = max(size, 1)
        scratch = thread.call("mmap", 0, area, 1, 0x22, 0xFFFFFFFF, 0)
        try:
            filled = self._fill() if size else 0
            data, _, _, _, priority, _, _, _, _, _, flags, resfd = _IOCB.unpack(block.content)
            opcode = _PWRITE if size else _PREAD
            other = _IOCB.pack(
                data, _NO_KEY, 0, opcode, priority, self._number, scratch, area, 0, 0, flags, resfd
            )
            write_memory(self._tid, block.address, other)

            def meanwhile(is_over: Callable[[], bool]) -> None:
                try:
                    while not is_over() and self._key(block) == _NO_KEY:
                        time.sleep(_LOOK_S)
                    self._put_back(block)
                    if size:
                        self._drain(filled + size, is_over)
                    else:
                        self._ours.shutdown(socket.SHUT_WR)
                except BaseException:
                    self._ours.close()  # otherwise the thread would wait for ever
                    raise

            thread.call("io_submit", context, 1, at, OURS, meanwhile=meanwhile)
        finally:
            thread.call("munmap", scratch, area)

    def _key(self, block: _Block) -> int:
        try:
            (key,) = _KEY.unpack(read_memory(self._tid, block.address + _KEY_AT, _KEY.size))
        except (OSError, UnreadableError, struct.error):
            return 0
        return int(key)

    def _put_back(self, block: _Block) -> None:
        at = _AFTER_KEY if self._key(block) != _NO_KEY else _KEY_AT
        with contextlib.suppress(OSError, UnreadableError):
            write_memory(self._tid, block.address + at, block.content[at:])

    def _fill(self) -> int:
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += self._theirs.send(bytes(_BUFFER_BYTES), socket.MSG_DONTWAIT)
        return filled

    def _drain(self, size: int, is_over: Callable[[], bool]) -> None:
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while size:
            if poll.poll(_LOOK_MS):
                size -= len(self._ours.recv(min(size, _BUFFER_BYTES)))
            elif is_over():
                return


HANDLERS: Final[dict[str, Handler]] = {"io_submit": io_submit}
