"""Packaged filesystems that nobody here wrote, unchanged, in the sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Needs

from ..conftest import Shell
from .conftest import UNMOUNTED


@pytest.fixture
def shell(bare_shell: Shell) -> Shell:
    """Runs a shell's command beside an empty directory ``mnt`` and a tree, ``source``."""
    return bare_shell


def test_squashfuse(shell: Shell, needs: Needs) -> None:
    needs("squashfuse", "squashfuse")
    needs("mksquashfs", "squashfs-tools")
    output = shell(
        "mksquashfs source image -quiet >/dev/null && squashfuse image mnt && ls mnt &&\n"
        "cat mnt/text; diff -r source mnt && (cd mnt/deep && ls); echo x >mnt/text; " + UNMOUNTED
    )
    assert output.splitlines() == [
        "deep",
        "text",
        "some text",
        "large",
        "sh: 2: cannot create mnt/text: Read-only file system",
    ]


def test_bindfs(shell: Shell, needs: Needs) -> None:
    needs("bindfs", "bindfs")
    output = shell(
        "bindfs --no-allow-other source mnt && diff -r source mnt && echo new >mnt/new &&\n"
        f"cat source/new && {UNMOUNTED} && bindfs --no-allow-other -p a-w source source &&\n"
        "cat source/text && stat -c %A source/text && fusermount3 -u source && ls source"
    )
    assert output == "new\nsome text\n-r--r--r--\ndeep\nnew\ntext\n"


def test_fuse_zip(shell: Shell, needs: Needs) -> None:
    needs("fuse-zip", "fuse-zip")
    needs("zip", "zip")
    output = shell(
        "(cd source && zip -qr ../archive.zip .) && fuse-zip -f archive.zip mnt &\n"
        "until diff -r source mnt >/dev/null; do :; done; echo new >mnt/new; rm mnt/text\n"
        f"{UNMOUNTED}; wait $!; echo $?; python3 -m zipfile -l archive.zip | grep -o '^[a-z/]*'"
    )
    assert sorted(output.splitlines()) == ["0", "deep/", "deep/large", "new"]


def test_archivemount(shell: Shell, needs: Needs) -> None:
    needs("archivemount", "archivemount")
    output = shell(
        "tar czf archive.tgz -C source . && archivemount -o readonly archive.tgz mnt &&\n"
        "diff -r source mnt && cat mnt/text && " + UNMOUNTED
    )
    assert output == "some text\n"


def test_sshfs(shell: Shell, needs: Needs, here: Path) -> None:
    needs("sshfs", "sshfs")
    server = needs("/usr/lib/openssh/sftp-server", "openssh-sftp-server")
    (here / "ssh").write_text(f"#!/bin/sh\nexec {server}\n", encoding="utf-8")
    (here / "ssh").chmod(0o755)
    output = shell(
        "sshfs -o ssh_command=$PWD/ssh host:$PWD/source mnt && diff -r source mnt &&\n"
        "cp source/deep/large mnt/copy && cmp source/copy source/deep/large && " + UNMOUNTED
    )
    assert output == ""


@pytest.mark.slow
def test_rclone(shell: Shell, needs: Needs) -> None:
    needs("rclone", "rclone")
    output = shell(
        "rclone mount --config /dev/null --daemon $PWD/source mnt && diff -r source mnt &&\n"
        "cat mnt/text && " + UNMOUNTED
    )
    assert output == "some text\n"


def test_an_archive_is_mounted_without_fusermount(shell: Shell, needs: Needs, here: Path) -> None:
    """It calls mount(2) itself, and fusermount3 only if that fails."""
    needs("squashfuse", "squashfuse")
    assert shutil.which("mksquashfs")
    output = shell(
        "mksquashfs source image -quiet >/dev/null; PATH=$PWD; cd ..; exec 2>&1\n"
        f"/usr/bin/squashfuse {here}/image {here}/mnt; /bin/cat {here}/mnt/text;\n"
        f"/bin/umount {here}/mnt"
    )
    assert output == "some text\n"


def test_gocryptfs(shell: Shell, needs: Needs) -> None:
    """It is written in Go, and runs fusermount."""
    needs("gocryptfs", "gocryptfs")
    output = shell(
        "exec 2>&1; mkdir secret; run='gocryptfs -q -nosyslog -extpass echo -extpass word'\n"
        "$run -init -scryptn 10 secret && $run secret mnt && cp -r source mnt &&\n"
        f"sync mnt/source && diff -r source mnt/source && {UNMOUNTED} && ls secret | wc -l &&\n"
        "! grep -r 'some text' secret && $run secret mnt && mv mnt/source/text mnt/moved &&\n"
        f"cat mnt/moved && rm -r mnt/source && ls mnt && {UNMOUNTED}"
    )
    assert output == "3\nsome text\nmoved\n"


def test_fuse_overlayfs(shell: Shell, needs: Needs) -> None:
    needs("fuse-overlayfs", "fuse-overlayfs")
    output = shell(
        "exec 2>&1; mkdir upper work\n"
        "fuse-overlayfs -o lowerdir=source,upperdir=upper,workdir=work mnt >/dev/null 2>&1 &&\n"
        "diff -r source mnt && rm mnt/text && mv mnt/deep/large mnt/deep/moved && ls mnt &&\n"
        "cmp source/deep/large mnt/deep/moved && echo new >mnt/new && rm -r mnt/deep && ls mnt &&\n"
        f"{UNMOUNTED}; ls -R source; cat upper/new"
    )
    assert output == "deep\nnew\nsource:\ndeep\ntext\n\nsource/deep:\nlarge\nnew\n"


IMAGES = {
    "ntfs-3g": "PATH=$PATH:/sbin; truncate -s 8M image && mkntfs -F -q image >/dev/null 2>&1",
    "lowntfs-3g": "PATH=$PATH:/sbin; truncate -s 8M image && mkntfs -F -q image >/dev/null 2>&1",
    "fuse2fs": "PATH=$PATH:/sbin; truncate -s 8M image && mke2fs -q -E root_owner image",
}


def for_root_only(server: str) -> None:
    """Skip what calls mount(2) itself, which ordinary users may not: they need fusermount3."""
    if server.endswith("ntfs-3g") and os.geteuid() != 0:
        pytest.skip(f"{server} mounts for root only")


@pytest.mark.parametrize("server", IMAGES)
def test_images_of_disks(shell: Shell, needs: Needs, server: str) -> None:
    needs(server, "fuse2fs" if server == "fuse2fs" else "ntfs-3g")
    for_root_only(server)
    needs("/sbin/mke2fs", "e2fsprogs")
    output = shell(
        f"exec 2>&1; {IMAGES[server]} && {server} image mnt && cp -r source mnt &&\n"
        "df mnt | wc -l && diff -r source mnt/source && mv mnt/source/text mnt/moved &&\n"
        "ln mnt/moved mnt/linked &&\n"
        "truncate -s 100000 mnt/source/deep/large && fusermount3 -u mnt\n"
        f"until {server} image mnt 2>/dev/null; do :; done\n"  # the first one has to end before
        "cmp -n 100000 source/deep/large mnt/source/deep/large; stat -c %s mnt/source/deep/large\n"
        f"stat -c '%h %n' mnt/*ed; cat mnt/linked && {UNMOUNTED}"
    )
    assert output == "2\n100000\n2 mnt/linked\n2 mnt/moved\nsome text\n"


@pytest.mark.parametrize("server", ["ntfs-3g", "lowntfs-3g"])
def test_ntfs_on_a_device(shell: Shell, needs: Needs, here: Path, server: str) -> None:
    """It is mounted as fuseblk; umount waits until everything is on the device."""
    needs(server, "ntfs-3g")
    find = ["sh", "-c", "truncate -s 8M disk && losetup -f --show disk"]
    loop = subprocess.run(find, cwd=here, capture_output=True, text=True, check=False)
    device = loop.stdout.strip()
    if loop.returncode:
        pytest.skip(f"no loop device: {loop.stderr.strip()}")
    try:
        output = shell(
            f"exec 2>&1; PATH=$PATH:/sbin; mkntfs -F -q {device} >/dev/null 2>&1\n"
            f"{server} {device} mnt && cp -r source mnt && umount mnt && {server} {device} mnt &&\n"
            f"grep -o '^{device} .* fuseblk' /proc/mounts | wc -l && diff -r source mnt/source &&\n"
            f"test $(stat -c %d mnt) = $(stat -c %r {device}) && umount mnt && ls mnt"
        )
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert output == "1\n"


PYFUSE3 = """
import errno, os, stat, sys
import pyfuse3, trio

class Files(pyfuse3.Operations):
    def __init__(self):
        super().__init__()
        self.data = bytearray(b"first\\n")
    def attributes(self, inode):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_uid, entry.st_gid = inode, os.getuid(), os.getgid()
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644
        entry.st_size = 0 if inode == 1 else len(self.data)
        return entry
    async def getattr(self, inode, context=None):
        return self.attributes(inode)
    async def lookup(self, parent, name, context=None):
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(2)
    async def opendir(self, inode, context):
        return inode
    async def readdir(self, handle, start, token):
        if not start:
            pyfuse3.readdir_reply(token, b"file", self.attributes(2), 1)
    async def open(self, inode, flags, context):
        if flags & os.O_TRUNC:
            self.data.clear()
        return pyfuse3.FileInfo(fh=inode)
    async def read(self, handle, offset, size):
        return bytes(self.data[offset : offset + size])
    async def write(self, handle, offset, data):
        self.data[offset : offset + len(data)] = data
        return len(data)

pyfuse3.init(Files(), sys.argv[1], {"fsname=test", *pyfuse3.default_options})
trio.run(pyfuse3.main)
pyfuse3.close()
"""


def test_pyfuse3(shell: Shell, needs: Needs, here: Path) -> None:
    needs("/usr/lib/python3/dist-packages/_pyfuse3.py", "python3-pyfuse3")
    (here / "server.py").write_text(PYFUSE3, encoding="utf-8")
    output = shell(
        "/usr/bin/python3 server.py mnt & until cat mnt/file 2>/dev/null; do :; done\n"
        "ls mnt; echo second >>mnt/file; cat mnt/file; echo x >mnt/file; cat mnt/file\n"
        f"cat mnt/none; {UNMOUNTED}; wait $!; echo $?"
    )
    assert output == (
        "first\nfile\nfirst\nsecond\nx\ncat: mnt/none: No such file or directory\n0\n"
    )


FUSEPY = """
import os, sys
from {module} import FUSE, Operations

class Mirror(Operations):
    def __call__(self, name, path, *args):
        return super().__call__(name, sys.argv[1] + path, *args)
    def getattr(self, path, handle=None):
        found = os.lstat(path)
        return {{name: getattr(found, name) for name in dir(found) if name.startswith("st_")}}
    def readdir(self, path, handle):
        return [".", "..", *os.listdir(path)]
    def create(self, path, mode):
        return os.open(path, os.O_CREAT | os.O_WRONLY, mode)
    def open(self, path, flags):
        return os.open(path, flags)
    def read(self, path, size, offset, handle):
        return os.pread(handle, size, offset)
    def write(self, path, data, offset, handle):
        return os.pwrite(handle, data, offset)
    def release(self, path, handle):
        return os.close(handle)
    def truncate(self, path, length, handle=None):
        os.truncate(path, length)
    def unlink(self, path):
        os.unlink(path)

FUSE(Mirror(), sys.argv[2], foreground={foreground}, nothreads={nothreads})
"""


@pytest.mark.parametrize("threads", [False, True])
def test_fusepy(shell: Shell, needs: Needs, here: Path, threads: bool) -> None:
    needs("/usr/lib/python3/dist-packages/fusepy.py", "python3-fusepy")
    script = FUSEPY.format(module="fusepy", foreground=threads, nothreads=not threads)
    (here / "server.py").write_text(script, encoding="utf-8")
    output = shell(
        "/usr/bin/python3 server.py $PWD/source mnt & until test -e mnt/text; do :; done\n"
        "diff -r source mnt; cp mnt/deep/large mnt/copy; cmp source/copy source/deep/large\n"
        f"echo x >mnt/text; cat source/text; rm mnt/copy; ls source; {UNMOUNTED}; wait; echo $?"
    )
    assert output == "x\ndeep\ntext\n0\n"


KILLED = {
    "bindfs": "exec bindfs -f --no-allow-other source mnt",
    "squashfuse": "exec squashfuse -f image mnt",
    "sshfs": "exec sshfs -f -o ssh_command=$PWD/ssh host:$PWD/source mnt",
    "gocryptfs": "exec gocryptfs -q -fg -nosyslog -extpass echo -extpass word secret mnt",
    "fuse-overlayfs": "exec fuse-overlayfs -f -o lowerdir=source,upperdir=upper,workdir=work mnt",
    "ntfs-3g": "exec ntfs-3g -o no_detach disk mnt",
    "rclone": "exec rclone mount --config /dev/null $PWD/source mnt",
}


@pytest.mark.parametrize("server", KILLED)
def test_a_server_that_is_killed_in_the_middle(
    shell: Shell, needs: Needs, here: Path, server: str
) -> None:
    """Eight programs use it all the time. Each gets an error, and it can be unmounted."""
    for_root_only(server)
    for program, package in (
        (server, server),
        ("mksquashfs", "squashfs-tools"),
        ("gocryptfs", "gocryptfs"),
        ("/sbin/mkntfs", "ntfs-3g"),
        ("/usr/lib/openssh/sftp-server", "openssh-sftp-server"),
    ):
        needs(program, package)
    (here / "ssh").write_text("#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n", encoding="utf-8")
    (here / "ssh").chmod(0o755)
    output = shell(
        "mkdir upper work secret; mksquashfs source image -quiet >/dev/null 2>&1\n"
        "gocryptfs -q -init -nosyslog -scryptn 10 -extpass echo -extpass word secret\n"
        "truncate -s 8M disk; /sbin/mkntfs -F -q disk >/dev/null 2>&1\n"
        f"({KILLED[server]}) >/dev/null 2>&1 & server=$!\n"
        'until grep -q " $PWD/mnt fuse" /proc/mounts; do :; done; ls mnt >/dev/null\n'
        "mkdir mnt/more 2>/dev/null && cp source/deep/large mnt/more; clients=\n"
        "for i in 1 2 3 4; do\n"
        "    (while ls -lR mnt && stat mnt && cat mnt/*; do :; done; touch end$i) >log$i 2>&1 &\n"
        '    clients="$clients $!"\n'
        "    (while cp source/text mnt/$i && cat mnt/$i && rm mnt/$i; do :; done) >>log 2>&1 &\n"
        '    clients="$clients $!"\n'
        "done\n"
        "for i in 1 2 3 4 ''; do until test -s log$i; do :; done; done\n"
        "kill -9 $server; wait $server; wait $clients; ls end*; ls mnt\n"
        'fusermount3 -u mnt && ls mnt && ! grep " $PWD/mnt fuse" /proc/mounts'
    )
    *ends, last = [line for line in output.splitlines() if "Killed" not in line]
    assert ends == [f"end{number}" for number in range(1, 5)]
    assert last.endswith(" 'mnt': Transport endpoint is not connected")
