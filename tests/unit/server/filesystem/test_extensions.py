"""What requests say about the program besides what they ask for."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.server.filesystem import extensions
from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    fuse_create_in,
    fuse_ext_header,
    fuse_mkdir_in,
    fuse_mknod_in,
    fuse_secctx,
    fuse_setattr_in,
    fuse_setxattr_in,
)
from recuse.wire.fuse import (
    FUSE_CREATE,
    FUSE_EXT_GROUPS,
    FUSE_LOOKUP,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_SETATTR,
    FUSE_SETXATTR,
    FUSE_TMPFILE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_open_in,
    fuse_write_in,
)


def message(opcode: int, body: bytes = b"", extension: bytes = b"") -> bytes:
    header = fuse_in_header(opcode=opcode, total_extlen=len(extension) // 8)
    header.len = header.SIZE + len(body) + len(extension)
    return header.pack() + body + extension


def padded(data: bytes) -> bytes:
    return data.ljust(len(data) + 7 & ~7, b"\0")


def groups(numbers: list[int]) -> bytes:
    body = struct.pack(f"={1 + len(numbers)}I", len(numbers), *numbers)
    header = fuse_ext_header(fuse_ext_header.SIZE + len(body), FUSE_EXT_GROUPS)
    return padded(header.pack() + body)


def contexts(values: dict[str, bytes]) -> bytes:
    body = b"".join(
        padded(fuse_secctx(len(value)).pack() + name.encode() + b"\0" + value)
        for name, value in values.items()
    )
    return fuse_ext_header(fuse_ext_header.SIZE + len(body), len(values)).pack() + body


def test_umask() -> None:
    for opcode, body in (
        (FUSE_CREATE, fuse_create_in(umask=0o27)),
        (FUSE_TMPFILE, fuse_create_in(umask=0o27)),
        (FUSE_MKNOD, fuse_mknod_in(umask=0o27)),
        (FUSE_MKDIR, fuse_mkdir_in(umask=0o27)),
    ):
        assert extensions.umask(opcode, message(opcode, body.pack() + b"name\0")) == 0o27
    assert extensions.umask(FUSE_LOOKUP, message(FUSE_LOOKUP, b"name\0")) == 0


def test_kill_suidgid() -> None:
    for opcode, without, with_it in (
        (FUSE_CREATE, fuse_create_in(), fuse_create_in(open_flags=1)),
        (FUSE_TMPFILE, fuse_create_in(), fuse_create_in(open_flags=1)),
        (FUSE_OPEN, fuse_open_in(), fuse_open_in(open_flags=1)),
        (FUSE_WRITE, fuse_write_in(write_flags=3), fuse_write_in(write_flags=4)),
        (FUSE_SETATTR, fuse_setattr_in(valid=0x7FF), fuse_setattr_in(valid=0x800)),
        (FUSE_SETXATTR, fuse_setxattr_in(), fuse_setxattr_in(setxattr_flags=1)),
    ):
        assert not extensions.kill_suidgid(opcode, message(opcode, without.pack()))
        assert extensions.kill_suidgid(opcode, message(opcode, with_it.pack()))
    assert not extensions.kill_suidgid(FUSE_LOOKUP, message(FUSE_LOOKUP, b"name\0"))


NAMES = st.text(st.characters(min_codepoint=1, max_codepoint=126), min_size=1, max_size=20)


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=20),
    st.dictionaries(NAMES, st.binary(max_size=30), max_size=31),
    st.binary(max_size=40),
)
def test_extensions(numbers: list[int], values: dict[str, bytes], body: bytes) -> None:
    for both in (groups(numbers) + contexts(values), contexts(values) + groups(numbers)):
        request = message(FUSE_CREATE, body, both)
        assert extensions.groups(request) == tuple(numbers)
        assert extensions.security_contexts(request) == values


@given(st.binary(max_size=80).map(padded))
def test_anything(extension: bytes) -> None:
    """Whatever comes, it is read or is said to be malformed."""
    request = message(FUSE_CREATE, b"", extension)
    for read in (extensions.groups, extensions.security_contexts):
        with contextlib.suppress(WireError):
            read(request)


def test_none() -> None:
    request = message(FUSE_MKDIR, fuse_mkdir_in().pack() + b"name\0")
    assert extensions.groups(request) == ()
    assert extensions.security_contexts(request) == {}


def test_more_than_there_is() -> None:
    request = bytearray(message(FUSE_CREATE))
    struct.pack_into("=H", request, 36, 5)
    with pytest.raises(WireError):
        extensions.groups(bytes(request))
    with pytest.raises(WireError):
        extensions.groups(
            message(FUSE_CREATE, b"", struct.pack("=IIII", 16, FUSE_EXT_GROUPS, 2, 0))
        )
    with pytest.raises(WireError):
        extensions.security_contexts(message(FUSE_CREATE, b"", struct.pack("=IIII", 16, 1, 9, 0)))
