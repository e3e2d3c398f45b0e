"""Devices watched by an epoll: level, edge and one shot, alone and with other files."""

import os

import pytest

from recuse.sandbox import Sandbox
from recuse.sandbox.arch import MACHINE
from recuse.sandbox.files.readiness import _LOST, Readiness
from recuse.sandbox.files.refresher import Sleeper
from tests.conftest import Needs

from ...patience import PATIENCE_S
from ..conftest import Shell, Start
from .polled import EPOLL, ERR, HUP, IN, POLL, Box, lines, program_pid, wait_asleep

PRELUDE = """
import functools, select
print = functools.partial(print, flush=True)
from select import EPOLLIN as IN, EPOLLOUT as OUT, EPOLLET as EDGE, EPOLLONESHOT as ONCE
fd = os.open("/dev/box", os.O_RDWR | os.O_NONBLOCK)
epoll = select.epoll()
def turn():
    sys.stdin.readline()
def wait(seconds=20):
    print(epoll.poll(seconds), flush=True)
"""


def test_level(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
epoll.register(fd, IN)
wait(0), wait(0.01)
os.write(fd, b"x")
wait(), wait(), wait(0)
os.read(fd, 9)
wait(0), wait(0.01)
epoll.modify(fd, IN | OUT)
wait(), wait()
os.write(fd, b"x")
wait()
epoll.unregister(fd)
wait(0)
"""
        )
    ) == [
        *["[]", "[]"],
        *["[(3, 1)]", "[(3, 1)]", "[(3, 1)]"],
        *["[]", "[]"],
        *["[(3, 4)]", "[(3, 4)]", "[(3, 5)]", "[]"],
    ]


def test_edge(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
os.write(fd, b"x")
epoll.register(fd, IN | OUT | EDGE)
wait(), wait(0)
os.write(fd, b"y")
wait(), wait(0.01)
os.read(fd, 9)
wait(0)
os.write(fd, b"z")
wait(), wait(0)
"""
        )
    ) == ["[(3, 5)]", "[]", "[(3, 5)]", "[]", "[]", "[(3, 5)]", "[]"]


def test_one_shot(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
epoll.register(fd, IN | ONCE)
os.write(fd, b"x")
wait(), wait(0.01)
os.write(fd, b"x")
wait(0.01)
epoll.modify(fd, IN | ONCE)
wait(), wait(0)
os.read(fd, 9)
epoll.modify(fd, IN | ONCE)
wait(0)
"""
        )
    ) == ["[(3, 1)]", "[]", "[]", "[(3, 1)]", "[]", "[]"]


EVENT = "=IQ" if MACHINE == "x86_64" else "@IQ"
"""``struct epoll_event``, which is packed on x86-64 only."""


@pytest.mark.parametrize("mode", ["0", "EDGE", "ONCE"])
@pytest.mark.parametrize("call", ["wait()", "wait(-1)", "pwait()", "pwait2()"])
def test_who_sleeps_is_woken(
    sandbox: Sandbox, box: Box, start: Start, mode: str, call: str
) -> None:
    script = f"""
events = ctypes.create_string_buffer(24)
def pwait(number=SYS["epoll_pwait"], *left):
    found = libc.syscall(number, epoll.fileno(), events, 2, *(left or [-1]), None, 8)
    number, data = struct.unpack_from("{EVENT}", events)
    print([(data & 0xFFFFFFFF, number)] if found == 1 else found)
def pwait2():
    pwait(SYS["epoll_pwait2"], None)
epoll.register(fd, IN | {mode})
{call}
"""
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *EPOLL)
        box.put()  # in vain
        box.wait_asked(2)
        wait_asleep(program_pid(box), *EPOLL)
        box.put(b"data")
        assert program.stdout.read() == b"[(3, 1)]\n"
        assert program.wait(PATIENCE_S) == 0
    assert [events for _, events in box.asked] == [IN | ERR | HUP] * len(box.asked)


def test_many_edges_of_a_file_that_is_only_written(
    sandbox: Sandbox, box: Box, start: Start
) -> None:
    """A writer that got EAGAIN waits for the next edge, of a device that always has had room."""
    script = """
epoll.register(fd, IN | OUT | EDGE)
wait()
for _ in range(50):
    os.write(fd, b"nothing")
    assert attempt(os.write, fd, b"nothing") == "EAGAIN"
    wait()
"""
    box.room = 1
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.readline() == b"[(3, 4)]\n"
        for number in range(50):
            box.wait_asked(2 + number)
            with box.changed:
                assert box.changed.wait_for(lambda: not box.room, PATIENCE_S)
            wait_asleep(program_pid(box), *EPOLL)
            box.put(room=1)
            assert program.stdout.readline() == b"[(3, 4)]\n"
        assert program.wait(PATIENCE_S) == 0


def test_edges_while_there_is_something_to_read(sandbox: Sandbox, box: Box, start: Start) -> None:
    script = """
epoll.register(fd, IN | EDGE)
print("ready", flush=True)
for _ in range(20): wait()
"""
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.readline() == b"ready\n"
        for _ in range(20):
            wait_asleep(program_pid(box), *EPOLL)
            box.put(b"x")
            assert program.stdout.readline() == b"[(3, 1)]\n"
        assert program.wait(PATIENCE_S) == 0


def test_with_other_files(sandbox: Sandbox, box: Box, start: Start) -> None:
    script = """
epoll.register(fd, IN)
epoll.register(0, IN)
wait(0)
wait()
turn()
wait()
os.read(fd, 9)
wait(0)
"""
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.readline() == b"[]\n"
        wait_asleep(program_pid(box), *EPOLL)
        program.stdin.write(b"\n")
        assert program.stdout.readline() == b"[(0, 1)]\n"
        wait_asleep(program_pid(box), *EPOLL)
        box.put(b"x")
        assert program.stdout.read() == b"[(3, 1)]\n[]\n"
        assert program.wait(PATIENCE_S) == 0


def test_two_epolls_and_a_copy_that_a_child_has(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
other = select.epoll()
copy = os.dup(fd)
epoll.register(fd, IN)
other.register(copy, IN | OUT)
print(other.poll(1))
if os.fork() == 0:
    os.write(copy, b"x")
    os._exit(0)
wait()
os.wait()
print(other.poll(1))
if os.fork() == 0:
    wait()
    os.read(fd, 9)
    wait(0)
    print(other.poll(1), flush=True)
    os._exit(0)
os.wait()
wait(0)
print(other.poll(1))
"""
        )
    ) == [
        *["[(6, 4)]", "[(3, 1)]", "[(6, 5)]"],
        *["[(3, 1)]", "[]", "[(6, 4)]"],
        *["[]", "[(6, 4)]"],
    ]


def test_two_entries_of_one_epoll(client: Shell) -> None:
    """One of them level-triggered, by another descriptor of the same file."""
    assert lines(
        client(
            PRELUDE
            + """
copy = os.dup(fd)
epoll.register(fd, IN)
epoll.register(copy, IN | OUT | EDGE)
wait(1), wait(0)
os.write(fd, b"x")
print(sorted(epoll.poll(20))), wait(0)
os.read(fd, 9)
wait(0), wait(0.01)
epoll.unregister(copy)
os.write(fd, b"x")
wait(), wait()
os.read(fd, 9)
wait(0), wait(0.01)
"""
        )
    ) == [
        *["[(5, 4)]", "[]"],
        *["[(3, 1), (5, 5)]", "[(3, 1)]"],
        *["[]", "[]"],
        *["[(3, 1)]", "[(3, 1)]"],
        *["[]", "[]"],
    ]


def test_an_epoll_that_is_polled_itself(sandbox: Sandbox, box: Box, start: Start) -> None:
    """As libinput's users do."""
    script = """
epoll.register(fd, IN)
outer = select.poll()
outer.register(epoll.fileno(), 1)
print(outer.poll(0), flush=True)
print(outer.poll(), epoll.poll(), os.read(fd, 9), epoll.poll(0), outer.poll(0))
"""
    with start(sandbox, PRELUDE + script) as program:
        assert program.stdout.readline() == b"[]\n"
        wait_asleep(program_pid(box), *POLL)
        box.put(b"x")
        assert program.stdout.read() == b"[(4, 1)] [(3, 1)] b'x' [] []\n"
        assert program.wait(PATIENCE_S) == 0


def test_bad_arguments(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
print(attempt(epoll.register, 99, IN), attempt(epoll.modify, fd, IN))
epoll.register(fd, IN)
print(attempt(epoll.register, fd, IN), attempt(select.epoll.fromfd(0).register, fd, IN))
print(call("epoll_ctl", epoll.fileno(), 3, fd, ctypes.c_void_p(8)))
print(call("epoll_ctl", epoll.fileno(), 9, fd, None))
path = os.open("/dev/box", os.O_PATH)
print(attempt(epoll.register, path, IN))
print(call("epoll_wait", epoll.fileno(), None, 0, 0), call("epoll_wait", 99, None, 1, 0))
"""
        )
    ) == ["EBADF ENOENT", "EEXIST EINVAL", "EFAULT", "EFAULT", "EBADF", "EINVAL EBADF"]


def test_the_end_of_the_device_wakes_who_waits(sandbox: Sandbox, box: Box, start: Start) -> None:
    script = """
epoll.register(fd, IN)
wait()
os.close(fd)
wait(0)
"""
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *EPOLL)
        assert sandbox._machine is not None
        (device,) = sandbox._machine.table
        device.connection.abort()
        ((number, events),) = eval(program.stdout.readline())
        assert number == 3
        assert events & ERR
        assert program.stdout.read() == b"[]\n"
        assert program.wait(PATIENCE_S) == 0


def test_selectors_and_asyncio(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
import asyncio, selectors
chosen = selectors.DefaultSelector()
chosen.register(fd, selectors.EVENT_READ | selectors.EVENT_WRITE, "box")
print([(key.data, events) for key, events in chosen.select(5)])
chosen.close()
async def main():
    loop = asyncio.get_running_loop()
    got = asyncio.Queue()
    def read():
        got.put_nowait(os.read(fd, 9))
    loop.add_reader(fd, read)
    for number in range(5):
        loop.call_later(0.001, os.write, fd, b"%d" % number)
        print(await asyncio.wait_for(got.get(), 20))
    loop.remove_reader(fd)
    written = loop.create_future()
    loop.add_writer(fd, lambda: written.done() or written.set_result("writable"))
    print(await written)
asyncio.run(main())
"""
        )
    ) == ["[('box', 2)]", *(f"b'{number}'" for number in range(5)), "writable"]


def test_programs_that_watch_no_device_are_not_asked_for(client: Shell, box: Box) -> None:
    client(
        PRELUDE
        + """
a, b = os.pipe()
epoll.register(a, IN)
wait(0)
os.write(b, b"x")
wait()
"""
    )
    assert box.asked == []


def test_node_goes_on_beside_it(sandbox: Sandbox, box: Box, needs: Needs) -> None:
    """Its event loop is an epoll; files of devices are read by its pool of threads."""
    script = """
const fs = require("fs");
const reader = fs.createReadStream("/dev/box", {end: 3});
reader.on("data", data => { console.log(String(data)); });
setTimeout(() => console.log("later"), 5);
"""
    box.data = b"data"
    done = sandbox.run(
        [str(needs("node", "nodejs")), "-e", script],
        capture_output=True,
        timeout=PATIENCE_S,
        env={**os.environ, "UV_USE_IO_URING": "0"},
    )
    assert sorted(done.stdout.split()) == [b"data", b"later"], done.stderr


def test_who_is_gone_is_forgotten(client: Shell, sandbox: Sandbox) -> None:
    """Of thousands that wait, each once, and end."""
    script = """
epoll.register(fd, IN)
poll = select.poll()
poll.register(fd, IN)
for _ in range(300):
    if not (child := os.fork()):
        epoll.poll(0)
        poll.poll(1)
        os._exit(0)
    os.waitpid(child, 0)
print(epoll.poll(0))
sys.stdin.close()
"""
    assert sandbox._machine is not None
    refresher = sandbox._machine.files.refresher
    most = 0

    class Sleepers(dict[int, Sleeper]):
        def __setitem__(self, tid: int, who: Sleeper) -> None:
            nonlocal most
            super().__setitem__(tid, who)
            polling = [
                len(one._sleepers) for one in refresher.watched if isinstance(one, Readiness)
            ]
            most = max(most, len(self), *polling)

    refresher.sleepers = Sleepers()
    assert client(PRELUDE + script) == "[]\n"
    assert 0 < most < 200


def test_epolls_that_are_closed_are_forgotten(sandbox: Sandbox, box: Box, start: Start) -> None:
    """But for those that live on in a child, or behind another number."""
    script = """
epoll.register(fd, IN)
if os.fork() == 0:
    wait()
    os._exit(0)
copy = select.epoll.fromfd(os.dup(epoll.fileno()))
epoll.close()
for number in range(10, 1010):
    epoll = select.epoll()
    os.dup2(epoll.fileno(), number)
    epoll.close()
    epoll = select.epoll.fromfd(number)
    epoll.register(fd, IN | EDGE)
    epoll.close()
turn()
epoll = copy
wait()
"""
    assert sandbox._machine is not None
    refresher = sandbox._machine.files.refresher
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(1001)
        (readiness,) = refresher.watched
        assert isinstance(readiness, Readiness)
        assert len(readiness._watches) <= 64
        for key in set(readiness._watches) - {_LOST}:
            readiness.unwatch(key)
        (child,) = refresher.sleepers
        wait_asleep(child, *EPOLL)
        box.put(b"x")
        assert program.stdout.readline() == b"[(3, 1)]\n"
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"[(3, 1)]\n"
        assert program.wait(PATIENCE_S) == 0
