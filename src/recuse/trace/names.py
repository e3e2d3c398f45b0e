"""Names for numbers: open and poll flags, ioctl commands, errors; bytes as an escaped string."""

import errno
import os
from functools import lru_cache

from recuse.wire import cuse, fuse, ioctl

# asm-generic/fcntl.h, x86: on 64-bit machines Python's is 0, but the kernel's is not.
_O_LARGEFILE = 0o100000

_ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}

_OPEN = {
    os.O_CREAT: "O_CREAT",
    os.O_EXCL: "O_EXCL",
    os.O_NOCTTY: "O_NOCTTY",
    os.O_TRUNC: "O_TRUNC",
    os.O_APPEND: "O_APPEND",
    os.O_NONBLOCK: "O_NONBLOCK",
    os.O_SYNC: "O_SYNC",
    os.O_DSYNC: "O_DSYNC",
    os.O_ASYNC: "O_ASYNC",
    os.O_DIRECT: "O_DIRECT",
    os.O_DIRECTORY: "O_DIRECTORY",
    os.O_NOFOLLOW: "O_NOFOLLOW",
    os.O_NOATIME: "O_NOATIME",
    os.O_CLOEXEC: "O_CLOEXEC",
}

_POLL = {
    0x1: "POLLIN",
    0x2: "POLLPRI",
    0x4: "POLLOUT",
    0x8: "POLLERR",
    0x10: "POLLHUP",
    0x20: "POLLNVAL",
    0x40: "POLLRDNORM",
    0x80: "POLLRDBAND",
    0x100: "POLLWRNORM",
    0x200: "POLLWRBAND",
    0x400: "POLLMSG",
    0x2000: "POLLRDHUP",
}


def _prefixed(*prefixes: str) -> dict[int, str]:
    """The one-bit constants of `recuse.wire.fuse` that start with one of the prefixes."""
    return {
        value: name
        for name, value in vars(fuse).items()
        if name.startswith(prefixes) and isinstance(value, int)
    }


_IOCTL = {
    value: name for value, name in _prefixed("FUSE_IOCTL_").items() if name != "FUSE_IOCTL_MAX_IOV"
}

# Operations have RECUSE_ names too, and numbers of several bits.
_CUSE = {
    value: name
    for name, value in vars(cuse).items()
    if name.startswith(("CUSE_UNRESTRICTED_", "RECUSE_"))
    and not name.startswith(("RECUSE_IOCTL_", "RECUSE_MMAP_", "RECUSE_DESCRIBE_"))
    and value.bit_count() == 1
}

# asm-generic/mman-common.h and mman.h, x86.
_PROTECTION = {1: "PROT_READ", 2: "PROT_WRITE", 4: "PROT_EXEC"}
_MAP = {
    0x3: "MAP_SHARED_VALIDATE",
    0x1: "MAP_SHARED",
    0x2: "MAP_PRIVATE",
    0x10: "MAP_FIXED",
    0x40: "MAP_32BIT",
    0x2000: "MAP_LOCKED",
    0x4000: "MAP_NORESERVE",
    0x8000: "MAP_POPULATE",
    0x10000: "MAP_NONBLOCK",
    0x20000: "MAP_STACK",
    0x100000: "MAP_FIXED_NOREPLACE",
}
_MAPPED = ("recuse_mmap_in", "recuse_mmap_commit_in")

_FLAGS: dict[str, dict[int, str]] = {
    "fuse_open_in.open_flags": _prefixed("FUSE_OPEN_"),
    "fuse_open_out.open_flags": _prefixed("FOPEN_"),
    "fuse_release_in.release_flags": _prefixed("FUSE_RELEASE_"),
    "fuse_read_in.read_flags": _prefixed("FUSE_READ_"),
    "fuse_write_in.write_flags": _prefixed("FUSE_WRITE_"),
    "fuse_fsync_in.fsync_flags": _prefixed("FUSE_FSYNC_"),
    "fuse_ioctl_in.flags": _IOCTL | {cuse.RECUSE_IOCTL_NONBLOCK: "RECUSE_IOCTL_NONBLOCK"},
    "fuse_ioctl_out.flags": _IOCTL | {cuse.RECUSE_IOCTL_FILE: "RECUSE_IOCTL_FILE"},
    "fuse_poll_in.flags": _prefixed("FUSE_POLL_"),
    "fuse_poll_in.events": _POLL,
    "fuse_poll_out.revents": _POLL,
    "recuse_describe_out.flags": {cuse.RECUSE_DESCRIBE_READ_ONLY: "RECUSE_DESCRIBE_READ_ONLY"},
    "recuse_mmap_out.flags": {
        cuse.RECUSE_MMAP_DONT_COPY: "RECUSE_MMAP_DONT_COPY",
        cuse.RECUSE_MMAP_DONT_EXPAND: "RECUSE_MMAP_DONT_EXPAND",
    },
    **{f"{name}.prot": _PROTECTION for name in _MAPPED},
    **{f"{name}.flags": _MAP for name in _MAPPED},
    "cuse_init_in.flags": _CUSE,
    "cuse_init_out.flags": _CUSE,
}

_OPENED = {f"fuse_{name}_in.flags" for name in ("open", "create", "read", "write", "release")}
"""Fields with the flags of open(2)."""
_OPENED.add("recuse_ioctl_file.flags")

_HEXADECIMAL = {"addr", "lock_owner", "arg", "kh", "base", "flags", "flags2", "cmd"}

_UNNAMED = {"padding", "unused", "spare", "dummy"}

_QUIET = {"lock_owner", "open_flags", "read_flags", "write_flags", "release_flags", "backing_id"}
"""Fields that are printed only if they are not 0."""


def is_padding(field: str) -> bool:
    """Whether a structure's field has no meaning."""
    return field in _UNNAMED or field.startswith(("padding", "unused", "spare"))


def is_everywhere(structure: str, field: str) -> bool:
    """Whether a field is the same for all requests: the lock owner of all transfers."""
    return field == "lock_owner" and structure in {"fuse_read_in", "fuse_write_in"}


def without_usual(field: str, value: int) -> int:
    """A field's value without the bit that says there is such a lock owner."""
    return value & ~_LOCK_OWNER_BIT.get(field, 0)


_LOCK_OWNER_BIT = {
    "read_flags": fuse.FUSE_READ_LOCKOWNER,
    "write_flags": fuse.FUSE_WRITE_LOCKOWNER,
}


def is_quiet(field: str) -> bool:
    """Whether a field is only worth printing if it is not 0."""
    return field in _QUIET


def _bits(value: int, names: dict[int, str]) -> list[str]:
    # Those of several bits (O_SYNC includes O_DSYNC) come first.
    found = []
    for bits in sorted(names, key=int.bit_count, reverse=True):
        if bits and value & bits == bits:
            found.append((bits, names[bits]))
            value &= ~bits
    words = [name for _, name in sorted(found)]
    return [*words, hex(value)] if value else words


@lru_cache(1024)
def open_flags(value: int) -> str:
    """Return the flags of open(2) as in C: O_RDWR|O_NONBLOCK; bits without a name in hex.

    Without O_LARGEFILE, which all files of 64-bit programs have.
    """
    access = value & os.O_ACCMODE
    others = _bits(value & ~os.O_ACCMODE & ~_O_LARGEFILE, _OPEN)
    return "|".join([_ACCESS.get(access, "O_ACCMODE"), *others])


@lru_cache(4096)
def number(structure: str, field: str, value: int) -> str:
    """Return the name of a field's number: flags, commands, addresses; otherwise the number."""
    full = f"{structure}.{field}"
    if full in _OPENED:
        return open_flags(value)
    if full == "fuse_ioctl_in.cmd":
        return command(value)
    names = _FLAGS.get(full)
    if names is not None:
        return "|".join(_bits(value, names)) or "0"
    if field in _HEXADECIMAL:
        return hex(value)
    return str(value)


@lru_cache(256)
def error(value: int) -> str:
    """Return the name of a positive errno, or the number if it has none."""
    return errno.errorcode.get(value, str(value))


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 256))}
_ESCAPES |= {10: "\\n", 13: "\\r", 9: "\\t", 34: '\\"', 92: "\\\\"}


def escape(data: bytes) -> str:
    r"""Return printable ASCII: other bytes as \xNN, or \n and the like."""
    return data.decode("latin-1").translate(_ESCAPES)


def printable(name: str) -> str:
    """Return a name that is safe for a terminal, and for programs that read columns."""
    if name.isascii() and name.isprintable() and " " not in name:
        return name
    return escape(name.encode(errors="surrogateescape")).replace(" ", "\\x20")


# Commands without a size in them, and those whose size is always the same.
_COMMANDS = {
    0x5401: "TCGETS",
    0x5402: "TCSETS",
    0x5403: "TCSETSW",
    0x5404: "TCSETSF",
    0x5409: "TCSBRK",
    0x540A: "TCXONC",
    0x540B: "TCFLSH",
    0x540F: "TIOCGPGRP",
    0x5410: "TIOCSPGRP",
    0x5411: "TIOCOUTQ",
    0x5413: "TIOCGWINSZ",
    0x5414: "TIOCSWINSZ",
    0x5415: "TIOCMGET",
    0x5416: "TIOCMBIS",
    0x5417: "TIOCMBIC",
    0x5418: "TIOCMSET",
    0x541B: "FIONREAD",
    0x5421: "FIONBIO",
    0x5425: "TCSBRKP",
    0x5427: "TIOCSBRK",
    0x5428: "TIOCCBRK",
    0x802C542A: "TCGETS2",
    0x402C542B: "TCSETS2",
    0x402C542C: "TCSETSW2",
    0x402C542D: "TCSETSF2",
    0x5450: "FIONCLEX",
    0x5451: "FIOCLEX",
    0x0701: "I2C_RETRIES",
    0x0702: "I2C_TIMEOUT",
    0x0703: "I2C_SLAVE",
    0x0704: "I2C_TENBIT",
    0x0705: "I2C_FUNCS",
    0x0706: "I2C_SLAVE_FORCE",
    0x0707: "I2C_RDWR",
    0x0708: "I2C_PEC",
    0x0720: "I2C_SMBUS",
    0x1260: "BLKGETSIZE",
    0x1268: "BLKSSZGET",
    0x80081272: "BLKGETSIZE64",
    0x5000: "SNDCTL_DSP_RESET",
    0x5001: "SNDCTL_DSP_SYNC",
    0x5008: "SNDCTL_DSP_POST",
    0xC0045002: "SNDCTL_DSP_SPEED",
    0xC0045003: "SNDCTL_DSP_STEREO",
    0xC0045004: "SNDCTL_DSP_GETBLKSIZE",
    0xC0045005: "SNDCTL_DSP_SETFMT",
    0xC0045006: "SNDCTL_DSP_CHANNELS",
    0xC004500A: "SNDCTL_DSP_SETFRAGMENT",
    0x8004500B: "SNDCTL_DSP_GETFMTS",
    0x8010500C: "SNDCTL_DSP_GETOSPACE",
    0x8010500D: "SNDCTL_DSP_GETISPACE",
    0x8004500F: "SNDCTL_DSP_GETCAPS",
    0x40045010: "SNDCTL_DSP_SETTRIGGER",
    0x80044501: "EVIOCGVERSION",
    0x80084502: "EVIOCGID",
    0x80084503: "EVIOCGREP",
    0x80044584: "EVIOCGEFFECTS",
    0x40044590: "EVIOCGRAB",
    0x400445A0: "EVIOCSCLOCKID",
}

# Commands whose size is the caller's buffer's: direction, type, number.
_SIZED = {
    (ioctl.IOC_READ, ord("E"), 0x06): "EVIOCGNAME",
    (ioctl.IOC_READ, ord("E"), 0x07): "EVIOCGPHYS",
    (ioctl.IOC_READ, ord("E"), 0x08): "EVIOCGUNIQ",
    (ioctl.IOC_READ, ord("E"), 0x09): "EVIOCGPROP",
    (ioctl.IOC_READ, ord("E"), 0x18): "EVIOCGKEY",
    (ioctl.IOC_READ, ord("E"), 0x19): "EVIOCGLED",
    (ioctl.IOC_READ, ord("E"), 0x1A): "EVIOCGSND",
    (ioctl.IOC_READ, ord("E"), 0x1B): "EVIOCGSW",
}

_EVIOCGBIT = 0x20
"""The first of 32 numbers, one for each type of input events."""

_DIRECTIONS = {
    ioctl.IOC_NONE: "_IO",
    ioctl.IOC_READ: "_IOR",
    ioctl.IOC_WRITE: "_IOW",
    ioctl.IOC_READ | ioctl.IOC_WRITE: "_IOWR",
}


@lru_cache(1024)
def command(value: int) -> str:
    """Return an ioctl command as C has it: TCGETS, EVIOCGKEY(16), _IOR('E', 0x18, 16)."""
    if value in _COMMANDS:
        return _COMMANDS[value]
    direction, size = ioctl.direction(value), ioctl.size(value)
    magic, count = ioctl.type(value), ioctl.number(value)
    sized = _SIZED.get((direction, magic, count))
    if sized is not None:
        return f"{sized}({size})"
    if (direction, magic) == (ioctl.IOC_READ, ord("E")) and count & 0xE0 == _EVIOCGBIT:
        return f"EVIOCGBIT({count - _EVIOCGBIT:#x}, {size})"
    kind = f"'{chr(magic)}'" if chr(magic).isalnum() and magic < 128 else hex(magic)
    if direction == ioctl.IOC_NONE:
        return f"_IO({kind}, {count:#x})" if not size else f"_IOC(0, {kind}, {count:#x}, {size})"
    return f"{_DIRECTIONS[direction]}({kind}, {count:#x}, {size})"
