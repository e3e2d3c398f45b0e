"""Where system calls are refused, as containers do it: the same tests of the sandbox as elsewhere.

A filter refuses them to the tests' own process (tests/cli/deny.py), recuse in it, and the programs.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.syscalls import rows

HERE = Path(__file__).parent

FETCHING = ("pidfd_getfd", "kcmp")
"""What Docker's and containerd's default profiles refuse without CAP_SYS_PTRACE."""

EVERYTHING = (
    *FETCHING,
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_open",
    "pidfd_send_signal",
)
"""What older ones refuse as well."""

NUMBERS = rows.native()


def run_tests(refused: tuple[str, ...], *selection: str) -> str:
    deny = str(HERE.parent / "cli" / "deny.py")
    numbers = [str(NUMBERS[name]) for name in refused]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    command = [sys.executable, deny, *numbers, "--", sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        [*command, *selection], capture_output=True, text=True, check=False, cwd=HERE, timeout=600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 0
    return done.stdout


def test_waiting_where_descriptors_cannot_be_fetched() -> None:
    run_tests(
        FETCHING,
        "polling/test_poll.py::test_who_sleeps_is_woken",
        "polling/test_poll.py::test_each_call_by_its_number",
        "test_listing.py::test_two_listings_at_once",
        "mounts/test_calls.py",
    )


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_all_about_waiting_where_descriptors_cannot_be_fetched() -> None:
    run_tests(FETCHING, "polling", "test_interruption.py", "test_listing.py", "test_workdir.py")


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_signals_where_descriptors_cannot_be_fetched() -> None:
    run_tests(FETCHING, "test_ordinary_signals.py")


WAITING = (
    "polling/test_poll.py::test_who_sleeps_is_woken",
    "polling/test_poll.py::test_who_waits_to_write_is_woken",
    "polling/test_poll.py::test_other_files_wake_too",
    "polling/test_poll.py::test_a_signal_ends_a_wait",
    "polling/test_epoll.py",
)


def test_servers_where_mounting_is_refused() -> None:
    """As Docker and containerd refuse it to programs without CAP_SYS_ADMIN."""
    run_tests(
        (*FETCHING, "mount", "umount2"),
        "mounts/test_libfuse_servers.py",
        "-k",
        "test_hello or unmounted or squashfuse or rclone",
    )


def test_a_program_where_ptrace_is_refused_too() -> None:
    run_tests(
        EVERYTHING,
        "test_files.py::test_each_way_to_open",
        "polling/test_poll.py::test_who_sleeps_is_woken",
        "polling/test_epoll.py::test_edge",
    )


@pytest.mark.slow
@pytest.mark.timeout(620)
def test_all_where_ptrace_is_refused_too() -> None:
    # An epoll cannot be shown the end of a device as such; memory that a program fills itself reads
    # as if it were none.
    not_here = "end_of_the_device or thread_fills"
    run_tests(EVERYTHING, *WAITING, "test_files.py", "test_memory.py", "-k", f"not ({not_here})")
