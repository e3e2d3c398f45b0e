"""Locks of parts of files that the server keeps: they end with the process that has locked."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os

from recuse import Directory, Filesystem, Lock, OpenFile, OpenRequest, RegularFile

from .as_linux import in_sandbox


class Locked(Filesystem):
    """A file that one owner at a time can lock, whatever bytes it names."""

    posix_locks = True

    def __init__(self) -> None:
        holders: list[int] = []
        changed = asyncio.Condition()

        class Open(OpenFile):
            async def get_lock(self, lock: Lock, owner: int) -> Lock:
                if holders and holders != [owner]:
                    return Lock(fcntl.F_WRLCK, pid=1)
                return Lock(fcntl.F_UNLCK)

            async def set_lock(self, lock: Lock, owner: int, wait: bool) -> None:
                async with changed:
                    if lock.type == fcntl.F_UNLCK:
                        if holders == [owner]:
                            holders.clear()
                            changed.notify_all()
                        return
                    while holders and holders != [owner]:
                        if not wait:
                            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                        await changed.wait()
                    holders[:] = [owner]

        class Node(RegularFile):
            mode = 0o666
            size = 0

            def open(self, request: OpenRequest) -> OpenFile:
                return Open()

        super().__init__(Directory({"f": Node()}))


BEGIN = """
fd = os.open("mnt/f", os.O_RDWR); other = os.open("mnt/f", os.O_RDWR)
now = fcntl.LOCK_EX | fcntl.LOCK_NB
def child(function):
    sys.stdout.flush(); pid = os.fork()
    if not pid: function(); sys.stdout.flush(); os._exit(0)
    return pid
def locked(): print(attempt(fcntl.lockf, fd, now), flush=True)
"""

ENDS = """
wait(child(locked)); locked(); wait(child(locked))
print(attempt(os.close, other)); wait(child(locked)); locked()
r, w = os.pipe(); q, v = os.pipe()
def held(): locked(); os.write(v, b"1"); os.read(r, 1)
fcntl.lockf(fd, fcntl.LOCK_UN); pid = child(held); os.read(q, 1); locked()
def waits(): print(fcntl.lockf(fd, fcntl.LOCK_EX), flush=True)
thread = threading.Thread(target=waits); thread.start()
while open(f"/proc/self/task/{thread.native_id}/stat").read().split()[2] != "S": pass
os.kill(pid, 9); thread.join(); wait(pid); wait(child(locked))
"""
ENDED = "None\nNone\nEAGAIN\nNone\nNone\nNone\nNone\nEAGAIN\nNone\nEAGAIN\n"


def test_locks_end_with_their_process() -> None:
    assert in_sandbox(Locked, BEGIN + ENDS) == ENDED
