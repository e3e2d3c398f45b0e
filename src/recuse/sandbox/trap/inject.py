"""System calls that a program's thread makes on the supervisor's behalf.

Some results can only be made by the thread itself, such as a mapping in its address space. While
the thread waits in a trapped call, the supervisor attaches to it as a debugger does (ptrace(2)). It
answers the call, and stops the thread before the thread sees the answer. For each call that it is
to make, the thread is sent back to its system call instruction with other registers. At last it is
let go with its own registers and the result that it should see. All signals except SIGKILL wait
meanwhile.

A thread that already has a debugger (strace, gdb) cannot have a second one: EPERM. ptrace knows its
tracers as threads, so everything that is done to one program's thread is done in one thread here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import signal
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.sandbox.abilities import may_trace
from recuse.sandbox.arch import arch, compat
from recuse.sandbox.arch.registers import Registers
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.trap.filter import OURS

# linux/ptrace.h
_DETACH: Final = 17
_SYSCALL: Final = 24
_GETREGSET: Final = 0x4204
_SETREGSET: Final = 0x4205
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_GETSIGMASK: Final = 0x420A
_SETSIGMASK: Final = 0x420B
_O_TRACESYSGOOD: Final = 1
_O_EXITKILL: Final = 0x100000

_WALL: Final = 0x40000000
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_ALL_SIGNALS: Final = (1 << 64) - 1
_MAX_ERRNO: Final = 4095
_NO_CALL: Final = -1
"""The call number of a thread that is in no call, so that nothing is restarted."""

# linux/elf.h: which registers to get.
_NT_PRSTATUS: Final = 1
_NT_ARM_SYSTEM_CALL: Final = 0x404

_log = Log("recuse.sandbox")

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
"""For requests that may wait: another thread of the program may be about to execute something."""
_quick_ptrace = ctypes.PyDLL(None, use_errno=True).ptrace
"""For requests that do not wait. It lets no other thread run that needs the interpreter."""
for _function in (_ptrace, _quick_ptrace):
    _function.restype = ctypes.c_long
    _function.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

_Room = ctypes.c_uint64 * 64
"""More registers than any architecture has."""
_everything = ctypes.c_uint64(_ALL_SIGNALS)


class _Part(ctypes.Structure):
    """A ``struct iovec``."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


@functools.cache
def _tell_once() -> None:
    _log.warning(
        "ptrace is refused here, so programs cannot map devices into memory or change into "
        "directories that recuse adds; in a container, add --cap-add SYS_PTRACE"
    )


class GoneError(Exception):
    """The thread has ended, or no longer waits because its call was answered by somebody else."""


class Injection:
    """A thread that makes calls for recuse during a ``with`` block, or from `attach` to `let_go`.

    Its own call is answered at the end, with `result`. Each method raises GoneError if the thread
    has been killed meanwhile, or runs again.

    A thread that is killed does not end before its tracer looks. Until then the first thread of its
    process does not end either, and this tracer may wait for the tracer of that one. So another
    thread looks too (`SignalWatch.attend`).
    """

    def __init__(self, call: TrappedCall) -> None:
        """Prepare for the call in which the thread waits."""
        self._call = call
        self._tid = call.tid
        self._machine = arch if call.arch == arch.AUDIT_ARCH else compat
        self._layout: Registers = self._machine.REGISTERS[0]
        self._room = _Room()
        self._part = _Part(ctypes.addressof(self._room), ctypes.sizeof(self._room))
        self._registers: ctypes.Array[Any] = self._room
        """The contents of the room, in this layout."""
        self._saved = b""
        """The registers as the thread had them when it was stopped."""
        self._mask = ctypes.c_uint64()
        self._busy = new_lock("Injection.busy")
        """Held while the tracer waits for the thread."""
        self._ours = self._stopped = self._gone = False
        self._anew = False
        self._changed: dict[int, int] = {}
        self.result = -errno.EIO
        """What the thread's own call returns at the end; a negative errno makes it fail."""

    def __enter__(self) -> Injection:
        """Attach to the thread. Raises what `attach` raises."""
        self.attach()
        return self

    def attach(self) -> None:
        """Attach to the thread, until `let_go`.

        Raises:
            OSError: EPERM if it has a debugger, or may not be looked into. The call still waits,
                and the caller must answer it.
            GoneError: if the thread has ended. The call needs no answer then.
        """
        # This comes first: nothing may fail once the thread is attached.
        self._call.attend(self._look)
        try:
            self._do(_SEIZE, 0, _O_TRACESYSGOOD | _O_EXITKILL)
        except BaseException as error:
            self._call.leave()
            if isinstance(error, OSError) and not may_trace():
                _tell_once()
            raise
        self._ours = True

    @property
    def narrow(self) -> bool:
        """Whether it makes calls of the 32-bit interface."""
        return self._machine is compat

    def give(self, descriptor: int) -> int:
        """Install a copy of a descriptor in the thread's process; return its number.

        It closes on exec. Only allowed before the first `call`.

        Raises:
            OSError: EMFILE if the process has no room for it.
        """
        number = self._call.add_descriptor(descriptor, cloexec=True)
        if number is None:
            raise GoneError
        return number

    def take_back(self, number: int) -> None:
        """Close a descriptor that was given, as far as the program's seccomp filters allow it."""
        try:
            self.call("close", number, 0, 0, OURS)
        except OSError:
            with contextlib.suppress(OSError):
                self.call("close_range", number, number, 0, OURS)

    def call(
        self,
        name: str,
        *args: int,
        meanwhile: Callable[[Callable[[], bool]], None] | None = None,
    ) -> int:
        """Have the thread make a system call and return its result.

        Args:
            name: one of the machine's ``INJECTED``.
            args: up to six, not negative.
            meanwhile: called when the call has begun. It is given a function that says whether the
                call has ended, and must return then.

        Raises:
            OSError: what the call failed with.
        """
        with self._busy:
            result = self._make(self._machine.INJECTED[name], args, meanwhile)
        if self._machine is compat:
            result &= 0xFFFFFFFF
            limit = 1 << 32
        else:
            limit = 1 << 64
        if result >= limit - _MAX_ERRNO:
            raise os_error(limit - result)
        return result

    def _make(
        self,
        number: int,
        args: tuple[int, ...],
        meanwhile: Callable[[Callable[[], bool]], None] | None,
    ) -> int:
        self._stop()
        layout = self._layout
        registers = self._registers
        ctypes.memmove(registers, self._saved, len(self._saved))
        registers[layout.instruction] -= layout.instruction_size
        registers[layout.number] = number
        for index, value in zip(layout.arguments, args, strict=False):
            registers[index] = value
        self._set_registers()
        stops = 0
        deliver = 0
        while stops < 2:  # before the call and after it
            self._do(_SYSCALL, 0, deliver)
            if stops and meanwhile is not None:
                once, meanwhile = meanwhile, None
                once(self._stands)
            status = self._wait()
            stop = os.WSTOPSIG(status)
            deliver = 0
            if stop == _SYSCALL_STOP:
                stops += 1
            elif status >> 16 == 0:
                # SIGSTOP, which cannot be blocked. It takes effect when the thread is let go.
                deliver = stop
        self._do(_GETREGSET, _NT_PRSTATUS, ctypes.addressof(self._part))
        result: int = registers[layout.result]
        return result

    def restart(self, arguments: Mapping[int, int] | None = None) -> None:
        """Have the thread repeat its own call at the end. The call is then trapped again.

        ``arguments``, by their places, are changed. Only for calls that do not return, such as
        execve: the changed registers stay as they are.
        """
        self._anew = True
        self._changed = dict(arguments or {})

    def repeat(self, arguments: Mapping[int, int]) -> int:
        """Have the thread make its own call with other arguments, by their places, and return.

        The call is trapped again, so another thread must be able to receive it: see
        `recuse.channel.workers.pass_lead`. Returns the result, or a negative errno.
        """
        own = [arguments.get(place, value) for place, value in enumerate(self._call.arguments)]
        with self._busy:
            result = self._make(self._call.number, tuple(own), None)
        bits = 32 if self._machine is compat else 64
        result &= (1 << bits) - 1
        return result - (1 << bits) if result >= (1 << bits) - _MAX_ERRNO else result

    @property
    def stack(self) -> int:
        """The thread's stack pointer."""
        self._stop()
        return int(self._registers[self._layout.stack])

    def _stands(self) -> bool:
        """Whether the thread has stopped again or is gone. `_wait` gets the status later."""
        options = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL
        try:
            return os.waitid(os.P_PID, self._tid, options) is not None
        except ChildProcessError:
            return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Let the thread run on, with the result that it should see."""
        try:
            with self._busy:
                self._let_go()
        except GoneError:
            pass
        finally:
            self._call.leave()

    def _let_go(self) -> None:
        self._stop()
        self._call.let_go(self.result)
        registers, layout = self._registers, self._layout
        ctypes.memmove(registers, self._saved, len(self._saved))
        if self._anew:
            registers[layout.instruction] -= layout.instruction_size
            if layout.original is None:
                registers[layout.result] = self._call.a0  # the first argument was in this register
            else:
                registers[layout.number] = registers[layout.original]
            for place, value in self._changed.items():
                registers[layout.arguments[place]] = value
        else:
            registers[layout.result] = self.result
        self._set_registers()
        self._do(_SETSIGMASK, 8, ctypes.addressof(self._mask))
        self._do(_DETACH)
        self._gone = True

    def _look(self) -> None:
        """Check whether the thread was killed. Any thread of this process may do that."""
        if self._busy.acquire(blocking=False):
            with contextlib.suppress(GoneError):
                if self._ours and not self._gone:
                    self._wait(os.WNOHANG)
            self._busy.release()

    def _stop(self) -> None:
        """Stop the thread on its way out of its call."""
        if self._stopped:
            return
        self._do(_INTERRUPT)
        waits = self._call.hold()
        status = self._wait()
        if not waits:
            # It is not where it should be. A signal that was about to reach it must still do so.
            self._do(_DETACH, 0, 0 if status >> 16 else os.WSTOPSIG(status))
            self._gone = True
            raise GoneError
        self._save_registers()
        self._do(_GETSIGMASK, 8, ctypes.addressof(self._mask))
        self._do(_SETSIGMASK, 8, ctypes.addressof(_everything))
        self._stopped = True

    def _save_registers(self) -> None:
        part = self._part
        self._do(_GETREGSET, _NT_PRSTATUS, ctypes.addressof(part))
        if part.size != ctypes.sizeof(self._layout.type):
            # The layout depends on the instructions that the thread runs, not on its call.
            layouts = self._machine.REGISTERS
            self._layout = next(one for one in layouts if part.size == ctypes.sizeof(one.type))
        self._registers = self._layout.type.from_buffer(self._room)
        self._saved = bytes(self._registers)

    def _set_registers(self) -> None:
        """Set the registers of a thread that is in no call. Bits without a place are cut off."""
        original = self._layout.original
        if original is not None:
            self._registers[original] = _NO_CALL
        self._do(_SETREGSET, _NT_PRSTATUS, ctypes.addressof(self._part))
        if original is None:
            number = ctypes.c_int(_NO_CALL)
            part = _Part(ctypes.addressof(number), ctypes.sizeof(number))
            self._do(_SETREGSET, _NT_ARM_SYSTEM_CALL, ctypes.addressof(part))

    def _do(self, request: int, address: int = 0, data: int = 0) -> None:
        if self._gone:
            raise GoneError
        call = _ptrace if request == _SEIZE else _quick_ptrace
        if call(request, self._tid, address, data) < 0:
            number = ctypes.get_errno()
            if number != errno.ESRCH:
                raise os_error(number)
            if request != _SEIZE:
                # It is not stopped where it was, so it was killed. Wait for its end.
                self._wait()
            raise GoneError

    def _wait(self, options: int = 0) -> int:
        """Wait for the thread's next stop, and return its status."""
        try:
            found, status = os.waitpid(self._tid, _WALL | options)
        except ChildProcessError:
            found, status = self._tid, 0
        if found and not os.WIFSTOPPED(status):
            self._gone = True
            raise GoneError
        return status
