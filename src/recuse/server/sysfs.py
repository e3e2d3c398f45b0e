"""What a device's author declares for /sys."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias

from recuse.server.errors import Misuse, brief

CONTENT_MAX_BYTES = 4096
"""Most bytes that an attribute can have: a page."""


class Link(str):
    """A symbolic link among the values of `Device.sysfs`: its target."""

    __slots__ = ()


Content: TypeAlias = str | bytes
Value: TypeAlias = Content | Callable[[Any], Content | Awaitable[Content]]
"""An attribute's content, or a function that is called with the device and returns it."""


def wrong_subsystem(subsystem: object) -> str | None:
    """Say what is wrong with a `Device.subsystem`, None if nothing is."""
    if not isinstance(subsystem, str):
        return "not a string"
    kind, _, name = subsystem.partition("/")
    if kind not in ("class", "bus") or _wrong_path(name) or "/" in name:
        return 'not "class/NAME" or "bus/NAME"'
    return None


def wrong_sysfs(sysfs: object) -> str | None:
    """Say what is wrong with a `Device.sysfs`, None if nothing is."""
    if not isinstance(sysfs, Mapping):
        return "not a mapping"
    for path, value in sysfs.items():
        if not isinstance(path, str):
            return f"{path!r} is not a string"
        reason = _wrong_path(path)
        if reason is None and isinstance(value, Link):
            reason = None if _is_text(value) else "is a link to an impossible path"
        elif reason is None and isinstance(value, str | bytes):
            long = len(encoded(value)) > CONTENT_MAX_BYTES
            reason = f"has more than {CONTENT_MAX_BYTES} bytes" if long else None
        elif reason is None and not callable(value):
            reason = f"is {brief(value)}, not str, bytes, Link or callable"
        if reason is not None:
            return f"{path!r} {reason}"
    return None


def _wrong_path(path: str) -> str | None:
    below = path
    if path.startswith("/"):
        below = path.removeprefix("/sys/" if path.startswith("/sys/") else "/proc/")
    if any(name in ("", ".", "..") or " " in name for name in below.split("/")) or (
        not _is_text(path)
    ):
        return "is not a path in the device's directory, nor below /sys or /proc"
    return None


def _is_text(text: str) -> bool:
    """Whether it can be one of the info strings."""
    return bool(text) and text == text.strip() and all(ord(char) >= 32 for char in text)


def info_strings(subsystem: str, sysfs: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    """The keys and values that describe it to the kernel half, in the answer to CUSE_INIT."""
    if subsystem != "class/cuse":
        yield "SUBSYSTEM", subsystem
    for path, value in sysfs.items():
        if isinstance(value, Link):
            yield "LINK", f"{path} {value}"
        else:
            yield "ATTRIBUTE", path


def encoded(content: Content) -> bytes:
    """The bytes of a content."""
    return os.fsencode(content)


def show_answer(returned: Any, _: None) -> bytes:
    """The payload for what an attribute's function returned."""
    if not isinstance(returned, str | bytes):
        raise Misuse(f"returned {brief(returned)}, not str or bytes")
    content = encoded(returned)
    if len(content) > CONTENT_MAX_BYTES:
        raise Misuse(f"returned {len(content)} bytes, but at most {CONTENT_MAX_BYTES} are possible")
    return content
