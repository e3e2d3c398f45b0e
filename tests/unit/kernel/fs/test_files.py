"""Which requests calls on files make, and what follows from the answers (fs/fuse/file.c)."""

import errno
import os
import stat

import pytest

from recuse.kernel.fs.credentials import ALL_CAPABILITIES
from recuse.kernel.fs.options import MountOptions
from recuse.wire.filesystem import (
    fuse_attr_out,
    fuse_copy_file_range_out,
    fuse_getxattr_out,
)
from recuse.wire.fuse import (
    FATTR_MODE,
    FATTR_SIZE,
    FUSE_ACCESS,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_BIG_WRITES,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_CREATE,
    FUSE_FALLOCATE,
    FUSE_FLUSH,
    FUSE_GETXATTR,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_MKNOD,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_REMOVEXATTR,
    FUSE_SETATTR,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    fuse_write_out,
)

from .support import Asked, Scripted, always, attr, entry


def error_of(call: object, *arguments: object) -> str:
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def takes(asked: Asked) -> fuse_write_out:
    return fuse_write_out(size=asked.body.size)


def with_file(mode: int = 0o777, flags: int = FUSE_ATOMIC_O_TRUNC, uid: int = 0) -> Scripted:
    mount = Scripted(flags | FUSE_BIG_WRITES, uid=uid, capabilities=0 if uid else ALL_CAPABILITIES)
    mount.names["a"] = entry(2, mode=mode, size=100, uid=uid)
    mount.attrs[2] = attr(2, mode=mode, size=100, uid=uid)
    mount.answers[FUSE_WRITE] = takes

    def setattr_(asked: Asked) -> fuse_attr_out:
        body = asked.body
        changed = attr(2, mode=mode, size=100, uid=uid)
        if body.valid & FATTR_MODE:
            changed.mode = body.mode
        if body.valid & FATTR_SIZE:
            changed.size = body.size
        mount.attrs[2] = changed
        return fuse_attr_out(attr_valid=1, attr=changed)

    mount.answers[FUSE_SETATTR] = setattr_
    return mount


def test_a_server_without_create_gets_mknod_and_open() -> None:
    mount = Scripted()
    mount.answers |= {FUSE_CREATE: always(-errno.ENOSYS), FUSE_MKNOD: always(entry(2))}
    for name in "ab":
        mount.clear()
        with mount.open(name, os.O_CREAT | os.O_RDWR):
            pass
        expected = ["CREATE"] if name == "a" else []
        made = [one for one in mount.sent if one in ("CREATE", "MKNOD", "OPEN")]
        assert made == [*expected, "MKNOD", "OPEN"]


def test_a_server_without_open_is_not_told_of_it() -> None:
    mount = with_file()
    mount.answers[FUSE_OPEN] = always(-errno.ENOSYS)
    mount.answers[FUSE_READ] = lambda asked: bytes([asked.body.fh]) * 4
    for times in (1, 1):
        with mount.open("a") as file:
            assert file.read(3) == bytes(3)
        assert mount.sent.count("OPEN") == times
    assert "RELEASE" not in mount.sent


def test_truncation_is_left_to_open_or_comes_after_it() -> None:
    for flags, expected in [(FUSE_ATOMIC_O_TRUNC, []), (0, ["SETATTR"])]:
        mount = with_file(flags=flags)
        with mount.open("a", os.O_RDWR | os.O_TRUNC):
            opened = next(one for one in mount.asked if one.name == "OPEN")
            assert bool(opened.body.flags & os.O_TRUNC) == bool(flags)
            assert [one for one in mount.sent if one == "SETATTR"] == expected


def test_a_failed_truncation_closes_the_file_again() -> None:
    mount = with_file(flags=0)
    mount.answers[FUSE_SETATTR] = always(-errno.ENOSPC)
    assert error_of(mount.open, "a", os.O_RDWR | os.O_TRUNC) == "ENOSPC"
    assert mount.sent[-1] == "RELEASE"


@pytest.mark.parametrize(
    ("mode", "left"),
    [(0o4777, 0o777), (0o2777, 0o777), (0o2767, 0o2767), (0o6755, 0o755), (0o755, 0o755)],
)
def test_a_write_takes_set_user_id_away(mode: int, left: int) -> None:
    mount = with_file(mode, uid=5)
    with mount.open("a", os.O_WRONLY) as file:
        file.write(b"x")
    assert stat.S_IMODE(mount.attrs[2].mode) == left
    mount = with_file(mode, FUSE_ATOMIC_O_TRUNC | FUSE_HANDLE_KILLPRIV_V2, uid=5)
    with mount.open("a", os.O_WRONLY) as file:
        file.write(b"x")
    assert "SETATTR" not in mount.sent
    (written,) = (one for one in mount.asked if one.name == "WRITE")
    assert written.body.write_flags & FUSE_WRITE_KILL_SUIDGID


def test_a_write_takes_capabilities_away() -> None:
    mount = with_file()
    mount.answers |= {
        FUSE_GETXATTR: always(fuse_getxattr_out(size=20)),
        FUSE_REMOVEXATTR: always(b""),
    }
    with mount.open("a", os.O_WRONLY) as file:
        file.write(b"x")
    sent = [(one.name, one.text) for one in mount.asked if "XATTR" in one.name]
    assert sent == [("GETXATTR", "security.capability"), ("REMOVEXATTR", "security.capability")]


def test_a_short_or_failed_write_ends_the_call() -> None:
    mount = with_file()
    mount.answers[FUSE_WRITE] = lambda asked: fuse_write_out(size=min(asked.body.size, 10))
    with mount.open("a", os.O_WRONLY) as file:
        assert file.write(bytes(20)) == 10
        mount.answers[FUSE_WRITE] = always(-errno.ENOSPC)
        assert error_of(file.write, b"x") == "ENOSPC"
        mount.answers[FUSE_WRITE] = lambda asked: (
            -errno.ENOSPC if asked.body.offset else takes(asked)
        )
        # What was written before the error counts.
        assert file.pwrite(bytes(300000), 0) == 131072


def test_large_transfers_are_split() -> None:
    mount = with_file()
    with mount.open("a", os.O_WRONLY) as file:
        assert file.pwrite(bytes(300000), 10) == 300000
    sizes = [one.body.size for one in mount.asked if one.name == "WRITE"]
    assert sizes == [4086, 131072, 131072, 33770]


def test_nothing_is_asked_for_behind_the_end() -> None:
    mount = with_file()
    content = b"0123456789"
    mount.answers[FUSE_READ] = lambda asked: content[asked.body.offset :][: asked.body.size]
    with mount.open("a") as file:
        assert file.pread(100, 0) == content  # there is less than the attributes say
        mount.clear()
    content = bytes(100)
    with mount.open("a") as file:
        mount.clear()
        assert file.pread(10, 50) == b""
        assert not mount.sent
        assert file.pread(100, 0) == content[:10]  # the attributes are still believed


def test_space_is_allocated() -> None:
    mount = with_file()
    mount.answers[FUSE_FALLOCATE] = always(b"")
    with mount.open("a", os.O_RDWR) as file:
        file.fallocate(0, 50, 200)
        assert file.seek(0, os.SEEK_END) == 100  # what the server says
        for mode, offset, length, error in [
            *((0, -1, 1, "EINVAL"), (0, 0, 0, "EINVAL"), (0, 1 << 62, 1 << 62, "EFBIG")),
            *((2, 0, 1, "ENOTSUP"), (1 << 20, 0, 1, "ENOTSUP")),
        ]:
            assert error_of(file.fallocate, mode, offset, length) == error
        mount.answers[FUSE_FALLOCATE] = always(-errno.ENOSYS)
        mount.clear()
        for _ in range(2):
            assert error_of(file.fallocate, 0, 0, 1) == "ENOTSUP"
        assert mount.sent.count("FALLOCATE") == 1


def test_bytes_are_copied_by_the_server_or_by_reading_and_writing() -> None:
    mount = with_file()
    mount.names["b"] = entry(3)
    mount.attrs[3] = attr(3)
    mount.answers[FUSE_READ] = lambda asked: bytes(100)[asked.body.offset :][: asked.body.size]
    with mount.open("a") as one, mount.open("b", os.O_RDWR) as two:

        def copied() -> tuple[int, list[str]]:
            mount.clear()
            count = one.copy_file_range(two, 1000, 10, 20)
            return count, [sent for sent in mount.sent if "COPY" in sent or sent == "WRITE"]

        answer = fuse_copy_file_range_out(bytes_copied=90)
        mount.answers[FUSE_COPY_FILE_RANGE_64] = always(answer)
        assert copied() == (90, ["COPY_FILE_RANGE_64"])
        mount.answers[FUSE_COPY_FILE_RANGE_64] = always(-errno.EOPNOTSUPP)
        assert copied() == (90, ["COPY_FILE_RANGE_64", "WRITE"])
        mount.answers[FUSE_COPY_FILE_RANGE_64] = always(-errno.ENOSYS)
        mount.answers[FUSE_COPY_FILE_RANGE] = always(fuse_write_out(size=80))
        assert copied() == (80, ["COPY_FILE_RANGE_64", "COPY_FILE_RANGE"])
        mount.answers[FUSE_COPY_FILE_RANGE] = always(fuse_write_out(size=91))
        assert error_of(one.copy_file_range, two, 1000, 10, 20) == "EIO"
        mount.answers[FUSE_COPY_FILE_RANGE] = always(-errno.ENOSYS)
        assert copied() == (90, ["COPY_FILE_RANGE", "WRITE"])
        assert copied() == (90, ["WRITE"])
        assert one.copy_file_range(two, 10, 100, 0) == 0
        assert error_of(two.copy_file_range, one, 1, 0, 0) == "EBADF"


def test_the_server_checks_permissions_if_it_is_to() -> None:
    mount = Scripted(uid=5, capabilities=0, options=MountOptions(default_permissions=False))
    mount.names["a"] = entry(2, mode=0)
    mount.answers[FUSE_ACCESS] = lambda asked: -errno.EACCES if asked.body.mask == 2 else b""
    with mount.open("a"):  # the modes mean nothing here
        pass
    assert mount.access("a", os.R_OK)
    assert not mount.access("a", os.W_OK)
    assert [one.body.mask for one in mount.asked if one.name == "ACCESS"] == [4, 2]
    mount.answers[FUSE_ACCESS] = always(-errno.ENOSYS)
    mount.clear()
    assert mount.access("a", os.W_OK)
    assert mount.access("a", os.R_OK)
    assert mount.sent.count("ACCESS") == 1


def test_flush_is_not_sent_to_those_who_do_not_know_it() -> None:
    mount = with_file()
    mount.answers[FUSE_FLUSH] = always(-errno.ENOSYS)
    with mount.open("a") as file:
        file.flush()
    assert mount.sent.count("FLUSH") == 1
