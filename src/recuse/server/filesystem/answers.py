"""Makes the payloads of answers from what authors' methods return. These functions have no state.

Those with two arguments are what `recuse.server.runner.Runner.run` takes. They raise Misuse if it
is nothing that the method may return.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from recuse.runtime.log import Log
from recuse.server.errors import Misuse, brief
from recuse.server.filesystem.attributes import Lock
from recuse.server.filesystem.requests import ENCODING, ERRORS, NAME_MAX
from recuse.server.runner import label
from recuse.wire.filesystem import (
    fuse_copy_file_range_out,
    fuse_file_lock,
    fuse_getxattr_out,
    fuse_lk_out,
    fuse_lseek_out,
)

_TARGET_MAX: Final = 4095
"""The kernel has a page of 4 KiB for it, with a NUL (fs/fuse/dir.c, fuse_readlink_folio)."""

log = Log("recuse.server")

_pack_xattr_size = fuse_getxattr_out.CODEC.pack
_pack_lseek = fuse_lseek_out.CODEC.pack
_pack_copied = fuse_copy_file_range_out.CODEC.pack


def nothing(_: Any, __: Any) -> bytes:
    """The answer to a success that needs no payload."""
    return b""


def as_it_is(payload: Any, _: None) -> Any:
    """An answer that a method has already made."""
    return payload


def target(returned: Any, _: None) -> bytes:
    """What a symbolic link leads to."""
    if not isinstance(returned, str | bytes):
        raise Misuse(f"returned {brief(returned)}, not a str")
    encoded = _without_nul("returned", returned)
    if not 0 < len(encoded) <= _TARGET_MAX:
        raise Misuse(f"returned a path of {len(encoded)} bytes, not of 1 to {_TARGET_MAX}")
    return encoded


def listed_name(name: Any) -> bytes:
    """A name in a directory, as listings have it."""
    if not isinstance(name, str):
        raise Misuse(f"listed {brief(name)}, not a name of type str")
    encoded = _without_nul("listed", name)
    if not encoded or b"/" in encoded:
        raise Misuse(f'listed {brief(name)}: a name is not empty and has no "/"')
    return encoded


def is_too_long(name: bytes) -> bool:
    """Whether a name has to be left out of a listing: programs could do nothing with the file."""
    return len(name) > NAME_MAX


def log_too_long(method: object, name: bytes) -> None:
    """Log the first name that is left out of a listing."""
    begin = os.fsdecode(name[:16])
    what = "%s listed %a..., a name of %d bytes: what has more than %d is left out"
    log.error(what, label(method), begin, len(name), NAME_MAX)


def _without_nul(did: str, text: str | bytes) -> bytes:
    """A text that ends with a NUL in the protocol or in the kernel, and so can have none."""
    try:
        encoded = text.encode(ENCODING, ERRORS) if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise Misuse(f"{did} {brief(text)}, which is no file name: {error.reason}") from None
    if b"\0" in encoded:
        raise Misuse(f"{did} {brief(text)}, which has a NUL in it")
    return encoded


def xattr_value(returned: Any, room: int) -> bytes:
    """An attribute's value, or its size if the program only asks for that (no room)."""
    try:
        value = bytes(memoryview(returned))
    except TypeError:
        raise Misuse(f"returned {brief(returned)}, not bytes") from None
    if not room:
        return _pack_xattr_size(len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def xattr_names(returned: Any, room: int) -> bytes:
    """The names of the attributes, or the size of that."""
    return xattr_value(b"".join(_xattr_name(name) + b"\0" for name in returned), room)


def _xattr_name(name: Any) -> bytes:
    if not isinstance(name, str | bytes) or not name:
        raise Misuse(f"listed {brief(name)}, not an attribute's name")
    return _without_nul("listed", name)


def lock(returned: Any, _: None) -> bytes:
    """The lock that conflicts."""
    if not isinstance(returned, Lock):
        raise Misuse(f"returned {brief(returned)}, not a Lock")
    told = fuse_file_lock(
        start=returned.start, end=returned.end, type=returned.type, pid=returned.pid
    )
    return fuse_lk_out(lk=told).pack()


def offset(returned: Any, _: None) -> bytes:
    """Where data or a hole begins."""
    if not isinstance(returned, int) or not 0 <= returned < 1 << 63:
        raise Misuse(f"returned {brief(returned)}, not an offset")
    return _pack_lseek(returned)


def copied(returned: Any, length: int) -> bytes:
    """How many bytes were copied, in 64 bits; None is all of them."""
    if returned is None:
        return _pack_copied(length)
    if not isinstance(returned, int) or not 0 <= returned <= length:
        raise Misuse(f"returned {brief(returned)}, not a number of bytes up to {length}")
    return _pack_copied(returned)
