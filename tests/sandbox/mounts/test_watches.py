"""inotify and fanotify: files of a filesystem are not watched, and programs are told so."""

from __future__ import annotations

from ..conftest import Shell

BEGIN = """
IN_CREATE, IN_MODIFY, IN_DONT_FOLLOW = 0x100, 2, 0x2000000
fd = libc.inotify_init1(os.O_NONBLOCK); os.mkdir("mnt/d"); os.symlink("../beside", "mnt/out")
os.symlink("..", "mnt/up"); os.symlink("mnt/f", "in"); open("mnt/f", "w").close()
def watch(path, mask=IN_MODIFY):
    done = call("inotify_add_watch", fd, path.encode(), mask)
    return "added" if isinstance(done, int) else done
"""

INOTIFY = """
print([watch(path) for path in ("mnt", "mnt/f", "mnt/d", "in", "mnt/no", "mnt/f/x", "mnt/up/mnt")])
print(watch("mnt/out", IN_MODIFY | IN_DONT_FOLLOW), watch("in", IN_MODIFY | IN_DONT_FOLLOW))
open("mnt/f", "w").write("x"); print(attempt(os.read, fd, 4096))
print(watch("mnt/out"), watch("mnt/up", IN_CREATE), watch("mnt/d/../../beside"))
open("beside", "a").write("x"); open("new", "w").close()
print(len(os.read(fd, 4096)) > 16)
os.chdir("mnt/d"); print(watch("../.."), watch(".."), watch("."))
print(call("inotify_add_watch", -1, b"../../beside", IN_MODIFY))
"""
WATCHED = """['ENOSPC', 'ENOSPC', 'ENOSPC', 'ENOSPC', 'ENOENT', 'ENOTDIR', 'ENOSPC']
ENOSPC added
EAGAIN
added added added
True
added ENOSPC ENOSPC
EBADF
"""

FANOTIFY = """
fan = libc.fanotify_init(0x200, 0)  # FAN_REPORT_FID, which needs no rights
if fan == -1: print("none"); sys.exit()
file, top = os.open("mnt/f", os.O_RDONLY), os.open("mnt/d", os.O_RDONLY)
def mark(directory, path):
    return call("fanotify_mark", fan, 1, ctypes.c_ulong(2), directory, path)
print([mark(-100, path) for path in (b"mnt/f", b"mnt", b"mnt/no")], mark(file, None))
print(mark(top, None), mark(top, b"../f"), mark(-1, None))
print(mark(-100, b"mnt/out") == mark(-100, b"beside") == mark(top, b"../../beside"))
"""
MARKED = "['ENODEV', 'ENODEV', 'ENOENT'] ENODEV\nENODEV ENODEV EBADF\nTrue\n"


def test_a_path_out_of_the_filesystem_is_watched(client: Shell) -> None:
    assert client(BEGIN + INOTIFY) == WATCHED


def test_nothing_is_marked_that_is_not_watched(client: Shell) -> None:
    assert client(BEGIN + FANOTIFY) in {MARKED, "none\n"}
