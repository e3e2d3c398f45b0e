"""/proc/mounts and /proc/PID/mountinfo with the filesystems of the sandbox (fs/proc_namespace.c).

A program that opens one of them gets a copy of what the kernel has there now, and recuse's lines
after that. A program with a root or mounts of its own gets the kernel's file.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from recuse.runtime.room import check_room, keeping
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Mount
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

ENDS: Final = (b"/mounts", b"/mountinfo", b"/etc/mtab")
"""How the paths end that may be one of them."""
_PATH: Final = re.compile(
    rb"/proc/(?:(self|thread-self|[0-9]+)/(?:task/[0-9]+/)?)?(mounts|mountinfo)|/etc/mtab"
)
_FIRST_ID: Final = 1 << 30
"""The kernel's own numbers of mounts are small."""
_SPECIAL: Final = re.compile(rb"[ \t\n\\#]")


def mount_table(call: TrappedCall, machine: Machine, path: bytes) -> int | None:
    """Return a descriptor of the table that a path leads to; None if it leads to something else.

    Raises:
        OSError: ENFILE.
    """
    matched = _PATH.fullmatch(path)
    tree = machine.tree
    if matched is None or (tree.many_roots and tree.has_own_root(call.tid)):
        return None
    whose, kind = matched[1], matched[2]
    if kind is None and native_files.real_path(b"/etc/mtab") != b"/proc/%d/mounts" % os.getpid():
        return None
    process = b"%d" % call.task.tgid if whose in (None, b"self", b"thread-self") else whose
    kind = kind or b"mounts"
    try:
        with open(b"/proc/%b/%b" % (process, kind), "rb") as file:
            native = file.read()
    except OSError:
        return None
    mounts = machine.tree.mounts.filesystems
    if kind == b"mounts":
        lines = [_mount_line(mount) for mount in mounts]
    else:
        lines = [_info_line(mount, native, number) for number, mount in enumerate(mounts)]
    return _file(native + b"".join(lines))


def _file(content: bytes) -> int:
    """A descriptor, for reading, of a file with that content."""
    with keeping():
        memory = os.memfd_create("recuse")
        try:
            os.write(memory, content)
            found = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(memory)
    try:
        check_room(found)
    except OSError:
        os.close(found)
        raise
    return found


def _filesystem(mount: Mount) -> FilesystemTree:
    assert isinstance(mount.tree, FilesystemTree)
    return mount.tree


def _mount_line(mount: Mount) -> bytes:
    described = _filesystem(mount).description
    words = described.source, mount.path, described.kind, described.flags + b"," + described.options
    return b" ".join(map(_escaped, words)) + b" 0 0\n"


def _info_line(mount: Mount, native: bytes, number: int) -> bytes:
    filesystem = _filesystem(mount)
    described = filesystem.description
    above = b"1"
    longest = -1
    for line in native.splitlines():
        words = line.split(b" ")
        point = words[4]
        inside = mount.path.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= longest:
            longest, above = len(point), words[0]
    device = b"%d:%d" % (os.major(described.device), os.minor(described.device))
    words = [b"%d" % (_FIRST_ID + number), above, device, b"/", _escaped(mount.path)]
    words += [described.flags, b"-", _escaped(described.kind), _escaped(described.source)]
    return b" ".join([*words, described.flags[:2] + b"," + described.options]) + b"\n"


def _escaped(word: bytes) -> bytes:
    return _SPECIAL.sub(lambda found: b"\\%03o" % found[0][0], word)
