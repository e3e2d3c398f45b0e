"""Commands of ioctl(2) that Linux answers for the files of every filesystem."""

from __future__ import annotations

from pathlib import Path

from ..conftest import Clients, Shell

COMMANDS = """
os.chdir(args[0]); os.mkdir("d")
fd = os.open("f", os.O_CREAT | os.O_RDWR); os.write(fd, b"0123456789")
two = os.open("two", os.O_CREAT | os.O_RDWR); top = os.open("d", os.O_RDONLY)
read = os.open("f", os.O_RDONLY); app = os.open("f", os.O_RDWR | os.O_APPEND)
other = os.open("/bin/sh", os.O_RDONLY); held = os.open("f", os.O_PATH)
def left(file):
    room = array.array("i", [-1])
    return attempt(fcntl.ioctl, file, 0x541B, room), room[0]
print(left(fd)); os.lseek(fd, 4, 0); print(left(fd), left(two)); os.lseek(fd, 40, 0)
print(left(fd), left(held), call("ioctl", fd, 0x541B, 0))
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
for target, source in (
    (fd, two), (fd, fd), (fd, read), (read, two), (app, two), (top, fd), (fd, top), (fd, other),
    (fd, 999), (fd, held), (held, fd),
):
    cloned = call("ioctl", target, FICLONE, source)
    print(cloned, attempt(fcntl.ioctl, target, FICLONERANGE, struct.pack("qQQQ", source, 0, 0, 0)))
print(call("ioctl", fd, FICLONERANGE, 0))
wanted = struct.pack("QQHHIqQQiI", 0, 1, 1, 0, 0, two, 0, 0, 0, 0)
print(attempt(fcntl.ioctl, fd, FIDEDUPERANGE, wanted))
print(attempt(fcntl.ioctl, top, FIDEDUPERANGE, wanted))
print(attempt(fcntl.ioctl, fd, 0xC020660B, bytes(32)), attempt(fcntl.ioctl, fd, 0x1234))
"""


def test_they_are_as_on_tmpfs(client: Shell, clients: Clients, here: Path, tmpfs: Path) -> None:
    expected = clients(None)(COMMANDS, tmpfs)
    assert "ENOTSUP" in expected
    assert client(COMMANDS, here / "mnt") == expected
