"""Options of a mount, as after ``-o``: those of mount(8) and fuse(8) that mean something here."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_DIRSYNC: Final = 128
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

FLAGS: Final = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
    "lazytime": MS_LAZYTIME,
}
"""linux/mount.h"""
_OPPOSITES: Final = {
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "dev": MS_NODEV,
    "exec": MS_NOEXEC,
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "diratime": MS_NODIRATIME,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "nolazytime": MS_LAZYTIME,
}
_WITHOUT_VALUE: Final = {"allow_other", "allow_root", "nonempty"}
_IO_URING: Final = {"io_uring": True, "no_io_uring": False}
_DECIMAL: Final = {"uid", "gid", "max_read"}
_TEXT: Final = {"fsname", "subtype"}
_PERMISSIONS: Final = "default_permissions"
# What is so anyway; the permissions only if it is not mounted already (`given_descriptor`).
_NOTHING: Final = {"defaults", "auto_unmount", _PERMISSIONS}
NAMES: Final = sorted(
    {
        *(*FLAGS, *_OPPOSITES, *_WITHOUT_VALUE, *_IO_URING),
        *(*_DECIMAL, *_TEXT, "umask", *_NOTHING),
    }
)
_MOST: Final = (1 << 32) - 2


class Options(NamedTuple):
    """What was asked for; None is what was not."""

    flags: int = MS_NOSUID | MS_NODEV
    """Those of mount(2)."""
    allow_other: bool = False
    allow_root: bool = False
    nonempty: bool = False
    io_uring: bool = False
    default_permissions: bool = False
    """Whether it was said; only what is mounted already may lack it."""
    fsname: str | None = None
    subtype: str | None = None
    max_read: int | None = None
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    @property
    def flag_names(self) -> list[str]:
        """The flags, as words."""
        return [name for name, flag in FLAGS.items() if self.flags & flag]


def given_descriptor(directory: str) -> int | None:
    """The N of ``/dev/fd/N``: /dev/fuse, opened and mounted by who started this process.

    libfuse takes such a mount point (lib/mount.c, fuse_mnt_parse_fuse_fd); mount.fuse3 gives one
    for its option ``drop_privileges``. None for all other directories.
    """
    match = re.fullmatch(r"/dev/fd/([0-9]{1,9})", directory)
    return None if match is None else int(match[1])


def split_options(text: str) -> list[str]:
    r"""Split at the commas, but for ``\,``, which stays as it is; there are no empty ones."""
    return [word for word in re.split(r"(?<!\\),", text) if word]


def parse_options(text: str) -> Options:
    r"""Take ``ro,fsname=thing`` apart; a comma in a value is written ``\,``.

    Raises ValueError, with one line that says what is wrong.
    """
    flags = Options().flags
    chosen: dict[str, object] = {}
    for word in split_options(text):
        name, equals, value = word.replace("\\,", ",").partition("=")
        if name in FLAGS:
            flags |= FLAGS[name]
        elif name in _OPPOSITES:
            flags &= ~_OPPOSITES[name]
        elif name in _WITHOUT_VALUE:
            chosen[name] = True
        elif name in _IO_URING:
            chosen["io_uring"] = _IO_URING[name]
        elif name in _TEXT:
            chosen[name] = value
        elif name in _DECIMAL or name == "umask":
            chosen[name] = _number(name, value)
        elif name == _PERMISSIONS:
            chosen[name] = True
        elif name not in _NOTHING:
            raise ValueError(f"-o {name}: is no option; there are {', '.join(NAMES)}")
        if bool(equals) != (name in _TEXT or name in _DECIMAL or name == "umask"):
            raise ValueError(f"-o {word}: {name} takes {'no' if equals else 'a'} value")
        if name in _TEXT and (not value or "\0" in value):
            raise ValueError(f"-o {word}: {name} is empty")
    return Options(flags, **chosen)  # type: ignore[arg-type]


def _number(name: str, value: str) -> int:
    octal = name == "umask"
    try:
        number = int(value, 8 if octal else 10)
    except ValueError:
        number = -1
    if not 0 <= number <= (0o777 if octal else _MOST):
        form = "an octal number, such as 022" if octal else "a number"
        raise ValueError(f"-o {name}={value}: {name} is {form}")
    return number
