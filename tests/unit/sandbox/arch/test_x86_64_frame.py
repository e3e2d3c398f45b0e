"""Signal frames, from which it is told which call a signal has ended."""

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.sandbox.arch import x86_64_frame

RIP = 0x7F0000001000
ORDER = [
    *(f"r{n}" for n in range(8, 16)),
    "rdi",
    "rsi",
    "rbp",
    "rbx",
    "rdx",
    "rax",
    "rcx",
    "rsp",
    "rip",
]
FAILED = -errno.EINTR & (1 << 64) - 1


def frame_of(**registers: Any) -> bytes:
    """A frame as the kernel leaves it after a call that has failed with EINTR."""
    values = dict.fromkeys(ORDER, 0) | {"rax": FAILED, "rcx": RIP, "rip": RIP} | registers
    return bytes(40) + struct.pack("=17Q", *(values[name] for name in ORDER))


def interrupted(**registers: int) -> x86_64_frame.Interrupted:
    """What a frame with these registers was interrupted in."""
    made = x86_64_frame.interrupted(frame_of(**registers))
    assert made is not None
    return made


def no_memory(address: int, size: int) -> bytes:
    raise OSError(errno.EFAULT, "")


def read_from(memory: dict[int, bytes]) -> Callable[[int, int], bytes]:
    """Reads from where something is; all else is empty."""
    return lambda address, size: memory.get(address, b"")[:size]


def number_of(code: str, memory: dict[int, bytes] | None = None, **registers: int) -> int | None:
    made = interrupted(**registers)
    read = no_memory if memory is None else read_from(memory)
    return made.number_of(bytes.fromhex(code).rjust(x86_64_frame.CODE_SIZE, b"\x90"), read)


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("b806010000 0f05", 262),  # mov $262,%eax
        ("48c7c00f000000 0f05", 15),  # mov $15,%rax
        ("31c0 0f05", 0),  # xor %eax,%eax
        ("31c0 4889fe 0f05", 0),
        ("b801010000 4889fe bf9cffffff 0f05", 257),  # mov %rdi,%rsi; mov $-100,%edi
        ("b815000000 4489c6 4c89ef 31d2 0f05", 21),  # mov %r8d,%esi; mov %r13,%rdi; xor %edx,%edx
        ("b813000000 4863fb 4d63d4 0f05", 19),  # movslq %ebx,%rdi; movslq %r12d,%r10
        ("b804000000 488b7c2408 488d742410 0f05", 4),  # mov 8(%rsp),%rdi; lea 16(%rsp),%rsi
        ("b82a000000 41ba08000000 0f05", 42),  # mov $8,%r10d
        # glibc's tcgetattr: mov %fs:0x28,%rdx; mov %rdx,0x38(%rsp); mov %rsp,%rdx
        ("b810000000 64488b142528000000 4889542438 4889e2 0f05", 16),
        ("b810000000 c744243801000000 488b3d785634124889 54243888 0f05", None),
        ("b810000000 48c744243801000000 488b3d78563412 0f05", 16),
        ("b810000000 4c8b4500 448b05785634128b7c8304 0f05", 16),
        ("b810000000 488b4500 0f05", 0x77),  # mov 0(%rbp),%rax
        ("b810000000 8b4308 0f05", None),  # mov 8(%rbx),%eax
        ("b810000000 4883ec18 4183c001 53 4154 490f43d8 0f05", 16),  # sub, add, push, cmovae
        ("b810000000 83c801 0f05", None),  # or $1,%eax
        ("b810000000 83f801 0f05", 16),  # cmp $1,%eax
        ("b810000000 0f43c5 0f05", None),
        ("b810000000 440f43c5 49b81122334455667788 0f05", 16),  # cmovae %ebp,%r8d; movabs to %r8
    ],
)
def test_a_number_that_the_code_loads(code: str, number: int | None) -> None:
    assert number_of(code, {0: b"\x77"}) == number


@pytest.mark.parametrize(
    ("code", "register"),
    [
        ("4489c0 0f05", "r8"),
        ("4489c8 0f05", "r9"),
        ("4489f8 0f05", "r15"),
        ("4c89e0 0f05", "r12"),
        ("89d0 0f05", "rdx"),
        ("89e8 0f05", "rbp"),
        ("4889f8 0f05", "rdi"),
    ],
)
def test_a_number_in_a_register(code: str, register: str) -> None:
    assert number_of(code, None, **{register: 0x1234_0000_0101}) == 0x101


@pytest.mark.parametrize(
    "code",
    [
        "0f05",
        "cd80",
        "41b806010000 0f05",  # mov $262,%r8d
        "49b8060100000f05",
        "89c0 0f05",  # mov %eax,%eax
        "4189c0 0f05",  # mov %eax,%r8d
        "4489c0 4989f0 0f05",  # mov %r8d,%eax; mov %rsi,%r8: that register is another's now
        "b806010000 ffd0 0f05",  # call *%rax
        "b806010000 c3 0f05",
        "b806010000 0f0590",
        "",
    ],
)
def test_code_that_does_not_tell(code: str) -> None:
    assert number_of(code) is None


CANCELLED = "4889d7 4889ce 4c89c2 4d89ca 4c8b442408 4c8b4c2410 4c895c2408 0f05"


@pytest.mark.parametrize(
    ("code", "register"),
    [
        ("5a59 4883f8fc 7539 4983fc03 7433", "r12"),
        ("4883c410 4883f8fc 0f8510000000 4883fb03 7433", "rbx"),
        ("4883f8fc 7539 4883fd03 90", "rbp"),
    ],
)
def test_musls_call_whose_caller_compares_its_number(code: str, register: str) -> None:
    stack, caller = 0x7000, 0x4000
    memory = {stack: caller.to_bytes(8, "little"), caller: bytes.fromhex(code)}
    made = interrupted(rsp=stack, **{register: 257})
    syscall = bytes.fromhex(CANCELLED)[-x86_64_frame.CODE_SIZE :]
    assert made.number_of(syscall, read_from(memory)) == 257
    memory[caller] = bytes.fromhex("4883f8fc 90 4883fd03")
    assert made.number_of(syscall, read_from(memory)) is None


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("4989ca 488b442420 0f05", 0x7020),  # glibc's __syscall_cancel: mov 32(%rsp),%rax
        ("4989ca 8b442420 0f05", 0x7020),
        ("488b4510 4989ca 0f05", 0x8010),  # with a frame pointer: mov 16(%rbp),%rax
        ("488b45f0 0f05", 0x7FF0),
        ("b806010000 8b442408 0f05", 0x7008),
    ],
)
def test_a_number_on_the_stack(code: str, where: int) -> None:
    made = interrupted(rsp=0x7000, rbp=0x8000)
    padded = bytes.fromhex(code).rjust(x86_64_frame.CODE_SIZE, b"\x90")
    assert made.number_of(padded, read_from({where: struct.pack("=Q", 257)})) == 257


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("488b742430 4989c0 4c89d7 e8fcb40000", 0x7038),  # mov 48(%rsp),%rsi; ...; call
        ("488b7510 4c89d7 e8fcb40000", 0x8010),
    ],
)
def test_a_number_that_glibc_s_call_was_passed(code: str, where: int) -> None:
    caller = 0x4000
    memory = {
        0x7000: struct.pack("=Q", caller),
        caller - x86_64_frame.CODE_SIZE: bytes.fromhex(code).rjust(x86_64_frame.CODE_SIZE, b"\x90"),
        caller: bytes.fromhex("4c8b5c2418").ljust(x86_64_frame.CODE_SIZE, b"\x90"),
        where: struct.pack("=Q", 257),
    }
    made = interrupted(rsp=0x7000, rbp=0x8000)
    syscall = bytes.fromhex(CANCELLED)[-x86_64_frame.CODE_SIZE :]
    assert made.number_of(syscall, read_from(memory)) == 257
    memory[caller - x86_64_frame.CODE_SIZE] = b"\x90" * x86_64_frame.CODE_SIZE
    assert made.number_of(syscall, read_from(memory)) is None


@given(st.binary(max_size=x86_64_frame.CODE_SIZE), st.integers(0, (1 << 64) - 1))
def test_whatever_the_code(code: bytes, register: int) -> None:
    made = interrupted(r8=register)
    number = made.number_of(code, lambda _, size: code[:size])
    assert number is None or 0 <= number < 1 << 32


@given(st.binary(min_size=x86_64_frame.SIZE, max_size=x86_64_frame.SIZE))
def test_whatever_the_frame(frame: bytes) -> None:
    made = x86_64_frame.interrupted(frame)
    assert made is None or made.after == struct.unpack_from("=Q", frame, 152)[0]


@pytest.mark.parametrize(
    "registers",
    [
        {"rax": 0},
        {"rax": -errno.EAGAIN & (1 << 64) - 1},
        {"rcx": 5},
        {"rip": RIP + 2},
        {"rip": RIP - 1},
    ],
)
def test_frames_of_no_interrupted_call(registers: dict[str, int]) -> None:
    assert x86_64_frame.interrupted(frame_of(**registers)) is None


def test_outcomes() -> None:
    made = interrupted(rsp=0x7000, rdi=1, rsi=2, rdx=3, r10=4, r8=5, r9=6)
    assert [made.argument(index) for index in range(6)] == [1, 2, 3, 4, 5, 6]
    assert not made.restarts
    assert struct.unpack("=4Q", made.made_anew(262)) == (262, RIP, 0x7000, RIP - 2)
    assert struct.unpack("=4Q", made.failed()) == (FAILED, RIP, 0x7000, RIP)
    begins = x86_64_frame.OUTCOME_OFFSET
    assert frame_of(rsp=0x7000)[begins : begins + 32] == made.failed()


def test_a_call_that_is_made_once_more() -> None:
    made = interrupted(rax=7, rip=RIP - 2)
    assert made.restarts
    assert made.number == 7
