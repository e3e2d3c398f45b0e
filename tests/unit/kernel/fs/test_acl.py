"""Access control lists, with servers that agree on FUSE_POSIX_ACL."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.options import MountOptions
from recuse.testing import PathCalls
from recuse.wire.filesystem import fuse_attr_out
from recuse.wire.fuse import (
    FUSE_GETXATTR,
    FUSE_POSIX_ACL,
    FUSE_REMOVEXATTR,
    FUSE_SETATTR,
    FUSE_SETXATTR,
    FUSE_SETXATTR_ACL_KILL_SGID,
    FUSE_SETXATTR_EXT,
)

from .support import FLAGS, Answer, Asked, Scripted, always, attr, entry

ACCESS = "system.posix_acl_access"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int] | tuple[int, int, int], version: int = 2) -> bytes:
    packed = [struct.pack("<HHI", *one, *((NOBODY,) if len(one) == 2 else ())) for one in entries]
    return struct.pack("<I", version) + b"".join(packed)


LIST = acl(
    (USER_OBJ, 6), (USER, 0, 5), (USER, 6, 6), (GROUP_OBJ, 4), (GROUP, 6, 50), (MASK, 4), (OTHER, 2)
)  # fmt: skip


def with_list(value: bytes | int = LIST, flags: int = FUSE_POSIX_ACL) -> Scripted:
    mount = Scripted(FLAGS | flags | FUSE_SETXATTR_EXT)
    known = {"mode": 0o642, "uid": 1, "gid": 10}
    mount.names["a"] = entry(2, valid_s=1000, **known)
    mount.attrs[2] = attr(2, **known)
    mount.attrs[1].mode |= 0o777

    def getxattr(asked: Asked) -> Answer:
        is_it = asked.header.nodeid == 2 and asked.text == ACCESS
        return value if is_it else -errno.ENODATA

    mount.answers[FUSE_GETXATTR] = getxattr
    mount.answers[FUSE_SETXATTR] = always(b"")
    mount.answers[FUSE_REMOVEXATTR] = always(b"")
    return mount


def user(mount: Scripted, uid: int, gid: int = 99, groups: tuple[int, ...] = ()) -> PathCalls:
    return PathCalls(mount._driver, FileCaller(1, uid, gid, groups=groups), 1)


def error_of(function: Callable[..., object], *arguments: object) -> str:
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@pytest.mark.parametrize(
    ("uid", "gid", "groups", "allowed"),
    [
        (1, 99, (), os.R_OK | os.W_OK),  # the owner, whatever the mask is
        (5, 99, (), 0),
        (6, 99, (), os.R_OK),  # as the mask says
        (7, 10, (), os.R_OK),
        (7, 99, (50,), os.R_OK),
        (5, 10, (50,), 0),  # the first line about the user counts
        (7, 99, (), os.W_OK),
        (0, 0, (), os.W_OK),
    ],
)
def test_a_list_says_who_may(uid: int, gid: int, groups: tuple[int, ...], allowed: int) -> None:
    mount = with_list()
    who = user(mount, uid, gid, groups)
    for wanted in (os.R_OK, os.W_OK, os.R_OK | os.W_OK):
        assert who.access("a", wanted) == (not wanted & ~allowed)


def test_it_is_asked_for_once_and_again_with_attributes() -> None:
    mount = with_list()
    who = user(mount, 6)
    for _ in range(2):
        assert who.access("a", os.R_OK)
    assert lists_asked_for(mount) == 1
    mount.now += 10**13
    assert who.access("a", os.R_OK)
    assert lists_asked_for(mount) == 2


def lists_asked_for(mount: Scripted) -> int:
    return sum(asked.name == "GETXATTR" and asked.header.nodeid == 2 for asked in mount.asked)


@pytest.mark.parametrize("number", [errno.ENODATA, errno.ENOSYS])
def test_without_a_list_the_mode_counts(number: int) -> None:
    mount = with_list(-number)
    assert user(mount, 6).access("a", os.W_OK)
    assert not user(mount, 6).access("a", os.R_OK)


def test_a_list_that_cannot_be_had_is_an_error() -> None:
    assert error_of(user(with_list(-errno.ERANGE), 6).open, "a") == "E2BIG"
    assert error_of(user(with_list(b"\1"), 6).open, "a") == "EINVAL"
    assert error_of(user(with_list(acl(version=3)), 6).open, "a") == "ENOTSUP"
    assert error_of(user(with_list(acl((77, 0))), 6).open, "a") == "EINVAL"


def test_nobody_asks_if_it_is_not_agreed_on() -> None:
    mount = with_list(flags=0)
    assert user(mount, 5).access("a", os.W_OK)
    assert "GETXATTR" not in mount.sent


def test_permissions_are_checked_whatever_the_mount_says() -> None:
    mount = Scripted(FLAGS | FUSE_POSIX_ACL, options=MountOptions(default_permissions=False))
    assert mount.superblock.options.default_permissions


def test_setting_one_changes_what_is_known() -> None:
    mount = with_list()
    owner = user(mount, 1, 99)
    assert user(mount, 6).access("a", os.R_OK)
    owner.setxattr("a", ACCESS, LIST, os.XATTR_CREATE)
    asked = next(one for one in mount.asked if one.name == "SETXATTR")
    assert asked.body.flags == 0
    assert asked.body.setxattr_flags == FUSE_SETXATTR_ACL_KILL_SGID
    mount.clear()
    assert user(mount, 6).access("a", os.R_OK)
    assert mount.sent == ["GETATTR", "GETXATTR"]
    assert error_of(user(mount, 6).setxattr, "a", ACCESS, LIST) == "EPERM"
    assert error_of(owner.setxattr, "a", ACCESS, b"xy") == "EINVAL"
    assert error_of(owner.setxattr, "a", "system.posix_acl_default", LIST) == "EACCES"
    mount.clear()
    owner.setxattr("a", ACCESS, acl())
    owner.removexattr("a", ACCESS)
    assert mount.sent.count("REMOVEXATTR") == 2


def test_chmod_changes_it_too() -> None:
    mount = with_list()
    mount.answers[FUSE_SETATTR] = always(fuse_attr_out(attr_valid=1000, attr=mount.attrs[2]))
    assert user(mount, 6).access("a", os.R_OK)
    user(mount, 1).chmod("a", 0o600)
    mount.clear()
    user(mount, 6).access("a", os.R_OK)
    assert "GETXATTR" in mount.sent
