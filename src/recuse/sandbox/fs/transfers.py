"""sendfile(2) and splice(2) from and to filesystems' files (fs/read_write.c, fs/splice.c; 6.18).

One end is a file of a filesystem. The other one may be such a file too, or is the kernel's: a pipe,
a socket, a regular file. The bytes go through this process. The thread that serves the call does
not leave it, and waits for room or for bytes as the program would.

A pipe is opened once more, without blocking. Of a socket, or of a native file that is read, a copy
is borrowed. To any other native file the program's own thread sends, from a memfd that it is given:
so its rights and limits count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from recuse.channel.workers import pass_lead
from recuse.kernel.errors import os_error
from recuse.kernel.fs.reading import MAX_RW_COUNT
from recuse.kernel.fs.regular import RegularFile
from recuse.runtime.room import keeping
from recuse.sandbox.files.natives import Native, native
from recuse.sandbox.fs.file import OpenedFile
from recuse.sandbox.fs.transfer_ends import (
    AgainError,
    FileEnd,
    NativeEnd,
    Pipe,
    Place,
    Socket,
)
from recuse.sandbox.trap.answers import ANSWERED, PROCEED
from recuse.sandbox.trap.borrowing import Borrowing
from recuse.sandbox.trap.inject import GoneError, Injection

if TYPE_CHECKING:
    from recuse.sandbox.files.description import FileDescription
    from recuse.sandbox.trap.call import TrappedCall

_CHUNK: Final = 1 << 16
"""The size of a pipe, by which Linux copies too."""
_MOST_BY_THREAD: Final = 1 << 24
_SPLICE_F_NONBLOCK: Final = 2
_SPLICE_F_ALL: Final = 15


def send_file(
    call: TrappedCall, target: FileDescription | None, source: FileDescription | None, width: int
) -> int:
    """Do ``sendfile(out, in, offset, count)``, at least one of whose ends is a filesystem's file.

    Args:
        call: the call.
        target: what it sends to, None if that is native.
        source: what it sends from, None if that is native.
        width: the size of the offset in memory, in bytes.

    Raises:
        OSError: EINVAL, EBADF, EFAULT, ESPIPE, EAGAIN, EPIPE, EINTR; what reading and writing fail
            with.
    """
    pass_lead()
    size = min(call.a3, MAX_RW_COUNT)
    with Borrowing(call) as lender:
        transfer = _Transfer(call, lender)
        try:
            begins = transfer.source_of(source, call.a1, call.a2, width)
            with contextlib.closing(begins):
                return lender.finish(transfer.send(begins, target, call.a0, size))
        except AgainError:
            return lender.finish(PROCEED)


def splice(
    call: TrappedCall, target: FileDescription | None, source: FileDescription | None
) -> int:
    """Do ``splice(in, off_in, out, off_out, count, flags)``; see `send_file`."""
    size, flags = min(call.a4, MAX_RW_COUNT), call.a5 & 0xFFFFFFFF
    if not size:
        return 0
    if flags & ~_SPLICE_F_ALL:
        raise os_error(errno.EINVAL)
    pass_lead()
    with Borrowing(call) as lender:
        transfer = _Transfer(call, lender)
        try:
            return lender.finish(transfer.splice(target, source, size, flags))
        except AgainError:
            return lender.finish(PROCEED)


class _Transfer:
    """One call."""

    def __init__(self, call: TrappedCall, lender: Borrowing) -> None:
        self._call = call
        self._lender = lender

    def source_of(
        self, file: FileDescription | None, number: int, address: int, width: int
    ) -> FileEnd | NativeEnd:
        """Where sendfile reads (do_sendfile)."""
        place = Place(self._call, address, width)
        if file is not None:
            if not file.readable:
                raise os_error(errno.EBADF)
            return FileEnd(self._call, _regular(file), place)
        found = native(self._call.tid, number & 0xFFFFFFFF)
        if not found.readable:
            raise os_error(errno.EBADF)
        if not (stat.S_ISREG(found.mode) or stat.S_ISBLK(found.mode)):
            streams = found.is_pipe or stat.S_ISSOCK(found.mode)
            raise os_error(errno.ESPIPE if streams and address else errno.EINVAL)
        return NativeEnd(self._lender.copy(number & 0xFFFFFFFF), place)

    def send(
        self, source: FileEnd | NativeEnd, file: FileDescription | None, number: int, size: int
    ) -> int:
        """Do sendfile."""
        if file is not None:
            if not file.writable:
                raise os_error(errno.EBADF)
            if file.flags & os.O_APPEND:
                raise os_error(errno.EINVAL)
            target = FileEnd(self._call, _regular(file), Place(self._call, 0, 8))
            return self._copy(source, target, size)
        assert isinstance(source, FileEnd)
        number &= 0xFFFFFFFF
        found = native(self._call.tid, number)
        if not found.writable:
            raise os_error(errno.EBADF)
        if found.is_pipe:
            return self._fill(source, number, found, size, 0)
        if stat.S_ISSOCK(found.mode):
            waits = not found.flags & os.O_NONBLOCK
            sink = Socket(self._call, self._lender, self._lender.copy(number), waits)
            with contextlib.closing(sink):
                return self._copy(source, sink, size)
        return self._by_thread(source, size)

    def splice(
        self, target: FileDescription | None, source: FileDescription | None, size: int, flags: int
    ) -> int:
        """Do splice (do_splice)."""
        call = self._call
        number = (call.a0 if source is None else call.a2) & 0xFFFFFFFF
        file = target if source is None else source
        assert file is not None
        if source is not None and target is not None:
            self._check_ends(source.readable, target.writable)
            raise os_error(errno.EINVAL)
        found = native(call.tid, number)
        if found.is_pipe and (call.a1 if source is None else call.a3):
            raise os_error(errno.ESPIPE)
        if source is not None:
            self._check_ends(source.readable, found.writable)
        else:
            self._check_ends(found.readable, file.writable)
        if not found.is_pipe:
            raise os_error(errno.EINVAL)
        place = Place(call, call.a3 if source is None else call.a1, 8)
        if source is None and file.flags & os.O_APPEND:
            raise os_error(errno.EINVAL)
        end = FileEnd(call, _regular(file), place)
        if source is not None:
            return self._fill(end, number, found, size, flags)
        return self._drain(end, number, found, size, flags)

    @staticmethod
    def _check_ends(readable: bool, writable: bool) -> None:
        if not readable or not writable:
            raise os_error(errno.EBADF)

    def _copy(self, source: FileEnd | NativeEnd, target: FileEnd | Socket, size: int) -> int:
        """Copy all, until something fails (splice_direct_to_actor)."""
        done = 0
        try:
            while done < size and not (done and self._call.interrupted):
                data = source.take(min(size - done, _CHUNK))
                if not data:
                    break
                count = target.put(data)
                source.advance(count)
                done += count
                if not count:
                    break
        except (OSError, AgainError) as error:
            if not done:
                return self._failed(error)
        source.settle()
        if isinstance(target, FileEnd):
            target.settle()
        return done

    def _failed(self, error: OSError | AgainError) -> int:
        """Fail. A call that a signal has interrupted may be restarted."""
        if isinstance(error, OSError) and error.errno == errno.EINTR and not self._lender.has_lent:
            self._call.restart()
            return ANSWERED
        raise error

    def _fill(self, source: FileEnd, number: int, found: Native, size: int, flags: int) -> int:
        """Put into a pipe what it has room for (splice_file_to_pipe)."""
        if not size:
            return 0
        waits = not (flags & _SPLICE_F_NONBLOCK or found.flags & os.O_NONBLOCK)
        try:
            pipe = Pipe.opened(self._call, self._lender, number, os.O_WRONLY, waits)
            with contextlib.closing(pipe):
                data = source.take(min(size, pipe.room(source.position)))
                if not data:
                    return 0
                done = pipe.put(data)
        except OSError as error:
            return self._failed(error)
        source.advance(done)
        source.settle()
        return done

    def _drain(self, target: FileEnd, number: int, found: Native, size: int, flags: int) -> int:
        """Write what comes out of a pipe, until it is empty (splice_from_pipe)."""
        waits = not (flags & _SPLICE_F_NONBLOCK or found.flags & os.O_NONBLOCK)
        done = 0
        with contextlib.ExitStack() as stack:
            with keeping():
                scratch = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            for end in scratch:
                stack.callback(os.close, end)
            try:
                pipe = Pipe.opened(self._call, self._lender, number, os.O_RDONLY, waits)
                stack.enter_context(contextlib.closing(pipe))
                while done < size:
                    data = pipe.look(min(size - done, _CHUNK), scratch)
                    if not data:
                        break
                    count = target.put(data)
                    pipe.drop(count)
                    pipe.waits = False
                    done += count
                    if not count:
                        break
            except (OSError, AgainError) as error:
                if not done:
                    return self._failed(error)
        target.settle()
        return done

    def _by_thread(self, source: FileEnd, size: int) -> int:
        """Have the thread itself send the bytes, from a memfd."""
        data = bytearray()
        size = min(size, _MOST_BY_THREAD)
        try:
            while part := source.take(min(size - len(data), _CHUNK), len(data)):
                data += part
        except OSError as error:
            if not data:
                return self._failed(error)
        if not data:
            return 0
        try:
            with Injection(self._call) as thread:
                thread.result = -errno.EINVAL
                thread.result = _sent(thread, data)
                if thread.result > 0:
                    source.advance(thread.result)
                    source.settle()
        except GoneError:
            pass
        except OSError:
            raise os_error(errno.EINVAL) from None  # it cannot be traced, but may read and write
        return ANSWERED


def _sent(thread: Injection, data: bytearray) -> int:
    """Have the thread make its sendfile from a memfd with these bytes; return its result."""
    with keeping():
        memory = os.memfd_create("recuse", os.MFD_CLOEXEC)
    try:
        os.pwrite(memory, data, 0)
        number = thread.give(memory)
    finally:
        os.close(memory)
    try:
        return thread.repeat({1: number, 2: 0, 3: len(data)})
    finally:
        thread.take_back(number)


def _regular(file: FileDescription) -> OpenedFile:
    """A regular file of a filesystem. OSError: EINVAL for anything else."""
    if not isinstance(file, OpenedFile) or not isinstance(file.kernel_file, RegularFile):
        raise os_error(errno.EINVAL)
    return file
