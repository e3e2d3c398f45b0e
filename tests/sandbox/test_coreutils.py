"""The programs that everybody knows, on a device with positions and on one without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse import Device, File, Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S
from .conftest import Fifo, Shell, Shells

TEXT = b"The quick brown fox jumps over the lazy dog\n"


class DiskFile(File):
    device: Disk

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.device.data[offset : offset + size])

    def write(self, data: bytes, offset: int) -> int:
        end = offset + len(data)
        self.device.data.extend(bytes(max(0, end - len(self.device.data))))
        self.device.data[offset:end] = data
        return len(data)


class Disk(Device):
    """Bytes with positions."""

    name = "disk"
    major = 77
    seekable = True

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = bytearray(data)

    def open(self, request: object) -> File:
        return DiskFile()


@pytest.fixture
def disk() -> Disk:
    return Disk(TEXT)


@pytest.fixture
def on_disk(disk: Disk, shells: Shells) -> Iterator[Shell]:
    """Runs a shell's command where /dev/disk is; returns what it prints."""
    with Sandbox(disk) as sandbox:
        yield shells(sandbox)


@pytest.mark.parametrize("size", [0, 1, 4096, 131072, 131073, 1_000_003])
def test_cat_reads_all_there_is(disk: Disk, shells: Shells, tmp_path: Path, size: int) -> None:
    disk.data[:] = bytes(index * 7 % 251 for index in range(size))
    with Sandbox(disk) as sandbox:
        shells(sandbox)('cat /dev/disk > "$1"', str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == disk.data


def test_cp_and_cmp(on_disk: Shell, disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"something else " * 50_000)
    new, copy = str(tmp_path / "new"), str(tmp_path / "copy")
    assert on_disk('cp /dev/disk "$1" && cmp /dev/disk "$1" && cat "$1"', copy) == TEXT.decode()
    disk.data.clear()
    # Onto the device, which is there already, not in its place.
    assert on_disk('cp "$1" /dev/disk && test -c /dev/disk && cmp "$1" /dev/disk', new) == ""
    assert disk.data == (tmp_path / "new").read_bytes()


def test_head_od_tail_wc(on_disk: Shell) -> None:
    assert on_disk("head -c 9 /dev/disk") == "The quick"
    assert on_disk("od -A d -t x1 -j 4 -N 5 /dev/disk") == "0000004 71 75 69 63 6b\n0000009\n"
    assert on_disk("tail -c 4 </dev/disk; wc -c </dev/disk") == "dog\n44\n"
    assert on_disk("md5sum </dev/disk") == on_disk("md5sum <<'END'\n" + TEXT.decode() + "END\n")


def test_dd_counts_skips_seeks_and_converts(on_disk: Shell, disk: Disk) -> None:
    quiet = "status=none"
    assert on_disk(f"dd if=/dev/disk bs=5 skip=2 count=1 {quiet}") == "brown"
    assert on_disk(f"dd if=/dev/disk bs=44 count=1 conv=ucase {quiet}") == TEXT.decode().upper()
    on_disk(f"printf 'red..' | dd of=/dev/disk bs=5 seek=2 conv=notrunc {quiet}")
    assert disk.data.startswith(b"The quick red.. fox")
    on_disk(f"dd if=/dev/zero of=/dev/disk bs=1M count=3 {quiet}")
    assert disk.data[: 3 << 20] == bytes(3 << 20)
    summary = on_disk("dd if=/dev/disk of=/dev/null bs=100k iflag=fullblock 2>&1")
    assert summary.startswith("30+1 records in\n30+1 records out\n3145728 bytes")
    disk.data[:] = TEXT
    assert on_disk(f"dd if=/dev/disk of=/dev/disk bs=4 skip=1 seek=11 count=5 {quiet}") == ""
    assert disk.data == TEXT + TEXT[4:24]
    assert on_disk(f"dd if=/dev/disk bs=16 count=2 conv=sync,swab {quiet} | wc -c") == "32\n"


def test_tee_writes_to_it_and_goes_on(on_disk: Shell, disk: Disk) -> None:
    assert on_disk("echo both | tee /dev/disk") == "both\n"
    assert disk.data.startswith(b"both\n")
    on_disk("echo more | tee -a /dev/disk > /dev/null")
    assert disk.data.startswith(b"more\n")  # a device has no end to append at
    on_disk("echo again >> /dev/disk")
    assert disk.data.startswith(b"again\n")


def test_what_stat_ls_and_test_say(on_disk: Shell, disk: Disk) -> None:
    assert on_disk("stat -c '%F %a %t:%T %s %h' /dev/disk") == (
        "character special file 666 4d:0 0 1\n"
    )
    assert on_disk("ls -l /dev/disk").startswith("crw-rw-rw- 1 ")
    assert "77, " in on_disk("ls -l /dev/disk")
    assert on_disk("for t in c e r w; do test -$t /dev/disk && printf $t; done") == "cerw"
    assert on_disk("for t in b d f h L p S s x; do test -$t /dev/disk && printf $t; done; :") == ""
    assert on_disk("file=/dev/disk; echo ${file} /dev/di[a-z]k /dev/d?sk") == (
        "/dev/disk /dev/disk /dev/disk\n"
    )
    assert on_disk("find /dev -maxdepth 1 -name disk -type c") == "/dev/disk\n"


@pytest.mark.parametrize("program", ["bash", "dash"])
def test_redirections(on_disk: Shell, disk: Disk, needs: Needs, program: str) -> None:
    needs(program)

    def run(command: str) -> str:
        return on_disk(command, program=program)

    disk.data.clear()
    assert run("echo hello >/dev/disk; cat </dev/disk") == "hello\n"
    assert run("cat >/dev/disk <<END\nhere\nEND\nhead -c 5 /dev/disk") == "here\n"
    assert run("exec 5<>/dev/disk; printf abc >&5; exec 5<&-; head -c 3 /dev/disk") == "abc"
    assert run("{ printf 1; printf 2; } >/dev/disk; head -c 2 /dev/disk") == "12"
    assert run("printf 'one\\ntwo\\n' >/dev/disk; read line </dev/disk; echo $line") == "one\n"
    assert run("(echo sub) 3>/dev/disk >&3; head -c 4 /dev/disk") == "sub\n"
    assert run("cat /dev/nothing 2>/dev/disk; head -c 4 /dev/disk") == "cat:"


def test_here_strings_and_process_substitution(on_disk: Shell, needs: Needs) -> None:
    needs("bash")
    assert on_disk("cat <<<there >/dev/disk; head -c 6 /dev/disk", program="bash") == "there\n"
    assert on_disk("cat <(head -c 5 /dev/disk)", program="bash") == "there"
    assert on_disk("exec {fd}<>/dev/disk; head -c 5 <&$fd; echo $((fd >= 10))", program="bash") == (
        "there1\n"
    )


def test_eight_threads_use_one_descriptor(
    sandbox: Sandbox, echo: Fifo, compiled_threads: Path
) -> None:
    done = sandbox.run([compiled_threads, "/dev/echo"], capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"800 800\n", b"")
    assert len(echo.writes) == 800
    assert echo.opened == echo.released == 1


THREADS = r"""
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
static int fd;
static atomic_int written, taken;
static void *run(void *argument) {
    char byte = (char)(long)argument;
    for (int i = 0; i < 100; i++)
        if (write(fd, &byte, 1) == 1) written++;
    for (int i = 0; i < 100; i++)
        if (read(fd, &byte, 1) == 1) taken++;
    return 0;
}
int main(int argc, char **argv) {
    pthread_t threads[8];
    fd = open(argv[argc - 1], O_RDWR);
    for (long i = 0; i < 8; i++) pthread_create(&threads[i], 0, run, (void *)('a' + i));
    for (int i = 0; i < 8; i++) pthread_join(threads[i], 0);
    printf("%d %d\n", written, taken);
    return 0;
}
"""


@pytest.fixture(params=["dynamic", "static"])
def compiled_threads(request: pytest.FixtureRequest, needs: Needs, tmp_path: Path) -> Path:
    """A C program whose eight threads write and read 100 bytes each through one descriptor."""
    compiler = needs("gcc", "gcc")
    source, program = tmp_path / "threads.c", tmp_path / "threads"
    source.write_text(THREADS)
    flags = ["-static"] if request.param == "static" else []
    subprocess.run([compiler, "-O2", "-pthread", *flags, "-o", program, source], check=True)
    return program


def test_a_tree_of_processes_three_deep(sandbox: Sandbox, echo: Fifo) -> None:
    script = """
import os, sys
def grow(depth, fd):
    os.write(fd, b"%d" % depth)
    if depth == 3:
        os.execvp("sh", ["sh", "-c", "printf s >&%d; printf o >/dev/echo" % fd])
    if os.fork() == 0:
        grow(depth + 1, fd)
        os._exit(0)
    os.wait()
fd = os.open("/dev/echo", os.O_RDWR); os.set_inheritable(fd, True)
grow(0, fd)
print(os.read(fd, 99))
"""
    done = sandbox.run([sys.executable, "-c", script], capture_output=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == (b"b'0123so'\n", b"")
    assert echo.opened == echo.released == 2
