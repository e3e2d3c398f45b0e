"""What a device declares for /sys, and how the session tells it."""

import errno
from typing import Any

import pytest

from recuse import Device, File, Link, OpenRequest, Session, current_request
from recuse.server.sysfs import Value
from recuse.wire.cuse import RECUSE_NODE_INFO, RECUSE_SHOW, RECUSE_SYSFS, cuse_init_out

from .conftest import Peer, Serve, Told


class Probe(Device):
    name = "probe"
    level = 3

    def open(self, request: OpenRequest) -> File:
        return File()


def show_level(device: Probe) -> str:
    return f"{device.level} {current_request().uid}\n"


async def show_later(device: Probe) -> bytes:
    return b"later"


DECLARED: dict[str, Value] = {
    "label": "a label\n",
    "device/raw": b"\0\xff",
    "level": show_level,
    "later": show_later,
    "firmware_node": Link("../../somewhere"),
    "/sys/class/thing/extra": "",
}


@pytest.fixture
def served(serve: Serve) -> Peer:
    return serve(Probe(subsystem="bus/thing", sysfs=DECLARED))


def test_what_the_init_reply_says(served: Peer) -> None:
    reply = served.init(RECUSE_NODE_INFO | RECUSE_SYSFS)
    assert cuse_init_out.unpack(reply).flags == RECUSE_NODE_INFO | RECUSE_SYSFS
    assert reply[cuse_init_out.SIZE :].split(b"\0") == [
        b"DEVNAME=probe",
        b"DEVMODE=0666",
        b"SUBSYSTEM=bus/thing",
        b"ATTRIBUTE=label",
        b"ATTRIBUTE=device/raw",
        b"ATTRIBUTE=level",
        b"ATTRIBUTE=later",
        b"LINK=firmware_node ../../somewhere",
        b"ATTRIBUTE=/sys/class/thing/extra",
        b"",
    ]


def test_nothing_is_said_to_who_does_not_offer_it(served: Peer) -> None:
    reply = served.init(0)
    assert cuse_init_out.unpack(reply).flags == 0
    assert reply[cuse_init_out.SIZE :] == b"DEVNAME=probe\0"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (b"label", b"a label\n"),
        (b"device/raw", b"\0\xff"),
        (b"level", b"3 1000\n"),
        (b"later", b"later"),
        (b"/sys/class/thing/extra", b""),
    ],
)
def test_contents(served: Peer, path: bytes, content: bytes) -> None:
    served.init(RECUSE_SYSFS)
    assert served.call(RECUSE_SHOW, path + b"\0") == content


def test_functions_are_called_each_time(served: Peer) -> None:
    served.init(RECUSE_SYSFS)
    served.call(RECUSE_SHOW, b"level\0")
    assert isinstance(served.session.device, Probe)
    served.session.device.level = 4
    assert served.call(RECUSE_SHOW, b"level\0") == b"4 1000\n"


@pytest.mark.parametrize("path", [b"firmware_node", b"other", b""])
def test_what_has_no_content(served: Peer, path: bytes) -> None:
    served.init(RECUSE_SYSFS)
    assert served.fails(RECUSE_SHOW, path + b"\0") == errno.ENOENT


def refuse(device: Probe) -> None:
    raise OSError(errno.ENODATA, "nothing")


def crash(device: Probe) -> None:
    raise KeyError


@pytest.mark.parametrize(
    ("value", "number", "says"),
    [
        (refuse, errno.ENODATA, ""),
        (crash, errno.EIO, "crash raised KeyError"),
        (lambda device: 5, errno.EIO, "returned 5, not str or bytes"),
        (lambda device: "x" * 4097, errno.EIO, "returned 4097 bytes"),
    ],
)
def test_functions_that_fail(serve: Serve, told: Told, value: Any, number: int, says: str) -> None:
    served = serve(Probe(sysfs={"x": value}))
    served.init(RECUSE_SYSFS)
    assert served.fails(RECUSE_SHOW, b"x\0") == number
    lines = told.lines()
    assert [says in line for line in lines] == [True] * bool(says)


@pytest.mark.parametrize(
    "sysfs",
    [
        {"": ""},
        {"a//b": ""},
        {"../b": ""},
        {"a/": ""},
        {"a b": ""},
        {"a\n": ""},
        {"/etc/passwd": ""},
        {"/sys": ""},
        {"/sys/../etc/passwd": ""},
        {5: ""},
        {"a": 5},
        {"a": "x" * 4097},
        {"a": Link("")},
        {"a": Link("b\n")},
        {f"attribute{number:04}": "" for number in range(200)},
        ["a"],
    ],
)
def test_bad_declarations(
    sysfs: Any,
) -> None:
    with pytest.raises(ValueError, match=r"^Probe\.sysfs "):
        Session(Probe(sysfs=sysfs))


@pytest.mark.parametrize("subsystem", ["", "cuse", "class", "class/", "class/a/b", "block/a", 5])
def test_bad_subsystems(subsystem: Any) -> None:
    with pytest.raises(ValueError, match=r"^Probe\.subsystem is "):
        Session(Probe(subsystem=subsystem))
