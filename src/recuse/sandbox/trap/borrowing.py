"""Copies of the descriptors of a program whose thread waits in a trapped call.

Usually they are fetched (pidfd_getfd(2)), and the thread notices nothing. Where that is refused, as
in containers, the thread lends them. It is attached to (:mod:`recuse.sandbox.trap.inject`), and
sends them through a socket (SCM_RIGHTS). For that it maps a page of memory for a moment. This
answers its call, so if the kernel is to run the call, the thread must make it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.tasks.fetch import can_fetch, fetch_descriptor
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.trap.answers import ANSWERED, PROCEED
from recuse.sandbox.trap.filter import LENDING
from recuse.sandbox.trap.inject import GoneError, Injection

if TYPE_CHECKING:
    from recuse.sandbox.trap.call import TrappedCall

_VECTOR_AT, _DATA_AT, _CONTROL_AT = 64, 96, 128
_PROT_READ_WRITE: Final = 3
_MAP_PRIVATE_ANONYMOUS: Final = 0x22

_MOST: Final = 253
"""SCM_MAX_FD, the most descriptors in one message."""


class _Layout(NamedTuple):
    """A thread's ``struct msghdr``, ``struct iovec`` and ``struct cmsghdr``."""

    message: struct.Struct
    vector: struct.Struct
    control: struct.Struct

    def sending(self, page: int, numbers: Sequence[int]) -> bytes:
        """The bytes of a page from whose start a message is sent: one byte, and descriptors."""
        rights = struct.pack(f"={len(numbers)}i", *numbers)
        length = self.control.size + len(rights)
        data = bytearray(_CONTROL_AT + length)
        space = -(-length // 8) * 8 if self is _WIDE else length
        self.message.pack_into(data, 0, 0, 0, page + _VECTOR_AT, 1, page + _CONTROL_AT, space, 0)
        self.vector.pack_into(data, _VECTOR_AT, page + _DATA_AT, 1)
        self.control.pack_into(data, _CONTROL_AT, length, socket.SOL_SOCKET, socket.SCM_RIGHTS)
        data[_CONTROL_AT + self.control.size :] = rights
        return bytes(data)


_WIDE: Final = _Layout(struct.Struct("=QI4xQQQQI4x"), struct.Struct("=QQ"), struct.Struct("=Qii"))
_NARROW: Final = _Layout(struct.Struct("=7I"), struct.Struct("=II"), struct.Struct("=Iii"))


def close_all(copies: Iterable[int | None]) -> None:
    """Close what was borrowed."""
    for copy in copies:
        if copy is not None:
            os.close(copy)


class Borrowing:
    """Copies of descriptors of a thread that makes a call, during a ``with`` block.

    The block ends with :meth:`finish`, or with an OSError with which the call should fail.
    """

    __slots__ = (
        "_call",
        "_fetches",
        "_ours",
        "_page",
        "_stack",
        "_there",
        "_thread",
        "tid",
    )

    def __init__(self, call: TrappedCall) -> None:
        self._call = call
        self.tid = call.tid
        self._stack: contextlib.ExitStack | None = None
        """Made when it is needed: every poll comes here, and few have to lend anything."""
        self._thread: Injection | None = None
        self._ours: socket.socket | None = None
        self._there = self._page = -1
        self._fetches: bool | None = None

    def __enter__(self) -> Borrowing:
        return self

    @property
    def fetches(self) -> bool:
        """Whether the thread need not lend anything.

        Raises:
            OSError: ESRCH if it is gone.
        """
        if self._fetches is None:
            self._fetches = can_fetch(self.tid, self._call.task.tgid)
        return self._fetches

    def copy(self, number: int) -> int:
        """Return a copy of a descriptor. The caller must close it.

        Raises:
            OSError: EBADF if the thread has no such descriptor; ESRCH if it is gone; EPERM if the
                descriptor can be neither fetched nor lent, because the thread has a debugger;
                ENFILE.
        """
        if self.fetches:
            return fetch_descriptor(self.tid, self._call.task.tgid, number)
        return self._lend([number])[0]

    def copies(self, numbers: Sequence[int]) -> list[int | None]:
        """Do :meth:`copy` for several; the result is None for those that are not open."""
        found: list[int | None] = []
        try:
            while len(found) < len(numbers):
                if self.fetches:
                    found.append(self._copy_or_none(numbers[len(found)]))
                else:
                    found += self._lend_known(numbers[len(found) :][:_MOST])
        except BaseException:
            close_all(found)
            raise
        return found

    def _copy_or_none(self, number: int) -> int | None:
        try:
            return self.copy(number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return None

    def _lend_known(self, numbers: Sequence[int]) -> Sequence[int | None]:
        try:
            return self._lend(numbers)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        return [self._copy_or_none(number) for number in numbers]

    def _lend(self, numbers: Sequence[int]) -> list[int]:
        try:
            if self._thread is None:
                self._attach()
            thread = self._thread
            assert thread is not None
            assert self._ours is not None
            layout = _NARROW if thread.narrow else _WIDE
            write_memory(self._call.tid, self._page, layout.sending(self._page, numbers))
            thread.call("sendmsg", self._there, self._page, LENDING)
        except GoneError:
            raise os_error(errno.ESRCH) from None
        _, lent, _, _ = socket.recv_fds(self._ours, 1, len(numbers), socket.MSG_DONTWAIT)
        if len(lent) < len(numbers):
            close_all(lent)
            raise os_error(errno.ENFILE)  # this process has no room for them
        return list(lent)

    def _attach(self) -> None:
        """Have the thread make calls for recuse, and give it a socket to send through."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise os_error(errno.ENFILE) from None
        self._stack = stack = contextlib.ExitStack()
        self._ours = stack.enter_context(ours)
        with theirs:
            thread = stack.enter_context(Injection(self._call))
            self._thread = thread
            try:
                self._there = thread.give(theirs.fileno())
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                raise os_error(errno.ENOMEM) from None  # one that poll and select may fail with
            self._page = thread.call(
                "mmap", 0, PAGE_SIZE, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, 0, 0
            )

    @property
    def has_lent(self) -> bool:
        """Whether the thread's call was answered because the thread has lent something."""
        return self._thread is not None

    def alive(self) -> bool:
        """Whether the thread still waits in its call, or has lent something during it."""
        return self._thread is not None or self._call.alive()

    def finish(self, result: int) -> int:
        """Return what the call's handler must return so that the call's result is ``result``.

        Args:
            result: PROCEED if the kernel should run the call. A thread that has lent something then
                makes its call again, and is trapped again.
        """
        if self._thread is None:
            return result
        if result == PROCEED:
            self._thread.restart()
        else:
            self._thread.result = result
        return ANSWERED

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the thread go."""
        if self._stack is None:
            return
        thread = self._thread
        if thread is not None:
            if isinstance(value, OSError):
                thread.result = -(value.errno or errno.EIO)
            with contextlib.suppress(GoneError, OSError):
                if self._there >= 0:
                    thread.take_back(self._there)
                if self._page >= 0:
                    thread.call("munmap", self._page, PAGE_SIZE)
        self._stack.close()
