"""The table of system calls has all that the kernel's headers have, and is right about them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse.sandbox import table
from recuse.sandbox.arch import MACHINE, arch, compat, i386, name_of, x86_64
from recuse.sandbox.syscalls import compat_handlers, handlers, sigreturn
from recuse.sandbox.syscalls.compat.i386 import OWN
from recuse.sandbox.syscalls.families import FAMILIES

from . import rows

Needs = Callable[..., Path]

HEADERS = {
    table.X86_64: ("/usr/include/{multiarch}/asm/unistd_64.h", "linux-libc-dev"),
    table.ARM64: ("/usr/include/asm-generic/unistd.h", "linux-libc-dev"),
    table.I386: ("/usr/include/{multiarch}/asm/unistd_32.h", "linux-libc-dev"),
    table.ARM: ("/usr/arm-linux-gnueabihf/include/asm/unistd.h", "linux-libc-dev-armhf-cross"),
}

BEFORE = {
    table.X86_64: "",
    # As arch/arm64/include/uapi/asm/unistd.h has it (Linux 6.1).
    table.ARM64: """
        #define __BITS_PER_LONG 64
        #define __ARCH_WANT_MEMFD_SECRET
        #define __ARCH_WANT_NEW_STAT
        #define __ARCH_WANT_RENAMEAT
        #define __ARCH_WANT_SET_GET_RLIMIT
        #define __ARCH_WANT_SYS_CLONE3
    """,
    table.I386: "",
    table.ARM: "#define __ARM_EABI__",
}

LAST = 469
"""The last one of Linux 6.18."""

NO_CALLS = re.compile(r".*_(BASE|MASK)|syscalls|arch_specific_syscall|sync_file_range2")
"""Marks of the headers, and another name of a call."""


def defined(needs: Needs, machine: int) -> dict[str, int]:
    """The numbers in the headers of a machine."""
    if machine in {table.X86_64, table.I386} and MACHINE != "x86_64":
        pytest.skip("that header is x86-64's")
    header = needs(*HEADERS[machine])
    directory = next(parent for parent in header.parents if parent.name == "include")
    compiler = str(needs("cc", package="gcc"))
    command = [compiler, "-E", "-nostdinc", f"-I{header.parents[1]}", f"-I{directory}"]
    include = f"{BEFORE[machine]}\n#include <{header}>\n"

    def expand(text: str, *options: str) -> str:
        done = subprocess.run(
            [*command, *options, "-"], input=text, stdout=subprocess.PIPE, text=True, check=True
        )
        return str(done.stdout)

    names = re.findall(r"#define __((?:ARM_)?NR_\w+) \S", expand(include, "-dM"))
    names = [name for name in names if not NO_CALLS.fullmatch(name.removeprefix("NR_"))]
    values = expand(include + "".join(f"{name}: __{name}\n" for name in names), "-P")
    return {
        name.removeprefix("NR_").replace("ARM_NR_", "ARM_"): sum(
            int(part, 0) for part in re.findall(r"\w+", value)
        )
        for name, value in re.findall(r"^((?:ARM_)?NR_\w+): (.*)$", values, re.MULTILINE)
    }


@pytest.mark.parametrize("machine", HEADERS, ids=table.MACHINES.__getitem__)
def test_every_call_of_the_headers_is_there_with_its_number(needs: Needs, machine: int) -> None:
    ours, theirs = rows.numbers(machine), defined(needs, machine)
    assert len(theirs) > 300
    unknown = {name: number for name, number in theirs.items() if ours.get(name) != number}
    assert not unknown, "decide what is to be done with them, in recuse/sandbox/table"
    # The headers may be older than a call, and lack none else.
    newer = {name: number for name, number in ours.items() if name not in theirs}
    assert not set(newer.values()) & set(theirs.values())
    assert min(newer.values(), default=1000) >= 335


@pytest.mark.parametrize("machine", HEADERS, ids=table.MACHINES.__getitem__)
def test_none_of_the_newest_calls_is_left_out(machine: int) -> None:
    """Which older headers lack. All machines number them alike, since Linux 5.1 without gaps."""
    found = set(rows.numbers(machine).values())
    missing = set(range(424, LAST + 1)) - found
    assert missing == ({447} if machine == table.ARM else set())  # memfd_secret


@pytest.mark.parametrize("machine", HEADERS, ids=table.MACHINES.__getitem__)
def test_a_machine_has_a_name_and_a_number_once(machine: int) -> None:
    found = [row for row in rows.read() if row.numbers[machine] is not None]
    assert max(Counter(row.name for row in found).values()) == 1
    assert max(Counter(row.numbers[machine] for row in found).values()) == 1


def test_each_has_a_decision_and_its_reason() -> None:
    for row in rows.read():
        assert row.decision in rows.DECISIONS, row
        assert (row.family == "-") == (row.decision not in rows.TRAPPED), row
        assert bool(row.reason) == (row.decision not in rows.TRAPPED), row
        assert not row.alias or row.decision in rows.TRAPPED, row


def test_a_call_that_passes_on_one_machine_only_has_a_reason() -> None:
    marked = {(row.name, m) for row in rows.read() for m in row.untrapped if m != "arm"}
    assert marked == set(table.passing.ELSEWHERE)


def test_only_what_is_needed_is_loaded() -> None:
    script = """
import sys
import recuse.sandbox.supervisor
assert "recuse.sandbox.table.used" in sys.modules
assert "recuse.sandbox.table.passing" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_needed_is_what_the_package_reads() -> None:
    """That both parsers understand the rows alike."""
    for machine, name in enumerate(table.MACHINES):
        expected = [
            (
                row.name,
                row.numbers[machine],
                "passes" if name in row.untrapped else row.decision,
                row.alias or row.name,
            )
            for row in rows.read()
            if not row.group and row.numbers[machine] is not None
        ]
        found = table.entries(machine)
        assert [(c.name, c.number, c.decision, c.alias) for c in found] == expected
        assert all((call.family in FAMILIES) == call.trapped for call in found)


def test_every_handler_serves_the_call_that_it_is_for() -> None:
    """And every trapped call has one, without which this fails."""
    by_number = handlers()
    assert set(by_number) == {call.number for call in arch.CALLS if call.trapped}
    families = {row.name: row.family for row in rows.read() if row.decision in rows.TRAPPED}
    for family, module in FAMILIES.items():
        for name, handler in module.HANDLERS.items():
            assert families[name] == family
            if name in arch.SYSCALLS and (MACHINE == "x86_64" or name != "rt_sigreturn"):
                assert by_number[arch.SYSCALLS[name]] is handler


def test_every_handler_of_32_bit_programs_is_for_a_call_that_is_trapped() -> None:
    assert set(compat_handlers()) == {call.number for call in compat.CALLS if call.trapped}
    assert set(OWN) <= {call.name for call in i386.CALLS if call.trapped}


def test_of_each_trapped_call_it_is_known_what_signals_do() -> None:
    """Whether it is made once more if a signal ends it before it is received (sigreturn.py)."""
    unknown = {call.name for call in x86_64.CALLS if call.trapped} - set(sigreturn._DECISIONS)
    assert unknown == {"splice", "tee", "io_submit"}  # they may have waited for other files
    narrow = {call.name for call in i386.CALLS if call.number in sigreturn._COMPAT_BY_NUMBER}
    unknown |= {"select"}  # whose arguments are elsewhere
    assert {call.name for call in i386.CALLS if call.trapped} - narrow == unknown


def test_calls_are_called_by_their_names() -> None:
    assert name_of(arch.AUDIT_ARCH, arch.SYSCALLS["openat"]) == "openat"
    assert name_of(compat.AUDIT_ARCH, compat.SYSCALLS["fstat64"]) == "fstat64"
    assert name_of(arch.AUDIT_ARCH, 4000) == "4000"


AS_ARM64 = """
import os
os.uname = lambda system=os.uname(): os.uname_result([*system[:4], "aarch64"])
from recuse.sandbox import supervisor
from recuse.sandbox.arch import aarch64, arch, arm, compat
from recuse.sandbox.trap.filter import build_filter
from recuse.sandbox.syscalls import compat_handlers, handlers
assert (arch, compat) == (aarch64, arm)
assert len(build_filter()) < 8 * 4096  # BPF_MAXINSNS
assert set(handlers()) == {call.number for call in arch.CALLS if call.trapped}
assert set(compat_handlers()) == {call.number for call in arm.CALLS if call.trapped}
"""


def test_every_call_that_is_trapped_on_arm64_has_a_handler() -> None:
    subprocess.run([sys.executable, "-c", AS_ARM64], check=True)
