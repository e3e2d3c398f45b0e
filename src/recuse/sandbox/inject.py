"""System calls that a program's thread makes on the supervisor's behalf.

Some results can only be made by the thread itself: a mapping in its address space. While it waits
in a trapped call, the supervisor attaches to it as a debugger does (ptrace(2)), answers the call,
and stops it before it sees the answer. Then it is sent back to its system call instruction with
other registers, once for each call that it shall make, and at last let go with its registers as
they were and the result that it is to see. Signals wait meanwhile.

A thread that has a debugger already (strace, gdb) cannot have a second one: EPERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from types import TracebackType
from typing import Final

from recuse.kernel.connection import os_error
from recuse.sandbox.arch import arch, compat
from recuse.sandbox.listener import Listener, Notification

# linux/ptrace.h
_GETREGS: Final = 12
_SETREGS: Final = 13
_DETACH: Final = 17
_SYSCALL: Final = 24
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_GETSIGMASK: Final = 0x420A
_SETSIGMASK: Final = 0x420B
_O_TRACESYSGOOD: Final = 1
_O_EXITKILL: Final = 0x100000

_WALL: Final = 0x40000000
_ALL_SIGNALS: Final = (1 << 64) - 1
_MAX_ERRNO: Final = 4095
_NO_CALL: Final = (1 << 64) - 1
"""orig_rax of a thread that is in no system call: nothing is to be restarted."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class GoneError(Exception):
    """The thread has ended."""


class Injection:
    """A thread that makes calls for us, from ``with`` to the end of its block.

    Each of its methods raises GoneError if the thread has been killed meanwhile.
    """

    def __init__(self, listener: Listener, call: Notification) -> None:
        """Prepare.

        Args:
            call: what the thread waits in. It is answered here, so nobody else may.
        """
        self._listener = listener
        self._call = call
        self._tid = call.pid
        self._machine = arch if call.arch == arch.AUDIT_ARCH else compat
        self._registers = ctypes.create_string_buffer(arch.REGISTERS.size)
        self._mask = ctypes.create_string_buffer(8)
        self.result = 0
        """What the thread's own call returns in the end; a negative errno makes it fail."""

    def __enter__(self) -> Injection:
        """Stop the thread.

        Raises:
            OSError: EPERM if it has a debugger, or may not be looked into. The call still waits.
        """
        try:
            _ptrace(_SEIZE, self._tid, 0, _O_TRACESYSGOOD | _O_EXITKILL)
        except ProcessLookupError:
            raise GoneError from None
        try:
            self._do(_INTERRUPT)
            self._listener.answer(self._call.id, 0)
            self._wait()
            self._do(_GETREGS, 0, ctypes.addressof(self._registers))
            self._do(_GETSIGMASK, 8, ctypes.addressof(self._mask))
            everything = ctypes.c_uint64(_ALL_SIGNALS)
            self._do(_SETSIGMASK, 8, ctypes.addressof(everything))
        except BaseException:
            self._detach()
            raise
        return self

    def call(self, name: str, *args: int) -> int:
        """Have the thread make a system call and return its result.

        Args:
            name: as in the machine's table of calls.
            args: up to six, not negative.

        Raises:
            OSError: what the call failed with.
        """
        registers = list(arch.REGISTERS.unpack(self._registers.raw))
        registers[arch.INSTRUCTION] -= arch.INSTRUCTION_SIZE
        registers[arch.ORIGINAL] = _NO_CALL
        registers[arch.RESULT] = self._machine.SYSCALLS[name]
        for index, value in zip(self._machine.ARGUMENTS, args, strict=False):
            registers[index] = value
        self._set(registers)
        for _ in range(2):  # stops before the call and after it
            self._do(_SYSCALL)
            self._wait()
        state = ctypes.create_string_buffer(arch.REGISTERS.size)
        self._do(_GETREGS, 0, ctypes.addressof(state))
        result: int = arch.REGISTERS.unpack(state.raw)[arch.RESULT]
        if self._machine is compat:
            result &= 0xFFFFFFFF
            limit = 1 << 32
        else:
            limit = 1 << 64
        if result >= limit - _MAX_ERRNO:
            raise os_error(limit - result)
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the thread go, with the result that it is to see."""
        try:
            registers = list(arch.REGISTERS.unpack(self._registers.raw))
            registers[arch.ORIGINAL] = _NO_CALL
            registers[arch.RESULT] = self.result & (1 << 64) - 1
            self._set(registers)
            self._do(_SETSIGMASK, 8, ctypes.addressof(self._mask))
        except GoneError:
            pass
        finally:
            self._detach()

    def _set(self, registers: list[int]) -> None:
        data = ctypes.create_string_buffer(arch.REGISTERS.pack(*registers), arch.REGISTERS.size)
        self._do(_SETREGS, 0, ctypes.addressof(data))

    def _do(self, request: int, address: int = 0, data: int = 0) -> None:
        try:
            _ptrace(request, self._tid, address, data)
        except ProcessLookupError:
            raise GoneError from None

    def _wait(self) -> None:
        """Wait for the thread's next stop."""
        try:
            _, status = os.waitpid(self._tid, _WALL)
        except ChildProcessError:
            raise GoneError from None
        if not os.WIFSTOPPED(status):
            raise GoneError

    def _detach(self) -> None:
        with contextlib.suppress(OSError):
            _ptrace(_DETACH, self._tid, 0, 0)


def _ptrace(request: int, tid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, tid, address, data) < 0:
        raise os_error(ctypes.get_errno())
