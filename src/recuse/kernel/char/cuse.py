"""The channel of a device's server: what happens when /dev/cuse is opened and closed."""

from __future__ import annotations

import errno
import os
import re

from recuse.kernel.char.devices import (
    TRANSFER_MIN,
    CharDevice,
    Declaration,
    DeviceTable,
    check_name,
)
from recuse.kernel.char.sysfs import is_path, is_subsystem
from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Reply, Request
from recuse.kernel.errors import os_error
from recuse.runtime.log import Log
from recuse.runtime.records import field, record
from recuse.wire.cuse import (
    CUSE_INIT,
    CUSE_INIT_INFO_MAX,
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_FILE_FLAGS,
    RECUSE_MAPPING,
    RECUSE_NEW_FILES,
    RECUSE_NODE_INFO,
    RECUSE_SEEKABLE,
    RECUSE_SYSFS,
    cuse_init_in,
    cuse_init_out,
)
from recuse.wire.fuse import FUSE_KERNEL_MINOR_VERSION, FUSE_KERNEL_VERSION

log = Log("recuse.kernel")

_SYSFS_KEYS = frozenset({b"SUBSYSTEM", b"ATTRIBUTE", b"LINK"})

MINOR_MIN = 11
"""The oldest 7.x that has CUSE."""


@record
class DeviceInfo:
    """What the strings of an INIT reply say.

    Without a mode, devtmpfs's default applies. Without an owner, the code that makes the node
    decides.
    """

    name: str = ""
    mode: int = 0o600
    uid: int | None = None
    gid: int | None = None
    subsystem: str = "class/cuse"
    attributes: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)


class CuseChannel:
    """One open /dev/cuse: a connection whose first request is CUSE_INIT, and then a device.

    The device is in the table before `Connection.write` of a good INIT reply returns, and leaves it
    when the channel is closed. If the connection is aborted before that, opening the device fails
    with ENOTCONN. After a bad reply (see `error`) the connection is refused.

    pid, uid and gid belong to the process that opens it; they go into the header of CUSE_INIT.
    """

    def __init__(
        self,
        table: DeviceTable,
        pid: int = 0,
        uid: int = 0,
        gid: int = 0,
        *,
        descriptors: bool = False,
        quiet: bool = False,
    ) -> None:
        """Make it; with ``descriptors`` the server's answers can carry file descriptors.

        With ``quiet`` the log does not say why there is no device: whoever made this reports
        `error`.
        """
        self.device: CharDevice | None = None
        self.error: OSError | None = None
        """Why there is no device: EPROTO for a bad version, EINVAL, EEXIST, EBUSY (see the log)."""
        self._table = table
        self._closed = False
        self._quiet = quiet
        self._offered = (
            CUSE_UNRESTRICTED_IOCTL
            | RECUSE_SEEKABLE
            | RECUSE_NODE_INFO
            | RECUSE_NEW_FILES
            | RECUSE_SYSFS
            | RECUSE_FILE_FLAGS
            | (RECUSE_MAPPING if descriptors else 0)
        )
        offer = cuse_init_in(
            major=FUSE_KERNEL_VERSION, minor=FUSE_KERNEL_MINOR_VERSION, flags=self._offered
        )
        init = Request(
            CUSE_INIT,
            offer.pack(),
            min_reply=cuse_init_out.SIZE,
            max_reply=cuse_init_out.SIZE + CUSE_INIT_INFO_MAX,
            pid=pid,
            uid=uid,
            gid=gid,
            background=True,
        )
        self.connection = Connection(init, self._accept)
        if table.tap is not None:
            self.connection.tap = table.tap()

    def close(self) -> None:
        """Do what closing the last descriptor of /dev/cuse does: remove device and requests.

        A program that sees its call fail finds that the device is gone.
        """
        # fs/fuse/cuse.c, cuse_channel_release.
        self._closed = True
        if self.device is not None:
            self._table.remove(self.device)
        self.connection.abort()

    def _accept(self, reply: Reply) -> None:
        try:
            self._create(reply)
        except OSError as error:
            if not (self._quiet or self.connection.ended):
                log.error("CUSE: no device: %s", error.strerror)
            self.error = error.with_traceback(None)
            self.connection.refuse()
        except Exception:
            log.exception("CUSE: no device")
            self.error = os_error(errno.EIO)
            self.connection.refuse()

    def _create(self, reply: Reply) -> None:
        # fs/fuse/cuse.c, cuse_process_init_reply.
        if reply.error:
            raise os_error(-reply.error)
        init = cuse_init_out.unpack(reply.payload)
        if init.major != FUSE_KERNEL_VERSION or init.minor < MINOR_MIN:
            log.error("CUSE: the server speaks version %d.%d", init.major, init.minor)
            raise os_error(errno.EPROTO)
        self.connection.expect_writes(max(init.max_write, TRANSFER_MIN))
        info = parse_info(
            bytes(reply.payload[cuse_init_out.SIZE :]),
            bool(init.flags & RECUSE_NODE_INFO),
            bool(init.flags & RECUSE_SYSFS),
        )
        device = self._table.register(
            info.name,
            init.dev_major,
            init.dev_minor,
            self.connection,
            mode=info.mode,
            uid=info.uid,
            gid=info.gid,
            seekable=bool(init.flags & RECUSE_SEEKABLE),
            unrestricted=bool(init.flags & CUSE_UNRESTRICTED_IOCTL),
            new_files=bool(init.flags & RECUSE_NEW_FILES),
            file_flags=bool(init.flags & RECUSE_FILE_FLAGS),
            mapping=bool(init.flags & self._offered & RECUSE_MAPPING),
            max_read=init.max_read,
            max_write=init.max_write,
            sysfs=Declaration(info.subsystem, tuple(info.attributes), info.links),
        )
        self.device = device
        minor = min(init.minor, FUSE_KERNEL_MINOR_VERSION)
        self.connection.initialised(minor, device.max_write)
        if self._closed:
            # By somebody else meanwhile, before they saw the device.
            self._table.remove(device)


def parse_info(info: bytes, node_info: bool, sysfs: bool = False) -> DeviceInfo:
    """Parse the NUL-terminated KEY=VALUE strings of an INIT reply.

    Only DEVNAME is required. ``node_info`` (RECUSE_NODE_INFO) adds DEVMODE (octal permission bits),
    DEVUID and DEVGID. ``sysfs`` (RECUSE_SYSFS) adds SUBSYSTEM, ATTRIBUTE (a path; any number of
    them) and LINK (a path and a target). Other keys cause a warning in the log.

    Raises OSError(EINVAL) if the last NUL is missing, a key is empty, DEVNAME is missing or is not
    a valid name for a device, or a number or path is invalid.
    """
    # fs/fuse/cuse.c, cuse_parse_one and cuse_parse_devinfo.
    if info and not info.endswith(b"\0"):
        log.error("CUSE: info not properly terminated")
        raise os_error(errno.EINVAL)
    device = DeviceInfo()
    for entry in filter(None, info.split(b"\0")):
        key, _, value = (part.strip() for part in entry.partition(b"="))
        if not key:
            log.error("CUSE: info with an empty key: %r", entry)
            raise os_error(errno.EINVAL)
        if key == b"DEVNAME":
            device.name = os.fsdecode(value)
        elif node_info and key == b"DEVMODE":
            device.mode = _number(key, value, 8, 0o777)
        elif node_info and key == b"DEVUID":
            device.uid = _number(key, value, 10, 0xFFFFFFFE)
        elif node_info and key == b"DEVGID":
            device.gid = _number(key, value, 10, 0xFFFFFFFE)
        elif sysfs and key in _SYSFS_KEYS:
            _declare(device, key, os.fsdecode(value))
        else:
            log.warning("CUSE: unknown device info %r", os.fsdecode(key))
    try:
        check_name(device.name)
    except OSError:
        log.error("CUSE: %r is not a valid DEVNAME", device.name)
        raise
    return device


def _declare(device: DeviceInfo, key: bytes, value: str) -> None:
    """Record one of the strings about /sys."""
    path, _, target = value.partition(" ")
    if key == b"SUBSYSTEM" and is_subsystem(value):
        device.subsystem = value
    elif key == b"ATTRIBUTE" and is_path(value):
        device.attributes.append(value)
    elif key == b"LINK" and is_path(path) and target:
        device.links[path] = target
    else:
        log.error("CUSE: %s=%s is not available in /sys", key.decode(), value)
        raise os_error(errno.EINVAL)


def _number(key: bytes, value: bytes, base: int, most: int) -> int:
    if re.fullmatch(b"[0-7]{1,11}" if base == 8 else b"[0-9]{1,10}", value):
        number = int(value, base)
        if number <= most:
            return number
    log.error("CUSE: %s is not a valid number: %r", key.decode(), value)
    raise os_error(errno.EINVAL)
