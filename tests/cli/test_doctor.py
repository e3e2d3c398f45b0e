"""`recuse doctor`: each check with outcomes that cannot be had here, and all of them for real."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recuse.cli import doctor, filesystem_probes, probes
from recuse.cli.doctor import Check, Finding
from recuse.sandbox.arch import SUPPORTED

SECCOMP, PTRACE, PIDFD_OPEN, PIDFD_GETFD, KCMP, MOUNT = 317, 101, 434, 438, 312, 165
PROCESS_VM_READV, PROCESS_VM_WRITEV = 310, 311

on_supported = pytest.mark.skipif(not SUPPORTED, reason="another architecture than x86-64")


def failing(code: int) -> Callable[..., Any]:
    def experiment(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    return experiment


# ---- one check at a time


@pytest.mark.parametrize(
    ("experiment", "check"),
    [
        ("trap_a_call", doctor.check_user_notification),
        ("notification_sizes", doctor.check_notification_sizes),
        ("add_descriptor", doctor.check_add_descriptor),
        ("wait_killable", doctor.check_wait_killable),
        ("sync_wake_up", doctor.check_sync_wake_up),
        ("read_child_memory", doctor.check_memory),
        ("read_child_proc", doctor.check_proc),
        ("hold_child", doctor.check_pidfd),
        ("fetch_child_descriptor", doctor.check_pidfd_getfd),
        ("trace_child", doctor.check_ptrace),
        ("compare_with_child", doctor.check_comparing),
        ("open_device", doctor.check_dev_fuse),
        ("open_device", doctor.check_dev_cuse),
        ("mount_filesystem", doctor.check_mounts),
        ("mount_privately", doctor.check_private_mounts),
        ("command_for_mount8", doctor.check_fstab),
        ("fuse_over_io_uring", doctor.check_io_uring),
        ("show_filesystem", doctor.check_filesystems),
        ("serve_filesystem", doctor.check_fuse_servers),
    ],
)
@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.ENOSYS])
def test_a_failed_experiment(
    monkeypatch: pytest.MonkeyPatch, experiment: str, check: Callable[[], Finding], code: int
) -> None:
    module = probes if hasattr(probes, experiment) else filesystem_probes
    monkeypatch.setattr(module, experiment, failing(code))
    finding = check()
    assert not finding.good
    assert finding.text == os.strerror(code)
    assert finding.advice


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EPERM, "--security-opt seccomp=unconfined"),
        (errno.EACCES, "--security-opt seccomp=unconfined"),
        (errno.EBUSY, "run recuse outside it"),
        (errno.EINVAL, "Linux 5.5 or newer"),
        (errno.ENOSYS, "Linux 5.5 or newer"),
    ],
)
def test_why_there_is_no_user_notification(
    monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    monkeypatch.setattr(probes, "trap_a_call", failing(code))
    assert advice in doctor.check_user_notification().advice


def test_a_kernel_with_other_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "notification_sizes", lambda: (88, 24, 64))
    finding = doctor.check_notification_sizes()
    assert not finding.good
    assert "88" in finding.text


def test_a_kernel_without_quick_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "sync_wake_up", lambda: False)
    assert not doctor.check_sync_wake_up().good


@pytest.mark.parametrize(
    ("release", "good"),
    [
        ("5.19.0", True),
        ("5.18.19-generic", False),
        ("6.1.0-28-amd64", True),
        ("10.0", True),
        ("4.4.0", False),
        ("strange", False),
    ],
)
def test_kernel_versions(monkeypatch: pytest.MonkeyPatch, release: str, good: bool) -> None:
    system = os.uname_result(("Linux", "host", release, "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: system)
    finding = doctor.check_kernel()
    assert finding.good == good
    assert release in finding.text


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SUPPORTED", False)
    monkeypatch.setattr(doctor, "DESCRIPTION", "riscv64")
    monkeypatch.setattr(probes, "trap_a_call", failing(errno.ENOSYS))
    finding = doctor.check_architecture()
    assert (finding.good, finding.text) == (False, "riscv64")
    assert doctor.diagnose(as_json=True) == 1


def test_an_architecture_is_not_tried_by_the_numbers_of_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "SUPPORTED", False)
    doctor.diagnose(as_json=True)
    names = {check["name"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "architecture" in names
    assert "user notification" not in names


def test_memory_tells_the_ptrace_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "read_child_memory", lambda: None)
    monkeypatch.setattr(doctor, "_read", lambda path: "1\n")
    assert "ptrace_scope is 1" in doctor.check_memory().text


@pytest.mark.parametrize(
    ("status", "paths", "text"),
    [
        ("Seccomp:\t0\n", [], "not confined by seccomp or a container"),
        ("Seccomp:\t2\n", [], "in a seccomp filter"),
        ("Seccomp:\t2\n", ["/.dockerenv"], "in a seccomp filter, in a container"),
        ("", ["/run/.containerenv"], "in a container"),
    ],
)
def test_confinement(
    monkeypatch: pytest.MonkeyPatch, status: str, paths: list[str], text: str
) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: status)
    monkeypatch.setattr(os.path, "exists", lambda path: path in paths)
    assert doctor.check_confinement() == Finding(True, text)


@pytest.mark.parametrize(("value", "there"), [("0", False), ("1", True)])
def test_new_privileges(monkeypatch: pytest.MonkeyPatch, value: str, there: bool) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: f"Name:\tx\nNoNewPrivs:\t{value}\n")
    assert ("as it is here already" in doctor.check_no_new_privileges().text) == there


@pytest.mark.parametrize(
    ("mode", "result"),
    [(0o4755, "`recuse mount` works, by fusermount3"), (0o755, "fusermount3 is not set-user-ID")],
)
def test_how_an_ordinary_user_mounts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, result: str
) -> None:
    (tmp_path / "fusermount3").touch()
    (tmp_path / "fusermount3").chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probes._libc, "syscall", failing(errno.EPERM))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = doctor.check_mounts()
    assert result in finding.text
    assert finding.good == bool(mode & 0o4000)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not doctor.check_mounts().good


def test_what_mount8_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_SBIN", "_WITHOUT_PATH"):
        monkeypatch.setattr(probes, name, str(tmp_path))
    assert doctor.check_fstab().text == "mount.fuse3 is missing"
    for name in ("mount.fuse3", "recuse"):
        (tmp_path / name).touch(0o755)
        text = doctor.check_fstab().text
        expected = "mount(8) does not find recuse" if name == "mount.fuse3" else "works, by "
        assert expected in text


# ---- the report


def fine() -> Finding:
    return Finding(True, "all is well", "never shown")


def bad() -> Finding:
    return Finding(False, "not there", "get one")


def broken() -> Finding:
    raise ValueError("what is this?")


@pytest.mark.parametrize(
    ("checks", "status", "lines"),
    [
        ([Check("a", fine)], 0, ["[ok] a  all is well", "recuse run can work here."]),
        (
            [Check("long", fine), Check("b", bad, required=False)],
            0,
            [
                "[ok] long  all is well",
                "[--] b     not there: get one",
                "recuse run can work here.",
            ],
        ),
        (
            [Check("a", bad), Check("b", fine)],
            1,
            [
                "[no] a  not there: get one",
                "[ok] b  all is well",
                "recuse run cannot work here: see the lines marked [no].",
            ],
        ),
        (
            [Check("a", bad, required=False), Check("b", fine, rests_on="a")],
            1,
            [
                "[--] a  not there: get one",
                "[no] b  not tried: needs a",
                "recuse run cannot work here: see the lines marked [no].",
            ],
        ),
        (
            [Check("a", broken)],
            1,
            [
                "[no] a  ValueError: what is this?: please report this",
                "recuse run cannot work here: see the lines marked [no].",
            ],
        ),
    ],
)
def test_report(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checks: list[Check],
    status: int,
    lines: list[str],
) -> None:
    for table in ("BASICS", "EXPERIMENTS", "SURROUNDINGS"):
        monkeypatch.setattr(doctor, table, ())
    monkeypatch.setattr(doctor, "BASICS", checks)
    assert doctor.diagnose(as_json=False) == status
    assert capsys.readouterr().out.splitlines() == lines


# ---- for real


def run_doctor(*denied: int) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the command with some system calls denied: its exit status, and the checks by name."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("deny.py")), *map(str, denied), "--",
         sys.executable, "-m", "recuse.cli.main", "doctor", "--json"],
        capture_output=True, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["works"] == (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in report["checks"]}


@on_supported
@pytest.mark.right("pidfd_getfd")
def test_here() -> None:
    """The tests of the sandbox run on this machine, so it has what is needed."""
    done = subprocess.run(
        [sys.executable, "-m", "recuse.cli.main", "doctor"],
        capture_output=True, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert "[no]" not in done.stdout
    assert "[ok] filesystems " in done.stdout
    assert "[ok] FUSE servers " in done.stdout
    assert "[ok] user notification " in done.stdout
    lines = done.stdout.splitlines()
    checks = [*doctor.BASICS, *doctor.EXPERIMENTS, *doctor.SURROUNDINGS]
    assert len(lines) == len(checks) + 1
    assert lines[-1] == "recuse run can work here."


@on_supported
@pytest.mark.right("namespaces")
def test_where_dev_is_empty() -> None:
    """What an experiment uses itself is no condition: `recuse run` needs nothing in /dev."""
    script = 'mount -t tmpfs none /dev && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-",
         sys.executable, "-m", "recuse.cli.main", "doctor"],
        capture_output=True, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert "[ok] adding descriptors " in done.stdout


@on_supported
def test_where_seccomp_is_forbidden() -> None:
    status, checks = run_doctor(SECCOMP)
    assert status == 1
    for name in ("user notification", "notification sizes"):
        assert checks[name]["finding"] == "Operation not permitted"
    for name in ("adding descriptors", "killable waits"):
        assert checks[name]["finding"] == "not tried"
    assert "seccomp=unconfined" in checks["user notification"]["advice"]
    assert checks["process memory"]["good"]
    assert checks["confinement"]["finding"].startswith("in a seccomp filter")
    assert "as it is here already" in checks["no_new_privs"]["finding"]


@on_supported
def test_where_dockers_default_profile_is() -> None:
    status, checks = run_doctor(PIDFD_GETFD, KCMP, MOUNT)
    assert status == 0
    assert checks["filesystems"]["good"]
    assert checks["FUSE servers"]["good"]
    assert not checks["fetching descriptors"]["good"]
    assert "nothing is missing" in checks["fetching descriptors"]["advice"]


@on_supported
def test_where_much_is_refused() -> None:
    status, checks = run_doctor(
        PTRACE, KCMP, PIDFD_GETFD, PIDFD_OPEN, PROCESS_VM_READV, PROCESS_VM_WRITEV, MOUNT
    )
    assert status == 0
    assert checks["filesystems"]["good"]
    assert checks["FUSE servers"]["finding"].endswith("Operation not permitted")
    assert "SYS_PTRACE" in checks["FUSE servers"]["advice"]
    for name in ("ptrace", "comparing descriptors", "fetching descriptors", "process handles"):
        assert not checks[name]["good"]
        assert not checks[name]["required"]
    assert "map" in checks["ptrace"]["advice"]
    assert "SYS_PTRACE" in checks["ptrace"]["advice"]
    assert "pipes" in checks["fetching descriptors"]["advice"]
    assert "/proc/PID/mem" in checks["process memory"]["finding"]


@on_supported
def test_inside_another_supervisor() -> None:
    """Linux allows one listener for a process: the second asks for EBUSY."""
    script = (
        "import sys\n"
        "from recuse.cli import probes\n"
        "probes._install_filter(probes._NEW_LISTENER)\n"
        "from recuse.cli.main import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 1, done.stderr
    assert "[no] user notification      Device or resource busy: another supervisor" in done.stdout
