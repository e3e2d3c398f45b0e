"""Many programs at once, which do random things and are killed at random moments."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import Compiled

SECONDS = 60

SUPERVISOR = """
import asyncio, gc, json, os, random, struct, subprocess, sys, threading, time
from ctypes import Structure, c_uint64
from recuse import IO, IOWR, Device, File, Memory, ioctl
from recuse.sandbox import Sandbox

class Nested(Structure):
    _fields_ = (("length", c_uint64), ("address", c_uint64))

class Counter:
    def __init__(self):
        self.lock, self.begun, self.ended = threading.Lock(), 0, 0
    def __enter__(self):
        with self.lock:
            self.begun += 1
    def __exit__(self, *_):
        with self.lock:
            self.ended += 1

requests, files = Counter(), Counter()

class Some(File):
    released = False
    def read(self, size, offset):
        with requests:
            if random.random() < 0.01:
                time.sleep(random.random() / 50)
            return bytes(random.choice((size, size, size // 2)))
    async def write(self, data, offset):
        with requests:
            if random.random() < 0.1:
                await asyncio.sleep(random.random() / 50)
            return random.choice((len(data), len(data), len(data) // 2))
    @ioctl(IOWR(0x56, 1, c_uint64), c_uint64)
    def swap(self, value):
        with requests:
            return ~value & (1 << 64) - 1
    @ioctl(IO(0x56, 2))
    async def nested(self, argument: int, memory: Memory):
        with requests:
            nested = memory.read_struct(argument, Nested)
            memory.write(nested.address, bytes([2]) * nested.length)
            return nested.length
    def release(self):
        assert not self.released
        self.released = True
        files.__exit__()

class Answers:
    # Which requests have no answer yet, and how many had two.
    def __init__(self):
        self.lock, self.open, self.count, self.wrong = threading.Lock(), set(), 0, 0
    def request(self, message):
        opcode, unique = struct.unpack_from("=4xIQ", message)
        if opcode != 36:  # INTERRUPT
            with self.lock:
                self.open.add(unique)
                self.count += 1
    def reply(self, message):
        (unique,) = struct.unpack_from("=8xQ", message)
        if unique and not unique & 1:
            with self.lock:
                self.wrong += unique not in self.open
                self.open.discard(unique)
    def added(self, name, major, minor): pass
    def removed(self): pass

class Soak(Device):
    name = "soak"
    def open(self, request):
        files.__enter__()
        return Some()

def resident():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def facts():
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
            "resident": resident()}

program, seconds = sys.argv[1], int(sys.argv[2])
before = facts()
answers = Answers()
with Sandbox(Soak(), tap=lambda: answers) as sandbox:
    argv = [program, "/dev/soak", "64", "4"]
    warm = sandbox.run([*argv, str(max(seconds // 6, 2)), "1"], stdout=subprocess.PIPE, text=True)
    middle = facts()
    done = sandbox.run([*argv, str(seconds), "2"], stdout=subprocess.PIPE, text=True)
    sandbox._machine.files.settle(30)  # a machine that is busy may take longer than run waits
    waiting = [device.connection.waiting for device in sandbox._machine.table]
    held = len(sandbox._machine.files)
    after = facts()
result = {
    "status": [warm.returncode, done.returncode], "killed": done.stdout,
    "waiting": waiting, "held": held, "unanswered": len(answers.open), "wrong": answers.wrong,
    "answered": answers.count,
    "files": [files.begun, files.ended], "requests": [requests.begun, requests.ended],
    "before": before, "middle": middle, "after": after, "end": facts(),
}
print(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.timeout(5 * SECONDS)
def test_nothing_is_lost_or_left_behind(compiled: Compiled) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, compiled("soak"), str(SECONDS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["status"] == [0, 0]
    assert int(found["killed"]) > SECONDS
    assert (found["waiting"], found["held"], found["unanswered"], found["wrong"]) == ([0], 0, 0, 0)
    assert found["answered"] > 1000
    for begun, ended in (found["files"], found["requests"]):
        assert begun == ended > 1000
    # A few stay open for processes that ended last, until the next one starts.
    assert found["after"]["descriptors"] < found["before"]["descriptors"] + 64
    # What the first part needed has been asked for; the rest does as well with that.
    assert found["after"]["resident"] < found["middle"]["resident"] * 1.25
    assert found["end"]["descriptors"] == found["before"]["descriptors"]
