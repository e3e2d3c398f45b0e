"""Boot a small virtual machine with a kernel of Debian's, which has CUSE, and run tests in it.

    python tests/vm/boot.py [-k VERSION] [-l SECONDS] [-s] [COMMAND [ARGUMENT]...]

The kernel is Debian's, out of its package: the current one, or with -k the newest whose release
begins so (-k 6.12). It has a first root of busybox and a few modules; the guest's root is then this
machine's own, shared through 9p: the same Python, programs and checkout.
Its /dev, /proc and /sys are its own, and so are /tmp and /run, which are empty at first.  It is
emulated (no KVM), so several times slower: good for what happens, not for how long it takes.

Exits with the command's status.  Where the machine cannot be had, says why and exits with 0; with
CI=true in the environment, with 1, unless what is missing is out of reach for lack of a network.
"""

import argparse
import gzip
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = Path(__file__).resolve().parent.relative_to(ROOT)

PACKAGE = "linux-image-amd64"
"""Depends on the package with Debian's current kernel."""

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "fuse", "cuse")

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "cpio": "cpio",
}
"""What is needed, and the Debian packages that have it."""

MEMORY_MIB = 1024
LIMIT_S = 900
"""Within which all must be over, unless -l says otherwise."""

INSIDE = "RECUSE_INSIDE_VM"
"""A variable of the environment that tells the tests where they are."""

SLOWNESS = "RECUSE_SLOWNESS"
"""Another one: how many times as long things may take."""

OF_THE_SANDBOX = {
    "tests/reach/test_reach.py": ["test_here"],
    "tests/sandbox/test_end.py": [],
    "tests/sandbox/test_refused.py": [],
    "tests/sandbox/polling/test_poll.py": [
        "test_who_sleeps_is_woken",
        "test_what_changes_while_the_device_is_asked_is_not_missed",
        "test_who_waits_to_write_is_woken",
        "test_an_urgent_event_wakes",
        "test_what_was_urgent_is_so_no_more",
        "test_other_files_wake_too",
        "test_a_signal_ends_a_wait",
        "test_a_signal_mask_for_the_time_of_the_wait",
        "test_the_end_of_the_device_wakes_who_waits",
    ],
    "tests/sandbox/polling/test_epoll.py": [
        "test_level",
        "test_edge",
        "test_one_shot",
        "test_two_epolls_and_a_copy_that_a_child_has",
        "test_an_epoll_that_is_polled_itself",
        "test_the_end_of_the_device_wakes_who_waits",
    ],
    # Not threads that map among 2000 signals a second: emulated, they may get nowhere.
    "tests/sandbox/mapping/test_mapping.py": [
        "test_arguments_as_on_a_memfd",
        "test_a_place_of_the_program_s_choice",
        "test_two_programs_share_an_area",
        "test_children_keep_a_mapping",
        "test_every_end_of_a_program_ends_its_mappings",
        "test_a_program_is_killed_while_its_device_is_asked",
        "test_programs_of_32_bits",
    ],
    "tests/sandbox/test_interruption.py": [
        "test_a_caught_signal[plain-read--direct]",
        "test_a_caught_signal[async-read-SA_RESTART-direct]",
        "test_a_caught_signal[plain-ioctl--socket]",
        "test_what_an_interrupted_method_answers_is_not_lost",
        "test_signals_that_do_not_interrupt",
        "test_a_signal_that_another_thread_takes",
        "test_a_server_in_the_sandbox",
        "test_a_device_that_does_not_listen_cannot_keep_a_program_from_dying",
        "test_a_stopped_program_goes_on_where_it_was",
    ],
    # Not those with 1000 signals a second: here a handler's end takes longer than a millisecond.
    "tests/sandbox/test_ordinary_signals.py": [
        "test_calls_that_no_signal_interrupts[100-flags0]",
        "test_calls_that_no_signal_interrupts[100-flags3]",
        "test_calls_that_wait_are_interrupted_as_outside[flags0-plain-poll]",
        "test_calls_that_wait_are_interrupted_as_outside[flags0-restart-poll]",
        "test_calls_that_wait_are_interrupted_as_outside[flags0-plain-wait]",
        "test_children_end_while_a_shell_works[dash]",
        "test_traps_and_waits_are_as_outside[dash]",
        "test_jobs_are_as_outside[bash]",
    ],
    "tests/sandbox/test_release.py": [
        "test_each_end_releases_once[close]",
        "test_each_end_releases_once[fork]",
        "test_each_end_releases_once[exec]",
        "test_each_end_releases_once[kill]",
        "test_each_end_releases_once[SCM_RIGHTS]",
        "test_an_exclusive_device_is_busy_while_it_is_open",
    ],
}
"""Tests of the sandbox about what kernels differ in, all of a file or some of them.

The whole quick suite would take an hour and a half in an emulated machine.
"""

BEGIN = "recuse-vm: begin"
END = "recuse-vm: end"
"""Lines on the console, the latter with the status, around what the command prints."""

FRESH = ("/tmp", "/run")
"""Directories that the guest has for itself."""

# Run by busybox, whose own programs are used until the guest's root is there.
INIT = r"""#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod $module; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any host /host ||
    poweroff -f
mount --move /dev /host/dev
mkdir -p /host/dev/pts /host/dev/shm
mount -t devpts devpts /host/dev/pts; mount -t tmpfs shm /host/dev/shm
mount -t proc proc /host/proc; mount -t sysfs sys /host/sys
# A checkout in one of the directories that the guest has for itself.
for hidden in {hidden}; do
    mkdir -p /kept/$hidden; mount --bind /host/$hidden /kept/$hidden
done
for fresh in {fresh}; do mount -t tmpfs -o mode=1777 fresh /host/$fresh; done
for hidden in {hidden}; do
    mkdir -p /host/$hidden; mount --move /kept/$hidden /host/$hidden
done
ifconfig lo up
echo
echo {begin}
chroot /host /bin/sh -c "$(cat /command)" </host/dev/null 2>&1
status=$?
echo
echo {end} ${status:-1}
poweroff -f
"""


class Unavailable(Exception):
    """The machine cannot be had here; the message says why."""


class Unreachable(Unavailable):
    """Nor can what is missing be downloaded, as no archive can be reached from here."""


NO_NETWORK = ("Temporary failure resolving", "Could not resolve", "Could not connect")
"""How apt-get says so."""


def find_programs() -> dict[str, str]:
    """The paths of the programs that are needed.  Raises Unavailable."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    missing = [PROGRAMS[name] for name, program in found.items() if program is None]
    if missing:
        raise Unavailable(f"missing; to have it: apt-get install {' '.join(missing)}")
    return {name: program for name, program in found.items() if program is not None}


def cache_directory() -> Path:
    """Where unpacked kernels are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "recuse-vm")


def unpacked_kernel(cache: Path, depmod: str, version: str | None) -> Path:
    """The directory with a kernel of Debian's and its needed modules.  Raises Unavailable."""
    package = kernel_package(version)
    kernel = cache / package
    if not kernel.exists() or not all(file.exists() for file in module_files(kernel)):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            print(f"Downloading {package}", flush=True)
            command("apt-get", "download", "-qq", package, cwd=directory)
            (archive,) = Path(directory).glob("*.deb")
            unpacked = Path(directory, "unpacked")
            command("dpkg-deb", "-x", str(archive), str(unpacked))
            command(depmod, "-b", str(unpacked), release(unpacked))
            needed = module_files(unpacked)
            for file in (unpacked / "lib").rglob("*.ko*"):
                if file not in needed:
                    file.unlink()
            shutil.rmtree(kernel, ignore_errors=True)
            # In one step, so that what is there is complete.
            unpacked.rename(kernel)
    return kernel


def kernel_package(version: str | None) -> str:
    """The package with Debian's current kernel, or with the newest of a version, such as 6.12.

    Raises Unavailable.
    """
    if shutil.which("apt-cache") is None:
        raise Unavailable("there is no apt-get to have a Debian kernel from")
    package = find_kernel_package(version)
    if package is None and os.geteuid() == 0:
        command("apt-get", "update", "-qq")
        package = find_kernel_package(version)
    if package is None:
        wanted = PACKAGE if version is None else f"linux-image-{version}"
        raise Unavailable(f"apt-get knows no package {wanted} (is this Debian 12 for amd64?)")
    return package


def find_kernel_package(version: str | None) -> str | None:
    """The same among the packages that apt knows already; None if it is not there."""
    if version is None:
        depends = said_by("apt-cache", "depends", "--important", PACKAGE)
        found = re.search(r"Depends: (linux-image-\S+)", depends)
        return found and found[1]
    names = said_by("apt-cache", "pkgnames", f"linux-image-{version}").split()
    form = re.compile(rf"linux-image-{re.escape(version)}[.+][0-9.+~a-z-]*[0-9]-amd64")
    fitting = [name for name in names if form.fullmatch(name)]
    # Numbers by their value: 6.12.9 comes before 6.12.10.
    return max(
        fitting,
        key=lambda name: [int(number) for number in re.findall("[0-9]+", name)],
        default=None,
    )


def said_by(*argv: str) -> str:
    """What a program prints, whether it succeeds or not."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def command(*argv: str, cwd: str | None = None) -> str:
    """Run a program that makes the machine; return what it prints.  Raises Unavailable."""
    try:
        return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()
        reason = said[-1] if said else str(error)
        kind = Unreachable if any(sign in reason for sign in NO_NETWORK) else Unavailable
        raise kind(f"{shlex.join(argv)} failed: {reason}") from error


def release(kernel: Path) -> str:
    """The kernel's release, such as 6.1.0-9-amd64."""
    (modules,) = (kernel / "lib" / "modules").iterdir()
    return modules.name


def module_files(kernel: Path) -> list[Path]:
    """The files of all modules that are needed, in the order in which they can be loaded."""
    directory = kernel / "lib" / "modules" / release(kernel)
    needs: dict[str, list[str]] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[Path(file).name.partition(".")[0].replace("-", "_")] = [file, *rest.split()]
    files: dict[str, None] = {}
    for module in MODULES:
        # What is not there as a module is built in.  A module comes first, then what it needs.
        files.update(dict.fromkeys(reversed(needs.get(module.replace("-", "_"), []))))
    return [directory / file for file in files]


def module_content(file: Path) -> bytes:
    """A module as it is loaded: some are compressed."""
    content = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(content)
    if file.suffix == ".gz":
        return gzip.decompress(content)
    return content


def make_initrd(kernel: Path, programs: dict[str, str], script: str, work: Path) -> Path:
    """Make the first root, which mounts the real one and runs the script there."""
    root = work / "root"
    for name in ("bin", "modules", "proc", "sys", "dev", "host", "kept"):
        (root / name).mkdir(parents=True)
    shutil.copy(programs["busybox"], root / "bin" / "busybox")
    for name in ("sh", "mount", "mkdir", "insmod", "ifconfig", "cat", "chroot", "poweroff"):
        (root / "bin" / name).symlink_to("busybox")
    for number, file in enumerate(module_files(kernel)):
        (root / "modules" / f"{number:02}.ko").write_bytes(module_content(file))
    (root / "command").write_text(script)
    hidden = map(str, hidden_directories())
    init = root / "init"
    init.write_text(
        INIT.replace("{hidden}", " ".join(map(shlex.quote, hidden)))
        .replace("{fresh}", " ".join(FRESH))
        .replace("{begin}", BEGIN)
        .replace("{end}", END)
    )
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    initrd = work / "initrd"
    with initrd.open("wb") as output:
        subprocess.run(
            [programs["cpio"], "-o", "-H", "newc", "--quiet"],
            cwd=root,
            input=names.encode(),
            stdout=output,
            check=True,
        )
    return initrd


def qemu(program: str, kernel: Path, initrd: Path) -> list[str]:
    """The command that is the machine."""
    return [
        program, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB),
        "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(kernel / "boot" / f"vmlinuz-{release(kernel)}"), "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet panic=-1 loglevel=3",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap",
    ]  # fmt: skip


def hidden_directories() -> list[Path]:
    """What the command needs and the guest would not see, such as a checkout below /tmp."""
    found: list[Path] = []
    for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        hidden = any(path.is_relative_to(fresh) for fresh in FRESH)
        if hidden and not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return found


def script_for(argv: Sequence[str]) -> str:
    """What the guest's shell is to run."""
    variables = {
        **{name: os.environ[name] for name in ("HOME", "CI") if name in os.environ},
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]),
        "TERM": "dumb",
        INSIDE: "1",
        SLOWNESS: "10",
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    return f"cd {shlex.quote(str(ROOT))} && exec env {shlex.join([*settings, *argv])}\n"


def run(argv: Sequence[str], version: str | None = None, limit_s: float = LIMIT_S) -> int:
    """Run a command in the machine, with this process's output; return its status.

    Raises Unavailable.
    """
    programs = find_programs()
    cache = cache_directory()
    kernel = unpacked_kernel(cache, programs["depmod"], version)
    print(f"A virtual machine with Linux {release(kernel)}", flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        initrd = make_initrd(kernel, programs, script_for(argv), Path(work))
        start = time.monotonic()
        machine = subprocess.Popen(
            qemu(programs["qemu-system-x86_64"], kernel, initrd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        limit = threading.Timer(limit_s, machine.kill)
        limit.start()
        try:
            return watch(machine, start)
        finally:
            limit.cancel()
            machine.kill()
            machine.wait()


def watch(machine: subprocess.Popen[str], start: float) -> int:
    """Pass on what the command prints; return its status, 1 if the machine ended before it."""
    assert machine.stdout is not None
    before: list[str] = []
    begun = False
    for line in machine.stdout:
        line = line.rstrip("\r\n")
        if line.startswith(END):
            print(f"The machine has ended after {time.monotonic() - start:.0f} s")
            return int(line.removeprefix(END))
        if begun:
            print(line, flush=True)
        elif line == BEGIN:
            begun = True
            print(f"The machine has started after {time.monotonic() - start:.0f} s", flush=True)
        else:
            before.append(line)
    print(*before, sep="\n")
    print(f"The machine ended without the command, after {time.monotonic() - start:.0f} s")
    return 1


def tests(sandbox_only: bool) -> list[str]:
    """The command that runs the tests: those of this directory one by one, others two at once."""
    # What is slow is not stuck; and a dump of stacks may crash what goes on running meanwhile.
    patient = ["--timeout=600", "-o", "faulthandler_timeout=0"]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *patient]
    kernels = shlex.join([*pytest, str(TESTS)])
    chosen = [
        f"{file}::{name}" if name else file
        for file, names in OF_THE_SANDBOX.items()
        for name in names or [""]
    ]
    sandboxes = shlex.join([*pytest, "-n2", "-m", "not slow", *chosen])
    if sandbox_only:
        return ["sh", "-c", sandboxes]
    return ["sh", "-c", f"{kernels}; first=$?; {sandboxes}; exit $((first | $?))"]


def main() -> int:
    """Run what the arguments say, the tests by default."""
    parser = argparse.ArgumentParser(description="Run the tests, or a command, in a machine.")
    parser.add_argument("-k", "--kernel", metavar="VERSION", help="such as 6.12; Debian's current")
    parser.add_argument("-l", "--limit", type=float, metavar="SECONDS", default=LIMIT_S)
    parser.add_argument("-s", "--sandbox", action="store_true", help="no tests of the real CUSE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        return run(arguments.command or tests(arguments.sandbox), arguments.kernel, arguments.limit)
    except Unreachable as error:
        print(f"NOT TESTED on Linux {arguments.kernel or '(current)'}: {error}")
        return 0
    except Unavailable as error:
        print(f"No virtual machine, so nothing is tested on the real CUSE: {error}")
        return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
