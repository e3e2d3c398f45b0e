"""Signal frames of 32-bit programs, from which it is told which call a signal has ended."""

import errno
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.sandbox.arch import i386_frame

EIP, ESP, CALLER = 0xF7F00009, 0xFFF00000, 0x56001000
ORDER = ["di", "si", "bp", "sp", "bx", "dx", "cx", "ax", "trap", "error", "ip", "cs"]
FAILED = -errno.EINTR & 0xFFFFFFFF
SYSENTER, SYSCALL = "515255 89e5 0f34 cd80", "515255 89cd 0f05 cd80"
CALL = "65ff1510000000"


def context_of(**registers: Any) -> bytes:
    """A context as the kernel leaves it after a call that has failed with EINTR."""
    values = dict.fromkeys(ORDER, 0) | {"ax": FAILED, "ip": EIP, "sp": ESP} | registers
    return bytes(16) + struct.pack("=12I", *(values[name] for name in ORDER))


def padded(code: str) -> bytes:
    return bytes.fromhex(code).rjust(i386_frame.CODE_SIZE, b"\x90")


def interrupted(**registers: int) -> i386_frame.Interrupted:
    """What a context with these registers was interrupted in."""
    made = i386_frame.interrupted(context_of(**registers))
    assert made is not None
    return made


def number_of(code: str, caller: str = "", **registers: int) -> int | None:
    made = interrupted(**registers)
    memory = {ESP + 12: struct.pack("=I", CALLER), CALLER - i386_frame.CODE_SIZE: padded(caller)}
    return made.number_of(padded(code), lambda address, size: memory[address][:size])


@pytest.mark.parametrize("entry", [SYSENTER, SYSCALL])
@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("b80a000000", 10),  # mov $10,%eax
        ("b836000000 b909540000 ba01000000", 54),  # mov to ecx, mov to edx
        ("b836000000 e8ca790500 81c619551000 53 8b4c2410 8b542414 8b5c240c", 54),
        ("b8c3000000 89fb 8b4dfc", 195),  # mov %edi,%ebx; mov -4(%ebp),%ecx
        # With a guard of the stack: push; sub $96,%esp; mov %gs:0x14,%esi; mov %esi,92(%esp)
        ("b80c010000 b954000000 56 53 83ec60 658b3514000000 8974245c 8b742474 8d542408", 268),
        # mov 68(%esp),%edx; mov %edx,%ebp; sar $31,%ebp; mov %ebp,%ecx
        ("b88c000000 658b1514000000 8954241c 8b542444 89d5 c1fd1f 89e9", 140),
        # mov %edx,332(%esp); cmp $269,%edx; cmovae %ebp,%esi; or $8,%dh
        ("b88c000000 8994244c010000 81fa0d010000 0f43f5 80ce08", 140),
    ],
)
def test_a_number_that_the_vdsos_caller_loads(entry: str, code: str, number: int) -> None:
    assert number_of(entry, code + CALL) == number


def test_a_number_in_a_register() -> None:
    assert number_of(SYSENTER, "89f8" + CALL, di=212) == 212  # mov %edi,%eax


def test_a_call_without_the_vdso() -> None:
    assert number_of("b877000000 cd80") == 119


SIX_ARGUMENTS = "53 57 55 8b1f 8b6f08 8b7f04" + CALL


@pytest.mark.parametrize("entry", [SYSENTER, SYSCALL])
@pytest.mark.parametrize(
    ("caller", "number"),
    [
        ("b835010000 89e7 e8d0e40800", 309),  # mov $309,%eax; mov %esp,%edi; call
        ("8b442438 89c0 e8d0e40800", 257),  # mov 56(%esp),%eax; mov %eax,%eax; call
        ("8b442438 50 e8d0e40800", None),
        ("90", None),
    ],
)
def test_a_call_of_six_arguments(entry: str, caller: str, number: int | None) -> None:
    """``__libc_do_syscall`` makes it, of which glibc's ``__syscall_cancel`` makes all its calls."""
    memory = {
        ESP + 12: struct.pack("=I", CALLER),
        CALLER - i386_frame.CODE_SIZE: padded(SIX_ARGUMENTS),
        ESP + 28: struct.pack("=I", 0x57001000),
        0x57001000 - i386_frame.CODE_SIZE: padded(caller),
        ESP + 32 + 56: struct.pack("=I", 257),
    }
    made = interrupted()
    read = lambda address, size: memory[address][:size]  # noqa: E731
    assert made.number_of(padded(entry), read) == number


def test_a_number_that_glibc_s_call_was_passed() -> None:
    # mov 24(%esp),%eax; mov 28(%esp),%ebx; mov 32(%esp),%ecx; int $0x80
    made = interrupted()
    memory = {ESP + 24: struct.pack("=I", 257)}
    code = padded("8b442418 8b5c241c 8b4c2420 cd80")
    assert made.number_of(code, lambda address, size: memory[address][:size]) == 257


@pytest.mark.parametrize(
    ("code", "caller"),
    [
        ("0f05", ""),
        (SYSENTER, ""),
        (SYSENTER, "b80a000000 ffd0" + CALL),  # call *%eax
        (SYSENTER, "b80a000000 89d8" + CALL[:-2]),
        (SYSENTER, "b80a000000 83c801" + CALL),  # or $1,%eax
        (SYSENTER, "b80a000000 80cc01" + CALL),  # or $1,%ah
        (SYSENTER, "b80a000000 0f43c5" + CALL),  # cmovae %ebp,%eax
        ("b87700 cd80", ""),
    ],
)
def test_code_that_does_not_tell(code: str, caller: str) -> None:
    assert number_of(code, caller) is None


def test_outcomes() -> None:
    made = interrupted(bx=1, cx=2, dx=3, si=4, di=5, bp=6, trap=7, error=8)
    assert [made.argument(index) for index in range(6)] == [1, 2, 3, 4, 5, 6]
    assert made.after == EIP
    assert struct.unpack("=4I", made.made_anew(10)) == (10, 7, 8, EIP - 2)
    begins = i386_frame.OUTCOME_OFFSET
    assert context_of(trap=7, error=8)[begins : begins + 16] == made.failed()


@given(st.binary(min_size=i386_frame.SIZE, max_size=i386_frame.SIZE))
def test_whatever_the_context(context: bytes) -> None:
    made = i386_frame.interrupted(context)
    assert made is None or struct.unpack_from("=I", context, 44)[0] == FAILED


@given(st.binary(max_size=i386_frame.CODE_SIZE), st.binary(max_size=i386_frame.CODE_SIZE))
def test_whatever_the_code(code: bytes, caller: bytes) -> None:
    made = interrupted()
    number = made.number_of(code, lambda _, size: caller[:size])
    assert number is None or 0 <= number < 1 << 32
