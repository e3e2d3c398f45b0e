"""Options of mounts, as after -o."""

import re

import pytest

from recuse.channel.mount_options import (
    FLAGS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    NAMES,
    Options,
    given_descriptor,
    parse_options,
)
from recuse.server.filesystem.attributes import Attributes
from recuse.server.filesystem.encoding import Owner, attributes
from recuse.wire.filesystem import fuse_attr


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", MS_NOSUID | MS_NODEV),
        ("ro", MS_RDONLY | MS_NOSUID | MS_NODEV),
        ("ro,rw", MS_NOSUID | MS_NODEV),
        ("suid,dev,noexec", MS_NOEXEC),
        ("defaults,auto_unmount", MS_NOSUID | MS_NODEV),
    ],
)
def test_flags(text: str, flags: int) -> None:
    assert parse_options(text) == Options(flags)


def test_values() -> None:
    options = parse_options(
        r"allow_other,fsname=a\,b=c,subtype=x,max_read=4096,uid=7,gid=8,umask=027"
    )
    assert options == Options(
        allow_other=True, fsname="a,b=c", subtype="x", max_read=4096, uid=7, gid=8, umask=0o27
    )


def test_a_descriptor_in_place_of_a_directory() -> None:
    assert given_descriptor("/dev/fd/12") == 12
    for path in ("/dev/fd", "/dev/fd/", "/dev/fd/1/x", "/dev/fd/x", "/proc/self/fd/1", "dev/fd/1"):
        assert given_descriptor(path) is None


def test_flags_as_words() -> None:
    assert parse_options("ro,noatime").flag_names == ["ro", "nosuid", "nodev", "noatime"]


def test_each_flag_has_its_own_bit() -> None:
    assert len(set(FLAGS.values())) == len(FLAGS)
    assert all(value.bit_count() == 1 for value in FLAGS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "-o nonsense: is no option; there are "),
        ("uid=root", "-o uid=root: uid is a number"),
        ("uid", "-o uid=: uid is a number"),
        ("umask=9", "-o umask=9: umask is an octal number, such as 022"),
        ("umask=1000", "umask is an octal number"),
        ("ro=1", "-o ro=1: ro takes no value"),
        ("allow_other=yes", "allow_other takes no value"),
        ("fsname", "-o fsname: fsname takes a value"),
        ("fsname=", "fsname is empty"),
        ("gid=4294967295", "gid is a number"),
    ],
)
def test_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_options(text)
    assert "\n" not in str(caught.value)


def test_all_options_are_accepted() -> None:
    values = {"fsname": "=x", "subtype": "=x", "umask": "=0", "uid": "=0", "gid": "=0"}
    values["max_read"] = "=4096"
    for name in NAMES:
        parse_options(name + values.get(name, ""))


def test_another_owner() -> None:
    told = Attributes(mode=0o100640, uid=1, gid=2)
    plain = fuse_attr.unpack(attributes(5, told))
    assert (plain.mode, plain.uid, plain.gid, plain.ino) == (0o100640, 1, 2, 5)
    changed = fuse_attr.unpack(Owner(7, 8, 0o22).of(5, told))
    assert (changed.mode, changed.uid, changed.gid, changed.ino) == (0o100755, 7, 8, 5)
    assert Owner().of(5, told) == attributes(5, told)
