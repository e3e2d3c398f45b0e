"""/proc/mounts and /proc/PID/mountinfo with the filesystems of the sandbox (fs/proc_namespace.c).

A program that reads one of them gets what the kernel has there at that time, and recuse's lines
after that. A program with mounts of its own may see a filesystem at other places than recuse does,
or at several: it may have bound a directory above elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from recuse.runtime.records import NamedTuple
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Location, Mount, lone
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree
from recuse.sandbox.vfs.nodes import AttributeNode, Identity
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.kernel.caller import Caller
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


def mount_table(call: TrappedCall, machine: Machine, path: bytes) -> Location | None:
    """Return a file with the table that a path leads to; None if it leads to something else."""
    matched = _PATH.fullmatch(path)
    if matched is None:
        return None
    whose, kind = matched[1], matched[2] or b"mounts"
    if not matched[2] and native_files.real_path(b"/etc/mtab") != b"/proc/%d/mounts" % os.getpid():
        return None
    process = call.task.tgid if whose in (None, b"self", b"thread-self") else int(whose)
    path = b"/proc/%d/%b" % (process, kind)
    try:
        status = native_files.status(path)
    except OSError:
        return None

    def show(_caller: Caller) -> bytes:
        return _table(machine, Tid(process), kind)

    identity = Identity(status.st_ino, status.st_uid, status.st_gid, status.st_dev)
    return lone(AttributeNode(identity, stat.S_IMODE(status.st_mode), show), path)


def _table(machine: Machine, process: Tid, kind: bytes) -> bytes:
    """What a process sees. Raises OSError: ENOENT if it has ended; as reading does."""
    native = _read(b"%d" % process, kind)
    places = [_Place(one, _escaped(one.path)) for one in machine.tree.mounts.filesystems]
    if machine.tree.many_roots and machine.tree.has_own_root(process):
        places = _places(places, _read(b"%d" % process, b"mountinfo"))
    if kind == b"mounts":
        lines = [_mount_line(place) for place in places]
    else:
        lines = [_info_line(place, native, number) for number, place in enumerate(places)]
    return native + b"".join(lines)


class _Place(NamedTuple):
    """A place where a filesystem is seen."""

    mount: Mount
    path: bytes
    """As it is listed."""


class _Native(NamedTuple):
    """A line of the kernel's mountinfo."""

    number: bytes
    device: bytes
    root: bytes
    """The directory of that filesystem that is seen there."""
    path: bytes

    def has(self, path: bytes) -> bool:
        """Whether a path leads there, if nothing else is mounted on the way."""
        return _below(path, self.path) is not None


def _read(process: bytes, name: bytes) -> bytes:
    with open(b"/proc/%b/%b" % (process, name), "rb") as file:
        return file.read()


def _natives(mountinfo: bytes) -> list[_Native]:
    words = [line.split(b" ", 5) for line in mountinfo.splitlines()]
    return [_Native(number, device, root, path) for number, _, device, root, path, _ in words]


def _below(path: bytes, directory: bytes) -> bytes | None:
    """The rest of a path, with its slash, if it is in that directory or the directory itself."""
    directory = directory.rstrip(b"/")
    if path != directory and not path.startswith(directory + b"/"):
        return None
    return path[len(directory) :]


def _places(ours: list[_Place], mountinfo: bytes) -> list[_Place]:
    """Where a process with these mounts sees filesystems whose places in ours are these."""
    here = _natives(_read(b"self", b"mountinfo"))
    copied = {one[1:] for one in here}
    found = []
    for place in ours:
        native = max((one for one in here if one.has(place.path)), key=lambda one: len(one.path))
        rest = _below(place.path, native.path)
        assert rest is not None
        path = native.root.rstrip(b"/") + rest
        for there in _natives(mountinfo):
            below = _below(path, there.root)
            if there.device != native.device or below is None:
                continue
            if there[1:] == native[1:] or there[1:] not in copied:
                found.append(_Place(place.mount, there.path.rstrip(b"/") + below))
    return found


def _filesystem(mount: Mount) -> FilesystemTree:
    assert isinstance(mount.tree, FilesystemTree)
    return mount.tree


def _mount_line(place: _Place) -> bytes:
    described = _filesystem(place.mount).description
    words = [_escaped(described.source), place.path, _escaped(described.kind)]
    return b" ".join([*words, described.flags + b"," + described.options]) + b" 0 0\n"


def _info_line(place: _Place, native: bytes, number: int) -> bytes:
    described = _filesystem(place.mount).description
    above, longest = b"1", -1
    for one in _natives(native):
        if one.has(place.path) and len(one.path) >= longest:
            longest, above = len(one.path), one.number
    device = b"%d:%d" % (os.major(described.device), os.minor(described.device))
    words = [b"%d" % (_FIRST_ID + number), above, device, b"/", place.path]
    words += [described.flags, b"-", _escaped(described.kind), _escaped(described.source)]
    return b" ".join([*words, described.flags[:2] + b"," + described.options]) + b"\n"


def _escaped(word: bytes) -> bytes:
    return _SPECIAL.sub(lambda found: b"\\%03o" % found[0][0], word)
