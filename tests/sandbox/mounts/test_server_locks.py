"""Locks of parts of files that the server keeps: they end with the process that has locked."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os

import pytest

from recuse import Directory, Filesystem, Lock, OpenFile, OpenRequest, RegularFile

from .as_linux import in_sandbox


class Locked(Filesystem):
    """A file that one owner at a time can lock, whatever bytes it names.

    ``counts`` beside it says how many wait, and how many closes there were. Who is ``stubborn`` is
    not interrupted.
    """

    posix_locks = True

    def __init__(self, stubborn: bool = False) -> None:
        holders: list[int] = []
        changed = asyncio.Condition()
        waiting: list[int] = []
        flushes: list[None] = []

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
                        waiting.append(owner)
                        try:
                            await changed.wait()
                        except asyncio.CancelledError:
                            if not stubborn:
                                raise
                        finally:
                            waiting.remove(owner)
                    holders[:] = [owner]

            def flush(self) -> None:
                flushes.append(None)

        class Node(RegularFile):
            mode = 0o666
            size = 0

            def open(self, request: OpenRequest) -> OpenFile:
                return Open()

        class Counts(RegularFile):
            size = None

            def read(self, size: int, offset: int) -> bytes:
                return f"{len(waiting)} {len(flushes)}".encode()[offset : offset + size]

        super().__init__(Directory({"f": Node(), "counts": Counts()}))


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
KILLED_WHILE_WAITING = """
def waits(): fcntl.lockf(fd, fcntl.LOCK_EX); print("locked", flush=True)
def counts(): return [int(n) for n in open("mnt/counts").read().split()]
def until(number):
    while counts()[0] != number: pass
locked(); first = child(waits); until(1); second = child(waits); until(2)
before = counts()[1]; os.kill(first, 9)
while counts()[1] == before: pass
fcntl.lockf(fd, fcntl.LOCK_UN)
wait(first); wait(second); print(fcntl.lockf(fd, fcntl.LOCK_EX))
"""
ENDED = "None\nNone\nEAGAIN\nNone\nNone\nNone\nNone\nEAGAIN\nNone\nEAGAIN\n"


def test_locks_end_with_their_process() -> None:
    assert in_sandbox(Locked, BEGIN + ENDS) == ENDED


@pytest.mark.parametrize("stubborn", [False, True])
def test_who_is_killed_gets_no_lock(stubborn: bool) -> None:
    script = BEGIN + KILLED_WHILE_WAITING
    assert in_sandbox(lambda: Locked(stubborn), script) == "None\nlocked\nNone\n"
