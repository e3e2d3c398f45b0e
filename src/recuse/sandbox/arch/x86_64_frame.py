"""What the kernel leaves on a signal handler's stack (arch/x86/kernel/signal_64.c, Linux 6.18).

The frame holds the registers with which the thread continues after its handler has returned. If the
signal ended a system call, they are those with which the thread came out of it.
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

SIZE: Final = 176
"""How much of ``struct ucontext`` is needed, up to ``uc_mcontext.rip`` (inclusive).

At rt_sigreturn(2) the stack pointer points to its beginning.
"""

CODE_SIZE: Final = 80
"""How many bytes of code, up to ``syscall`` (inclusive), show which call it made."""

_REGISTERS = struct.Struct("=40x17Q")
_R8, _R9, _R10, _RDI, _RSI, _RBP, _RBX, _RDX, _RAX, _RCX, _RSP, _RIP = 0, 1, 2, *range(8, 17)
_BY_NUMBER: Final = (_RAX, _RCX, _RDX, _RBX, _RSP, _RBP, _RSI, _RDI)
"""Where the registers are that instructions number 0 to 7. Registers 8 to 15 come first."""

OUTCOME_OFFSET: Final = 144
"""Where in the frame rax, rcx, rsp and rip are: the outcome of the call."""
_OUTCOME = struct.Struct("=4Q")

_CANCELLED_CALL: Final = bytes.fromhex("4d89ca 4c8b442408 4c8b4c2410 4c895c2408 0f05")
"""The end of musl's ``__syscall_cp_asm`` and of glibc's ``__syscall_cancel_arch`` (from 2.41 on):
mov %r9,%r10; mov 8(%rsp),%r8; mov 16(%rsp),%r9; mov %r11,8(%rsp); syscall. Their second argument
was the number."""

_FAILED: Final = (1 << 64) - errno.EINTR
_SYSCALL_SIZE: Final = 2
_WORD: Final = 8
_OFFSET = struct.Struct("=b")
_FROM_STACK: Final = b"\x24"


class Interrupted:
    """A system call that a signal has ended, at the return of the signal's handler."""

    __slots__ = ("_registers", "after", "number", "restarts")

    def __init__(self, registers: tuple[int, ...], number: int | None, *, restarts: bool) -> None:
        self._registers = registers
        self.number = number
        """None while it is not known. :func:`number_of` may find it then."""
        self.restarts = restarts
        """Whether the thread will make the call again (SA_RESTART), or sees EINTR."""
        self.after = registers[_RCX]
        """The address after its ``syscall`` instruction, which puts it into rcx."""

    def argument(self, index: int) -> int:
        """The call's argument 0 to 5."""
        return self._registers[(_RDI, _RSI, _RDX, _R10, _R8, _R9)[index]]

    def made_anew(self, number: int) -> bytes:
        """What must be at :data:`OUTCOME_OFFSET` to have the call made again."""
        return self._outcome(number, self.after - _SYSCALL_SIZE)

    def failed(self) -> bytes:
        """What must be there to have the call fail with EINTR."""
        return self._outcome(_FAILED, self.after)

    def _outcome(self, rax: int, rip: int) -> bytes:
        return _OUTCOME.pack(rax, self.after, self._registers[_RSP], rip)

    def number_of(self, code: bytes, read: Callable[[int, int], bytes]) -> int | None:
        """The number of a call that has failed; None if the code is not of the usual form.

        The number's register has EINTR now. But all other registers are unchanged, and C libraries
        load the number directly before the instruction, or shortly before. glibc's
        ``__syscall_cancel`` (from 2.41 on) loads it from the stack, where it still is. If a thread
        may be cancelled, the callers load it: glibc's from the stack too; musl's
        (``__syscall_cp_c``) compare it afterwards.

        Args:
            code: the :data:`CODE_SIZE` bytes before :attr:`after`.
            read: reads that many bytes of the thread's memory, or fewer where it ends.
        """
        patterns = _patterns()
        if found := patterns.number.search(code):
            return int.from_bytes(found["number"], "little")
        if found := patterns.register.search(code):
            upper = found["upper"]
            return self._register(8 | upper[0] >> 3 & 7 if upper else found["lower"][0] >> 3 & 7)
        if patterns.zero.search(code):
            return 0
        stack = self._registers[_RSP]
        if found := patterns.stack.search(code):
            return self._on_stack(found, stack, read)
        if code.endswith(_CANCELLED_CALL):
            caller = int.from_bytes(read(stack, _WORD), "little")
            if found := patterns.compared.match(read(caller, CODE_SIZE)):
                upper = found["upper"]
                return self._register(8 | upper[0] & 7 if upper else found["lower"][0] & 7)
            if found := patterns.passed.search(read(caller - CODE_SIZE, CODE_SIZE)):
                return self._on_stack(found, stack + _WORD, read)
        return None

    def _on_stack(
        self, found: re.Match[bytes], stack: int, read: Callable[[int, int], bytes]
    ) -> int:
        """The number at the offset that was found, from the stack pointer or the frame pointer."""
        base = stack if found["base"] == _FROM_STACK else self._registers[_RBP]
        (offset,) = _OFFSET.unpack(found["offset"])
        return int.from_bytes(read(base + offset, 4), "little")

    def _register(self, number: int) -> int:
        """The low half of the register with that number in instructions."""
        where = _BY_NUMBER[number] if number < 8 else _R8 + number - 8
        return self._registers[where] & 0xFFFFFFFF


def interrupted(frame: bytes) -> Interrupted | None:
    """The call that the signal interrupted; None if there was none.

    Args:
        frame: :data:`SIZE` bytes.
    """
    registers = _REGISTERS.unpack(frame)
    after, resumes, result = registers[_RCX], registers[_RIP], registers[_RAX]
    if result == _FAILED and resumes == after:
        return Interrupted(registers, None, restarts=False)
    if resumes == after - _SYSCALL_SIZE:
        return Interrupted(registers, result, restarts=True)
    return None


class _Patterns(NamedTuple):
    """Code that ends with ``syscall``, by the way in which eax was set before."""

    number: re.Pattern[bytes]
    register: re.Pattern[bytes]
    zero: re.Pattern[bytes]
    stack: re.Pattern[bytes]
    compared: re.Pattern[bytes]
    """Code after such a call that compares rax with -EINTR, then a register with 3 (close)."""
    passed: re.Pattern[bytes]
    """Code that ends with a function call, after loading its second argument from the stack."""


@functools.cache  # not at import: most programs never need them
def _patterns() -> _Patterns:
    moves = leaves_eax(rb"\x64", wide=True)
    syscall = rb"\x0f\x05\Z"
    end = rb"(?:" + moves + rb"|\x41?[\x50-\x57])*" + syscall  # or push %register
    to_eax = one_byte(lambda n: n & 0xC7 == 0xC0)
    to_eax_not_from = one_byte(lambda n: n & 0xC7 == 0xC0 and n & 0x38)
    # number(%rsp) or number(%rbp), to eax and to rsi.
    to_eax_from_stack = rb"(?:\x44(?P<base>\x24)|\x45)(?P<offset>.)"
    to_rsi_from_stack = rb"(?:\x74(?P<base>\x24)|\x75)(?P<offset>.)"
    to_others = b"|".join(  # mov %register
        (
            one_byte(lambda n: n & 0xF1 == 0x40)
            + rb"\x89"
            + one_byte(lambda n: n >> 6 == 3 and n & 7 != 6),
            one_byte(lambda n: n & 0xF1 == 0x41) + rb"\x89" + one_byte(lambda n: n >> 6 == 3),
        )
    )
    return _Patterns(
        re.compile(rb"(?:(?<![\x40-\x4f])\xb8|\x48\xc7\xc0)(?P<number>.{4})" + end, re.DOTALL),
        re.compile(
            # Nothing may be in between: it could change the register.
            rb"(?:[\x44\x4c]\x89(?P<upper>%b)|(?:\x48|(?<![\x40-\x4f]))\x89(?P<lower>%b))\x0f\x05\Z"
            % (to_eax, to_eax_not_from),
            re.DOTALL,
        ),
        re.compile(rb"\x31\xc0" + end, re.DOTALL),
        re.compile(
            rb"(?:\x48|(?<![\x40-\x4f]))\x8b" + to_eax_from_stack + moves + b"*" + syscall,
            re.DOTALL,
        ),
        re.compile(
            rb".{0,8}\x48\x83\xf8\xfc(?:\x75.|\x0f\x85.{4})"
            rb"(?:\x49\x83(?P<upper>[\xf8-\xff])|\x48\x83(?P<lower>[\xf8-\xff]))\x03",
            re.DOTALL,
        ),
        re.compile(
            rb"\x48\x8b" + to_rsi_from_stack + rb"(?:" + to_others + rb")*\xe8.{4}\Z", re.DOTALL
        ),
    )
