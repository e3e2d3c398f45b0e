"""What a device's attributes may be."""

from __future__ import annotations

import os

from recuse.server.sysfs import wrong_subsystem, wrong_sysfs

NAME_MAX_BYTES = 64
"""Longest device name, in bytes of UTF-8; there is no such limit in fs/fuse/cuse.c, 6.1."""

_LEAST_TRANSFER_BYTES = 4096
_MOST_TRANSFER_BYTES = 1 << 20


_RANGES = {
    "mode": (0, 0o777),
    "major": (0, 511),
    "minor": (0, (1 << 20) - 1),
    "max_read": (_LEAST_TRANSFER_BYTES, _MOST_TRANSFER_BYTES),
    "max_write": (_LEAST_TRANSFER_BYTES, _MOST_TRANSFER_BYTES),
    "uid": (0, (1 << 32) - 2),
    "gid": (0, (1 << 32) - 2),
    "map_length": (1, 1 << 40),
}

CHECKED = ("name", *_RANGES, "subsystem", "sysfs")
"""The attributes that are checked."""


def check_attribute(device: object, attribute: str) -> None:
    """Check one attribute of a device.  Raises ValueError if it is out of its range."""
    value = getattr(device, attribute)
    wrong = None
    if attribute == "name":
        wrong = _wrong_name(value)
    elif attribute == "subsystem":
        wrong = wrong_subsystem(value)
    elif attribute == "sysfs":
        wrong = wrong_sysfs(value)
    elif attribute in _RANGES:
        least, most = _RANGES[attribute]
        unset = value is None and attribute in ("uid", "gid")
        if not unset and not (isinstance(value, int) and least <= value <= most):
            wrong = f"not {least} to {most}"
            if attribute == "mode":
                wrong = f"not {least} to {most:#o}; octal numbers are written 0o..., such as 0o660"
    if wrong is not None:
        raise ValueError(f"{type(device).__name__}.{attribute} is {value!r}: {wrong}")


def _wrong_name(name: object) -> str | None:
    if not isinstance(name, str):
        return "not a string"
    if not 1 <= len(os.fsencode(name)) <= NAME_MAX_BYTES:
        return f"not 1 to {NAME_MAX_BYTES} bytes long"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "not a path below /dev"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "has control characters"
    if name != name.strip():
        return "has white space at an end"
    return None
