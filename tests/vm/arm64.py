"""Run a command on Linux for arm64, in an emulated machine: the sandbox's tests by default.

    python -m tests.vm.arm64 [-k PACKAGE] [COMMAND [ARGUMENT]...]

Kernel, programs, C library and Python are those of this machine's Debian for arm64, out of their
packages. These are fetched with an apt configuration of their own, so dpkg here knows nothing about
them, and unpacked into a directory that is the guest's root, without running any of their scripts:
nothing of arm64 has to run here. Python packages such as pytest are fetched by pip. The checkout is
at its own path there. -k is for another kernel: linux-image-6.12-arm64-16k has larger pages. /dev,
/proc and /sys are the guest's own, and so are /tmp and /run.

Exits with the command's status. Where the machine cannot be had, says why and exits with 0; with
CI=true in the environment, with 1.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from .boot import (
    BEGIN,
    END,
    OF_THE_SANDBOX,
    ROOT,
    SLOWNESS,
    Unavailable,
    cache_directory,
    command,
    module_content,
    module_files,
    release,
    watch,
)

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

KERNEL = "linux-image-arm64"
"""Depends on the package with Debian's current kernel."""

PACKAGES = (
    "busybox-static", "base-passwd", "libc-bin",
    # What tests run.
    "python3", "perl", "dash", "bash", "coreutils", "util-linux", "procps", "mount",
    "diffutils", "findutils", "grep", "sed", "gawk", "tar", "hostname",
    "i2c-tools", "v4l-utils",
    "fuse3", "sshfs", "openssh-sftp-server", "archivemount", "gzip", "rclone", "git",
    # What compiles their clients.
    "gcc", "libc6-dev", "linux-libc-dev", "libfuse3-dev", "libfuse-dev", "pkg-config",
)  # fmt: skip
"""Debian packages of the guest; they bring those that they depend on."""

PYTHON_PACKAGES = (
    "click", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist",
    # What examples/camera.py needs.
    "linuxpy", "numpy", "simplejpeg",
)  # fmt: skip
"""Python packages of the guest, of those that pyproject.toml names."""

EMPTY = ("proc", "sys", "dev", "tmp", "run", "mnt")
"""Directories that the packages do not all have."""

PROGRAMS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "depmod": "kmod",
    "cpio": "cpio",
}
"""What is needed here, and the Debian packages that have it."""

MEMORY_MIB = 2048
LIMIT_S = 2400
"""Within which all must be over."""

TESTS = {
    **OF_THE_SANDBOX,
    "tests/unit/sandbox/arch/test_arch.py": [],
    "tests/unit/sandbox/trap/test_filter.py": [],
    "tests/unit/sandbox/trap/test_inject.py": [],
    "tests/examples/test_echo.py": [],
    "tests/examples/test_eeprom.py": [
        "test_i2cdetect_finds_both_chips",
        "test_bytes_and_words",
        "test_i2cdump",
        "test_transfers_of_several_messages",
    ],
    "tests/sandbox/test_arm.py": [],
    "tests/sandbox/test_cuse_servers.py": [],
}
"""As in OF_THE_SANDBOX; more of what is about registers, structures and numbers of calls."""

TOO_SLOW = ("tests/sandbox/test_refused.py",)
"""Runs whole files of tests, each several times."""

X86_64 = "test_programs_of_32_bits"
"""Not on arm64."""

INIT = r"""#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc; busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do busybox insmod $module; done
mount() { busybox mount "$@"; }
share() { mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any $1 $2; }
share root /root || busybox poweroff -f
for name in proc sys; do mount -t $name $name /root/$name; done
mount --move /dev /root/dev
busybox mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts; mount -t tmpfs shm /root/dev/shm
for fresh in tmp run; do mount -t tmpfs -o mode=1777 fresh /root/$fresh; done
busybox mkdir -p /root/{checkout}
share checkout /root/{checkout} || busybox poweroff -f
busybox ifconfig lo up
echo
echo {begin}
busybox chroot /root /bin/sh -c "$(busybox cat /command)" </root/dev/null 2>&1
status=$?
echo
echo {end} ${status:-1}
busybox poweroff -f
"""


def find_programs() -> dict[str, str]:
    """The paths of the programs that are needed.  Raises Unavailable."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    missing = [PROGRAMS[name] for name, program in found.items() if program is None]
    if missing:
        raise Unavailable(f"missing; to have it: apt-get install {' '.join(missing)}")
    return {name: program for name, program in found.items() if program is not None}


def guest_root(cache: Path, depmod: str, kernel: str) -> Path:
    """The directory that is the guest's root, made if it is not there.  Raises Unavailable."""
    sources = debian_sources()
    wanted = (sources, kernel, PACKAGES, requirements(), EMPTY)
    root = cache / f"arm64-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            made = Path(work, "root")
            unpack(sources, kernel, Path(work, "apt"), made)
            for name in ("passwd", "group"):
                shutil.copy(made / "usr/share/base-passwd" / f"{name}.master", made / "etc" / name)
            for name in EMPTY:
                (made / name).mkdir(exist_ok=True)
            for name, program in {"awk": "gawk", "cc": "gcc"}.items():
                (made / "usr/bin" / name).symlink_to(program)
            keep_modules(made, depmod)
            pip(made)
            # In one step, so that what is there is complete.
            made.rename(root)
    return root


def debian_sources() -> str:
    """What apt calls a sources.list, of this machine's Debian.  Raises Unavailable."""
    form = f"$(ORIGIN) deb [signed-by={KEYRING}] $(REPO_URI) $(CODENAME) $(COMPONENT)"
    show = ("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    lines = command(*show)
    if not lines and os.geteuid() == 0:
        command("apt-get", "update", "-qq")
        lines = command(*show)
    found = [line.partition(" ")[2] for line in lines.splitlines() if line.startswith("Debian ")]
    if not found:
        raise Unavailable("apt-get knows no packages of Debian's")
    return "\n".join(found) + "\n"


def unpack(sources: str, kernel: str, apt: Path, root: Path) -> None:
    """Fetch the packages and unpack them.  Raises Unavailable."""
    print("Downloading Debian for arm64", flush=True)
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "sources.list").write_text(sources)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": f"{apt}/state",
        "Dir::State::status": f"{apt}/status",
        "Dir::Cache": f"{apt}/cache",
        "Dir::Etc::sourcelist": f"{apt}/sources.list",
        "Dir::Etc::sourceparts": "-",
    }
    get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    command(*get, "-oAPT::Update::Error-Mode=any", "update")
    install = ("install", "--yes", "--download-only", "--no-install-recommends")
    command(*get, *install, kernel, *PACKAGES)
    for archive in sorted((apt / "cache/archives").glob("*.deb")):
        command("dpkg-deb", "-x", str(archive), str(root))


def keep_modules(root: Path, depmod: str) -> None:
    """Remove the kernel's modules but those that are loaded.  Raises Unavailable."""
    command(depmod, "-b", str(root), release(root))
    needed = module_files(root)
    for file in (root / "lib" / "modules").rglob("*.ko*"):
        if file not in needed:
            file.unlink()


def requirements() -> list[str]:
    """What pyproject.toml says of the packages in PYTHON_PACKAGES."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[^\w-]", line)[0]: line for line in wanted}
    return [names[name] for name in PYTHON_PACKAGES]


def pip(root: Path) -> None:
    """Install the Python packages for the guest.  Raises Unavailable."""
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    command(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--target", str(root / "opt/python"), "--python-version", version,
        # What wheels say of the C library that they need: Debian 12's is newer.
        "--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64",
        "--only-binary", ":all:", *requirements(),
    )  # fmt: skip


def make_initrd(root: Path, cpio: str, script: str, work: Path) -> Path:
    """Make the first root, which mounts the real one and runs the script there."""
    first = work / "first"
    for name in ("bin", "modules", "proc", "sys", "dev", "root"):
        (first / name).mkdir(parents=True)
    shutil.copy(root / "bin" / "busybox", first / "bin" / "busybox")
    for number, file in enumerate(module_files(root)):
        (first / "modules" / f"{number:02}.ko").write_bytes(module_content(file))
    (first / "command").write_text(script)
    init = first / "init"
    init.write_text(
        INIT.replace("{checkout}", shlex.quote(str(ROOT)))
        .replace("{begin}", BEGIN)
        .replace("{end}", END)
    )
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(first)) for path in sorted(first.rglob("*")))
    initrd = work / "initrd"
    with initrd.open("wb") as output:
        subprocess.run(
            [cpio, "-o", "-H", "newc", "--quiet"],
            cwd=first,
            input=names.encode(),
            stdout=output,
            check=True,
        )
    return initrd


def qemu(program: str, root: Path, initrd: Path) -> list[str]:
    """The command that is the machine."""
    share = "local,path={},mount_tag={},security_model=none,multidevs=remap"
    return [
        program, "-machine", "virt", "-accel", "tcg", "-cpu", "cortex-a76", "-smp", "2",
        "-m", str(MEMORY_MIB), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", str(root / "boot" / f"vmlinuz-{release(root)}"), "-initrd", str(initrd),
        "-append", "console=ttyAMA0 quiet panic=-1 loglevel=3",
        "-virtfs", share.format(root, "root"), "-virtfs", share.format(ROOT, "checkout"),
    ]  # fmt: skip


def script_for(argv: Sequence[str]) -> str:
    """What the guest's shell is to run."""
    variables = {
        "CI": os.environ.get("CI", ""),
        "HOME": "/root",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": f"{ROOT}/src:/opt/python",
        SLOWNESS: "10",
        "TERM": "dumb",
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    return f"cd {shlex.quote(str(ROOT))} && exec /usr/bin/env {shlex.join([*settings, *argv])}\n"


def run(argv: Sequence[str], kernel: str) -> int:
    """Run a command in the machine, with this process's output; return its status.

    Raises Unavailable.
    """
    programs = find_programs()
    cache = cache_directory()
    root = guest_root(cache, programs["depmod"], kernel)
    print(f"A virtual machine with Linux {release(root)}", flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        initrd = make_initrd(root, programs["cpio"], script_for(argv), Path(work))
        start = time.monotonic()
        machine = subprocess.Popen(
            qemu(programs["qemu-system-aarch64"], root, initrd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        limit = threading.Timer(LIMIT_S, machine.kill)
        limit.start()
        try:
            return watch(machine, start)
        finally:
            limit.cancel()
            machine.kill()
            machine.wait()


def main() -> int:
    """Run what the arguments say, the tests by default."""
    parser = argparse.ArgumentParser(description="Run the tests, or a command, on arm64.")
    parser.add_argument("-k", "--kernel", metavar="PACKAGE", default=KERNEL)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    pytest = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-n2", "--timeout=600"]
    pytest += ["-o", "faulthandler_timeout=0"]
    chosen = [
        f"{file}::{name}" if name else file
        for file, names in TESTS.items()
        for name in names or [""]
        if file not in TOO_SLOW and name != X86_64
    ]
    tests = [*pytest, "-m", "not slow", *chosen]
    try:
        return run(arguments.command or tests, arguments.kernel)
    except Unavailable as error:
        print(f"No virtual machine, so nothing is tested on arm64: {error}")
        return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
