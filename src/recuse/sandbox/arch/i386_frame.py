"""What an x86-64 kernel leaves on the stack for a 32-bit program's signal handler.

arch/x86/kernel/signal_32.c, Linux 6.18: as :mod:`recuse.sandbox.arch.x86_64_frame`.
"""

from __future__ import annotations

import errno
import functools
import re
import struct
from collections.abc import Callable
from typing import Final

from recuse.runtime.records import NamedTuple
from recuse.sandbox.arch.code import leaves_eax, one_byte

SIZE: Final = 64
"""How much of ``struct sigcontext_32`` is needed, up to the segment of eip (inclusive)."""

CONTEXT_OFFSETS: Final = {"sigreturn": 0, "rt_sigreturn": 160}
"""Where it is from the stack pointer on, at the call that ends a handler."""

OUTCOME_OFFSET: Final = 44
"""Where in it eax, the trap's number, the error code and eip are."""
_OUTCOME = struct.Struct("=4I")

CODE_SIZE: Final = 80

_REGISTERS = struct.Struct("=16x12I")  # up to eip
_EDI, _ESI, _EBP, _ESP, _EBX, _EDX, _ECX, _EAX, _TRAP, _ERROR, _EIP = range(11)
_BY_NUMBER: Final = (_EAX, _ECX, _EDX, _EBX, _ESP, _EBP, _ESI, _EDI)
_FAILED: Final = (1 << 32) - errno.EINTR

_INT80: Final = b"\xcd\x80"
_VDSO: Final = (b"\x0f\x34" + _INT80, b"\x0f\x05" + _INT80)
"""The end of ``__kernel_vsyscall``: sysenter or syscall, then ``int $0x80`` for calls that are made
again. At that point it has pushed three registers."""
_VDSO_CALLER: Final = 12

_SIX_ARGUMENTS: Final = bytes.fromhex("53 57 55 8b1f 8b6f08 8b7f04 65ff1510000000")
"""All of glibc's ``__libc_do_syscall`` up to its call of the vdso. It pushes %ebx, %edi and %ebp,
and loads them from where %edi points. Its caller has loaded the number."""
_SIX_CALLER: Final = 12
_WORD: Final = 4


class Interrupted:
    """A system call that has failed with EINTR, at the return of its signal's handler."""

    __slots__ = ("_registers", "after", "number")

    restarts = False
    """Calls that will be restarted are not reported here."""

    def __init__(self, registers: tuple[int, ...]) -> None:
        self._registers = registers
        self.number = None
        self.after = registers[_EIP]
        """The address where the thread continues after the call."""

    def argument(self, index: int) -> int:
        """The call's argument 0 to 5."""
        return self._registers[(_EBX, _ECX, _EDX, _ESI, _EDI, _EBP)[index]]

    def made_anew(self, number: int) -> bytes:
        """What must be at :data:`OUTCOME_OFFSET` to have the call made again."""
        registers = self._registers
        again = self.after - len(_INT80)
        return _OUTCOME.pack(number, registers[_TRAP], registers[_ERROR], again)

    def failed(self) -> bytes:
        """What is there now."""
        registers = self._registers
        return _OUTCOME.pack(_FAILED, registers[_TRAP], registers[_ERROR], self.after)

    def number_of(self, code: bytes, read: Callable[[int, int], bytes]) -> int | None:
        """The call's number; None if the code is not of the usual form.

        Args:
            code: the :data:`CODE_SIZE` bytes before :attr:`after`.
            read: reads that many bytes of the thread's memory, or fewer where it ends.
        """
        patterns = _patterns()
        stack = self._registers[_ESP]
        if code.endswith(_VDSO):
            stack += _VDSO_CALLER
            code = _caller(stack, read)
            stack += _WORD
            if code.endswith(_SIX_ARGUMENTS):
                stack += _SIX_CALLER
                code = _caller(stack, read)
                stack += _WORD
        elif not code.endswith(_INT80):
            return None
        if found := patterns.number.search(code):
            return int.from_bytes(found["number"], "little")
        if found := patterns.register.search(code):
            return self._registers[_BY_NUMBER[found["register"][0] >> 3 & 7]]
        if found := patterns.stack.search(code):
            return int.from_bytes(read(stack + found["offset"][0], _WORD), "little")
        return None


def _caller(stack: int, read: Callable[[int, int], bytes]) -> bytes:
    """The code up to the call that has put its return address on the stack."""
    address = int.from_bytes(read(stack, _WORD), "little")
    return read(address - CODE_SIZE, CODE_SIZE)


def interrupted(context: bytes) -> Interrupted | None:
    """The call that the signal interrupted; None if there was none.

    Args:
        context: :data:`SIZE` bytes. Only the code shows for certain if there was a call.
    """
    registers = _REGISTERS.unpack(context)
    return Interrupted(registers) if registers[_EAX] == _FAILED else None


class _Patterns(NamedTuple):
    """Code that ends with a call, by the way in which eax was set before."""

    number: re.Pattern[bytes]
    register: re.Pattern[bytes]
    stack: re.Pattern[bytes]


@functools.cache  # not at import: most programs never need them
def _patterns() -> _Patterns:
    moves = leaves_eax(rb"\x65", wide=False)
    others = (
        moves,
        rb"[\x50-\x57]",  # push %register
        rb"\xe8.{4}\x81[\xc1-\xc7].{4}",  # call of the next instruction, and add to its address
    )
    # call *%gs:0x10; int $0x80; call of a function
    call = rb"(?:\x65\xff\x15\x10\x00\x00\x00|\xcd\x80|\xe8.{4})\Z"
    return _Patterns(
        re.compile(rb"\xb8(?P<number>.{4})(?:" + b"|".join(others) + rb")*" + call, re.DOTALL),
        re.compile(
            # Nothing may be in between: it could change the register.
            rb"\x89(?P<register>%b)%b" % (one_byte(lambda n: n & 0xC7 == 0xC0 and n & 0x38), call),
            re.DOTALL,
        ),
        # mov number(%esp),%eax
        re.compile(
            rb"\x8b\x44\x24(?P<offset>[\x00-\x7f])" + moves + rb"*(?:\x89\xc0)?" + call, re.DOTALL
        ),
    )
