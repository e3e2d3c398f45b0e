"""What a filesystem's session agrees on with the kernel half."""

from typing import Any

import pytest

from recuse import Directory, Filesystem
from recuse.wire.fuse import (
    FUSE_ALLOW_IDMAP,
    FUSE_ASYNC_READ,
    FUSE_AUTO_INVAL_DATA,
    FUSE_DONT_MASK,
    FUSE_EXPLICIT_INVAL_DATA,
    FUSE_FLOCK_LOCKS,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_POSIX_ACL,
    FUSE_POSIX_LOCKS,
    FUSE_REQUEST_TIMEOUT,
    FUSE_SECURITY_CTX,
    FUSE_WRITEBACK_CACHE,
    fuse_init_out,
)

from .conftest import FilesystemPeer

OPTIONS = (
    ("posix_acls", True, FUSE_POSIX_ACL | FUSE_DONT_MASK),
    ("handle_killpriv", True, FUSE_HANDLE_KILLPRIV_V2),
    ("explicit_invalidation", True, FUSE_EXPLICIT_INVAL_DATA),
    ("security_contexts", True, FUSE_SECURITY_CTX),
    ("idmapped", True, FUSE_ALLOW_IDMAP),
    ("request_timeout_s", 40, FUSE_REQUEST_TIMEOUT),
    ("writeback", True, FUSE_WRITEBACK_CACHE),
    ("posix_locks", True, FUSE_POSIX_LOCKS),
    ("flock_locks", True, FUSE_FLOCK_LOCKS),
)


def agreed(offered: int | None = None, **options: Any) -> fuse_init_out:
    filesystem = Filesystem(Directory())
    for name, value in options.items():
        setattr(filesystem, name, value)
    peer = FilesystemPeer(filesystem)
    try:
        return peer.init_filesystem() if offered is None else peer.init_filesystem(offered)
    finally:
        peer.session.close()


def taken(out: fuse_init_out) -> int:
    return out.flags | out.flags2 << 32


@pytest.mark.parametrize(("name", "value", "flags"), OPTIONS)
def test_what_is_taken_only_if_it_is_wanted(name: str, value: object, flags: int) -> None:
    assert not taken(agreed()) & flags
    option: dict[str, Any] = {name: value}
    assert taken(agreed(**option)) & flags == flags
    assert not taken(agreed(0, **option)) & flags


def test_cached_content_is_dropped_automatically_or_explicitly() -> None:
    assert taken(agreed()) & FUSE_AUTO_INVAL_DATA
    assert not taken(agreed(explicit_invalidation=True)) & FUSE_AUTO_INVAL_DATA


def test_how_long_a_request_may_take() -> None:
    assert agreed().request_timeout == 0
    assert agreed(request_timeout_s=40).request_timeout == 40
    assert agreed(FUSE_ASYNC_READ, request_timeout_s=40).request_timeout == 0


def test_how_much_a_request_may_have() -> None:
    out = agreed(max_write=4 << 20, max_read=8 << 20)
    assert (out.max_write, out.max_pages) == (4 << 20, 2048)
