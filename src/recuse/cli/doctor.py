"""`recuse doctor`: what this machine allows, what it does not, and what to do about that.

Each check is a function that returns a `Finding`, and a row in one of the tables below. Whatever
can be tried is tried (`recuse.cli.probes`): a kernel's version says little inside a container.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from recuse.channel.rings import PARAMETER
from recuse.cli import filesystem_probes, probes
from recuse.cli.version import version
from recuse.sandbox.abilities import may_copy_memory, may_trace
from recuse.sandbox.arch import DESCRIPTION, SUPPORTED

OLDEST_KERNEL = (5, 19)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: whether all is well, and if not, what to do."""

    good: bool
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the report."""

    name: str
    find: Callable[[], Finding]
    required: bool = True
    """Whether `recuse run` cannot work without it."""
    rests_on: str = ""
    """The check that must succeed before this one makes sense."""


def _try(experiment: Callable[[], object], good: str, advice: str) -> Finding:
    """The finding of an experiment that raises OSError if it fails."""
    try:
        experiment()
    except OSError as error:
        return Finding(False, error.strerror or str(error), advice)
    return Finding(True, good)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _status(field: str) -> str:
    """A field of /proc/self/status; "" if it is missing."""
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return ""


# ---- versions


def check_recuse() -> Finding:
    return Finding(True, f"{version()}, in {Path(__file__).parent.parent}")


def check_python() -> Finding:
    text = f"{sys.version.split()[0]}, {sys.executable}"
    return Finding(sys.version_info >= (3, 11), text, "install Python 3.11 or newer")


def check_architecture() -> Finding:
    return Finding(SUPPORTED, DESCRIPTION, "recuse runs programs on x86-64 and arm64 only")


def check_kernel() -> Finding:
    """The version as such is only a hint: the checks below try the features themselves."""
    system = os.uname()
    numbers = system.release.split("-")[0].split(".")[:2]
    known = len(numbers) == 2 and all(number.isdecimal() for number in numbers)
    good = known and tuple(map(int, numbers)) >= OLDEST_KERNEL
    advice = "use Linux 5.19 or newer, which has everything that recuse needs"
    return Finding(good, f"{system.sysname} {system.release}", advice)


# ---- seccomp user notification

_IN_A_CONTAINER = (
    "in a container, the seccomp profile forbids this: with docker or podman, start it with "
    "--security-opt seccomp=unconfined"
)


def check_user_notification() -> Finding:
    """Whether calls of a child can be answered: the mechanism that everything rests on."""
    try:
        probes.trap_a_call()
    except OSError as error:
        advice = {
            errno.EBUSY: "another supervisor (a container engine's, or recuse itself) already has "
            "this process, and Linux allows only one: run recuse outside it",
            errno.EPERM: _IN_A_CONTAINER,
            errno.EACCES: _IN_A_CONTAINER,
        }.get(error.errno or 0, "use Linux 5.5 or newer, built with SECCOMP_FILTER=y")
        return Finding(False, error.strerror or str(error), advice)
    return Finding(True, "a child's system call was trapped and answered")


def check_notification_sizes() -> Finding:
    """The kernel's structures may grow; the sandbox uses those of today."""
    try:
        sizes = probes.notification_sizes()
    except OSError as error:
        advice = "use Linux 5.0 or newer; " + _IN_A_CONTAINER
        return Finding(False, error.strerror or str(error), advice)
    text = "request {}, response {}, data {} bytes".format(*sizes)
    advice = "this kernel is newer than this version of recuse: update recuse"
    return Finding(sizes == (80, 24, 64), text, advice)


def check_add_descriptor() -> Finding:
    return _try(
        probes.add_descriptor,
        "ADDFD works",
        "programs cannot open a device without it; Linux 5.9 or newer has it",
    )


def check_wait_killable() -> Finding:
    return _try(
        probes.wait_killable,
        "WAIT_KILLABLE_RECV works",
        "without it, a signal repeats a call that a device is handling; Linux 5.19 or newer has it",
    )


def check_sync_wake_up() -> Finding:
    advice = "without it, each call on a device takes several times as long; use Linux 6.6 or newer"
    try:
        works = probes.sync_wake_up()
    except OSError as error:
        return Finding(False, error.strerror or str(error), advice)
    return Finding(works, "SYNC_WAKE_UP works" if works else "not in this kernel", advice)


# ---- other processes


def _ptrace_scope() -> str:
    try:
        return _read("/proc/sys/kernel/yama/ptrace_scope").strip()
    except OSError:
        return ""


_PTRACE_ADVICE = (
    "in a container, add the capability (--cap-add SYS_PTRACE); elsewhere, set "
    "kernel.yama.ptrace_scope to 0 or 1"
)


def check_memory() -> Finding:
    scope = _ptrace_scope()
    way = "process_vm_readv" if may_copy_memory() else "/proc/PID/mem, as others are refused"
    good = f"a child's memory can be read by {way}"
    if scope:
        good += f" (yama ptrace_scope is {scope})"
    return _try(probes.read_child_memory, good, _PTRACE_ADVICE)


def check_proc() -> Finding:
    return _try(
        probes.read_child_proc,
        "a child's descriptors and memory map can be read",
        "mount /proc, without hidepid; " + _PTRACE_ADVICE,
    )


def check_pidfd() -> Finding:
    return _try(
        probes.hold_child,
        "pidfd_open works",
        "recuse opens /proc/PID instead, and nothing is missing",
    )


def check_pidfd_getfd() -> Finding:
    return _try(
        probes.fetch_child_descriptor,
        "pidfd_getfd works",
        "recuse makes programs send theirs instead: nothing is missing, but it takes longer"
        if may_trace()
        else "recuse uses pipes instead, and programs that poll miss some events (POLLPRI); "
        + _PTRACE_ADVICE,
    )


def check_ptrace() -> Finding:
    return _try(
        probes.trace_child,
        "a child can be stopped by ptrace",
        "without it, programs cannot map devices into memory, nor change into directories that "
        "recuse adds; " + _PTRACE_ADVICE,
    )


def check_comparing() -> Finding:
    return _try(
        probes.compare_with_child,
        "kcmp works",
        "without it, each call on a device takes 2 us longer; Linux has it if built with "
        "KCMP=y; " + _PTRACE_ADVICE,
    )


def check_filesystems() -> Finding:
    return _try(
        filesystem_probes.show_filesystem,
        "a program read a file of a filesystem in Python (`recuse run -m`)",
        "see the lines above",
    )


def check_fuse_servers() -> Finding:
    return _try(
        filesystem_probes.serve_filesystem,
        "a program mounted what it serves at the sandbox's /dev/fuse",
        "where mount(2) is refused, as in containers, programs can mount only with ptrace; "
        + _PTRACE_ADVICE,
    )


# ---- surroundings


def check_confinement() -> Finding:
    """For information only: the other checks show whether it matters."""
    parts = []
    if _status("Seccomp") not in ("", "0"):
        parts.append("in a seccomp filter")
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        parts.append("in a container")
    return Finding(True, ", ".join(parts) or "not confined by seccomp or a container")


def check_no_new_privileges() -> Finding:
    here = " (as it is here already)" if _status("NoNewPrivs") == "1" else ""
    return Finding(True, f"recuse sets it for programs{here}: sudo and the like gain nothing")


def check_dev_fuse() -> Finding:
    return _device("/dev/fuse", "to have it, modprobe fuse; in a container, --device /dev/fuse")


def check_mounts() -> Finding:
    advice = (
        "filesystems cannot be mounted for all programs: install the package fuse3, for "
        "fusermount3; in a container, --cap-add SYS_ADMIN"
    )
    try:
        way = probes.mount_filesystem()
    except OSError as error:
        return Finding(False, error.strerror or str(error), advice)
    return Finding(True, f"`recuse mount` works, by {way}")


def check_private_mounts() -> Finding:
    return _try(
        probes.mount_privately,
        "`recuse mount --private` works",
        "mounts for one program need user namespaces: see /proc/sys/user/max_user_namespaces, or "
        "kernel.apparmor_restrict_unprivileged_userns; in a container, --cap-add SYS_ADMIN",
    )


def check_fstab() -> Finding:
    advice = (
        "`recuse mount` does not need it; for `mount -t fuse.recuse` and fstab, install the "
        "package fuse3, and make a link to this command: /usr/local/bin/recuse"
    )
    try:
        command = probes.command_for_mount8()
    except OSError as error:
        return Finding(False, error.strerror or str(error), advice)
    return Finding(True, f"`mount -t fuse.recuse` works, by {command}")


def check_io_uring() -> Finding:
    return _try(
        probes.fuse_over_io_uring,
        "`recuse mount -o io_uring` works",
        f"mounts work without it; to have it (Linux 6.14), as root: echo Y >{PARAMETER}; in a "
        "container, seccomp may forbid io_uring, and elsewhere the sysctl kernel.io_uring_disabled",
    )


def check_dev_cuse() -> Finding:
    return _device("/dev/cuse", "to have it, modprobe cuse as root, if the kernel has that module")


def _device(path: str, advice: str) -> Finding:
    needless = "`recuse run` does not need it"
    return _try(lambda: probes.open_device(path), "can be opened", f"{needless}; {advice}")


BASICS = (
    Check("recuse", check_recuse),
    Check("Python", check_python),
    Check("architecture", check_architecture),
    Check("kernel", check_kernel, required=False),
)
# These make system calls by their numbers on a supported architecture.
EXPERIMENTS = (
    Check("user notification", check_user_notification),
    Check("notification sizes", check_notification_sizes),
    Check("adding descriptors", check_add_descriptor, rests_on="user notification"),
    Check("killable waits", check_wait_killable, rests_on="user notification"),
    Check("quick wake-up", check_sync_wake_up, required=False, rests_on="user notification"),
    Check("process memory", check_memory),
    Check("process files", check_proc),
    Check("process handles", check_pidfd, required=False),
    Check("fetching descriptors", check_pidfd_getfd, required=False),
    Check("comparing descriptors", check_comparing, required=False),
    Check("ptrace", check_ptrace, required=False),
    Check("filesystems", check_filesystems, required=False, rests_on="killable waits"),
    Check("FUSE servers", check_fuse_servers, required=False, rests_on="filesystems"),
)
SURROUNDINGS = (
    Check("confinement", check_confinement, required=False),
    Check("no_new_privs", check_no_new_privileges, required=False),
    Check("/dev/fuse", check_dev_fuse, required=False),
    Check("mounts", check_mounts, required=False, rests_on="/dev/fuse"),
    Check("private mounts", check_private_mounts, required=False, rests_on="/dev/fuse"),
    Check("fstab", check_fstab, required=False, rests_on="mounts"),
    Check("io_uring", check_io_uring, required=False, rests_on="mounts"),
    Check("/dev/cuse", check_dev_cuse, required=False),
)


def examine(checks: Iterable[Check]) -> list[tuple[Check, Finding]]:
    """Do the checks; one that fails unexpectedly is a finding, too."""
    report: list[tuple[Check, Finding]] = []
    failed = set()
    for check in checks:
        if check.rests_on in failed:
            finding = Finding(False, "not tried", f"needs {check.rests_on}")
        else:
            try:
                finding = check.find()
            except Exception as error:
                finding = Finding(False, f"{type(error).__name__}: {error}", "please report this")
        if not finding.good:
            failed.add(check.name)
        report.append((check, finding))
    return report


def mark(check: Check, finding: Finding) -> str:
    """Return "ok"; or for what is missing, "no" if it is required and "--" if not."""
    if finding.good:
        return "ok"
    return "no" if check.required else "--"


def diagnose(as_json: bool) -> int:
    """Print the report; returns 0 if `recuse run` can work here, else 1."""
    report = examine((*BASICS, *(EXPERIMENTS if SUPPORTED else ()), *SURROUNDINGS))
    works = all(finding.good or not check.required for check, finding in report)
    if as_json:
        click.echo(json.dumps(_as_data(report, works), indent=2))
        return 0 if works else 1
    width = max(len(check.name) for check, _ in report)
    for check, finding in report:
        text = finding.text if finding.good else f"{finding.text}: {finding.advice}"
        click.echo(f"[{mark(check, finding)}] {check.name:{width}}  {text}")
    click.echo(
        "recuse run can work here."
        if works
        else "recuse run cannot work here: see the lines marked [no]."
    )
    return 0 if works else 1


def _as_data(report: list[tuple[Check, Finding]], works: bool) -> dict[str, object]:
    return {
        "works": works,
        "checks": [
            {
                "name": check.name,
                "good": finding.good,
                "required": check.required,
                "finding": finding.text,
                "advice": "" if finding.good else finding.advice,
            }
            for check, finding in report
        ],
    }
