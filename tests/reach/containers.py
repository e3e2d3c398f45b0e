"""Run a command in a container as docker, podman or Kubernetes make it, by runc alone.

    python -m tests.reach.containers [-p PROFILE] [-u UID] [OPTION]... -- COMMAND [ARGUMENT]...

The container's root is this machine's own, so the same Python, programs and checkout are there;
/proc, /dev, /sys, /run and /tmp are its own. Only root can make one, and runc must be installed.
The seccomp profiles are the published ones, out of Debian's packages with the engines' sources,
which are downloaded and not installed. Exits with the command's status.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

MOBY = (
    "golang-github-docker-docker-dev",
    "usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
)
PODMAN = ("golang-github-containers-common", "usr/share/containers/seccomp.json")
"""Debian packages and the files in them that are default profiles."""


@dataclass(frozen=True)
class Profile:
    """A default seccomp profile: a published one, and how another version differs from it.

    The differences are those for a container without CAP_SYS_PTRACE and CAP_SYS_ADMIN, and only
    those that are about calls that recuse makes.
    """

    source: tuple[str, str]
    allowed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


# In all of moby's and containerd's, kcmp, pidfd_getfd and process_madvise want CAP_SYS_PTRACE.
PROFILES = {
    # Docker 20.10; process_vm_readv and process_vm_writev want that too.
    "moby-20.10": Profile(MOBY),
    # Docker from 24: these are free, io_uring is refused since 25.
    "moby": Profile(
        MOBY,
        allowed=("process_vm_readv", "process_vm_writev"),
        refused=("io_uring_setup", "io_uring_enter", "io_uring_register"),
    ),
    # containerd 1.6, contrib/seccomp/seccomp_default.go; 1.7 and later are like moby's there.
    "containerd": Profile(MOBY, allowed=("pkey_alloc", "pkey_free", "pkey_mprotect")),
    # Those that knew neither the pidfds nor that ptrace is harmless since Linux 4.8.
    "containerd-1.4": Profile(
        MOBY,
        refused=(
            "ptrace",
            "pidfd_open",
            "pidfd_send_signal",
            "close_range",
            "openat2",
            "epoll_pwait2",
        ),
    ),
    "podman": Profile(PODMAN),
}
UNCONFINED = "unconfined"

CAPABILITIES = {
    "moby": (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
        "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
    ),
    "podman": (
        "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID "
        "SYS_CHROOT"
    ),
}
"""What root has in a container; containerd's are moby's."""

MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What the engines hide of /proc and /sys, and what they make read-only."""

FRESH = ("/tmp", "/run", "/var/tmp")
"""Directories that a container has for itself."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
NAMES = {
    "amd64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "arm64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


@dataclass(frozen=True)
class Container:
    """What is particular about a container."""

    profile: str = "moby"
    uid: int = 0
    no_new_privileges: bool = False
    read_only: bool = False
    without_tmp: bool = False
    without_shm: bool = False
    user_namespace: bool = False
    capabilities: tuple[str, ...] = ()
    """Besides the usual ones, without CAP_."""
    pids: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Unavailable(Exception):
    """No container can be made here; the message says why."""


class Missing(Unavailable):
    """No container can be made here before something has been installed or downloaded."""


def cache_directory() -> Path:
    """Where files out of packages are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "recuse-reach")


def from_package(package: str, file: str) -> Path:
    """The path of a file out of a Debian package that need not be installed. Raises Missing."""
    installed = Path("/", file)
    kept = cache_directory() / package / file
    if installed.exists() or kept.exists():
        return installed if installed.exists() else kept
    cache_directory().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_directory()) as directory:

        def run(*command: str) -> str | None:
            done = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, check=False
            )
            return f"{package}: {done.stderr.strip()}" if done.returncode else None

        download = ("apt-get", "download", "-qq", package)
        if run(*download):
            run("apt-get", "update", "-qq")
            if error := run(*download):
                raise Missing(error)
        if error := run("sh", "-c", "dpkg-deb -x *.deb unpacked"):
            raise Missing(error)
        kept.parent.mkdir(parents=True, exist_ok=True)
        # In one step, so that what is there is complete.
        new = Path(directory, "new")
        shutil.copyfile(Path(directory, "unpacked", file), new)
        new.rename(kept)
    return kept


def seccomp(name: str, capabilities: Sequence[str]) -> dict[str, Any]:
    """A profile as the OCI runtime specification has it, with these capabilities (CAP_...).

    The files have conditions, which the engines evaluate (profiles/seccomp/seccomp_linux.go in
    moby). Those about the kernel's version all hold from Linux 4.8 on.
    """
    profile = PROFILES[name]
    machine = ARCHITECTURES[os.uname().machine]
    source = json.loads(from_package(*profile.source).read_text())
    calls = []
    for rule in source["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        held = set(capabilities)
        if (
            machine not in includes.get("arches", [machine])
            or machine in excludes.get("arches", [])
            or not held.issuperset(includes.get("caps", []))
            or held.intersection(excludes.get("caps", []))
        ):
            continue
        names = [name for name in rule["names"] if name not in profile.refused]
        if names:
            kept = {"names": names, "action": rule["action"]}
            if rule.get("errnoRet") is not None:
                kept["errnoRet"] = rule["errnoRet"]
            if rule.get("args"):
                parts = ("index", "value", "valueTwo", "op")
                kept["args"] = [{k: a[k] for k in parts if k in a} for a in rule["args"]]
            calls.append(kept)
    if profile.allowed:
        calls.append({"names": list(profile.allowed), "action": "SCMP_ACT_ALLOW"})
    default = {k: source[k] for k in ("defaultAction", "defaultErrnoRet") if k in source}
    return {**default, "architectures": NAMES[machine], "syscalls": calls}


def not_in_root() -> list[Path]:
    """What the command may need and would not be seen, such as a checkout below /tmp."""
    paths = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    device = Path("/").stat().st_dev
    return sorted(
        path
        for path in paths
        if path.stat().st_dev != device or any(path.is_relative_to(fresh) for fresh in FRESH)
    )


def mounts(container: Container) -> Iterator[dict[str, Any]]:
    """The mounts of a container: destination, type, source and options."""

    def mount(where: str, kind: str, *options: str, source: str | None = None) -> dict[str, Any]:
        return {
            "destination": where, "type": kind, "source": source or kind,
            "options": ["nosuid", *options],
        }  # fmt: skip

    yield mount("/proc", "proc", "noexec", "nodev")
    yield mount("/dev", "tmpfs", "strictatime", "mode=755", "size=65536k")
    yield mount("/dev/pts", "devpts", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")
    yield mount("/sys", "sysfs", "noexec", "nodev", "ro")
    if not container.without_shm:
        yield mount("/dev/shm", "tmpfs", "noexec", "nodev", "mode=1777", "size=65536k")
    access = ["ro", "mode=555"] if container.without_tmp else ["mode=1777"]
    for where in FRESH:
        yield mount(where, "tmpfs", "nodev", *access)
    for path in not_in_root():
        yield mount(str(path), "bind", "rbind", "ro", source=str(path))


def specification(container: Container, argv: Sequence[str], root: Path) -> dict[str, Any]:
    """The OCI runtime specification of a container (config.json)."""
    usual = CAPABILITIES["podman" if container.profile == "podman" else "moby"].split()
    capabilities = [f"CAP_{name}" for name in (*usual, *container.capabilities)]
    held = capabilities if container.uid == 0 else []
    environment = {
        "PATH": os.environ.get("PATH", os.defpath), "HOME": "/", "LC_ALL": "C.UTF-8",
        **container.environment,
    }  # fmt: skip
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READ_ONLY),
        "resources": {"devices": [{"allow": True, "access": "rwm"}]},
    }
    if container.pids is not None:
        linux["resources"]["pids"] = {"limit": container.pids}
    if container.profile != UNCONFINED:
        linux["seccomp"] = seccomp(container.profile, capabilities)
    if container.user_namespace:
        linux["namespaces"].append({"type": "user"})
        mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": container.uid, "gid": container.uid},
            "args": list(argv),
            "cwd": str(ROOT),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "noNewPrivileges": container.no_new_privileges,
            "capabilities": {
                "bounding": capabilities, "effective": held, "permitted": held,
                "inheritable": [], "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 20000, "soft": 20000}],
        },
        "root": {"path": str(root), "readonly": container.read_only},
        "hostname": "reach",
        "mounts": list(mounts(container)),
        "linux": linux,
    }  # fmt: skip


@contextlib.contextmanager
def bundle() -> Iterator[tuple[Path, Path]]:
    """A new directory, and in it this machine's root directory without what is mounted there."""
    if os.geteuid() != 0:
        raise Unavailable("only root can make containers")
    work = Path(tempfile.mkdtemp(prefix="recuse-reach-", dir="/var/tmp"))
    root = work / "root"
    root.mkdir()
    work.chmod(0o755)  # for the root of a user namespace
    try:
        done = subprocess.run(
            ["mount", "--bind", "/", root], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"the root directory cannot be mounted: {done.stderr.strip()}")
        yield work, root
    finally:
        subprocess.run(["umount", "-l", root], capture_output=True, check=False)
        # Never what is below it: if it is still mounted, that is this machine's own root.
        root.rmdir()
        for file in work.iterdir():
            file.unlink()
        work.rmdir()


def run(
    container: Container, argv: Sequence[str], **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a command in a new container, as :func:`subprocess.run` does.

    Raises Unavailable, and TimeoutExpired with what was printed: the container is gone then.
    """
    runc = shutil.which("runc", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if runc is None:
        raise Missing("missing; to have it: apt-get install runc")
    with bundle() as (work, root), tempfile.TemporaryDirectory(prefix="runc-") as state:
        (work / "config.json").write_text(json.dumps(specification(container, argv, root)))
        command = [runc, "--root", state]
        try:
            return subprocess.run(
                [*command, "run", "-b", str(work), work.name],
                stdin=subprocess.DEVNULL, check=False, **options,
            )  # fmt: skip
        finally:
            subprocess.run([*command, "delete", "-f", work.name], capture_output=True, check=False)


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description="Run a command in a container.")
    parser.add_argument("-p", "--profile", choices=[*PROFILES, UNCONFINED], default="moby")
    parser.add_argument("-u", "--uid", type=int, default=0)
    flags = ("no_new_privileges", "read_only", "without_tmp", "without_shm", "user_namespace")
    for flag in flags:
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true")
    parser.add_argument("--capability", action="append", default=[], metavar="SYS_PTRACE")
    parser.add_argument("--pids", type=int)
    parser.add_argument("command", nargs="+")
    arguments = vars(parser.parse_args())
    command = arguments.pop("command")
    capabilities = tuple(arguments.pop("capability"))
    try:
        return run(replace(Container(capabilities=capabilities), **arguments), command).returncode
    except Unavailable as error:
        print(f"No container: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
