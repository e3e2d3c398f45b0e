"""Linux's io_uring(7), as far as FUSE needs it: commands to a driver, and what comes of them.

Python's standard library has no such thing, and the three system calls are all that is needed.
What is shared with the kernel is read and written as numbers of 32 bits. Nothing here takes a lock:
one thread submits, and one at a time looks at what was completed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import Final

from recuse.channel.unmounting import call

# The same numbers on every architecture.
_SETUP, _ENTER, _REGISTER = 425, 426, 427

# linux/io_uring.h
SINGLE_ISSUER: Final = 1 << 12
"""Only the thread that made the ring submits (Linux 6.0)."""
DEFER_TASKRUN: Final = 1 << 13
"""The kernel does a ring's work only while that thread waits for it (6.1)."""
_SQE128, _NO_SQARRAY = 1 << 10, 1 << 16
_ENTER_GETEVENTS = 1
_OFF_SQ_RING, _OFF_SQES = 0, 0x10000000
_SQ_CQ_OVERFLOW = 2
_REGISTER_FILES = 2
_URING_CMD = 46
_FIXED_FILE = 1

_SQE: Final = 128
_CQE: Final = 16
_PARAMS: Final = struct.Struct("=7I12x10I10I")
"""struct io_uring_params up to cq_off.user_addr."""
_PARAMS_SIZE: Final = 120
_MASK32: Final = 0xFFFFFFFF
# struct io_uring_sqe: opcode, flags, ioprio, fd, cmd_op, addr, len, uring_cmd_flags, user_data,
# and what the command takes: struct fuse_uring_cmd_req.
_pack = struct.Struct("=BBHiQQIIQ8xQQH6x56x").pack
_COMMIT_ID: Final = 56
_pack_u64 = struct.Struct("=Q").pack_into
_unpack_completion = struct.Struct("=QiI").unpack_from

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
# Without argtypes, a call with small numbers takes less than half the time.


class Ring:
    """One ring of submissions of 128 bytes, and what has come of them."""

    def __init__(self, entries: int, flags: int = 0) -> None:
        """Make it.

        ``entries`` is the most that is submitted at once, a power of two. At least twice as many
        completions are kept; if there are more, `flush` fetches them.

        Raises OSError: ENOSYS without io_uring; EPERM if it is forbidden (the sysctl
        kernel.io_uring_disabled, seccomp); EINVAL if the kernel does not know a flag; EMFILE,
        ENOMEM.
        """
        buffer = bytearray(_PARAMS_SIZE)
        struct.pack_into("=I", buffer, 8, flags | _SQE128 | _NO_SQARRAY)
        parameters = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        self.fd = call(_syscall(_SETUP, entries, parameters))
        """The descriptor, -1 once closed; it can be polled for completions."""
        values = _PARAMS.unpack_from(buffer)
        sq, cq = values[7:17], values[17:27]
        try:
            size = cq[5] + _CQE * values[1]
            self._ring = mmap.mmap(self.fd, size, mmap.MAP_SHARED, offset=_OFF_SQ_RING)
            self._sqes = mmap.mmap(self.fd, _SQE * values[0], mmap.MAP_SHARED, offset=_OFF_SQES)
        except OSError:
            os.close(self.fd)
            raise
        self._words = memoryview(self._ring).cast("I")
        self._sq_tail, self._sq_flags = sq[1] // 4, sq[4] // 4
        self._sq_mask = self._words[sq[2] // 4]
        self._cq_head, self._cq_tail, self._cqes = cq[0] // 4, cq[1] // 4, cq[5]
        self._cq_mask = self._words[cq[2] // 4]
        self._tail = 0
        self.added = 0
        """How much was added, and not submitted yet; at most ``entries``."""

    def register_file(self, number: int) -> None:
        """Have commands go to an open file, which the ring keeps open. Raises OSError."""
        files = ctypes.c_int32(number)
        call(_syscall(_REGISTER, self.fd, _REGISTER_FILES, ctypes.byref(files), 1))

    def add(self, submission: bytes, commit_id: int = 0) -> None:
        """Add what `fuse_command` has made; it may be about a request."""
        index = (self._tail & self._sq_mask) * _SQE
        self._sqes[index : index + _SQE] = submission
        if commit_id:
            _pack_u64(self._sqes, index + _COMMIT_ID, commit_id)
        self._tail = self._words[self._sq_tail] = (self._tail + 1) & _MASK32
        self.added += 1

    def submit(self, wait_for: int = 0) -> None:
        """Submit what was added, and wait for so many completions. Raises OSError.

        It may return without them, as a signal may end the wait.
        """
        done: int = _syscall(_ENTER, self.fd, self.added, wait_for, _ENTER_GETEVENTS, None, 0)
        if done >= 0:
            self.added -= done
        elif (number := ctypes.get_errno()) != errno.EINTR:
            raise OSError(number, os.strerror(number))

    @property
    def has_completions(self) -> bool:
        """Whether `next` would return something."""
        head: int = self._words[self._cq_head]
        return bool(head != self._words[self._cq_tail])

    def next(self) -> tuple[int, int] | None:
        """Take a completion: what it was added with, and its result; None if there is none."""
        words = self._words
        head = words[self._cq_head]
        if head == words[self._cq_tail]:
            return None
        user_data, result, _ = _unpack_completion(
            self._ring, self._cqes + _CQE * (head & self._cq_mask)
        )
        completion = user_data, result
        # What raises before, for lack of memory, leaves it there.
        words[self._cq_head] = (head + 1) & _MASK32
        return completion

    def flush(self) -> None:
        """Fetch completions that there was no room for; any thread may do this."""
        if self._words[self._sq_flags] & _SQ_CQ_OVERFLOW:
            call(_syscall(_ENTER, self.fd, 0, 0, _ENTER_GETEVENTS, None, 0))

    def close(self) -> None:
        """Close it: what was submitted is cancelled. No thread may be in `submit`.

        After that, its other methods raise ValueError.
        """
        number, self.fd = self.fd, -1
        if number >= 0:
            # They have descriptors of their own.
            self._words.release()
            self._ring.close()
            self._sqes.close()
            os.close(number)


def fuse_command(command: int, user_data: int, iovecs: int, queue: int) -> bytes:
    """Make a submission: a command to the registered file, with the address of two iovecs."""
    head = (_URING_CMD, _FIXED_FILE, 0, 0, command, iovecs, 2, 0, user_data)
    return _pack(*head, 0, 0, queue)
