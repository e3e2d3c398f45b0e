"""Directory listings that show devices (fs/readdir.c; Linux 6.1).

The kernel lists what is there natively; after its last entry come ours. The supervisor makes the
native call itself, on a copy of the caller's descriptor, which shares its position.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from recuse.sandbox.arch import arch
from recuse.sandbox.memory import write_memory
from recuse.sandbox.syscalls.call import PROCEED, Handler, failure, signed32
from recuse.sandbox.tree import Node

if TYPE_CHECKING:
    from recuse.sandbox.listener import Notification
    from recuse.sandbox.supervisor import Supervisor

_HEADER = struct.Struct("=QqH")
_LARGEST: Final = 1 << 18
_POSITION: Final = 0x7FFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


class Listings:
    """How far each listing has come with our entries."""

    def __init__(self) -> None:
        self._shown: dict[tuple[int, int], int] = {}

    def rewound(self, call: Notification) -> None:
        """A descriptor was repositioned: if it is a directory, its listing starts anew."""
        if self._shown:
            self._shown.pop((call.pid, signed32(call.a0)), None)

    def shown(self, key: tuple[int, int]) -> int:
        """How many of our entries the listing has given."""
        return self._shown.get(key, 0)

    def set_shown(self, key: tuple[int, int], count: int) -> None:
        """Remember that number; 0 forgets the listing."""
        if count:
            self._shown[key] = count
        else:
            self._shown.pop(key, None)


def _list(supervisor: Supervisor, call: Notification, number: int, *, typed: bool) -> int:
    descriptor = signed32(call.a0)
    try:
        link = os.readlink(b"/proc/%d/fd/%d" % (call.pid, descriptor))
    except OSError:
        return PROCEED
    path = supervisor.tree.unshadowed(link)
    if not supervisor.tree.extends(path):
        return PROCEED
    room = min(call.a2 & 0xFFFFFFFF, _LARGEST)
    data = _native(supervisor.tasks.get(call.pid).tgid, descriptor, number, room)
    key = (call.pid, descriptor)
    listings = supervisor.listings
    if data:
        listings.set_shown(key, 0)
    else:
        # The order of children is stable, and none of them can go while the count matters: a
        # device removed in the middle of a listing may hide its neighbour once, no more.
        nodes = list(supervisor.tree.children(path))
        shown = listings.shown(key)
        entries, count = _encode(nodes[shown:], room, typed=typed)
        if count == 0 and shown < len(nodes):
            raise failure(errno.EINVAL)
        listings.set_shown(key, shown + count if count else 0)
        data = entries
    if data and write_memory(call.pid, call.a1, data) < len(data):
        raise failure(errno.EFAULT)
    return len(data)


def _native(tgid: int, descriptor: int, number: int, room: int) -> bytes:
    """What the kernel lists next."""
    process = os.pidfd_open(tgid)
    try:
        copy = _libc.syscall(arch.SYSCALLS["pidfd_getfd"], process, descriptor, 0)
    finally:
        os.close(process)
    if copy < 0:
        raise failure(ctypes.get_errno())
    try:
        buffer = ctypes.create_string_buffer(room)
        count = _libc.syscall(number, copy, buffer, room)
        if count < 0:
            raise failure(ctypes.get_errno())
        return buffer.raw[:count]
    finally:
        os.close(copy)


def _encode(nodes: list[Node], room: int, *, typed: bool) -> tuple[bytes, int]:
    """Encode as many entries as fit into ``room`` bytes; returns them and their number.

    Typed ones are ``struct linux_dirent64``, with the type before the name; the others are
    ``struct linux_dirent``, which has it in its last byte.
    """
    data = bytearray()
    for count, node in enumerate(nodes):
        kind = bytes([stat.S_IFMT(node.mode) >> 12])
        tail = kind + node.name + b"\0" if typed else node.name + b"\0"
        length = (_HEADER.size + len(tail) + (0 if typed else 1) + 7) & ~7
        if len(data) + length > room:
            return bytes(data), count
        entry = _HEADER.pack(node.inode, _POSITION, length) + tail
        entry = entry.ljust(length, b"\0") if typed else entry.ljust(length - 1, b"\0") + kind
        data += entry
    return bytes(data), len(nodes)


def getdents64(supervisor: Supervisor, call: Notification) -> int:
    """``getdents64(fd, buf, count)``."""
    return _list(supervisor, call, call.number, typed=True)


def getdents(supervisor: Supervisor, call: Notification) -> int:
    """``getdents(fd, buf, count)``."""
    return _list(supervisor, call, call.number, typed=False)


HANDLERS: Final[dict[str, Handler]] = {"getdents64": getdents64, "getdents": getdents}
