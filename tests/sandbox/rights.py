"""What tests of programs' rights have in common."""

import os
from pathlib import Path

import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
THROUGH = "/sys/class/cuse/../../.."
"""What makes an absolute path lead through a directory of ours to the same file."""

BECOME = f"""
THROUGH = {THROUGH!r}
O_PATH, O_TMPFILE = os.O_PATH, os.O_TMPFILE
def become(uid, gid=None, groups=()):
    gid = uid if gid is None else gid
    os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
def only(effective, permitted=None):
    permitted = effective if permitted is None else permitted
    parts = [n >> shift & 0xffffffff for shift in (0, 32) for n in (effective, permitted, 0)]
    assert libc.capset(struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *parts)) == 0
def opened(path, flags=0, mode=0o600):
    fd = attempt(os.open, path, flags, mode)
    if isinstance(fd, str): return fd
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    # It is gone when a descriptor leads to the file.
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_NOFOLLOW | os.O_DIRECTORY)
    result = flags, oct(kind), attempt(os.read, fd, 9)
    os.close(fd)
    return result
def looked(path):
    def filesystem(path):
        found = os.statvfs(path)
        return found.f_flag, found.f_bsize, found.f_blocks
    calls = (os.stat, os.lstat, os.readlink, os.listdir, filesystem)
    found = [attempt(one, path) for one in calls]
    # Times of access may change.
    found[:2] = [one if isinstance(one, str) else (*one[:4], one[6]) for one in found[:2]]
    access = [os.access(path, mode, effective_ids=effective)
              for mode in (0, 1, 2, 4) for effective in (False, True)]
    return found, access
def same(function, path, *args):
    ours, theirs = function(THROUGH + path, *args), function(path, *args)
    print(theirs if ours == theirs else f'{{path}} {{args}}: {{ours}} and not {{theirs}}')
"""


def make(
    place: Path, name: str, text: str = "found", *, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> str:
    """Make a file; returns its path as a string."""
    path = place / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return str(path)
