"""What a thread's status says."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from recuse.sandbox.tasks.status import ThreadStatus


def test_our_own() -> None:
    status = ThreadStatus(threading.get_native_id())
    assert status.number(b"Pid") == threading.get_native_id()
    assert status.number(b"Tgid") == os.getpid()
    assert status.number(b"PPid") == os.getppid()
    assert [int(uid) for uid in status[b"Uid"].split()[:3]] == list(os.getresuid())
    assert ThreadStatus("thread-self")[b"Name"] == status[b"Name"]


def test_a_thread_that_is_gone() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        ThreadStatus(process.pid)


def test_a_process_that_nobody_has_waited_for() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert not ThreadStatus(process.pid).has_ended
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ThreadStatus(process.pid).has_ended
    process.wait()


def fake(proc: Path, text: str) -> ThreadStatus:
    (proc / "7").mkdir()
    (proc / "7" / "status").write_text(text, encoding="ascii")
    return ThreadStatus(7, str(proc))


def test_names_are_whole_and_begin_lines(tmp_path: Path) -> None:
    status = fake(tmp_path, "Name:\tPid:\t8\\n9\nUmask:\t0022\nNSpid:\t1 7\nPid:\t7\nGroups:\t \n")
    assert status[b"Name"] == b"Pid:\t8\\n9"
    assert status.number(b"Umask", 8) == 0o22
    assert status.number(b"Pid") == 7
    assert status[b"Groups"] == b""
    for missing in (b"pid", b"mask", b"Pi"):
        with pytest.raises(KeyError):
            status[missing]


def test_a_thread_in_many_groups(tmp_path: Path) -> None:
    """There may be 65536, all in one line."""
    groups = " ".join(str(100_000 + number) for number in range(65536))
    status = fake(tmp_path, f"Name:\tx\nGroups:\t{groups}\nSigPnd:\t0000000000004000\n")
    assert len(status[b"Groups"].split()) == 65536
    assert status.number(b"SigPnd", 16) == 0x4000
