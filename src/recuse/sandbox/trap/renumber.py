"""Calls that a container's seccomp profile refuses, made to arrive here all the same.

The profile's answer (an errno) comes before ours, and it decides by the number alone. So a thread
that is about to call mount(2), say, is watched as by a debugger (ptrace(2)). A debugger sees a call
before all filters do, and can change its number. It becomes a number that the profile allows and
that we trap. When the call arrives, :attr:`Renumbered.names` says which one it really is.

This is slow, so a thread is watched only from where it is likely to make such a call, and for a
short time. Meanwhile it cannot make calls for recuse (:mod:`recuse.sandbox.trap.inject`), as a
thread has one debugger. A thread that has one already is not watched: its call is refused.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
from typing import TYPE_CHECKING, Any, Final

from recuse.kernel.errors import os_error
from recuse.runtime import threads
from recuse.runtime.log import Log
from recuse.sandbox.abilities import may_trace
from recuse.sandbox.arch import arch
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from collections.abc import Mapping

# linux/ptrace.h
_DETACH: Final = 17
_SYSCALL: Final = 24
_GETREGSET: Final = 0x4204
_SETREGSET: Final = 0x4205
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_LISTEN: Final = 0x4208
_GET_SYSCALL_INFO: Final = 0x420E
_O_TRACESYSGOOD: Final = 1
_EVENT_STOP: Final = 128
_INFO: Final = struct.Struct("=BxxxIQQQ")
"""``struct ptrace_syscall_info``: what it is, the architecture, ..., the number or the result."""
_ENTRY: Final = 1

# linux/elf.h
_NT_PRSTATUS: Final = 1
_NT_ARM_SYSTEM_CALL: Final = 0x404

_WALL: Final = 0x40000000
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_GROUP_STOPS: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_STAND_IN: Final = "flock"
"""A call that every profile allows, that is always trapped, and that is not frequent."""

_WITH_ANOTHER_DEBUGGER: Final = frozenset(
    number
    for name in ("chdir", "fchdir", "poll", "ppoll", "select", "pselect6")
    + ("epoll_wait", "epoll_pwait", "epoll_pwait2")
    if (number := arch.SYSCALLS.get(name)) is not None
)
"""Calls for which a thread may have to make others for recuse. Its watch ends there."""

_log = Log("recuse.sandbox")

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Renumbered:
    """The threads that are watched."""

    def __init__(self, wanted: Mapping[str, int]) -> None:
        """Watch nothing yet; ``wanted`` are the calls, with their numbers."""
        self.names: dict[Tid, str] = {}
        """The threads that are in such a call now, and what they really call."""
        self._wanted = {number: name for name, number in wanted.items()}
        self._watched: dict[Tid, _Watch] = {}

    def watch(self, tid: Tid, calls: int) -> None:
        """Watch a thread that waits in a trapped call, until it ends.

        Args:
            tid: the thread.
            calls: how many calls it may make before it is no longer watched, if none of them
                succeeds that it is watched for; -1 for any number, of these too.
        """
        if not may_trace():
            return
        # The thread is in a call. If its watch ends at that call, it is out of the table already.
        watch = self._watched.get(tid)
        if watch is not None:
            watch.calls = max(watch.calls, calls) if watch.calls >= 0 and calls >= 0 else -1
            return
        attached = threading.Event()
        watch = _Watch(tid, calls, self._wanted, self.names, self._watched)
        try:
            threads.start(self._follow, watch, attached, name="recuse-renumber")
        except OSError:
            return  # its call will be refused
        attached.wait()

    def _follow(self, watch: _Watch, attached: threading.Event) -> None:
        tid = watch.tid
        self._watched[tid] = watch
        try:
            try:
                _do(_SEIZE, tid, 0, _O_TRACESYSGOOD)
                _do(_INTERRUPT, tid)
            finally:
                attached.set()
            watch.follow()
        except OSError as error:
            _log.debug("thread %d is not watched: %s", tid, error)
        finally:
            if self._watched.get(tid) is watch:
                self.names.pop(tid, None)
                self._watched.pop(tid, None)


class _Watch:
    """One thread that is watched by this one."""

    def __init__(
        self,
        tid: Tid,
        calls: int,
        wanted: dict[int, str],
        names: dict[Tid, str],
        watched: dict[Tid, _Watch],
    ) -> None:
        self.tid = tid
        self.calls = calls
        """How many more it may make before it is no longer watched; negative for any number."""
        self._wanted = wanted
        self._names = names
        self._watched = watched

    def follow(self) -> None:
        """Follow it until it ends, or has made so many calls."""
        while True:
            _, status = os.waitpid(self.tid, _WALL)
            if not os.WIFSTOPPED(status):
                return
            number, event = os.WSTOPSIG(status), status >> 16
            deliver, request = 0, _SYSCALL
            if number == _SYSCALL_STOP:
                if self._at_call():
                    self.calls -= 1
            elif event == _EVENT_STOP:
                request = _LISTEN if number in _GROUP_STOPS else _SYSCALL
            elif not event:
                deliver = number
            if not self.calls and self.tid not in self._names:
                # First this, as the call that begins now may have it watched again.
                self._watched.pop(self.tid, None)
                _do(_DETACH, self.tid, 0, deliver)
                return
            _do(request, self.tid, 0, deliver)

    def _at_call(self) -> bool:
        """Look at a call that begins (True) or has ended."""
        room = ctypes.create_string_buffer(128)
        _do(_GET_SYSCALL_INFO, self.tid, len(room), ctypes.addressof(room))
        what, machine, _, _, number = _INFO.unpack_from(room)
        if what != _ENTRY:
            if self._names.pop(self.tid, None) is not None:
                self._restore()
                if self.calls > 0 and not number:
                    self.calls = 0  # that was what it was watched for
            return False
        name = self._wanted.get(number)
        if name is not None and machine == arch.AUDIT_ARCH:
            self._names[self.tid] = name
            self._original = number
            self._set_number(arch.SYSCALLS[_STAND_IN])
        elif self.calls > 0 and number in _WITH_ANOTHER_DEBUGGER and machine == arch.AUDIT_ARCH:
            self.calls = 1
        return True

    def _restore(self) -> None:
        """Have the kernel repeat the right call, if a signal makes it do that."""
        self._set_number(self._original)

    def _set_number(self, number: int) -> None:
        layout = arch.REGISTERS[0]
        if layout.original is None:
            self._set(_NT_ARM_SYSTEM_CALL, ctypes.c_int(number))
            return
        registers = layout.type()
        part = _part(registers)
        _do(_GETREGSET, self.tid, _NT_PRSTATUS, ctypes.addressof(part))
        registers[layout.original] = number
        self._set(_NT_PRSTATUS, registers)

    def _set(self, kind: int, data: Any) -> None:
        part = _part(data)
        _do(_SETREGSET, self.tid, kind, ctypes.addressof(part))


class _Part(ctypes.Structure):
    """A ``struct iovec``."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _part(data: Any) -> _Part:
    return _Part(ctypes.addressof(data), ctypes.sizeof(data))


def _do(request: int, tid: Tid, address: int = 0, data: int = 0) -> None:
    if _ptrace(request, tid, address, data) < 0:
        raise os_error(ctypes.get_errno())
