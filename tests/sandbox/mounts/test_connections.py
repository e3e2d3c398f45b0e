"""/sys/fs/fuse/connections, in the sandbox and on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.vfs import device_files

from ..conftest import Shell
from ..rights import root_only
from .raw_server import SERVER

LOOK = (
    SERVER
    + """
TOP = "/sys/fs/fuse/connections"
os.mkdir("own")
child = served("own")
number = os.minor(os.stat("own").st_dev)
own = f"{TOP}/{number}"
before = os.stat(TOP)
def look(path):
    found = os.stat(path)
    return stat.filemode(found.st_mode), found.st_nlink, found.st_uid == os.getuid(), found.st_size
def read(name):
    with open(f"{own}/{name}") as file: return file.read()
def write(name, text):
    file = os.open(f"{own}/{name}", os.O_WRONLY | os.O_TRUNC)
    try: return os.write(file, text)
    finally: os.close(file)
print(str(number) in os.listdir(TOP), sorted(os.listdir(own)), look(own))
for name in sorted(os.listdir(own)):
    print(name, look(f"{own}/{name}"), attempt(read, name))
for name in ("max_background", "congestion_threshold"):
    for text in (b"20", b"21\\n", b"0x1f", b"017\\n", b"+5", b"0", b"", b"\\n", b"x", b"-1", b" 7",
                 b"7\\n\\n", b"08", b"0x", b"65535", b"65536", b"1" * 30):
        print(name, text, attempt(write, name, text), read(name), end="")
print(attempt(write, "waiting", b"1"))
for name in ("waiting", "max_background"):
    file = os.open(f"{own}/{name}", os.O_RDONLY)
    print(attempt(os.pread, file, 9, 0), attempt(os.lseek, file, 0, 0), os.read(file, 1), end=" ")
    print(os.read(file, 9), os.read(file, 9), attempt(os.write, file, b"1"))
    os.close(file)
print(attempt(os.mkdir, f"{own}/new") in ("EPERM", "EACCES", "EROFS"), attempt(os.stat, "own/no"))
waiting = os.open(f"{own}/waiting", os.O_RDONLY)
limit = os.open(f"{own}/max_background", os.O_RDWR)
print(attempt(write, "abort", b""), attempt(os.stat, "own/no"))
print(attempt(write, "abort", b"x"), attempt(os.stat, "own/no"), attempt(os.listdir, "own"))
print(sorted(os.listdir(own)), read("max_background"), end="")
umount("own")
print(attempt(os.listdir, own), attempt(os.stat, own), str(number) in os.listdir(TOP))
print(os.read(waiting, 9), os.read(limit, 9), attempt(os.write, limit, b"nine"))
"""
)


def test_a_user_sees_what_linux_shows(client: Shell) -> None:
    output = client(LOOK)
    first, *rest = output.splitlines()
    files = "['abort', 'congestion_threshold', 'max_background', 'waiting']"
    assert first == f"True {files} ('dr-x------', 2, True, 0)"
    assert "waiting ('-r--------', 1, True, 0) 0" in rest
    assert rest[-2:] == ["ENOENT ENOENT False", "b'' b'' EINVAL"]


@root_only
def test_it_is_the_same_on_linux(client: Shell, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not os.path.exists("/dev/fuse") or shutil.which("unshare") is None:
        pytest.skip("no /dev/fuse, or no unshare")
    mount = subprocess.run(
        ["unshare", "-m", "sh", "-c",
         'mount -t fusectl none /sys/fs/fuse/connections || exit 77; exec "$@"', "sh",
         sys.executable, "-c", LOOK],
        cwd=tmp_path_factory.mktemp("native"),
        stdout=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    if mount.returncode == 77:
        pytest.skip("fusectl cannot be mounted")
    assert client(LOOK).splitlines() == mount.stdout.splitlines()


def test_who_has_mounted_it_may_abort_it(sandbox: Sandbox, client: Shell) -> None:
    """Programs' own filesystems have entries as well, until they are unmounted."""
    output = client(
        SERVER + "os.mkdir('own'); child = served('own')\n"
        "top = '/sys/fs/fuse/connections'; print(len(os.listdir(top)))\n"
        "own = f\"{top}/{os.minor(os.stat('own').st_dev)}\"\n"
        "print(text(own + '/waiting'), end='')\n"
        "with open(own + '/abort', 'w') as file: file.write('1')\n"
        "print(attempt(os.stat, 'own/file'), ended(child), len(os.listdir(top)))\n"
        "umount('own'); print(len(os.listdir(top)))\n"
    )
    assert output == "2\n0\nENOTCONN 0 2\n1\n"


@root_only
@pytest.mark.right("other users")
def test_other_users_may_not_look(client: Shell) -> None:
    output = client(
        SERVER + "os.mkdir('own'); child = served('own')\n"
        "own = f\"/sys/fs/fuse/connections/{os.minor(os.stat('own').st_dev)}\"\n"
        "other = os.fork()\n"
        "if not other:\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "    print(attempt(os.listdir, own), attempt(os.stat, own + '/abort'), flush=True)\n"
        "    os._exit(0)\n"
        "print(ended(other)); umount('own'); print(ended(child))\n"
    )
    assert output == "EACCES EACCES\n0\n0\n"


def test_the_types_are_listed_although_the_kernel_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def native(path: bytes) -> bytes:
        return b"nodev\tsysfs\n\text4\n" if path == b"/proc/filesystems" else b""

    monkeypatch.setattr(device_files, "_native", native)
    with Sandbox() as sandbox:
        done = sandbox.run(["cat", "/proc/filesystems"], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "nodev\tsysfs\n\text4\n\tfuseblk\nnodev\tfuse\nnodev\tfusectl\n"
