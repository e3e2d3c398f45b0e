"""The channel of a device's server: INIT, what it makes, what is refused, and the end."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from recuse.kernel.char.cuse import CuseChannel, DeviceInfo, parse_info
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.char.files import open_file
from recuse.kernel.connection.request import Request
from recuse.kernel.connection.submit import ConnectionState
from recuse.wire.cuse import (
    CUSE_INIT,
    CUSE_INIT_INFO_MAX,
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_FILE_FLAGS,
    RECUSE_NEW_FILES,
    RECUSE_NODE_INFO,
    RECUSE_SEEKABLE,
    RECUSE_SYSFS,
    cuse_init_in,
)
from recuse.wire.fuse import FUSE_OPEN, fuse_in_header, fuse_open_out

from ..support import (
    BIG,
    Message,
    Opened,
    Server,
    answer_init,
    caller,
    device,
    drain,
    finish,
    init_reply,
    reply_bytes,
    start,
)


def channel_after(payload: bytes, error: int = 0, table: DeviceTable | None = None) -> CuseChannel:
    channel = CuseChannel(DeviceTable() if table is None else table)
    answer_init(channel, payload, error)
    return channel


# INIT


def test_opening_the_channel_sends_init() -> None:
    channel = CuseChannel(DeviceTable())
    (raw,) = drain(channel.connection)
    message = Message(raw)
    assert message.header == fuse_in_header(len=56, opcode=CUSE_INIT, unique=2)
    flags = CUSE_UNRESTRICTED_IOCTL | RECUSE_SEEKABLE | RECUSE_NODE_INFO
    flags |= RECUSE_NEW_FILES | RECUSE_SYSFS | RECUSE_FILE_FLAGS
    assert message.body == cuse_init_in(major=7, minor=45, flags=flags)
    assert channel.device is None


def test_the_device_is_there_when_writing_the_reply_returns() -> None:
    table = DeviceTable()
    channel = channel_after(
        init_reply(b"DEVNAME=snd/thing\0", minor=40, max_read=8192, max_write=16384, dev_minor=9),
        table=table,
    )
    device = channel.device
    assert device is not None
    assert table.by_name("snd/thing") is table.by_number(254, 9) is device
    assert (device.unrestricted, device.seekable) == (True, False)
    assert (device.max_read, device.max_write) == (8192, 16384)
    assert (device.mode, device.uid, device.gid) == (0o600, None, None)
    assert device.connection is channel.connection
    assert channel.connection.state is ConnectionState.CONNECTED
    assert channel.connection.minor == 40
    assert channel.error is None


def test_the_read_buffer_has_to_hold_max_write_after_init() -> None:
    channel = channel_after(init_reply(max_write=131072))
    with pytest.raises(OSError, match="Invalid argument"):
        channel.connection.read(131072)
    with pytest.raises(BlockingIOError):
        channel.connection.read(131072 + 80)


@pytest.mark.parametrize(
    ("flags", "unrestricted", "seekable", "new_files"),
    [
        (0, False, False, False),
        (CUSE_UNRESTRICTED_IOCTL, True, False, False),
        (RECUSE_SEEKABLE, False, True, False),
        (RECUSE_NEW_FILES, False, False, True),
        (1 << 5, False, False, False),
    ],
)
def test_flags(flags: int, unrestricted: bool, seekable: bool, new_files: bool) -> None:
    device = channel_after(init_reply(flags=flags)).device
    assert device is not None
    found = (device.unrestricted, device.seekable, device.new_files)
    assert found == (unrestricted, seekable, new_files)


@pytest.mark.parametrize(("said", "spoken"), [(11, 11), (44, 44), (45, 45), (99, 45)])
def test_the_lower_minor_is_spoken(said: int, spoken: int) -> None:
    assert channel_after(init_reply(minor=said)).connection.minor == spoken


def test_a_given_number_is_taken() -> None:
    device = channel_after(init_reply(dev_major=60, dev_minor=3)).device
    assert device is not None
    assert (device.major, device.minor) == (60, 3)


@pytest.mark.parametrize(
    ("payload", "error", "expected"),
    [
        (init_reply(minor=10), 0, errno.EPROTO),
        (init_reply(major=6), 0, errno.EPROTO),
        (init_reply(major=8), 0, errno.EPROTO),
        (b"", -errno.EPERM, errno.EPERM),
        (init_reply(b"DEVNAME=thing"), 0, errno.EINVAL),
        (init_reply(b""), 0, errno.EINVAL),
        (init_reply(dev_major=512), 0, errno.EINVAL),
        (init_reply(b"DEVNAME=../thing\0"), 0, errno.EINVAL),
    ],
    ids=["minor 10", "major 6", "major 8", "error", "no NUL", "no name", "number", "name"],
)
def test_a_bad_reply_leaves_no_device_and_refuses_everything(
    payload: bytes, error: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    table = DeviceTable()
    channel = channel_after(payload, error, table)
    assert channel.device is None
    assert len(table) == 0
    assert channel.error is not None
    assert channel.error.errno == expected
    assert "CUSE: no device" in caplog.text
    assert ("version" in caplog.text) == (expected == errno.EPROTO)
    request = Request(FUSE_OPEN)
    channel.connection.submit(request)
    assert request.reply is not None
    assert request.reply.error == -errno.ECONNREFUSED
    with pytest.raises(OSError, match="No such device"):
        channel.connection.read(BIG)
    channel.close()


@pytest.mark.parametrize(
    "payload", [init_reply()[:71], init_reply(bytes(CUSE_INIT_INFO_MAX + 1))], ids=len
)
def test_a_reply_of_the_wrong_size_is_refused_to_the_server_too(payload: bytes) -> None:
    channel = CuseChannel(DeviceTable())
    with pytest.raises(OSError, match="Invalid argument"):
        answer_init(channel, payload)
    assert channel.error is not None
    assert channel.error.errno == errno.EIO
    assert channel.connection.state is ConnectionState.REFUSED


def test_the_longest_info_is_taken() -> None:
    info = b"DEVNAME=thing".ljust(CUSE_INIT_INFO_MAX, b"\0")
    assert channel_after(init_reply(info)).device is not None


def test_a_taken_name_or_number_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    table = DeviceTable()
    first = channel_after(init_reply(dev_major=60), table=table)
    by_number = channel_after(init_reply(b"DEVNAME=other\0", dev_major=60), table=table)
    by_name = channel_after(init_reply(), table=table)
    assert [c.error and c.error.errno for c in (first, by_number, by_name)] == [
        None,
        errno.EBUSY,
        errno.EEXIST,
    ]
    assert list(table) == [first.device]
    assert "File exists" in caplog.text
    by_name.close()
    assert list(table) == [first.device]


def test_a_mistake_while_the_device_is_made_refuses_too(caplog: pytest.LogCaptureFixture) -> None:
    class Table(DeviceTable):
        def register(self, *arguments: object, **options: object) -> CharDevice:
            raise ZeroDivisionError("mistake")

    channel = channel_after(init_reply(), table=Table())
    assert channel.connection.state is ConnectionState.REFUSED
    assert channel.error is not None
    assert channel.error.errno == errno.EIO
    assert "mistake" in caplog.text


# Info strings


@pytest.mark.parametrize(
    ("info", "name"),
    [
        (b"DEVNAME=thing\0", "thing"),
        (b"DEVNAME=thing\0\0\0", "thing"),
        (b"\0\0DEVNAME=thing\0", "thing"),
        (b" \tDEVNAME \n=\v thing\f\r\0", "thing"),
        (b"DEVNAME=first\0DEVNAME=second\0", "second"),
        (b"DEVNAME=a=b\0", "a=b"),
        (b"DEVNAME=with space\0", "with space"),
        (b"DEVNAME=\xff\0", "\udcff"),
    ],
)
def test_device_names(info: bytes, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert repr(parse_info(info, False)) == repr(DeviceInfo(name))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (b"", "DEVNAME"),
        (b"\0", "DEVNAME"),
        (b"DEVNAME\0", "DEVNAME"),
        (b"DEVNAME=\0", "DEVNAME"),
        (b"DEVNAME=  \0", "DEVNAME"),
        (b"devname=thing\0", "DEVNAME"),
        (b"DEVNAME=thing", "terminated"),
        (b"DEVNAME=thing\0X=y", "terminated"),
        (b"DEVNAME=thing\0=value\0", "empty key"),
        (b"DEVNAME=thing\0 = value\0", "empty key"),
        (b"DEVNAME=thing\0 \0", "empty key"),
        (b"DEVNAME=" + b"a" * 256 + b"\0", "DEVNAME"),
        (b"DEVNAME=/dev/thing\0", "DEVNAME"),
    ],
)
def test_bad_info(info: bytes, says: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        parse_info(info, True)
    assert says in caplog.text


def test_unknown_keys_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    info = b"COLOUR=red\0DEVNAME=thing\0DEVMODE=0666\0FLAG\0"
    assert repr(parse_info(info, False)) == repr(DeviceInfo("thing"))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [w.split("'")[1] for w in warnings] == ["COLOUR", "DEVMODE", "FLAG"]


def test_the_nodes_mode_and_owner(caplog: pytest.LogCaptureFixture) -> None:
    info = b"DEVNAME=thing\0DEVMODE=777\0DEVUID=4294967294\0DEVGID=4294967294\0"
    assert repr(parse_info(info, True)) == repr(DeviceInfo("thing", 0o777, 2**32 - 2, 2**32 - 2))
    info = b"DEVNAME=thing\0DEVMODE=0660\0DEVUID=1000\0DEVGID= 5 \0"
    assert repr(parse_info(info, True)) == repr(DeviceInfo("thing", 0o660, 1000, 5))
    device = channel_after(init_reply(info, flags=RECUSE_NODE_INFO)).device
    assert device is not None
    assert (device.mode, device.uid, device.gid) == (0o660, 1000, 5)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "entry",
    [
        b"DEVMODE=",
        b"DEVMODE=0o660",
        b"DEVMODE=0888",
        b"DEVMODE=1000",
        b"DEVMODE=-1",
        b"DEVUID=root",
        b"DEVUID=+1",
        b"DEVUID=1_0",
        b"DEVUID=4294967295",
        b"DEVGID=4294967295",
        b"DEVGID=4294967296",
        b"DEVGID=99999999999999",
        b"DEVGID",
    ],
)
def test_numbers_that_are_none(entry: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        parse_info(b"DEVNAME=thing\0" + entry + b"\0", True)
    assert entry.partition(b"=")[0].decode() in caplog.text


# The end


def test_closing_the_channel_removes_the_device() -> None:
    table = DeviceTable()
    channel = channel_after(init_reply(), table=table)
    assert channel.device is not None
    channel.close()
    assert len(table) == 0
    outcome = start(channel.connection, open_file(channel.device, os.O_RDWR, caller()))
    assert outcome.errno == errno.ENODEV


def test_aborting_the_connection_leaves_the_device_for_the_server_to_close() -> None:
    table = DeviceTable()
    channel = channel_after(init_reply(), table=table)
    assert channel.device is not None
    channel.connection.abort()
    assert list(table) == [channel.device]
    for device_says_no_open in (False, True):
        channel.device.no_open = device_says_no_open
        opening = open_file(channel.device, os.O_RDWR, caller())
        outcome = start(channel.connection, opening)
        if device_says_no_open:
            assert outcome.result.device is channel.device
        else:
            assert outcome.errno == errno.ENOTCONN
    channel.close()
    assert len(table) == 0


def test_close_finishes_requests_in_every_state() -> None:
    table = DeviceTable()
    channel = channel_after(init_reply(), table=table)
    assert channel.device is not None
    server = Server(channel.connection)
    read = start(channel.connection, open_file(channel.device, os.O_RDWR, caller()))
    assert server.opcodes == [FUSE_OPEN]
    channel.connection.on_pending = None
    unread = start(channel.connection, open_file(channel.device, os.O_RDWR, caller()))
    gone: list[bool] = []
    channel.connection.at_end(lambda: gone.append(len(table) == 0))
    channel.close()
    channel.close()
    assert read.errno == unread.errno == errno.ECONNABORTED
    assert gone == [True]


def test_the_device_is_gone_before_its_programs_know() -> None:
    table = DeviceTable()
    channel = channel_after(init_reply(), table=table)
    seen: list[int] = []
    request = Request(1)
    channel.connection.submit(request, lambda reply: seen.append(len(table)))
    channel.close()
    assert seen == [0]


def test_old_files_get_enotconn_after_the_end() -> None:
    opened = Opened()
    opened.connection.abort()
    for operation in (
        opened.file.read(opened.caller, [(0, 4)], None),
        opened.file.write(opened.caller, [(0, 4)], None),
        opened.file.ioctl(opened.caller, 1, 2),
    ):
        assert start(opened.connection, operation).errno == errno.ENOTCONN
    opened.release()


def test_a_channel_that_closes_while_its_device_is_made_leaves_none() -> None:
    class Table(DeviceTable):
        def register(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
            made = super().register(*arguments, **options)  # type: ignore[arg-type]
            channel.close()
            return made

    table = Table()
    channel = CuseChannel(table)
    answer_init(channel, init_reply())
    assert len(table) == 0
    assert channel.connection.state is ConnectionState.ABORTED


def test_closing_before_init_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    channel = CuseChannel(DeviceTable())
    channel.connection.read(BIG)
    channel.close()
    assert channel.device is None
    assert caplog.text == ""  # it is what the server wanted
    with pytest.raises(FileNotFoundError):
        channel.connection.write(reply_bytes(2, init_reply()))


def test_a_new_server_may_take_the_name_of_one_that_is_gone() -> None:
    table = DeviceTable()
    first = channel_after(init_reply(), table=table)
    first.close()
    second = device(table=table)
    assert list(table) == [second]
    Server(second.connection, lambda message: fuse_open_out(fh=1))
    assert finish(second.connection, open_file(second, os.O_RDWR, caller())).device is second
