"""What a device has in /sys, from the strings of its INIT reply to what is to be read."""

import errno

import pytest

from recuse.kernel.char.cuse import CuseChannel, DeviceInfo, parse_info
from recuse.kernel.char.devices import DeviceTable
from recuse.kernel.char.sysfs import Attribute, Link, character_devices, entries
from recuse.wire.cuse import RECUSE_SHOW, RECUSE_SYSFS

from ..support import (
    BIG,
    Message,
    Outcome,
    Server,
    answer_init,
    caller,
    init_reply,
    reply_bytes,
    start,
)

INFO = b"DEVNAME=snd/probe\0SUBSYSTEM=class/sound\0ATTRIBUTE=id\0LINK=device ../../up\0"


def made(info: bytes = b"DEVNAME=snd/probe\0", flags: int = 0) -> CuseChannel:
    channel = CuseChannel(DeviceTable())
    answer_init(channel, init_reply(info, flags=flags, dev_major=240, dev_minor=7))
    assert channel.device is not None
    return channel


def files(channel: CuseChannel) -> dict[str, Attribute | Link]:
    assert channel.device is not None
    return {entry.path: entry for entry in entries(channel.device)}


def show(channel: CuseChannel, path: str) -> Outcome:
    attribute = files(channel)[path]
    assert isinstance(attribute, Attribute)
    assert attribute.show is not None
    return start(channel.connection, attribute.show(caller()))


def store(channel: CuseChannel, path: str, data: bytes) -> int:
    attribute = files(channel)[path]
    assert isinstance(attribute, Attribute)
    assert attribute.store is not None
    try:
        attribute.store(data)
    except OSError as error:
        return error.errno or -1
    return 0


CUSE = "/sys/devices/virtual/cuse/snd!probe"


def test_what_every_device_has() -> None:
    found = files(made())
    modes = {path: entry.mode for path, entry in found.items() if isinstance(entry, Attribute)}
    power = {path: mode for path, mode in modes.items() if "/power/" in path}
    assert {path: mode for path, mode in modes.items() if path not in power} == {
        f"{CUSE}/dev": 0o444,
        f"{CUSE}/uevent": 0o644,
        f"{CUSE}/waiting": 0o400,
        f"{CUSE}/abort": 0o200,
    }
    assert len(power) == 9
    assert {path: entry.target for path, entry in found.items() if isinstance(entry, Link)} == {
        f"{CUSE}/subsystem": "../../../../class/cuse",
        "/sys/class/cuse/snd!probe": "../../devices/virtual/cuse/snd!probe",
        "/sys/dev/char/240:7": "../../devices/virtual/cuse/snd!probe",
        "/dev/char/240:7": "../snd/probe",
    }


def test_contents() -> None:
    channel = made()
    assert show(channel, f"{CUSE}/dev").result == b"240:7\n"
    assert show(channel, f"{CUSE}/uevent").result == b"MAJOR=240\nMINOR=7\nDEVNAME=snd/probe\n"
    assert show(channel, f"{CUSE}/power/autosuspend_delay_ms").errno == errno.EIO


def test_waiting_counts_what_is_not_answered() -> None:
    channel = made(INFO, RECUSE_SYSFS)
    assert show(channel, f"{CUSE}/waiting").result == b"0\n"
    unread = show(channel, "/sys/devices/virtual/sound/probe/id")
    assert show(channel, f"{CUSE}/waiting").result == b"1\n"
    channel.connection.read(BIG)
    assert show(channel, f"{CUSE}/waiting").result == b"1\n"
    assert store(channel, f"{CUSE}/abort", b"whatever") == 0
    assert unread.errno == errno.ECONNABORTED
    assert show(channel, f"{CUSE}/waiting").result == b"0\n"


@pytest.mark.parametrize(
    ("name", "data", "result"),
    [
        ("uevent", b"add\n", 0),
        ("uevent", b"change", 0),
        ("uevent", b"adds\n", errno.EINVAL),
        ("uevent", b"\n", errno.EINVAL),
        ("power/control", b"on\n", 0),
        ("power/control", b"off\n", errno.EINVAL),
        ("power/async", b"enabled", 0),
        ("power/async", b"on", errno.EINVAL),
        ("power/autosuspend_delay_ms", b"1\n", errno.EIO),
    ],
)
def test_stores(name: str, data: bytes, result: int) -> None:
    assert store(made(), f"{CUSE}/{name}", data) == result


# What a server declares


def test_a_class_of_its_own() -> None:
    found = files(made(INFO, RECUSE_SYSFS))
    own = "/sys/devices/virtual/sound/probe"
    assert {path for path in found if path.startswith(own) and "power" not in path} == {
        f"{own}/dev",
        f"{own}/uevent",
        f"{own}/subsystem",
        f"{own}/id",
        f"{own}/device",
    }
    links = {path: entry.target for path, entry in found.items() if isinstance(entry, Link)}
    assert links[f"{own}/subsystem"] == "../../../../class/sound"
    assert links[f"{own}/device"] == "../../up"
    assert links["/sys/class/sound/probe"] == "../../devices/virtual/sound/probe"
    assert links["/sys/dev/char/240:7"] == "../../devices/virtual/sound/probe"
    assert links["/sys/class/cuse/snd!probe"] == "../../devices/virtual/cuse/snd!probe"
    assert f"{CUSE}/abort" in found


def test_a_bus() -> None:
    found = files(made(INFO.replace(b"class/sound", b"bus/gpio"), RECUSE_SYSFS))
    links = {path: entry.target for path, entry in found.items() if isinstance(entry, Link)}
    assert links["/sys/bus/gpio/devices/probe"] == "../../../devices/probe"
    assert links["/sys/devices/probe/subsystem"] == "../../bus/gpio"
    assert links["/sys/dev/char/240:7"] == "../../devices/probe"


def test_the_server_is_asked_what_is_in_an_attribute() -> None:
    channel = made(INFO, RECUSE_SYSFS)
    server = Server(channel.connection, lambda message: b"content\n")
    assert show(channel, "/sys/devices/virtual/sound/probe/id").result == b"content\n"
    (message,) = server.messages
    assert (message.opcode, message.payload) == (RECUSE_SHOW, b"id\0")
    assert (message.header.pid, message.header.uid, message.header.gid) == (11, 22, 33)
    server.handler = lambda message: -errno.ENODATA
    assert show(channel, "/sys/devices/virtual/sound/probe/id").errno == errno.ENODATA


def test_more_than_a_page_is_refused() -> None:
    channel = made(INFO, RECUSE_SYSFS)
    for size in (4096, 4097):
        outcome = show(channel, "/sys/devices/virtual/sound/probe/id")
        unique = Message(channel.connection.read(BIG)).unique
        try:
            channel.connection.write(reply_bytes(unique, bytes(size)))
        except OSError:
            assert (size, outcome.errno) == (4097, errno.EIO)
        else:
            assert outcome.result == bytes(4096)


def test_the_strings(caplog: pytest.LogCaptureFixture) -> None:
    info = parse_info(INFO, False, True)
    wanted = DeviceInfo(
        "snd/probe", subsystem="class/sound", attributes=["id"], links={"device": "../../up"}
    )
    assert repr(info) == repr(wanted)
    assert not caplog.records
    assert repr(parse_info(INFO, False, False)) == repr(DeviceInfo("snd/probe"))
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    "entry",
    [
        b"SUBSYSTEM=",
        b"SUBSYSTEM=cuse",
        b"SUBSYSTEM=class/..",
        b"SUBSYSTEM=class/a/b",
        b"ATTRIBUTE=",
        b"ATTRIBUTE=../x",
        b"ATTRIBUTE=a b",
        b"ATTRIBUTE=/etc/passwd",
        b"ATTRIBUTE=/sys/../etc/passwd",
        b"LINK=a",
        b"LINK=../a b",
    ],
)
def test_strings_that_cannot_be(entry: bytes) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        parse_info(b"DEVNAME=thing\0" + entry + b"\0", True, True)


# /proc/devices

NATIVE = "Character devices:\n  1 mem\n  5 /dev/tty\n136 pts\n\nBlock devices:\n259 blkext\n"


def test_devices_are_listed_by_major() -> None:
    assert character_devices(NATIVE, [("echo", 254), ("a/b", 5)]) == (
        "Character devices:\n  1 mem\n  5 /dev/tty\n  5 a/b\n136 pts\n254 echo\n"
        "\nBlock devices:\n259 blkext\n"
    )


@pytest.mark.parametrize("native", [NATIVE, NATIVE.partition("\n\n")[0] + "\n"])
def test_nothing_is_changed_without_devices(native: str) -> None:
    assert character_devices(native, []) == native


def test_devices_where_there_is_no_proc() -> None:
    assert character_devices("", [("echo", 254)]) == "Character devices:\n254 echo\n"
