"""A device at an opened /dev/cuse: a descriptor behind which is recuse's own kernel half."""

import contextlib
import errno
import logging
import os
import queue
import select
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from ctypes import Structure, c_int
from types import SimpleNamespace
from typing import Any

import pytest

from recuse import IOWR, Device, File, OpenRequest, current_request, ioctl
from recuse.channel import devcuse
from recuse.channel.devcuse import Channel, DevCuse, KernelError, serve_kernel
from recuse.channel.signals import ending_signals
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import DeviceTable
from recuse.wire.cuse import CUSE_INIT
from recuse.wire.fuse import FUSE_OPEN, FUSE_RELEASE

from ...lock_watch import elsewhere
from .test_inprocess import WAIT_S, Program


class FakeOs:
    """The module os, with a /dev/cuse of its own.

    A descriptor of it is an eventfd, which is readable when the connection has something.
    """

    def __init__(self) -> None:
        self.table = DeviceTable()
        self.cuse: dict[int, CuseChannel] = {}
        self.open_error: int | None = None
        self.read_errors: list[int] = []
        self.sizes: list[int] = []
        self.nodes: dict[str, SimpleNamespace | None] = {}
        self.path = SimpleNamespace(lexists=self.exists, exists=self.exists)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def channel_of(self, name: str) -> CuseChannel:
        (found,) = [one for one in self.cuse.values() if one.device and one.device.name == name]
        return found

    def exists(self, path: str) -> bool:
        return path in self.nodes

    def stat(self, path: str) -> SimpleNamespace | None:
        if path not in self.nodes:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return self.nodes[path]

    def open(self, path: str, flags: int) -> int:
        assert (path, flags) == ("/dev/cuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if self.open_error is not None:
            raise OSError(self.open_error, os.strerror(self.open_error))
        number = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        cuse = self.cuse[number] = CuseChannel(self.table)

        def wake() -> None:
            # Not after `close`, when the number may be another's.
            if self.cuse.get(number) is cuse:
                os.eventfd_write(number, 1)

        cuse.connection.on_pending = wake
        cuse.connection.at_end(wake)
        return number

    def read(self, number: int, size: int) -> bytes:
        self.sizes.append(size)
        # In this order, so that what comes meanwhile is not lost.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(number)
        if self.read_errors:
            os.eventfd_write(number, 1)
            raise OSError(self.read_errors.pop(0), "as the test says")
        try:
            message = self.cuse[number].connection.read(size)
        except BlockingIOError:
            raise
        except OSError:
            # It stays readable, as what has ended does.
            os.eventfd_write(number, 1)
            raise
        os.eventfd_write(number, 1)
        return message

    def write(self, number: int, message: bytes) -> None:
        self.cuse[number].connection.write(message)

    def close(self, number: int) -> None:
        os.close(number)
        if number in self.cuse:
            with elsewhere():
                self.cuse.pop(number).close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOs:
    fake = FakeOs()
    monkeypatch.setattr(devcuse, "os", fake)
    monkeypatch.setattr(devcuse, "NODE_WAIT_S", 0.0)
    return fake


class Probe(Device):
    name = "probe"

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.happened: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
        self.go_on = threading.Event()

    def open(self, request: OpenRequest) -> File:
        return ProbeFile()

    def close(self) -> None:
        self.happened.put("close")

    def next(self) -> bytes | str:
        return self.happened.get(timeout=WAIT_S)


class ProbeFile(File):
    device: Probe

    def read(self, size: int, offset: int) -> bytes:
        self.device.happened.put("read")
        assert self.device.go_on.wait(WAIT_S)
        return b"x" * size

    def write(self, data: bytes, offset: int) -> None:
        self.device.happened.put(data)

    def release(self) -> None:
        self.device.happened.put("release")


class Served(DevCuse):
    """A probe that is served; `ended` has it when the kernel has ended it."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.ended: queue.SimpleQueue[DevCuse] = queue.SimpleQueue()
        super().__init__(probe, ended=self.ended.put)


Started = Callable[[Probe], tuple[Served, Program]]


@pytest.fixture
def started(fake: FakeOs) -> Iterator[Started]:
    """`started(device)`: served until the test has ended, with a program that uses it."""
    all_served: list[Served] = []

    def started(device: Probe) -> tuple[Served, Program]:
        served = Served(device)
        all_served.append(served)
        served.start()
        return served, Program(fake.channel_of(device.name))

    yield started
    for served in all_served:
        served.probe.go_on.set()
        served.close()


def test_a_device_is_served(started: Started) -> None:
    device = Probe()
    served, program = started(device)
    assert served.node == "/dev/probe"
    file = program.open()
    for number in range(50):
        assert program.write(file, b"%d" % number) == len(str(number))
        assert device.next() == b"%d" % number
    device.go_on.set()
    assert program.read(file, 5) == b"xxxxx"
    program.call(file.release())
    assert device.next() == "read"
    assert device.next() == "release"


def test_another_thread_reads_while_a_method_blocks(started: Started) -> None:
    device = Probe()
    _served, program = started(device)
    file = program.open()
    waits = [program.begin(file.read(program.caller, [(program.memory.BASE, 1)], None))[1]]
    assert device.next() == "read"
    for number in range(3):
        program.write(file, b"%d" % number)
        assert device.next() == b"%d" % number
    device.go_on.set()
    assert [wait() for wait in waits] == [1]


def test_the_interrupt_of_a_method_that_blocks(started: Started) -> None:
    class Waiting(ProbeFile):
        def read(self, size: int, offset: int) -> bytes:
            self.device.happened.put("read")
            while not current_request().interrupted:
                threading.Event().wait(0.001)
            raise InterruptedError(errno.EINTR, "interrupted")

    class Interrupted(Probe):
        def open(self, request: OpenRequest) -> File:
            return Waiting()

    device = Interrupted()
    _served, program = started(device)
    file = program.open()
    running, wait = program.begin(file.read(program.caller, [(program.memory.BASE, 1)], None))
    assert device.next() == "read"
    assert running is not None
    running.interrupt()
    with pytest.raises(InterruptedError):
        wait()


@pytest.mark.parametrize(
    ("max_write", "size"), [(4096, 139264), (131072, 139264), (1 << 20, (1 << 20) + 8192)]
)
def test_the_buffer_is_large_enough(
    fake: FakeOs, started: Started, max_write: int, size: int
) -> None:
    """For fs/fuse/dev.c: 8 KiB, and a header with max_write; for an ioctl with 32 pages."""
    device = Probe(max_write=max_write)
    _served, program = started(device)
    file = program.open()
    assert program.write(file, bytes(150_000)) == 150_000
    assert set(fake.sizes) == {size}


@pytest.mark.parametrize("number", [errno.EINTR, errno.ENOENT, errno.EAGAIN])
def test_reads_that_fail_for_now_are_made_again(
    fake: FakeOs, started: Started, number: int
) -> None:
    device = Probe()
    _served, program = started(device)
    fake.read_errors += [number] * 3
    file = program.open()
    assert program.write(file, b"still there") == 11
    assert fake.read_errors == []


def test_reads_that_fail_for_good_end_it(
    fake: FakeOs, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    served, _program = started(Probe())
    fake.read_errors.append(errno.EPROTO)
    (number,) = fake.cuse
    os.eventfd_write(number, 1)
    assert served.ended.get(timeout=WAIT_S) is served
    assert served.join(WAIT_S)
    assert "/dev/probe: /dev/cuse cannot be read" in caplog.text


def test_the_kernel_ends_it(fake: FakeOs, started: Started) -> None:
    device = Probe()
    served, program = started(device)
    program.open()
    (cuse,) = fake.cuse.values()
    cuse.connection.abort()
    assert served.ended.get(timeout=WAIT_S) is served
    assert served.join(WAIT_S)
    served.close()
    assert [device.next(), device.next()] == ["release", "close"]


def test_close_takes_the_device_away(fake: FakeOs, started: Started) -> None:
    device = Probe()
    served, program = started(device)
    program.open()
    assert not served.join(0)
    served.close()
    assert fake.cuse == {}
    assert list(fake.table) == []
    assert served.join(WAIT_S)
    served.close()
    assert [device.next(), device.next()] == ["release", "close"]
    assert device.happened.empty()


def test_close_while_a_method_blocks(started: Started, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears of its answer, which is nothing to complain about."""
    device = Probe()
    served, program = started(device)
    file = program.open()
    _, wait = program.begin(file.read(program.caller, [(program.memory.BASE, 1)], None))
    assert device.next() == "read"
    served.close()
    with pytest.raises(OSError, match="Errno") as caught:
        wait()
    assert caught.value.errno in (errno.ECONNABORTED, errno.ENODEV)
    device.go_on.set()
    assert caplog.text == ""


def test_the_descriptor_once_closed(fake: FakeOs) -> None:
    channel = Channel()
    assert channel.number >= 0
    channel.close()
    assert channel.number == -1
    uses: tuple[Callable[[], object], ...] = (
        lambda: channel.read(10),
        lambda: channel.write(b""),
        channel.wait,
    )
    for use in uses:
        with pytest.raises(OSError, match="Errno") as caught:
            use()
        assert caught.value.errno == errno.ENODEV
    channel.close()


def test_a_wait_is_for_requests_and_for_the_end(
    fake: FakeOs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for nothing that is always there, which would keep a CPU busy."""
    registered = []

    class Poll:
        def register(self, number: int, events: int) -> None:
            registered.append((number, events))

        def poll(self) -> list[tuple[int, int]]:
            return [(channel.number, select.POLLIN)]

    monkeypatch.setattr(devcuse, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    channel = Channel()
    channel.wait()
    assert registered == [(number, select.POLLIN) for number in (channel.number, channel._wake)]
    channel.close()


def test_close_ends_a_wait(fake: FakeOs) -> None:
    channel = Channel()
    while channel.read(1 << 20) is not None:
        pass
    begun = threading.Event()
    outcome = []

    def wait() -> None:
        begun.set()
        try:
            while channel.read(1 << 20) is None:
                channel.wait()
        except OSError as error:
            outcome.append(error.errno)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(WAIT_S)
    channel.close()
    thread.join(WAIT_S)
    assert outcome == [errno.ENODEV]


# ---- refusals


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, ["there is no /dev/cuse", "modprobe cuse", "recuse run"]),
        (errno.EACCES, ["permission denied", "root", "udev", "recuse run"]),
        (errno.EPERM, ["permission denied"]),
        (errno.ENODEV, ["no CUSE", "CONFIG_CUSE"]),
        (errno.ENXIO, ["no CUSE"]),
        (errno.EMFILE, ["/dev/cuse: Too many open files"]),
    ],
)
def test_dev_cuse_cannot_be_opened(fake: FakeOs, number: int, words: list[str]) -> None:
    fake.open_error = number
    served = DevCuse(Probe())
    with pytest.raises(KernelError) as caught:
        served.start()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    served.close()


def test_a_node_that_is_there(fake: FakeOs) -> None:
    fake.nodes["/dev/probe"] = None
    served = DevCuse(Probe())
    with pytest.raises(KernelError, match="/dev/probe is there already"):
        served.start()
    served.close()
    assert fake.cuse == {}


@pytest.mark.parametrize(
    ("second", "sysfs", "reason"),
    [
        ({}, True, "device probe: another CUSE device has this name"),
        ({}, False, "device probe: No such device"),
        ({"name": "other", "major": 240, "minor": 3}, False, "device other: the number 240:3 may"),
    ],
)
def test_the_kernel_refuses(
    fake: FakeOs, started: Started, second: dict[str, Any], sysfs: bool, reason: str
) -> None:
    started(Probe(major=240, minor=3))
    if sysfs:
        fake.nodes["/sys/class/cuse/probe"] = None
    served = DevCuse(Probe(**second))
    with pytest.raises(KernelError, match=f"the kernel refuses the {reason}"):
        served.start()
    served.close()
    assert len(fake.cuse) == 1


def test_a_device_that_is_badly_described(fake: FakeOs) -> None:
    with pytest.raises(ValueError, match="name"):
        DevCuse(Probe(name="../probe"))


# ---- limits


def node(mode: int = 0o600, uid: int = 0, gid: int = 0) -> SimpleNamespace:
    return SimpleNamespace(st_mode=stat.S_IFCHR | mode, st_uid=uid, st_gid=gid)


@pytest.mark.parametrize(
    ("device", "found", "said"),
    [
        ({"mode": 0o600}, node(), []),
        ({"mode": 0o660, "uid": 5, "gid": 6}, node(0o660, 5, 6), []),
        ({}, node(), ["mode is 0600, not 0666"]),
        ({"mode": 0o600, "uid": 5}, node(), ["uid is 0, not 5"]),
        ({"mode": 0o600, "gid": 5}, node(), ["gid is 0, not 5"]),
        ({"mode": 0o600, "seekable": True}, node(), ["positions are ignored"]),
        ({"mode": 0o600, "subsystem": "bus/x"}, node(), ["what it declares for /sys"]),
        ({"mode": 0o600, "sysfs": {"x": "1"}}, node(), ["what it declares for /sys"]),
        ({}, None, ["as root: mknod /dev/probe c MAJOR MINOR"]),
    ],
)
def test_limits(
    fake: FakeOs, device: dict[str, Any], found: SimpleNamespace | None, said: list[str]
) -> None:
    if found is not None:
        fake.nodes["/dev/probe"] = found
    lines = list(DevCuse(Probe(**device)).limits())
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert line.startswith("/dev/probe: ")
        assert part in line


def test_ioctls_that_make_files_are_among_the_limits(fake: FakeOs) -> None:
    """It goes by the modules that the device's class comes from."""
    fake.nodes["/dev/probe"] = node(0o666)

    class Request(Structure):
        _fields_ = [("fd", c_int)]

    class Maker(File):
        __module__ = "maker"

        @ioctl(IOWR("N", 1, Request), Request, descriptor="fd")
        def make(self, request: Request) -> File:
            return File()

    class MakerProbe(Probe):
        __module__ = "maker"

    assert Maker.__module__ == MakerProbe.__module__
    assert list(DevCuse(Probe()).limits()) == []
    (line,) = DevCuse(MakerProbe()).limits()
    assert line.startswith("/dev/probe: ioctls that make a new descriptor fail (EOPNOTSUPP)")


# ---- all of it


def serve(
    devices: list[Probe],
    ready: Callable[[str], None],
    note: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> None:
    with ending_signals() as signals:
        serve_kernel(devices, ready, note, signals=signals, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_serving(fake: FakeOs, number: signal.Signals) -> None:
    devices = [Probe(), Probe(name="other")]
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    happened = []

    def ready(path: str) -> None:
        happened.append(path)
        if len(happened) == 2:
            assert len(list(fake.table)) == 2
            signal.raise_signal(number)
            signal.raise_signal(number)  # timeout(1) sends it to the process and to its group

    serve(devices, ready)
    assert happened == ["/dev/probe", "/dev/other"]
    assert [device.next() for device in devices] == ["close", "close"]
    assert list(fake.table) == []
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_ignored_signals_stay_ignored(fake: FakeOs) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def ready(path: str) -> None:
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)

    try:
        serve([Probe()], ready)
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_serving_ends_with_the_last_device(fake: FakeOs, caplog: pytest.LogCaptureFixture) -> None:
    def ready(path: str) -> None:
        if path == "/dev/other":
            for cuse in list(fake.cuse.values()):
                cuse.connection.abort()

    devices = [Probe(), Probe(name="other")]
    serve(devices, ready)
    assert [device.next() for device in devices] == ["close", "close"]
    assert "/dev/probe: the kernel has ended the connection" in caplog.text
    assert "/dev/other: the kernel has ended the connection" in caplog.text


def test_a_device_that_ends_leaves_the_others(
    fake: FakeOs, caplog: pytest.LogCaptureFixture
) -> None:
    devices = [Probe(), Probe(name="other")]

    class Watching(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # In the thread that serves: it goes on to wait for the other one.
            # The device stays until its channel is closed, which comes next.
            assert [device.name for device in fake.table] == ["probe", "other"]
            signal.raise_signal(signal.SIGTERM)

    def ready(path: str) -> None:
        if path == "/dev/other":
            fake.channel_of("probe").connection.abort()

    handler = Watching(logging.WARNING)
    logging.getLogger("recuse.channel").addHandler(handler)
    try:
        serve(devices, ready)
    finally:
        logging.getLogger("recuse.channel").removeHandler(handler)
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/probe: the kernel has ended the connection"
    ]


def test_none_is_served_if_one_cannot_be(fake: FakeOs) -> None:
    devices = [Probe(), Probe()]
    with pytest.raises(KernelError, match="the kernel refuses the device probe"):
        serve(devices, lambda path: None)
    assert list(fake.table) == []
    assert [device.next() for device in devices] == ["close", "close"]


def test_what_the_kernel_does_not_do_is_said_first(fake: FakeOs) -> None:
    said = []
    device = Probe(seekable=True)

    def ready(path: str) -> None:
        said.append(path)
        signal.raise_signal(signal.SIGTERM)

    serve([device], ready, note=said.append)
    assert "mmap" in said[0]
    assert "/dev/probe: positions are ignored" in said[1]
    assert said[-1] == "/dev/probe"


# ---- traced


class Tap:
    """Notes what it is told; `broken` raises."""

    def __init__(self) -> None:
        self.noted: list[tuple[object, ...]] = []
        self.broken = False

    def request(self, message: bytes) -> None:
        self.noted.append(("request", message[4], message[8:16]))
        if self.broken:
            raise ZeroDivisionError

    def reply(self, message: bytes) -> None:
        self.noted.append(("reply", message[8:16]))

    def added(self, name: str, major: int, minor: int) -> None:
        self.noted.append(("added", name, major, minor))

    def removed(self) -> None:
        self.noted.append(("removed",))


def test_a_tap_sees_both_directions_and_the_device_come_and_go(fake: FakeOs) -> None:
    tap = Tap()

    def ready(path: str) -> None:
        (cuse,) = fake.cuse.values()
        program = Program(cuse)
        program.call(program.open().release())
        signal.raise_signal(signal.SIGTERM)

    serve([Probe()], ready, tap=lambda: tap)
    init, opened, released = (one[2] for one in tap.noted if one[0] == "request")
    assert tap.noted == [
        ("request", CUSE_INIT & 0xFF, init),
        ("reply", init),
        ("added", "probe", 0, 0),  # no sysfs here
        ("request", FUSE_OPEN, opened),
        ("reply", opened),
        ("request", FUSE_RELEASE, released),
        ("reply", released),
        ("removed",),
    ]


def test_a_tap_that_fails_harms_no_request(fake: FakeOs, caplog: pytest.LogCaptureFixture) -> None:
    tap = Tap()

    def ready(path: str) -> None:
        tap.broken = True
        (cuse,) = fake.cuse.values()
        program = Program(cuse)
        program.call(program.open().release())
        signal.raise_signal(signal.SIGTERM)

    serve([Probe()], ready, tap=lambda: tap)
    assert [one[0] for one in tap.noted] == ["request", "reply", "added", "request"]
    assert "a connection's tap failed and was taken off" in caplog.text
