"""A device's files in /sys, as drivers/base/core.c and fs/fuse/cuse.c make them (Linux 6.1).

This module says which files there are, with which modes, and what reading and writing them does.
The sandbox shows them to programs. A device has a directory in CUSE's class, as on Linux. One that
declares another class or bus has a second directory there, as that class's driver would make it,
and `/sys/dev/char` leads to that one.
"""

from __future__ import annotations

import errno
import functools
import posixpath
from collections.abc import Callable, Iterable, Iterator

from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import CharDevice
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE, Request
from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.wire.cuse import RECUSE_SHOW

CLASS = "/sys/class/cuse"
"""CUSE's class, which exists as long as /dev/cuse does."""

_ACTIONS = frozenset(
    {"add", "bind", "change", "move", "offline", "online", "remove", "unbind"}
)  # lib/kobject_uevent.c, kobject_actions


class Attribute(NamedTuple):
    """A file: permission bits, and what its reading and writing do.

    show is None if it cannot be read. Its operation returns the content, at most a page.
    store is None if it cannot be written. It raises OSError for data that it does not accept.
    """

    path: str
    mode: int
    show: Callable[[Caller], Operation[bytes]] | None
    store: Callable[[bytes], None] | None = None


class Link(NamedTuple):
    """A symbolic link."""

    path: str
    target: str


def entries(device: CharDevice) -> Iterator[Attribute | Link]:
    """All that the device has outside /dev/NAME. If two have the same path, the later counts.

    The directories are those that these paths need.
    """
    number = f"{device.major}:{device.minor}"
    declared = device.sysfs
    own = _directory("class/cuse", device.name)
    yield from _standard(device, own, "class/cuse")
    yield Attribute(f"{own}/waiting", 0o400, lambda _: _constant(f"{device.connection.waiting}\n"))
    yield Attribute(f"{own}/abort", 0o200, None, lambda _: device.connection.abort())
    if declared.subsystem != "class/cuse":
        own = _directory(declared.subsystem, device.name)
        yield from _standard(device, own, declared.subsystem)
    for path in declared.attributes:
        yield Attribute(posixpath.join(own, path), 0o444, functools.partial(_show, device, path))
    for path, target in declared.links.items():
        yield Link(posixpath.join(own, path), target)
    yield _link(f"/sys/dev/char/{number}", own)
    yield _link(f"/dev/char/{number}", f"/dev/{device.name}")


def is_subsystem(subsystem: str) -> bool:
    """Whether it is "class/NAME" or "bus/NAME"."""
    kind, _, name = subsystem.partition("/")
    return kind in ("class", "bus") and "/" not in name and is_path(name)


def is_path(path: str) -> bool:
    """Whether an attribute or link can have it: relative, or below /sys or /proc."""
    if path.startswith("/"):
        path = path.removeprefix("/sys/" if path.startswith("/sys/") else "/proc/")
    names = path.split("/")
    return not any(name in ("", ".", "..") or " " in name or "\0" in name for name in names)


def _directory(subsystem: str, name: str) -> str:
    """The directory of a device that has no parent (drivers/base/core.c, get_device_parent)."""
    kind, _, title = subsystem.partition("/")
    if subsystem != "class/cuse":
        name = name.rpartition("/")[2]  # "input/event9" is the class's "event9"
    name = name.replace("/", "!")
    return f"/sys/devices/{name}" if kind == "bus" else f"/sys/devices/virtual/{title}/{name}"


def _standard(device: CharDevice, own: str, subsystem: str) -> Iterator[Attribute | Link]:
    """What all character devices have."""
    name = own.rpartition("/")[2]
    number = f"{device.major}:{device.minor}\n"
    uevent = f"MAJOR={device.major}\nMINOR={device.minor}\nDEVNAME={device.name}\n"
    yield Attribute(f"{own}/dev", 0o444, lambda _: _constant(number))
    yield Attribute(f"{own}/uevent", 0o644, lambda _: _constant(uevent), _uevent)
    yield from _power(f"{own}/power")
    yield _link(f"{own}/subsystem", f"/sys/{subsystem}")
    devices = "/devices" if subsystem.startswith("bus/") else ""
    yield _link(f"/sys/{subsystem}{devices}/{name}", own)


def _power(directory: str) -> Iterator[Attribute]:
    """drivers/base/power/sysfs.c, for a device whose driver has no power management."""
    switches = {"control": "auto", "async": "disabled"}

    def switch(name: str, *values: str) -> Attribute:
        def store(data: bytes) -> None:
            value = data.removesuffix(b"\n").decode("latin-1")
            if value not in values:
                raise os_error(errno.EINVAL)
            switches[name] = value

        return Attribute(
            f"{directory}/{name}", 0o644, lambda _: _constant(f"{switches[name]}\n"), store
        )

    def fixed(name: str, value: str) -> Attribute:
        return Attribute(f"{directory}/{name}", 0o444, lambda _: _constant(f"{value}\n"))

    yield switch("control", "auto", "on")
    yield switch("async", "enabled", "disabled")
    yield Attribute(f"{directory}/autosuspend_delay_ms", 0o644, _no_delay, _set_delay)
    yield fixed("runtime_enabled", "disabled")
    yield fixed("runtime_status", "unsupported")
    for name in ("active_kids", "active_time", "suspended_time"):
        yield fixed(f"runtime_{name}", "0")
    yield Attribute(
        f"{directory}/runtime_usage",
        0o444,
        # "on" counts as one more user (pm_runtime_forbid).
        lambda _: _constant("1\n" if switches["control"] == "on" else "0\n"),
    )


def _link(path: str, target: str) -> Link:
    return Link(path, posixpath.relpath(target, posixpath.dirname(path)))


def _constant(text: str) -> Operation[bytes]:
    return text.encode("utf-8", "surrogateescape")
    yield


def _no_delay(_: Caller) -> Operation[bytes]:
    raise os_error(errno.EIO)
    yield


def _set_delay(_: bytes) -> None:
    raise os_error(errno.EIO)


def _uevent(data: bytes) -> None:
    """Accept what would send an event; nobody here listens (kobject_synth_uevent)."""
    action = data.rstrip(b"\n\0").partition(b" ")[0].decode("latin-1")
    if action not in _ACTIONS:
        raise os_error(errno.EINVAL)


def _show(device: CharDevice, path: str, caller: Caller) -> Operation[bytes]:
    """Ask the server for the content of a declared attribute."""
    name = path.encode("utf-8", "surrogateescape") + b"\0"
    reply = yield Request(RECUSE_SHOW, name, 0, PAGE_SIZE, caller.pid, caller.uid, caller.gid)
    if reply.error:
        raise os_error(-reply.error)
    return bytes(reply.payload)


def character_devices(native: str, devices: Iterable[tuple[str, int]]) -> str:
    """The content of /proc/devices, with names and majors added to those already there.

    fs/char_dev.c, chrdev_show: by major. If several devices share one, it is listed for each.
    """
    head, blank, blocks = native.partition("\n\n")
    title, *lines = head.splitlines() or ["Character devices:"]
    lines += [f"{major:3d} {name}" for name, major in devices]
    lines.sort(key=lambda line: int(line.split()[0]))
    return "\n".join([title, *lines]) + (blank or "\n") + blocks
