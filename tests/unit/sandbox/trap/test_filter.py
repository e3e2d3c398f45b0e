"""The filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from types import ModuleType

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recuse.sandbox.arch import MACHINE, arch, compat
from recuse.sandbox.table import Entry
from recuse.sandbox.trap.filter import (
    LENDING,
    LOCK_COMMANDS,
    MOST_CLOSED,
    OURS,
    TRAPPED_FCNTL,
    build_filter,
)

ALLOW, NOTIFY, ENOSYS = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
PROGRAM = list(struct.iter_unpack("=HBBI", build_filter()))
WITH_FILESYSTEMS = list(struct.iter_unpack("=HBBI", build_filter(filesystems=True)))


def verdict(
    number: int,
    *arguments: int,
    machine: int = arch.AUDIT_ARCH,
    program: list[tuple[int, ...]] = PROGRAM,
) -> int:
    """What the kernel would do with a system call."""
    padded = [*arguments, *[0] * 6][:6]
    data = struct.pack("=iIQ6Q", number, machine, 0, *padded)
    accumulator = position = 0
    while True:
        code, then, otherwise, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            taken = {0x05: True, 0x15: accumulator == value, 0x45: accumulator & value != 0}[code]
            distance = value if code == 0x05 else then
            position += distance if taken else otherwise


def decided(calls: Iterable[Entry], *decisions: str) -> list[int]:
    """The numbers of the calls with one of these decisions."""
    return [call.number for call in calls if call.decision in decisions]


TRAPPED = "always", "unless-lent", "unless-ours"
WITH_MOUNTS = "mounts", "mounts-unless-ours", "mounts-closes"
FCNTL = decided(compat.CALLS, "commands")


def test_calls_that_may_be_about_devices_are_trapped() -> None:
    numbers = decided(arch.CALLS, *TRAPPED)
    assert len(numbers) > 80
    assert {verdict(number) for number in numbers} == {NOTIFY}


def test_calls_that_recuse_makes_itself_are_not() -> None:
    numbers = decided(arch.CALLS, "passes", "differs")
    assert numbers
    assert {verdict(number) for number in numbers} == {ALLOW}


@pytest.mark.parametrize("calls", [arch.CALLS, compat.CALLS])
def test_the_hot_calls_are_compared_first(calls: tuple[Entry, ...]) -> None:
    """Each comparison takes time, and reads are what programs do most."""
    order = [value for code, _, _, value in PROGRAM if code == 0x15]
    passing = "passes", "differs", *WITH_MOUNTS
    expected = [call.number for call in calls if call.decision not in passing]
    assert [call.name for call in calls][:5] == ["read", "write", "pread64", "pwrite64", "ioctl"]
    slices = (order[start : start + len(expected)] for start in range(len(order)))
    assert expected in slices


# close, munmap, futex, exit_group, brk and wait4; dup, dup3, clone3, and fcntl(F_DUPFD); and of
# x86-64 dup2, fork and vfork.
UNTRAPPED = {
    "x86_64": [3, 11, 202, 231, 12, 61, 32, 292, 435, 72, 33, 57, 58],
    "aarch64": [57, 215, 98, 94, 214, 260, 23, 24, 435, 25],
}


@pytest.mark.parametrize("number", UNTRAPPED[MACHINE])
def test_calls_that_never_are_run_untrapped(number: int) -> None:
    assert verdict(number) == ALLOW


def test_fcntl_is_trapped_for_some_commands() -> None:
    fcntl = arch.SYSCALLS["fcntl"]
    trapped = {command for command in range(2000) if verdict(fcntl, 5, command) == NOTIFY}
    assert trapped == set(TRAPPED_FCNTL)
    # Only the low word of a command counts, as it does in the kernel.
    assert verdict(fcntl, 5, 1 << 32 | 3) == NOTIFY


@pytest.mark.parametrize(
    ("number", "machine"),
    [(arch.SYSCALLS["mmap"], arch.AUDIT_ARCH), (compat.SYSCALLS["mmap2"], compat.AUDIT_ARCH)],
)
def test_mmap_is_trapped_for_files_that_no_loader_maps(number: int, machine: int) -> None:
    def mmap(flags: int, descriptor: int) -> int:
        return verdict(number, 0, 4096, 3, flags, descriptor, 0, machine=machine)

    assert mmap(0x1, 5) == NOTIFY
    assert mmap(0x2, 0) == NOTIFY
    assert mmap(0x8012, 5) == NOTIFY
    # No file, as MAP_ANONYMOUS or -1 says, an int in a register of 64 bits.
    assert mmap(0x22, 5) == ALLOW
    assert mmap(0x1, 0xFFFFFFFF) == ALLOW
    assert mmap(0x1, 0xFFFFFFFFFFFFFFFF) == ALLOW
    # MAP_DENYWRITE.
    assert mmap(0x802, 5) == ALLOW


@pytest.mark.parametrize(
    ("clone", "machine"),
    [(arch.SYSCALLS["clone"], arch.AUDIT_ARCH), (compat.SYSCALLS["clone"], compat.AUDIT_ARCH)],
)
def test_clone_is_trapped_for_namespaces_that_have_other_files(clone: int, machine: int) -> None:
    # A signal ends a trapped call with EINTR before it is received, and fork never fails with that.
    assert verdict(clone, 0x1200011, machine=machine) == ALLOW  # fork
    assert verdict(clone, 0x3D0F00, machine=machine) == ALLOW  # a thread
    assert verdict(clone, 0x20011, machine=machine) == NOTIFY  # CLONE_NEWNS
    assert verdict(clone, 0x10000011, machine=machine) == NOTIFY  # CLONE_NEWUSER


@pytest.mark.parametrize(
    ("sendmsg", "machine"),
    [(arch.SYSCALLS["sendmsg"], arch.AUDIT_ARCH), (compat.SYSCALLS["sendmsg"], compat.AUDIT_ARCH)],
)
def test_sendmsg_is_let_pass_with_flags_that_only_recuse_uses(sendmsg: int, machine: int) -> None:
    assert verdict(sendmsg, 3, 4096, LENDING, machine=machine) == ALLOW
    for flags in (0, 0x4000, 0x4040, LENDING & ~0x1000, LENDING | 0x8000):
        assert verdict(sendmsg, 3, 4096, flags, machine=machine) == NOTIFY


@pytest.mark.parametrize(
    ("number", "machine"),
    [
        (arch.SYSCALLS["io_submit"], arch.AUDIT_ARCH),
        (compat.SYSCALLS["io_submit"], compat.AUDIT_ARCH),
    ],
)
def test_io_submit_is_let_pass_as_only_recuse_makes_it(number: int, machine: int) -> None:
    assert verdict(number, 4096, 1, 4096, OURS, machine=machine) == ALLOW
    for other in (0, 1, OURS - 1):
        assert verdict(number, 4096, 1, 4096, other, machine=machine) == NOTIFY


@pytest.mark.parametrize("machine", [arch, compat])
def test_io_uring_does_not_exist(machine: ModuleType) -> None:
    refused = decided(machine.CALLS, "refused")
    calls = ("io_uring_setup", "io_uring_enter", "io_uring_register")
    assert refused == [machine.SYSCALLS[name] for name in calls]
    for number in refused:
        assert verdict(number, machine=machine.AUDIT_ARCH) == ENOSYS


@pytest.mark.skipif(not arch.FOREIGN_CALL_BIT, reason="x32 is x86-64's")
def test_x32_calls_do_not_exist() -> None:
    assert verdict(arch.FOREIGN_CALL_BIT | arch.SYSCALLS["read"]) == ENOSYS


def test_calls_of_32_bit_programs_that_may_be_about_devices_are_trapped() -> None:
    numbers = decided(compat.CALLS, *TRAPPED)
    assert len(numbers) > 60
    assert {verdict(number, machine=compat.AUDIT_ARCH) for number in numbers} == {NOTIFY}


@given(st.integers(0, 0x7FFFFFFF))
def test_other_calls_of_32_bit_programs_run_untrapped(number: int) -> None:
    assume(number not in {call.number for call in compat.CALLS if call.trapped})
    assume(number not in decided(compat.CALLS, "refused"))
    assert verdict(number, machine=compat.AUDIT_ARCH) == ALLOW


@pytest.mark.parametrize("fcntl", FCNTL)
def test_fcntl_of_32_bit_programs_is_trapped_for_some_commands(fcntl: int) -> None:
    machine = compat.AUDIT_ARCH
    trapped = {n for n in range(2000) if verdict(fcntl, 5, n, machine=machine) == NOTIFY}
    assert trapped == set(TRAPPED_FCNTL)


@given(st.integers(0, 0x7FFFFFFF), st.sampled_from([0, 0x400000B7, 0xC00000F3]))
def test_calls_of_machines_that_are_not_known_run_untrapped(number: int, machine: int) -> None:
    assert verdict(number, machine=machine) == ALLOW


@given(st.integers(0, 0x3FFFFFFF), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_every_call_has_a_verdict(number: int, arguments: list[int]) -> None:
    assert verdict(number, *arguments) in (ALLOW, NOTIFY, ENOSYS)


@pytest.mark.parametrize("machine", [arch, compat])
def test_with_filesystems_more_is_trapped(machine: ModuleType) -> None:
    def with_filesystems(number: int, *arguments: int) -> int:
        audit = machine.AUDIT_ARCH
        return verdict(number, *arguments, machine=audit, program=WITH_FILESYSTEMS)

    more = decided(machine.CALLS, *WITH_MOUNTS)
    assert machine.SYSCALLS["fsync"] in more or MACHINE != "x86_64"
    for number in more:
        assert verdict(number, machine=machine.AUDIT_ARCH) == ALLOW
        assert with_filesystems(number, 5) == NOTIFY
    for number in decided(machine.CALLS, "mounts-unless-ours", "mounts-closes"):
        assert with_filesystems(number, 5, 0, 0, OURS) == ALLOW
    for number in decided(machine.CALLS, "mounts-closes"):
        assert with_filesystems(number, MOST_CLOSED - 1) == NOTIFY
        assert {with_filesystems(number, n) for n in (MOST_CLOSED, -1 & 0xFFFFFFFF)} == {ALLOW}
    for number in decided(machine.CALLS, *TRAPPED):
        assert with_filesystems(number) == NOTIFY
    for number in decided(machine.CALLS, "commands"):
        trapped = {
            command for command in range(2000) if with_filesystems(number, 5, command) == NOTIFY
        }
        assert trapped == {*TRAPPED_FCNTL, *LOCK_COMMANDS, 12, 13, 14}
    (mmap,) = {*decided(machine.CALLS, "files")}
    assert with_filesystems(mmap, 0, 4096, 3, 0x802, 5) == NOTIFY  # the loader's
    assert with_filesystems(mmap, 0, 4096, 3, 0x1802, 5) == ALLOW  # recuse's
    assert with_filesystems(mmap, 0, 4096, 3, 0x22, 5) == ALLOW
