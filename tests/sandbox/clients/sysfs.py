"""Print all that can be seen of the device "snd/probe" (240:7) outside of /dev/snd.

Runs as root, in the sandbox and on Linux's own CUSE; sysfs.txt is what it printed on the latter.
Its server is sysfs_server.py, whose reads never end.
"""

import errno
import fcntl
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable

CLASS = "/sys/class/cuse"
OWN = "/sys/devices/virtual/cuse/snd!probe"
NUMBER = "240:7"


def attempt(call: Callable[..., object], *arguments: object, **options: object) -> object:
    """A call's result, or its error's name."""
    try:
        return call(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def describe(path: str) -> str:
    """What lstat says, but for numbers and times."""
    found = os.lstat(path)
    line = f"{stat.filemode(found.st_mode)} {found.st_nlink} {found.st_uid}:{found.st_gid} "
    line += f"{found.st_size} {found.st_blocks} {found.st_blksize}"
    return line + (f" -> {os.readlink(path)}" if stat.S_ISLNK(found.st_mode) else "")


def content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def tell(what: str, result: object) -> None:
    print(f"{what}: {result}", flush=True)


def walk(directory: str) -> None:
    tell(directory, describe(directory))
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            found = entry.stat(follow_symlinks=False)
            assert entry.inode() == found.st_ino, entry
            assert found.st_dev == os.stat("/sys").st_dev, entry
            kinds = entry.is_symlink(), entry.is_dir(follow_symlinks=False)
            assert kinds == (stat.S_ISLNK(found.st_mode), stat.S_ISDIR(found.st_mode)), entry
            if entry.is_dir(follow_symlinks=False):
                walk(entry.path)
            else:
                tell(entry.path, describe(entry.path))
            if stat.S_ISREG(found.st_mode):
                tell("  content", attempt(content, entry.path))


def links() -> None:
    for path in (f"{CLASS}/snd!probe", f"/sys/dev/char/{NUMBER}"):
        tell(path, describe(path))
        tell("  leads to", os.path.realpath(path))
        tell("  there", describe(path + "/"))
        tell("  subsystem", os.path.realpath(path + "/subsystem"))
        tell("  named dev", content(path + "/dev"))
    tell("listed", ["snd!probe" in os.listdir(CLASS), NUMBER in os.listdir("/sys/dev/char")])
    tell("one directory", os.path.samefile(f"{CLASS}/snd!probe", OWN))
    tell("the class", describe(CLASS)[:12])
    majors = content("/proc/devices").decode().partition("\n\n")[0].splitlines()
    tell("/proc/devices", [line for line in majors if "probe" in line])
    tell("  in order", [int(line[:3]) for line in majors[1:]] ==
         sorted(int(line[:3]) for line in majors[1:]))  # fmt: skip
    tell("  stat", describe("/proc/devices"))


def opening() -> None:
    accesses = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
    for name in ("dev", "waiting", "uevent", "abort", "power/control", "power/runtime_status"):
        results = [
            attempt(lambda flags=flags, name=name: os.close(os.open(f"{OWN}/{name}", flags)))
            for flags in accesses.values()
        ]
        tell(f"open {name}", dict(zip(accesses, results, strict=True)))
    for name, flags in {
        "O_DIRECTORY": os.O_DIRECTORY,
        "O_CREAT|O_EXCL": os.O_CREAT | os.O_EXCL,
        "O_CREAT": os.O_CREAT,
        "O_TRUNC": os.O_TRUNC,
        "O_DIRECT": os.O_DIRECT,
        "O_NOFOLLOW": os.O_NOFOLLOW,
        "O_PATH": os.O_PATH,
    }.items():
        tell(f"open {name}", attempt(lambda flags=flags: os.close(os.open(f"{OWN}/dev", flags))))
    link = f"{CLASS}/snd!probe"
    tell("link O_NOFOLLOW", attempt(os.open, link, os.O_NOFOLLOW))
    tell("link O_NOFOLLOW|O_DIRECTORY", attempt(os.open, link, os.O_NOFOLLOW | os.O_DIRECTORY))
    held = os.open(link, os.O_NOFOLLOW | os.O_PATH)
    tell("link O_PATH", [stat.filemode(os.fstat(held).st_mode), os.readlink("", dir_fd=held)])
    tell("directory O_RDWR", attempt(os.open, OWN, os.O_RDWR))
    tell("stat of dev/", attempt(os.stat, f"{OWN}/dev/"))
    tell("stat of dev/x", attempt(os.stat, f"{OWN}/dev/x"))
    tell("stat of nothing", attempt(os.stat, f"{OWN}/nothing"))
    tell("readlink of dev", attempt(os.readlink, f"{OWN}/dev"))
    tell("readlink of the directory", attempt(os.readlink, OWN))
    tell("xattrs", attempt(os.listxattr, f"{OWN}/dev"))


def reading() -> None:
    fd = os.open(f"{OWN}/dev", os.O_RDONLY)
    tell("read 2", os.read(fd, 2))
    tell("position", os.lseek(fd, 0, os.SEEK_CUR))
    tell("read on", os.read(fd, 100))
    tell("read at the end", os.read(fd, 100))
    for offset in (0, 3, 300):
        tell(f"pread at {offset}", os.pread(fd, 100, offset))
    for offset, whence in ((0, 2), (-1, 0), (5000, 0), (0, 3), (0, 4), (4096, 3), (0, 9)):
        tell(f"lseek {offset} {whence}", attempt(os.lseek, fd, offset, whence))
    os.lseek(fd, 5000, 0)
    tell("read beyond", os.read(fd, 100))
    buffers = [bytearray(3), bytearray(9)]
    tell("preadv", [os.preadv(fd, buffers, 0), *map(bytes, buffers)])
    tell("flags", oct(fcntl.fcntl(fd, fcntl.F_GETFL)))
    tell("write", attempt(os.write, fd, b"x"))
    tell("ftruncate", attempt(os.ftruncate, fd, 0))
    tell("TCGETS", attempt(fcntl.ioctl, fd, 0x5401, 0))
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    tell("poll", [events for _, events in poll.poll(0)])
    tell("name", os.readlink(f"/proc/self/fd/{fd}"))
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    tell("opened again", os.read(again, 100))
    copy = os.dup(fd)
    os.lseek(fd, 1, 0)
    tell("a copy's position", os.read(copy, 2))


def directories() -> None:
    fd = os.open(OWN, os.O_RDONLY | os.O_DIRECTORY)
    tell("fstat", describe(f"/proc/self/fd/{fd}")[:4])
    tell("openat", os.read(os.open("dev", os.O_RDONLY, dir_fd=fd), 10))
    tell("fstatat", os.stat("power/control", dir_fd=fd).st_size)
    tell("..", os.path.samefile(f"{OWN}/..", os.open("..", os.O_RDONLY, dir_fd=fd)))
    outside = os.open("../../mem/null/dev", os.O_RDONLY, dir_fd=fd)
    tell("outside", os.read(outside, 10))
    tell("by a link's ..", content(f"{CLASS}/snd!probe/../../mem/null/dev"))
    tell("its name", os.readlink(f"/proc/self/fd/{fd}"))
    tell("sysfs", hex(statfs(OWN)))
    os.fchdir(fd)
    tell(
        "inside",
        [content("dev"), content("./dev"), content("../snd!probe/dev"), os.path.exists("x")],
    )
    tell("its own", os.path.samefile(".", OWN))
    os.chdir("/")


def statfs(path: str) -> int:
    return int(subprocess.check_output(["stat", "-f", "-c", "%t", path]), 16)


def changing() -> None:
    for what, call in {
        "creat": lambda: os.open(f"{OWN}/new", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(f"{OWN}/new"),
        "mkdir of dev": lambda: os.mkdir(f"{OWN}/dev"),
        "symlink": lambda: os.symlink("x", f"{OWN}/new"),
        "unlink": lambda: os.unlink(f"{OWN}/dev"),
        "unlink of the link": lambda: os.unlink(f"{CLASS}/snd!probe"),
        "rmdir": lambda: os.rmdir(f"{OWN}/power"),
        "rename": lambda: os.rename(f"{OWN}/dev", f"{OWN}/new"),
        "link": lambda: os.link(f"{OWN}/dev", f"{OWN}/new"),
        "truncate": lambda: os.truncate(f"{OWN}/uevent", 0),
    }.items():
        tell(what, attempt(call))
    os.chmod(f"{OWN}/dev", 0o400)
    tell("chmod", describe(f"{OWN}/dev"))
    os.chmod(f"{OWN}/dev", 0o444)


def write(name: str, data: bytes) -> tuple[object, int]:
    fd = os.open(f"{OWN}/{name}", os.O_WRONLY)
    try:
        return attempt(os.write, fd, data), os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)


def writing() -> None:
    for name, data in (
        ("uevent", b"add"),
        ("uevent", b"change\n"),
        ("uevent", b"nothing\n"),
        ("uevent", b""),
        ("power/control", b"on\n"),
        ("power/control", b"maybe\n"),
        ("power/async", b"enabled"),
        ("power/async", b"x"),
        ("power/autosuspend_delay_ms", b"1\n"),
        ("abort", b""),
    ):
        tell(f"write {name} {data!r}", write(name, data))
    for name in ("control", "async", "runtime_usage"):
        tell(name, content(f"{OWN}/power/{name}"))


def others() -> None:
    """What an ordinary user may do."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    os.setgroups([])
    os.setresgid(1000, 1000, 1000)
    os.setresuid(1000, 1000, 1000)
    for name in ("dev", "uevent", "waiting", "abort", "power/control"):
        allowed = [os.access(f"{OWN}/{name}", mode) for mode in (os.R_OK, os.W_OK)]
        opened = [
            attempt(lambda flags=flags, name=name: os.close(os.open(f"{OWN}/{name}", flags)))
            for flags in (os.O_RDONLY, os.O_WRONLY)
        ]
        tell(f"user: {name}", [allowed, opened])
    tell("user: chmod", attempt(os.chmod, f"{OWN}/dev", 0o666))
    sys.stdout.flush()
    os._exit(0)


def wait_for(text: bytes, reader: int | str = "self") -> None:
    """Wait until so many requests wait, and a process is in read (which OPEN comes before)."""
    end = time.monotonic() + 30
    while (found := content(f"{OWN}/waiting")) != text or not is_reading(reader):
        assert time.monotonic() < end, found
        time.sleep(0.01)
    tell("waiting", found)


def is_reading(process: int | str) -> bool:
    return open(f"/proc/{process}/syscall").read().split()[0] == "0"


def aborting() -> None:
    wait_for(b"0\n")
    readers = []
    for number in (b"1\n", b"2\n"):
        readers.append(
            subprocess.Popen(["cat", "/dev/snd/probe"], stderr=subprocess.PIPE, env={"LC_ALL": "C"})
        )
        wait_for(number, readers[-1].pid)
    held = os.open(f"{OWN}/waiting", os.O_RDONLY)
    abort = os.open(f"{OWN}/abort", os.O_WRONLY)
    tell("read waiting", os.read(held, 10))
    tell("write abort", os.write(abort, b"whatever it is"))
    for reader in readers:
        tell("reader", [reader.communicate()[1], reader.returncode])
    end = time.monotonic() + 30
    while os.path.exists(OWN):  # its server lets go
        assert time.monotonic() < end
        time.sleep(0.01)
    tell("pread waiting", attempt(os.pread, held, 10, 0))
    tell("read on", attempt(os.read, held, 10))
    tell("write abort", attempt(os.write, abort, b"1"))
    tell("fstat", stat.filemode(os.fstat(held).st_mode))
    tell("the link", os.path.lexists(f"{CLASS}/snd!probe"))
    tell("by number", os.path.lexists(f"/sys/dev/char/{NUMBER}"))
    tell("the node", os.path.lexists("/dev/snd/probe"))
    tell("/proc/devices", b"probe" in content("/proc/devices"))
    tell("the class", describe(CLASS)[:12])


walk(OWN)
for part in (links, opening, reading, directories, changing, writing, others, aborting):
    part()
