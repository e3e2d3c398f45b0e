"""fcntl's locks of parts of files: programs get what they get natively."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import Clients, Shell

HELPERS = """
def in_child(function):
    sys.stdout.flush(); pid = os.fork()
    if pid == 0:
        try: function()
        finally: sys.stdout.flush(); os._exit(0)
    assert wait(pid) == 0
def getlk(fd, kind, start, length, command=fcntl.F_GETLK):
    data = fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, 0, start, length, 0))
    kind, whence, start, length, pid = struct.unpack("hhqqi4x", data)
    if kind == fcntl.F_UNLCK: return "free"
    return kind, start, length, {os.getpid(): "mine", os.getppid(): "my parent's"}.get(pid, pid)
def setlk(fd, kind, start, length, command=fcntl.F_SETLK):
    data = struct.pack("hhqqi4x", kind, 0, start, length, 0)
    done = attempt(fcntl.fcntl, fd, command, data)
    return done if isinstance(done, str) else 0
def text(name):
    with open(name) as file: return file.read()
path = args[0] + "/file"
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600); os.write(fd, bytes(100))
R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
DEADLOCK = errno.errorcode[errno.EDEADLK]
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
"""

SCRIPTS = {
    "conflicts": """
print(setlk(fd, W, 10, 10), setlk(fd, R, 30, 0), getlk(fd, W, 0, 0))
def other():
    print([getlk(fd, W, start, 5) for start in (0, 5, 6, 15, 20, 29, 1000)])
    print(setlk(fd, W, 0, 10), setlk(fd, R, 15, 1), setlk(fd, R, 50, 1), setlk(fd, W, 50, 1))
    print(attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 20, 0))
in_child(other)
print(setlk(fd, W, 0, 10), setlk(fd, U, 12, 3), setlk(fd, R, 16, 2))
in_child(lambda: print([getlk(fd, R, start, 1) for start in range(8, 22)], getlk(fd, W, 16, 2)))
""",
    "arguments": """
one = os.open(path, os.O_RDONLY); two = os.open(path, os.O_WRONLY)
print(setlk(one, W, 0, 1), setlk(one, R, 0, 1), setlk(two, R, 0, 1), setlk(two, W, 0, 1))
print(getlk(one, W, 0, 1), setlk(fd, 7, 0, 1), setlk(fd, W, -1, 1), setlk(fd, W, 5, -5))
print(setlk(fd, W, 2**63 - 1, 2), setlk(fd, W, 2**63 - 1, 1), setlk(fd, W, 5, -6))
os.lseek(fd, 40, 0); print(attempt(fcntl.lockf, fd, fcntl.LOCK_EX, 5, 1, 1))
print(attempt(fcntl.lockf, fd, fcntl.LOCK_EX, -5, -7, 2))
in_child(lambda: print([getlk(fd, W, start, 1) for start in (40, 41, 45, 46, 92, 93, 97, 98)]))
in_child(lambda: print(getlk(fd, W, 0, 1), getlk(fd, W, 2**63 - 1, 0)))
print(setlk(os.open(path, os.O_PATH), R, 0, 1), setlk(99, R, 0, 1))
""",
    "ends": """
def locked(): return getlk(fd, W, 0, 0)
setlk(fd, W, 0, 0); own = os.open(path, os.O_RDWR)
in_child(lambda: print(locked()))
setlk(fd, U, 0, 0)
in_child(lambda: setlk(fd, W, 0, 0))
print(locked())  # that process has ended
third = os.open(path, os.O_RDWR); setlk(third, W, 5, 5)
in_child(lambda: print(locked())); os.close(third)
in_child(lambda: print(locked()))
""",
    "first thread": """
def held():
    setlk(fd, W, 0, 0); os.write(theirs, b"a"); os.read(stay, 1); os._exit(0)
ours, theirs = os.pipe(); stay, go = os.pipe(); pid = os.fork()
if pid == 0:
    threading.Thread(target=held).start(); libc.pthread_exit(None)
os.read(ours, 1)
while " Z " not in text(f"/proc/{pid}/task/{pid}/stat"): pass
print(setlk(fd, W, 0, 1)); os.write(go, b"a"); print(wait(pid), setlk(fd, W, 0, 1))
""",
    "of a file": """
two = os.open(path, os.O_RDWR)
print(setlk(fd, W, 0, 10, OFD_SETLK), setlk(two, W, 5, 10, OFD_SETLK), setlk(two, W, 5, 10))
print(getlk(two, R, 0, 0, OFD_GETLK), getlk(fd, R, 0, 0, OFD_GETLK), getlk(fd, R, 0, 0))
copy = os.dup(fd); os.close(fd); print(setlk(two, W, 0, 1, OFD_SETLK)); os.close(copy)
print(setlk(two, W, 0, 1, OFD_SETLK))
bad = struct.pack("hhqqi4x", W, 0, 0, 1, 5); print(attempt(fcntl.fcntl, two, OFD_SETLK, bad))
""",
    "waits": """
ours, theirs = os.pipe(); setlk(fd, W, 0, 10)
pid = os.fork()
if pid == 0:
    os.write(theirs, b"a"); print(setlk(fd, W, 5, 10, fcntl.F_SETLKW), flush=True); os._exit(0)
os.read(ours, 1); setlk(fd, U, 0, 10); print(wait(pid), getlk(fd, W, 0, 0))
setlk(fd, W, 0, 1); a, b = os.pipe()
pid = os.fork()
if pid == 0:
    setlk(fd, W, 1, 1); os.write(b, b"x")
    os._exit(5 if setlk(fd, W, 0, 1, fcntl.F_SETLKW) == DEADLOCK else 6)
os.read(a, 1); mine = setlk(fd, W, 1, 1, fcntl.F_SETLKW); setlk(fd, U, 0, 0)
print((mine, wait(pid)) in ((DEADLOCK, 6), (0, 5)))
signal.signal(signal.SIGALRM, lambda *_: None); setlk(fd, W, 0, 0)
def interrupted():
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    print(call("fcntl", fd, fcntl.F_SETLKW, struct.pack("hhqqi4x", W, 0, 0, 1, 0)))
signal.siginterrupt(signal.SIGALRM, True)
in_child(interrupted)
""",
    "sqlite": """
import sqlite3
name = args[0] + "/db"; db = sqlite3.connect(name, timeout=0)
db.execute("create table t (x)"); db.commit(); db.execute("insert into t values (1)")
def other():
    second = sqlite3.connect(name, timeout=0)
    print(second.execute("select count(*) from t").fetchall())
    try: second.execute("insert into t values (2)")
    except sqlite3.OperationalError as error: print(error)
in_child(other); db.commit()
print(sqlite3.connect(name).execute("select * from t").fetchall(), sorted(os.listdir(args[0])))
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_natively(client: Shell, clients: Clients, here: Path, name: str) -> None:
    (here / "native").mkdir()
    script = HELPERS + SCRIPTS[name]
    expected = clients(None)(script, here / "native")
    assert "Traceback" not in expected
    assert client(script, here / "mnt") == expected
