"""The limit of the size of files that a program makes (RLIMIT_FSIZE)."""

from __future__ import annotations

from pathlib import Path

from ..conftest import Clients, Shell

LIMITS = """
import resource
os.chdir(args[0])
fd = os.open("f", os.O_CREAT | os.O_RDWR)
big = os.open("big", os.O_CREAT | os.O_RDWR); os.ftruncate(big, 5000)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
got = []
signal.signal(signal.SIGXFSZ, lambda number, frame: got.append(number))
def tell(*what):
    print(*what, len(got), os.fstat(fd).st_size, os.fstat(big).st_size); got.clear()
tell(os.write(fd, bytes(700)), os.write(fd, bytes(700)), attempt(os.write, fd, b"x"))
tell(os.pwrite(fd, bytes(8), 996), attempt(os.pwrite, fd, b"", 1001), os.pwrite(fd, b"x", 999))
app = os.open("f", os.O_WRONLY | os.O_APPEND)
tell(attempt(os.write, app, b"x"), os.ftruncate(fd, 995), os.write(app, b"0123456789"))
tell(attempt(os.pwrite, big, b"x", 2000), os.pwrite(big, bytes(99), 950))
tell(attempt(os.ftruncate, fd, 1001), os.ftruncate(fd, 1000), attempt(os.truncate, "f", 4000))
tell(os.ftruncate(big, 4000), os.truncate("big", 4000), attempt(os.ftruncate, big, 4001))
tell(os.ftruncate(fd, 10), attempt(os.posix_fallocate, fd, 0, 1001), os.posix_fallocate(fd, 0, 9))
tell(os.copy_file_range(big, fd, 99, 0, 950), attempt(os.copy_file_range, big, fd, 9, 0, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL); sys.stdout.flush(); pid = os.fork()
if pid == 0: os.pwrite(fd, b"x", 1000); print("lives", flush=True)
print(wait(pid) == -signal.SIGXFSZ)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, -1)); tell(os.pwrite(fd, b"", 9))
tell(os.pwrite(fd, b"x", 3000))
"""


def test_they_are_as_on_tmpfs(client: Shell, clients: Clients, here: Path, tmpfs: Path) -> None:
    expected = clients(None)(LIMITS, tmpfs)
    assert "EFBIG" in expected
    assert expected.endswith("3001 4000\n")
    assert client(LIMITS, here / "mnt") == expected


def test_a_shells_limit(shell: Shell, natively: Shell) -> None:
    script = "(ulimit -f 1; head -c 5000 /dev/zero >mnt/f); echo $?; wc -c <mnt/f"
    assert shell(script) == natively(script)
    assert shell("wc -c <mnt/f") in {"512\n", "1024\n"}  # a shell's block
