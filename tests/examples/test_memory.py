"""The memory example, with libfuse's client for its own example, and with dd."""

import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Shell = Callable[..., bytes]

LIBFUSE_EXAMPLES = "/usr/share/doc/libfuse3-dev/examples"


@pytest.fixture(scope="session")
def client(needs: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with cuse_client, libfuse's own program, unmodified."""
    compiler = needs("gcc", "gcc")
    directory = tmp_path_factory.mktemp("client")
    for name in ("cuse_client.c", "ioctl.h"):
        shutil.copy(needs(f"{LIBFUSE_EXAMPLES}/{name}", "libfuse3-dev"), directory)
    subprocess.run([compiler, "-o", "cuse_client", "cuse_client.c"], cwd=directory, check=True)
    return directory


@pytest.fixture
def drive(client: Path, shell: Shell) -> Callable[[str, str], str]:
    """`drive(arguments, script)`: what a script prints in which `c` is cuse_client."""

    def drive(arguments: str, script: str) -> str:
        functions = "c() { ./cuse_client /dev/memory $*; }"
        return shell(f"memory.py{arguments}", f"{functions}\n{script}", cwd=client).decode()

    return drive


def lines(*expected: str) -> str:
    return "".join(f"{line}\n" for line in expected)


def test_it_begins_empty(drive: Callable[[str, str], str]) -> None:
    assert drive("", "c s") == "0\n"


def test_it_begins_with_the_size_that_it_is_given(drive: Callable[[str, str], str]) -> None:
    assert drive(",size=0x1000", "c s") == "4096\n"


def test_what_the_comments_of_libfuses_client_show(drive: Callable[[str, str], str]) -> None:
    script = "c s; echo hello | c w 6; c s; c r 10"
    assert drive("", script) == lines(
        "0",
        "Writing 6 bytes",
        "transferred 6 bytes (0 -> 6)",
        "6",
        "transferred 6 bytes (6 -> 6)",
        "hello",
    )


def test_a_write_behind_the_end_makes_it_grow_with_zeros(
    drive: Callable[[str, str], str],
) -> None:
    script = "printf ab | c w 2; printf cd | c w 2 5; c s; c r 7 2>/dev/null | od -An -c"
    assert drive("", script) == lines(
        "Writing 2 bytes",
        "transferred 2 bytes (0 -> 2)",
        "Writing 2 bytes",
        "transferred 2 bytes (2 -> 7)",
        "7",
        r"   a   b  \0  \0  \0   c   d",
    )


def test_a_write_inside_leaves_the_size(drive: Callable[[str, str], str]) -> None:
    script = "printf XY | c w 2 1; c r 9 2>/dev/null | od -An -c"
    assert drive(",size=4", script) == lines(
        "Writing 2 bytes", "transferred 2 bytes (4 -> 4)", r"  \0   X   Y  \0"
    )


def test_reads_end_at_the_end(drive: Callable[[str, str], str]) -> None:
    reads = {"3 0": "abc", "3 2": "cde", "3 4": "ef", "3 6": "", "3 7": "", "0 0": ""}
    script = "".join(f"c r {arguments}; echo\n" for arguments in reads)
    assert drive("", f"printf abcdef >/dev/memory\n{script}") == "".join(
        f"transferred {len(content)} bytes (6 -> 6)\n{content}\n" for content in reads.values()
    )


def test_the_size_can_be_set(drive: Callable[[str, str], str]) -> None:
    script = "printf abcdef >/dev/memory; c s 3; c s; c s 5; c s; cat /dev/memory | od -An -c"
    assert drive("", script) == lines("3", "5", r"   a   b   c  \0  \0")


def test_no_byte_is_before_the_first(drive: Callable[[str, str], str]) -> None:
    script = "c r 1 -1 || printf a | c w 1 -1 || c s"
    error = "ioctl: Invalid argument"
    assert drive("", script) == lines(error, "Writing 1 bytes", error, "0")


def test_it_grows_up_to_a_limit(drive: Callable[[str, str], str]) -> None:
    script = "c s 0x1000000; c s; c s 0x1000001 || printf a | c w 1 0x1000000 || c s"
    error = "ioctl: No space left on device"
    assert drive("", script) == lines("16777216", error, "Writing 1 bytes", error, "16777216")


def test_more_than_linux_moves_in_one_ioctl_is_refused(
    drive: Callable[[str, str], str],
) -> None:
    assert drive("", "c s 200000; c r 200000 || c s") == lines(
        "ioctl: Cannot allocate memory", "200000"
    )


BAD_POINTERS = """
import ctypes, errno, fcntl, os, struct
device = os.open("/dev/memory", os.O_RDWR)
for command in (0x4502, 0x4503):
    for size in (0, 4):
        try:
            print(fcntl.ioctl(device, command, bytes(struct.pack("qQQQQ", 0, 16, size, 0, 0))))
        except OSError as error:
            print(errno.errorcode[error.errno])
try:
    print(fcntl.ioctl(device, 0x4502, 16))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_pointers_to_nowhere(run: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    """Bad ones of a structure in it are only found when they are used."""
    outcome = run("memory.py,size=8", sys.executable, "-c", BAD_POINTERS)
    unused = struct.pack("qQQQQ", 0, 16, 0, 8, 8)
    expected = lines(f"{unused!r}", "EFAULT", f"{unused!r}", "EFAULT", "EFAULT")
    assert outcome.stdout.decode() == expected


def test_other_ioctls_are_unknown(run: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    code = "import fcntl; fcntl.ioctl(open('/dev/memory'), 0x4504)"
    outcome = run("memory.py", sys.executable, "-c", code)
    assert outcome.stderr.decode().endswith("OSError: [Errno 25] Inappropriate ioctl for device\n")


def test_dd_skips_and_seeks(shell: Shell) -> None:
    script = """
        printf 0123456789 >/dev/memory
        printf AB | dd of=/dev/memory bs=1 seek=4 status=none
        dd if=/dev/memory bs=1 skip=3 count=4 status=none; echo
        cat /dev/memory; echo
    """
    assert shell("memory.py", script) == b"3AB6\n0123AB6789\n"


def test_it_holds_large_files(shell: Shell, tmp_path: Path) -> None:
    content = bytes(range(251)) * 4000
    (tmp_path / "before").write_bytes(content)
    shell("memory.py", "cat before >/dev/memory; cat /dev/memory >after", cwd=tmp_path)
    assert (tmp_path / "after").read_bytes() == content


def test_dd_fills_it_up(shell: Shell) -> None:
    script = """
        dd if=/dev/zero of=/dev/memory bs=1M status=none || wc -c </dev/memory
    """
    assert shell("memory.py", script) == (
        b"dd: error writing '/dev/memory': No space left on device\n16777216\n"
    )


def test_without_positions_every_read_and_write_is_at_the_beginning(shell: Shell) -> None:
    """As on Linux's own CUSE."""
    script = """
        printf 0123456789 >/dev/memory
        printf AB | dd of=/dev/memory bs=1 seek=4 status=none
        dd if=/dev/memory bs=5 skip=1 count=2 status=none; echo
    """
    assert shell("memory.py,seekable=false", script) == b"B1234B1234\n"


def test_it_may_have_another_name(shell: Shell) -> None:
    assert shell("memory.py,name=ram,size=3", "wc -c </dev/ram; ls /dev/memory || true") == (
        b"3\nls: cannot access '/dev/memory': No such file or directory\n"
    )
