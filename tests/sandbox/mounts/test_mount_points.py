"""What filesystems can be mounted on, and what mount(2) and umount2(2) do with them later."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from recuse import Directory, Filesystem, RegularFile
from recuse.sandbox import Sandbox

from ..conftest import Shell, shell_in
from ..rights import root_only
from .conftest import example, served_in
from .raw_server import SERVER


@pytest.fixture
def server(bare_sandbox: Sandbox, here: Path) -> Shell:
    """Runs a script after SERVER beside an empty directory ``mnt``; returns what it prints."""
    return served_in(bare_sandbox, here)


LISTED = (
    "def listed(name='mnt'):\n"
    "    top = os.getcwd() + '/'\n"
    "    return [line.split()[3] for line in text('/proc/mounts').splitlines()\n"
    "            if line.split()[1] == top + name]\n"
)


def test_flags_are_changed_by_a_remount(server: Shell) -> None:
    output = server(
        LISTED + "child = served('mnt'); before = listed()\n"
        "def remount(flags): return attempt(mount, 'mnt', 'ignored', b'', 32 | flags)\n"
        "print(remount(1 | 8), listed() != before, listed()[0].split(',user')[0])\n"
        "print(os.statvfs('mnt').f_flag & os.ST_RDONLY, attempt(open, 'mnt/file', 'w'))\n"
        "print(text('mnt/file'), end='')\n"
        "print(remount(0), listed() == before, remount(4096 | 1), listed()[0][:2], remount(4096))\n"
        "print(attempt(mount, 'mnt/file', '', b'', 32)); umount('mnt'); print(ended(child))\n"
    )
    flags = "ro,noexec,relatime" if os.getuid() == 0 else "ro,nosuid,nodev,noexec,relatime"
    assert output == f"None True {flags}\n1 EROFS\ndata\nNone True None ro None\nEINVAL\n0\n"


def test_what_is_written_to_cannot_become_read_only(server: Shell) -> None:
    output = server(
        "child = served('mnt')\n"
        "def remount(): return attempt(mount, 'mnt', '', b'', 32 | 1)\n"
        "file = os.open('mnt/file', os.O_RDONLY); other = os.open('mnt/file', os.O_RDWR)\n"
        "print(remount()); os.close(other); print(remount()); os.close(file)\n"
        "umount('mnt'); print(ended(child))\n"
    )
    assert output == "EBUSY\nNone\n0\n"


def test_programs_are_not_executed_from_noexec(shell: Shell, here: Path) -> None:
    (here / "run").write_text("#!/bin/sh\necho ran\n", encoding="utf-8")
    (here / "run").chmod(0o755)
    output = shell(
        "cp run mnt; mnt/run; mount -i -o remount,noexec $PWD/mnt; mnt/run\n"
        "test -x mnt/run || test -x mnt && sh mnt/run"
    )
    assert output == "ran\nsh: 1: mnt/run: Permission denied\nran\n"


FILE = (
    "def attr(node):\n"
    "    return struct.pack('=6Q10I', 1, 5, 1, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o644, 1,\n"
    "                       os.getuid(), os.getgid(), 0, 4096, 0)\n"
    "_options = options\n"
    "def options(fuse, more=''):\n"
    "    return _options(fuse, more).replace('rootmode=40000', 'rootmode=100000')\n"
)


def test_a_file_can_be_mounted_on(server: Shell, here: Path) -> None:
    os.link(here / "beside", here / "linked")
    output = server(
        FILE + LISTED + "held = open('beside')\n"
        "fuse = os.open('/dev/fuse', os.O_RDWR); print(attempt(mount, 'mnt', options(fuse)))\n"
        "os.close(fuse); child = served('beside')\n"
        "print(text('beside'), text('linked'), held.read(), end='')\n"
        "print(os.path.ismount('beside'), os.stat('beside').st_size, len(listed('beside')))\n"
        "print(attempt(os.unlink, 'beside'), attempt(os.rmdir, 'beside'),\n"
        "      attempt(os.rename, 'beside', 'other'), attempt(os.link, 'beside', 'other'),\n"
        "      attempt(os.stat, 'beside/x'), attempt(os.listdir, 'beside'))\n"
        "file = open('beside'); print(attempt(umount, 'beside')); file.close()\n"
        "umount('beside'); print(ended(child), text('beside'), listed('beside'))\n"
    )
    assert output == (
        "ENOTDIR\ndata\n native\n native\nTrue 5 1\n"
        "EBUSY ENOTDIR EBUSY EXDEV ENOTDIR ENOTDIR\nEBUSY\n0 native\n []\n"
    )


def test_mounts_on_mounts(server: Shell) -> None:
    output = server(
        LISTED + "first = served('mnt'); os.mkdir('deep'); second = served('mnt')\n"
        "print(len(listed()), attempt(os.rmdir, 'mnt'), attempt(os.unlink, 'mnt'))\n"
        "umount('mnt'); print(ended(second), len(listed()), text('mnt/file'), end='')\n"
        "umount('mnt'); print(ended(first), listed(), os.listdir('mnt'))\n"
    )
    assert output == "2 EBUSY EISDIR\n0 1 data\n0 [] []\n"


IN_A_MOUNT = """
os.mkdir('mnt/inner'); os.mkdir('mnt/other'); child = served('mnt/inner')
print(text('mnt/inner/file'), end='')
print(len(listed('mnt/inner')), os.stat('mnt/inner').st_dev != os.stat('mnt').st_dev)
print(attempt(os.rmdir, 'mnt/inner'), attempt(os.unlink, 'mnt/inner'),
      attempt(os.rename, 'mnt/inner', 'mnt/x'), attempt(os.rename, 'mnt/other', 'mnt/inner'))
print(attempt(umount, 'mnt'), attempt(umount, 'mnt/other'))
print(sorted(os.listdir('mnt')), os.listdir('mnt/inner/../inner'))
print(attempt(umount, 'mnt/inner'), ended(child), os.listdir('mnt/inner'))
print(attempt(os.rmdir, 'mnt/inner'))
"""


def test_a_mount_in_a_mount(client: Shell) -> None:
    assert client(SERVER + LISTED + IN_A_MOUNT) == (
        "data\n1 True\nEBUSY EISDIR EBUSY EBUSY\nEBUSY EINVAL\n['inner', 'other'] ['file']\n"
        "None 0 []\nNone\n"
    )


def test_mounts_that_are_inside_each_other_from_the_start(here: Path) -> None:
    memory = example("memoryfs").MemoryFilesystem
    outer = Filesystem(
        Directory({"in": Directory({"deep": Directory()}), "file": RegularFile(b"1\n")})
    )
    (here / "mnt" / "in").mkdir()
    mounts = {here / "mnt/in/deep": memory(), here / "mnt/in": outer, here / "mnt": memory()}
    with pytest.raises(FileNotFoundError), Sandbox(mounts=mounts):
        pass
    mounts = {here / "mnt/in/deep": memory(), here / "mnt": outer}
    with Sandbox(mounts=mounts) as sandbox:
        output = functools.partial(shell_in(sandbox), cwd=here)(
            "cat mnt/file; echo text >mnt/in/deep/new; cd mnt/in/deep; cat new; ls .. ../..\n"
            'mv new moved; cat moved; top=$PWD; cd /; rmdir $top 2>&1 | grep -o "[^:]*$"\n'
            'df $top | grep -c " $top$"; grep -c " $top fuse" /proc/mounts'
        )
    assert output == (
        "1\ntext\n..:\ndeep\n\n../..:\nfile\nin\ntext\n Device or resource busy\n1\n1\n"
    )
    mounts = {here / "mnt/file": memory(), here / "mnt": outer}
    with pytest.raises(NotADirectoryError), Sandbox(mounts=mounts):
        pass


@root_only
def test_a_filesystem_on_a_device_is_told_of_its_end(server: Shell, here: Path) -> None:
    output = server(
        LISTED + "try: os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(7, 0))\n"
        "except PermissionError: print('no rights'); sys.exit()\n"
        "fuse = os.open('/dev/fuse', os.O_RDWR)\n"
        "def attach(source=b'disk', more=',blksize=4096', kind=b'fuseblk'):\n"
        "    return attempt(mount, 'mnt', options(fuse, more), kind, 0, source)\n"
        "print(attach(b'beside'), attach(b'none'), attach(more=',blksize=3'))\n"
        "print(attach(kind=b'fuse'), attach(), listed()[0].rpartition(',')[2])\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    opcode, unique, node, body = serve(fuse, 38)\n"
        "    open('written', 'w').close(); os.write(fuse, reply(unique))\n"
        "    os._exit(serve(fuse) != 'ENODEV')\n"
        "os.close(fuse); print(os.stat('mnt').st_dev == os.makedev(7, 0))\n"
        "umount('mnt'); print(os.path.exists('written'), ended(child))\n"
    )
    if output == "no rights\n":
        pytest.skip("this user may make no block device")
    assert output == "ENOTBLK ENOENT EINVAL\nEINVAL None blksize=4096\nTrue\nTrue 0\n"


@root_only
@pytest.mark.parametrize("end", ["signal.raise_signal(signal.SIGALRM)", "os.kill(child, 9)"])
def test_whose_server_never_answers_that(server: Shell, here: Path, end: str) -> None:
    output = server(
        "try: os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(7, 0))\n"
        "except PermissionError: print('no rights'); sys.exit()\n"
        "fuse = os.open('/dev/fuse', os.O_RDWR); r, w = os.pipe()\n"
        "mount('mnt', options(fuse), b'fuseblk', 0, b'disk'); child = os.fork()\n"
        "if not child: serve(fuse, 38); os.write(w, b'1'); signal.pause()\n"
        "os.close(fuse); text('mnt/file'); main = os.getpid()\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        f"def end(): os.read(r, 1); {end.replace('signal.raise_signal(', 'os.kill(main, ')}\n"
        "thread = threading.Thread(target=end); thread.start()\n"
        "print(attempt(umount, 'mnt'), os.listdir('mnt')); thread.join()\n"
        "os.kill(child, 9); print(ended(child))\n"
    )
    if output == "no rights\n":
        pytest.skip("this user may make no block device")
    assert output == "None []\n-9\n"
