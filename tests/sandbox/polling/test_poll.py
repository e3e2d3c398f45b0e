"""poll and select of devices, with other files and without, as on Linux's CUSE."""

import asyncio
import errno
import os
import select
import subprocess
import threading
from typing import cast

import pytest

from recuse import Device, File, OpenRequest
from recuse.sandbox import Sandbox
from recuse.sandbox.abilities import may_fetch
from tests.conftest import Needs

from ...patience import PATIENCE_S
from ..conftest import Clients, Compiled, Shell, Start
from .polled import (
    ERR,
    HUP,
    IN,
    OUT,
    POLL,
    PRELUDE,
    PRI,
    SELECT,
    Box,
    lines,
    program_pid,
    wait_asleep,
)


def test_poll_tells_what_the_device_is_ready_for(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
print(poll(0, (fd, IN | OUT)), poll(0, (fd, IN)), poll(5, (fd, IN)), poll(-1, (fd, OUT)))
os.write(fd, b"x")
print(poll(0, (fd, IN | OUT)), poll(-1, (fd, IN)), poll(10, (fd, 0)), poll(10, (fd, PRI)))
os.read(fd, 9)
print(poll(0, (fd, IN)), poll(5, (fd, IN)))
"""
        )
    ) == [
        "[(3, 4)] [] [] [(3, 4)]",
        "[(3, 5)] [(3, 1)] [] []",
        "[] []",
    ]


@pytest.mark.parametrize(
    ("extra", "polled", "chosen"),
    [
        (PRI, [(3, PRI)], "[] [3] [3]"),
        (ERR, [(3, ERR)], "[3] [3] []"),
        (HUP, [(3, HUP)], "[3] [3] []"),
        (-errno.EIO, [(3, ERR)], "[3] [3] []"),
        (select.POLLRDHUP, [], "[] [3] []"),
    ],
)
def test_what_sockets_do_not_say(
    client: Shell, box: Box, extra: int, polled: str, chosen: str
) -> None:
    """Also among other files, of which the kernel tells."""
    box.extra = extra
    output = client(
        PRELUDE
        + """
a, b = os.pipe()
print(poll(0, (fd, PRI)), poll(5, (fd, PRI)))
print(poll(0, (fd, PRI), (a, IN)), poll(5, (a, IN), (fd, PRI), (b, OUT)))
print(*select.select([fd], [fd], [fd]))
print(*select.select([fd, a], [fd, b], [fd, a], 5))
"""
    )
    mixed = [*polled, (5, OUT)]
    ins, outs, others = chosen.split()
    assert lines(output) == [
        f"{polled} {polled}",
        f"{polled} {mixed}",
        chosen,
        f"{ins} {'[3, 5]' if outs == '[3]' else '[5]'} {others}",
    ]


WAITS = {
    "poll": ("poll(-1, (fd, IN))", POLL, "[(3, 1)]"),
    "poll for a time": ("poll(20000, (fd, IN))", POLL, "[(3, 1)]"),
    "poll with others": ("poll(-1, (0, IN), (fd, IN), (os.pipe()[0], IN))", POLL, "[(3, 1)]"),
    "ppoll": ("[call('ppoll', pollfd, 1, None, None), pollfd[6]]", POLL, "[1, 1]"),
    "select": ("select.select([fd], [], [])", SELECT, "([3], [], [])"),
    "select with others": ("select.select([0, fd], [], [0, fd], 20)", SELECT, "([3], [], [])"),
}


@pytest.mark.parametrize("wait", WAITS)
def test_who_sleeps_is_woken(sandbox: Sandbox, box: Box, start: Start, wait: str) -> None:
    call, numbers, result = WAITS[wait]
    pollfd = "pollfd = bytearray(struct.pack('=ihh', fd, 1, 0))\n"
    pollfd += "pollfd = (ctypes.c_char * 8).from_buffer(pollfd)\n"
    call = call.replace("pollfd[6]", "pollfd.raw[6]")
    with start(sandbox, PRELUDE + pollfd + f"print({call}, os.read(fd, 9))") as program:
        box.wait_asked(1)
        wait_asleep(box.asked[0][0], *numbers)
        box.put()  # in vain
        box.wait_asked(2)
        wait_asleep(box.asked[0][0], *numbers)
        box.put(b"data")
        assert program.stdout.read().decode() == f"{result} b'data'\n"
        assert program.wait(PATIENCE_S) == 0
    # Who has to lend its descriptor for it makes its call twice.
    asked = [events & IN for _, events in box.asked]
    assert asked == [IN] * (3 if may_fetch() else len(asked))


def test_what_changes_while_the_device_is_asked_is_not_missed(
    sandbox: Sandbox, client: Shell
) -> None:
    """It says that there is nothing, and before that answer arrives, that there is something."""

    class Late(File):
        told = False

        def poll(self, events: int) -> int:
            if self.told:
                return select.POLLIN
            self.told = True
            self.wake_pollers()
            return 0

    class LateDevice(Device):
        name = "late"

        def open(self, request: OpenRequest) -> File:
            return Late()

    with Sandbox(LateDevice()) as other:
        script = PRELUDE.replace("/dev/box", "/dev/late")
        argv = ["python3", "-c", "import os\n" + script + "print(poll(20000, (fd, IN)))"]
        done = other.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "[(3, 1)]\n"


def test_who_waits_to_write_is_woken(sandbox: Sandbox, box: Box, start: Start) -> None:
    box.room = 0
    script = PRELUDE + "print(poll(-1, (fd, OUT)), os.write(fd, b'nothing'), poll(5, (fd, OUT)))"
    with start(sandbox, script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        box.put(room=1)
        assert program.stdout.read().decode() == "[(3, 4)] 7 []\n"
        assert program.wait(PATIENCE_S) == 0


def test_an_urgent_event_wakes(sandbox: Sandbox, box: Box, start: Start) -> None:
    with start(sandbox, PRELUDE + "print(poll(-1, (fd, PRI)), poll(0, (fd, IN | PRI)))") as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        box.put(extra=PRI)
        assert program.stdout.read().decode() == "[(3, 2)] [(3, 2)]\n"
        assert program.wait(PATIENCE_S) == 0


def test_what_was_urgent_is_so_no_more(sandbox: Sandbox, box: Box, start: Start) -> None:
    script = """
print(poll(-1, (fd, PRI)), flush=True)
os.read(0, 1)
print(poll(1, (fd, PRI)), select.select([], [], [fd], 0.001), poll(1, (fd, IN)))
"""
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        box.put(extra=PRI)
        assert program.stdout.readline() == b"[(3, 2)]\n"
        with box.changed:
            box.extra = 0
        program.stdin.write(b"x")
        program.stdin.flush()
        assert program.stdout.read().decode() == "[] ([], [], []) []\n"
        assert program.wait(PATIENCE_S) == 0


def test_other_files_wake_too(sandbox: Sandbox, box: Box, start: Start) -> None:
    script = PRELUDE + "print(poll(-1, (0, IN), (fd, IN)), select.select([0, fd], [], [], 5)[0])"
    with start(sandbox, script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        program.stdin.write(b"x")
        assert program.stdout.read().decode() == "[(0, 1)] [0]\n"
        assert program.wait(PATIENCE_S) == 0


def test_many_threads_and_processes_wait_for_one_file(
    sandbox: Sandbox, box: Box, start: Start
) -> None:
    script = """
def wait_for(events):
    assert poll(-1, (fd, events)) == [(fd, events)]
    os.write(1, b".")
def several():
    threads = [threading.Thread(target=wait_for, args=(events,)) for events in [IN, PRI] * 3]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
if os.fork() == 0:
    several()
    os._exit(0)
several()
assert os.wait()[1] == 0
"""
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(12)
        for tid in {tid for tid, _ in box.asked}:
            wait_asleep(tid, *POLL)
        box.put(extra=PRI)
        assert program.stdout.read(1) == b"."
        box.put(b"x", extra=PRI)
        output = b"."
        while len(output) < 12 and (more := program.stdout.read(12)):
            output += more
        assert output == b"." * 12
        assert program.wait(PATIENCE_S) == 0


def test_copies_of_a_descriptor_are_one_file(client: Shell, box: Box) -> None:
    assert lines(
        client(
            PRELUDE
            + """
copy = os.dup2(fd, 100)
os.close(fd)
print(poll(5, (copy, IN)))
if os.fork() == 0:
    os.write(os.open("/dev/null", os.O_RDWR), b"")
    os.write(copy, b"x")
    os._exit(0)
print(poll(-1, (copy, IN)))
os.wait()
again = os.open("/proc/self/fd/100", os.O_RDWR)
print(poll(0, (copy, IN), (again, OUT)), select.select([copy, again], [], [], 5)[0])
"""
        )
    ) == ["[]", "[(100, 1)]", "[(3, 4), (100, 1)] [100, 3]"]


def test_a_file_that_is_closed_while_it_is_polled(sandbox: Sandbox, box: Box, start: Start) -> None:
    script = """
def wait_for():
    print(poll(-1, (fd, IN)), flush=True)
thread = threading.Thread(target=wait_for)
thread.start()
sys.stdin.readline()
os.close(fd)
print("closed", flush=True)
thread.join()
"""
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        program.stdin.write(b"\n")
        assert program.stdout.readline() == b"closed\n"
        assert len(box.files) == 1
        box.put(b"x")
        # As in Linux, where each look at the file begins with its number (do_pollfd).
        assert program.stdout.readline() == b"[(3, 32)]\n"
        box.wait_released()
        assert program.wait(PATIENCE_S) == 0


def test_timeouts_are_not_shorter_than_asked(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
def timed(seconds, call):
    began = time.monotonic()
    call()
    return time.monotonic() - began >= seconds
print(timed(0.03, lambda: poll(30, (fd, IN))), timed(0.03, lambda: poll(30, (fd, IN), (0, PRI))))
print(timed(0.03, lambda: select.select([fd], [], [], 0.03)))
print(select.select([fd], [], [], 0), poll(0, (fd, IN)))
left = (ctypes.c_long * 2)(5, 0)
pollfd = ctypes.create_string_buffer(struct.pack("=ihh", fd, OUT, 0))
print(call(SYS["ppoll"], pollfd, 1, left, None, 8), pollfd.raw[6], left[0], left[1] > 10**8)
left = (ctypes.c_long * 2)(0, 5000)
pollfd = ctypes.create_string_buffer(struct.pack("=ihh", fd, IN, 0))
print(call(SYS["ppoll"], pollfd, 1, left, None, 8), list(left))
print(call("ppoll", pollfd, 1, (ctypes.c_long * 2)(-1, 0), None))
"""
        ),
    ) == ["True True", "True", "([], [], []) []", "1 4 4 True", "0 [0, 0]", "EINVAL"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_signal_ends_a_wait(sandbox: Sandbox, box: Box, start: Start, restart: bool) -> None:
    """poll(2) is never restarted."""
    script = (
        PRELUDE
        + f"restart = {restart}\n"
        + """
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"handled "))
signal.siginterrupt(signal.SIGUSR1, not restart)
pollfd = ctypes.create_string_buffer(struct.pack("=ihh", fd, IN, 0))
print(call("poll", pollfd, 1, -1))
"""
    )
    with start(sandbox, script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        os.kill(program_pid(box), 10)
        assert program.stdout.read() == b"handled EINTR\n"
        assert program.wait(PATIENCE_S) == 0


def test_a_signal_mask_for_the_time_of_the_wait(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
pollfd = ctypes.create_string_buffer(struct.pack("=ihh", fd, IN, 0))
print(call("poll", pollfd, 1, 10))
print(call(SYS["ppoll"], pollfd, 1, None, ctypes.create_string_buffer(8), 8))
print(call(SYS["ppoll"], pollfd, 1, (ctypes.c_long * 2)(0, 1000), None, 8))
"""
        )
    ) == ["0", "handled", "EINTR", "0"]


def test_bad_arguments(client: Shell) -> None:
    assert lines(
        client(
            PRELUDE
            + """
pollfd = ctypes.create_string_buffer(struct.pack("=ihh", fd, OUT, 0))
print(call("poll", ctypes.c_void_p(8), 1, 0), call("poll", pollfd, 0, 0))
print(call("select", fd + 1, ctypes.c_void_p(8), None, None, None), call("select", -1, 0, 0, 0, 0))
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
page[0:8] = pollfd.raw[:8]
libc.mprotect(ctypes.c_void_p(address), 4096, 1)
print(call("poll", ctypes.c_void_p(address), 1, 0))
print(poll(0, (77, IN), (fd, OUT)), poll(0, (77, IN), (fd, IN)))
os.close(fd)
print(poll(0, (fd, OUT)))
fd = os.open("/dev/box", os.O_PATH)
print(poll(0, (fd, OUT)), poll(5, (fd, OUT), (0, PRI)))
"""
        )
    ) == [
        "EFAULT 0",
        "EFAULT EINVAL",
        "EFAULT",
        "[(3, 4), (77, 32)] [(77, 32)]",
        "[(3, 32)]",
        "[(3, 32)] [(3, 32)]",
    ]


def test_a_device_without_poll_is_asked_once(clients: Clients) -> None:
    class Plain(Device):
        name = "box"
        asked = 0

        def open(self, request: OpenRequest) -> File:
            return PlainFile()

    class PlainFile(File):
        device: Plain
        answer = b""

        def poll(self, events: int) -> int:
            self.device.asked += 1
            return cast(int, super().poll(events))

        def write(self, data: bytes, offset: int) -> None:
            self.answer = data.upper()

        def read(self, size: int, offset: int) -> bytes:
            return self.answer[offset : offset + size]

    plain = Plain()
    with Sandbox(plain) as sandbox:
        output = clients(sandbox)(
            PRELUDE
            + """
os.write(fd, b"command")
print(poll(1000, (fd, IN)), os.read(fd, 100))
print(poll(-1, (fd, IN | OUT)), poll(5, (fd, PRI)), poll(-1, (fd, IN), (0, PRI)))
print(*select.select([fd], [fd], [fd]))
"""
        )
    assert lines(output) == [
        "[(3, 1)] b'COMMAND'",
        "[(3, 5)] [] [(3, 1)]",
        "[3] [3] []",
    ]
    assert plain.asked == 1


@pytest.mark.parametrize("others", ["", ", (0, IN)"])
def test_the_end_of_the_device_wakes_who_waits(
    sandbox: Sandbox, box: Box, start: Start, others: str
) -> None:
    script = f"""
print(poll(-1, (fd, 0){others}), flush=True)
print(poll(-1, (fd, IN){others}), poll(0, (fd, OUT)), select.select([fd], [fd], [fd], 5))
copy = os.dup(fd)
os.close(fd)
print(attempt(os.read, copy, 9), poll(0, (copy, IN)))
os.close(copy)
print(sorted(os.listdir("/proc/self/fd")) == ["0", "1", "2", "3"])
"""
    with start(sandbox, PRELUDE + script) as program:
        box.wait_asked(1)
        wait_asleep(program_pid(box), *POLL)
        assert sandbox._machine is not None
        (device,) = sandbox._machine.table
        device.connection.abort()
        (events,) = eval(program.stdout.readline())
        assert events[1] & ERR
        assert program.stdout.read().decode().splitlines() == [
            "[(3, 8)] [(3, 8)] ([3], [3], [])",
            "ENOTCONN [(4, 8)]",
            "True",
        ]
        assert program.wait(PATIENCE_S) == 0
    sandbox._machine.files.settle(PATIENCE_S)
    assert len(sandbox._machine.files) == 0


def test_a_device_that_is_slow_to_answer_keeps_nobody_waiting(
    box: Box, clients: Clients, start: Start
) -> None:
    """Neither in a method that blocks, nor in one that is awaited."""
    go_on = threading.Event()
    entered = threading.Semaphore(0)

    class Blocks(File):
        def poll(self, events: int) -> int:
            entered.release()
            assert go_on.wait(PATIENCE_S)
            return select.POLLIN

    class Awaits(File):
        async def poll(self, events: int) -> int:
            entered.release()
            await asyncio.to_thread(go_on.wait, PATIENCE_S)
            return select.POLLIN

    class Slow(Device):
        def open(self, request: OpenRequest) -> File:
            return Blocks() if self.name == "blocks" else Awaits()

    with Sandbox(box, Slow(name="blocks"), Slow(name="awaits")) as sandbox:
        script = """
import select
fds = [os.open(name, os.O_RDWR) for name in args]
print(select.select(fds, [], [], 0)[0])
"""
        with (
            start(sandbox, script, "/dev/blocks") as first,
            start(sandbox, script, "/dev/awaits", "/dev/blocks") as second,
        ):
            for _ in range(2):
                assert entered.acquire(timeout=PATIENCE_S)
            assert clients(sandbox)(PRELUDE + "print(poll(0, (fd, OUT)))") == "[(3, 4)]\n"
            go_on.set()
            assert first.stdout.read() == b"[3]\n"
            assert second.stdout.read() == b"[3, 4]\n"


def test_several_devices_whose_poll_is_async(clients: Clients) -> None:
    """Who is answered by the event loop's thread asks the next one there, which answers there."""

    class Awaits(File):
        async def poll(self, events: int) -> int:
            return select.POLLOUT

    class Slow(Device):
        def open(self, request: OpenRequest) -> File:
            return Awaits()

    script = """
import select
fds = [os.open("/dev/" + name, os.O_RDWR) for name in "abc"]
poll, epoll = select.poll(), select.epoll()
for fd in fds: poll.register(fd, select.POLLIN | select.POLLOUT)
for fd in fds: epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)
print(poll.poll(0), sorted(epoll.poll(0)), select.select(fds, fds, [], 0)[:2])
"""
    with Sandbox(*(Slow(name=name) for name in "abc")) as sandbox:
        ready = [(3, 4), (4, 4), (5, 4)]
        assert clients(sandbox)(script) == f"{ready} {ready} ([], [3, 4, 5])\n"


def test_socat_copies_both_ways(sandbox: Sandbox, box: Box, needs: Needs) -> None:
    needs("socat", "socat")
    with sandbox.popen(
        ["socat", "-T", str(PATIENCE_S), "-", "/dev/box"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as program:
        box.wait_asked(1)
        assert program.stdin is not None
        program.stdin.write(b"ping")
        assert program.stdout is not None
        assert program.stdout.read(9) == b"ping"
        box.put(b"from the device")
        assert program.stdout.read(99) == b"from the device"
        program.kill()
        program.wait(PATIENCE_S)


@pytest.mark.parametrize("flags", [[], ["-m32"]], ids=["64", "32"])
def test_each_call_by_its_number(
    sandbox: Sandbox, compiled: Compiled, needs: Needs, flags: tuple[str, ...]
) -> None:
    if flags:
        needs("/usr/include/asm", package="gcc-multilib")
    program = compiled("poll", "-static", *flags)
    done = sandbox.run([program], capture_output=True, text=True, timeout=PATIENCE_S)
    # Beyond the sets' words nothing is written; device 4 is writable, not readable.
    polls = ["ppoll", "ppoll_time64"] if flags else ["ppoll"]
    selects = ["_newselect", "pselect6", "pselect6_time64"] if flags else ["select", "pselect6"]
    assert lines(done.stdout) == [
        "poll: 1 4",
        *(line for name in polls for line in (f"{name}: 1 4", "1")),
        *(line for name in selects for line in (f"{name}: 1 71000", "1")),
        *(["select: 1 10"] if flags else []),
        "epoll_ctl: 0 0",
        "epoll_wait: 1 4",
        "1234567890",
    ]
