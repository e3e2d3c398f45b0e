"""The supervisor's end of seccomp user notification: receive trapped calls and answer them.

Numbers and rules from linux/seccomp.h and kernel/seccomp.c (Linux 5.19 to 6.18); see
seccomp_unotify(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import struct
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from recuse.runtime.locks import new_lock

_RECV: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_ADDFD: Final = 0x40182103
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_response = struct.Struct("=QqiI").pack
_ADDITION = struct.Struct("=QIIII")
_ID = struct.Struct("=Q")

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def _wakes_receivers_at_end(release: str) -> bool:
    """Whether RECV ends when the last process under the filter has ended.

    It does so since Linux 6.11 (recv_wait_event in kernel/seccomp.c). Before that it sleeps on, and
    only poll(2) reports the end. A distribution may have fixed its kernel without a new number.
    Asking poll is right there too, and costs a microsecond.

    Args:
        release: the kernel's release, such as ``6.1.0-9-amd64``.
    """
    number = re.match(r"(\d+)\.(\d+)", release)
    return number is not None and (int(number[1]), int(number[2])) >= (6, 11)


_OF_NOBODY: Final = (errno.ENOENT, errno.ESRCH, errno.EINPROGRESS, errno.EBADF, errno.ENOTTY)

POLLS_FIRST: Final = not _wakes_receivers_at_end(os.uname().release)


class TableFullError(OSError):
    """EMFILE because the caller's table is full, and not this process's."""


class Receive(Protocol):
    """A listener's way to receive."""

    def __call__(self, make: Callable[[tuple[Any, ...]], T], /) -> T | None:
        """Wait for the next trapped call; return None when the last process has ended.

        Any number of threads may call this. One gets the call; at the end all get None.

        Args:
            make: what to make of the members of a :class:`recuse.sandbox.trap.call.TrappedCall`.
        """


class Listener:
    """Owns the listener descriptor.

    Each method that answers returns whether the call was still there. If a thread or its process
    was killed, or the call was answered before, it is simply gone, and that is no error.
    """

    def __init__(self, descriptor: int, *, polls_first: bool = POLLS_FIRST) -> None:
        """Own ``descriptor``; ``polls_first`` is what the running kernel needs."""
        self._descriptor = descriptor
        self._polls_first = polls_first
        self._polling = new_lock("Listener.polling")
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._over = False
        self.receive: Receive = self._receive_one_by_one if polls_first else self._receive
        """Waits for the next trapped call. See :class:`Receive`."""

    def prefer_sync_wake_up(self) -> bool:
        """Keep supervisor and program on one CPU while they pass a call back and forth.

        Returns:
            False if the kernel has no such flag (before Linux 6.6): everything works, but slower.
        """
        # The flags are the ioctl's argument itself, not a pointer to them.
        result = _libc.ioctl(self._descriptor, ctypes.c_ulong(_SET_FLAGS), _SYNC_WAKE_UP)
        return bool(result == 0)

    def _receive_one_by_one(self, make: Callable[[tuple[Any, ...]], T]) -> T | None:
        # One at a time: what poll has reported must still be there for RECV. Otherwise RECV would
        # sleep even after the end.
        with self._polling:
            call = None if self._over else self._receive(make)
            # After the end, nobody polls a number that may belong to another file by now.
            self._over = call is None
            return call

    def _receive(self, make: Callable[[tuple[Any, ...]], T]) -> T | None:
        while True:
            if self._polls_first and self._poll.poll()[0][1] & ~select.POLLIN:
                return None  # POLLHUP, or POLLNVAL if it is closed
            # The kernel demands zeros. Each call has its own buffer, because for a moment there can
            # be two threads in here.
            buffer = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self._descriptor, _RECV, buffer, True)
            except ValueError:
                return None  # its number is -1: another thread has found the end
            except OSError as error:
                if error.errno == errno.ENOENT:
                    # Either the call was withdrawn before it was received, or no program is left.
                    if self._hung_up():
                        return None
                    continue
                if error.errno == errno.EINTR:
                    continue
                if error.errno in (errno.EBADF, errno.ENOTTY):
                    return None  # ENOTTY: the number is another file's by now
                raise
            return make(_NOTIFICATION.unpack(buffer))

    def _hung_up(self) -> bool:
        descriptor = self._descriptor
        if descriptor < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def alive(self, call_id: int) -> bool:
        """Whether the call still waits. If so, its tid still means the same thread."""
        try:
            fcntl.ioctl(self._descriptor, _ID_VALID, bytearray(_ID.pack(call_id)))
        except (OSError, ValueError):
            return False
        return True

    # Each sends by itself, as every call goes through one of them.

    def answer(self, call_id: int, value: int) -> bool:
        """Give the call its result."""
        try:
            # Given bytes, fcntl.ioctl first fails to use them for output, which takes 0.3 us.
            fcntl.ioctl(self._descriptor, _SEND, bytearray(_response(call_id, value, 0, 0)))
        except (OSError, ValueError) as error:
            return self._not_sent(call_id, error)
        return True

    def proceed(self, call_id: int) -> bool:
        """Let the call run as if it had never been trapped."""
        try:
            fcntl.ioctl(self._descriptor, _SEND, bytearray(_response(call_id, 0, 0, _CONTINUE)))
        except (OSError, ValueError) as error:
            return self._not_sent(call_id, error)
        return True

    def fail(self, call_id: int, error: int) -> bool:
        """Fail the call with a positive errno."""
        try:
            fcntl.ioctl(self._descriptor, _SEND, bytearray(_response(call_id, 0, -error, 0)))
        except (OSError, ValueError) as raised:
            return self._not_sent(call_id, raised)
        return True

    def _not_sent(self, call_id: int, error: OSError | ValueError) -> bool:
        if self._is_gone(call_id, error):
            return False
        raise error

    def add_descriptor(self, call_id: int, descriptor: int, *, cloexec: bool) -> int | None:
        """Install a copy of ``descriptor`` in the caller at its lowest free number.

        Returns:
            The number, or None if the caller is gone or has its answer.

        Raises:
            TableFullError: the caller's table is full.
            OSError: EBADF if ``descriptor`` is not open.
        """
        flags = os.O_CLOEXEC if cloexec else 0
        addition = bytearray(_ADDITION.pack(call_id, 0, descriptor, 0, flags))
        try:
            return int(fcntl.ioctl(self._descriptor, _ADDFD, addition, True))
        except (OSError, ValueError) as error:
            if self._is_gone(call_id, error):
                return None
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise TableFullError(errno.EMFILE, error.strerror) from None
            raise

    def _is_gone(self, call_id: int, error: OSError | ValueError) -> bool:
        """Whether an ioctl failed because nobody waits any more.

        A device may answer long after the last program has ended and the listener was closed. The
        listener's number is then -1 (ValueError), or for a moment may be another file's. EBADF may
        also be about the descriptor to be added, while the program still waits. EINPROGRESS means
        that the call was answered, and its thread has not run since.
        """
        if isinstance(error, ValueError):
            return True
        return error.errno in _OF_NOBODY and not self.alive(call_id)

    def close(self) -> None:
        """Close the listener. Calls that wait, and all later ones, fail with ENOSYS."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
