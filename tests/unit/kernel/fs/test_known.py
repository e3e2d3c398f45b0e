"""What needs no request is found without an operation, and is what the operation would find."""

import itertools
import os
import stat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.connection.operation import Operation
from recuse.kernel.fs.attributes import get_attributes, known_attributes
from recuse.kernel.fs.credentials import CAP_DAC_READ_SEARCH, FileCaller
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.permission import MAY_EXEC, may_search, permission
from recuse.kernel.fs.reading import ReadFile
from recuse.kernel.fs.walk import go_along, go_along_known
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FUSE_AUTO_INVAL_DATA,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_POSIX_ACL,
    FUSE_ROOT_ID,
)
from recuse.wire.notify import fuse_notify_inval_entry_out, fuse_notify_inval_inode_out

from .support import FLAGS, Scripted, attr, entry
from .test_pages import OneFile

S = 10**9
ASKS = object()


def outcome(operation: Operation[Any]) -> Any:
    """What an operation returns, the errno of what it raises, or ASKS if it makes a request."""
    try:
        next(operation)
    except StopIteration as stop:
        return stop.value
    except OSError as error:
        return error.errno
    operation.close()
    return ASKS


@pytest.mark.parametrize("flags", [FLAGS, FLAGS | FUSE_POSIX_ACL])
@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("all_users", [False, True])
def test_who_may_search_is_what_permission_says(flags: int, checks: bool, all_users: bool) -> None:
    options = MountOptions(default_permissions=checks, allow_other=all_users, user_id=5, group_id=6)
    mount = Scripted(flags, options=options, uid=5)
    root = mount.superblock.root.inode
    assert root is not None
    callers = [
        FileCaller(1, uid, gid, groups=groups, capabilities=capabilities)
        for uid in (5, 7)
        for gid in (6, 7)
        for groups in ((), (8,))
        for capabilities in (0, CAP_DAC_READ_SEARCH)
    ]
    sure = 0
    for mode, uid, gid in itertools.product((0o700, 0o711, 0o010, 0o077, 0o001), (5, 7), (6, 8)):
        root.attr = attr(FUSE_ROOT_ID, stat.S_IFDIR, mode, uid=uid, gid=gid)
        for valid_until in (mount.now + S, mount.now - 1):
            root.valid_until, root.outdated = valid_until, 0
            for caller in callers:
                if may_search(mount.superblock, caller, root):
                    assert outcome(permission(mount.superblock, caller, root, MAY_EXEC)) is None
                    sure += 1
    assert bool(sure) is (flags == FLAGS)  # otherwise lists may have to be asked for
    root.bad = True
    assert not any(may_search(mount.superblock, caller, root) for caller in callers)


def test_a_path_is_followed_as_far_as_it_is_known() -> None:
    mount = Scripted(options=MountOptions(default_permissions=False))
    mount.names |= {
        "a": entry(2, stat.S_IFDIR, valid_s=3),
        "b": entry(3, stat.S_IFDIR, valid_s=2),
        "file": entry(4, valid_s=1),
        "link": entry(5, stat.S_IFLNK, valid_s=1),
        "no": entry(6, valid_s=0),
    }
    mount.attrs[6] = attr(6)
    for path in ("a/b/file", "a/link", "a/no"):
        mount.stat(path, follow_symlinks=False)
    with pytest.raises(FileNotFoundError):
        mount.stat("a/absent")
    superblock, caller = mount.superblock, FileCaller(1, 0, 0)

    def stops(path: str) -> tuple[bytes, list[bytes]]:
        names = [os.fsencode(name) for name in reversed(path.split("/"))]
        before = names[:]
        here = go_along_known(superblock, caller, superblock.root, names)
        if not names:
            found = outcome(go_along(superblock, caller, superblock.root, before))
            assert (found, before) == (here, [])
        return here.name, names

    assert stops("a/b/file") == (b"file", [])
    assert stops("./a/./b/.") == (b"b", [])
    assert stops("a/b/../file") == (b"b", [b"file", b".."])
    assert stops("a/link") == (b"link", [])
    assert stops("a/link/x") == (b"link", [b"x"])
    assert stops("a/b/file/x") == (b"file", [b"x"])
    assert stops("a/no") == (b"a", [b"no"])
    assert stops("a/absent/x") == (b"a", [b"x", b"absent"])
    mount.now += S + 1
    assert stops("a/b/file") == (b"b", [b"file"])
    mount.now += S
    assert stops("a/b/file") == (b"a", [b"file", b"b"])
    mount.notify(FUSE_NOTIFY_INVAL_ENTRY, fuse_notify_inval_entry_out(1, 1), b"a\0")
    assert stops("a/b/file") == (b"", [b"file", b"b", b"a"])


def test_attributes_are_known_as_long_as_nobody_has_to_be_asked() -> None:
    mount = Scripted(options=MountOptions(allow_other=False, user_id=5, group_id=5), uid=5)
    mount.names["a"] = entry(2, valid_s=3, size=9)
    mount.attrs[2] = attr(2, size=9)
    mount.stat("a")
    superblock = mount.superblock
    inode = superblock.root.children[b"a"].inode
    assert inode is not None
    owner, other = FileCaller(1, 5, 5), FileCaller(1, 6, 5)
    assert known_attributes(superblock, owner, inode) is inode.attr
    assert outcome(get_attributes(superblock, owner, inode)) is inode.attr
    assert known_attributes(superblock, other, inode) is None
    mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(2, -1, 0))
    assert known_attributes(superblock, owner, inode) is None
    mount.stat("a")
    assert known_attributes(superblock, owner, inode) is not None
    mount.now += 4 * S
    assert known_attributes(superblock, owner, inode) is None


READS = st.lists(
    st.tuples(st.integers(0, 20_000), st.one_of(st.none(), st.integers(0, 20_000))), max_size=20
)


@given(READS, st.integers(0, 16_000), st.booleans())
def test_cached_content_is_read_as_by_the_operation(
    reads: list[tuple[int, int | None]], size: int, checks: bool
) -> None:
    content = bytes(range(251)) * (size // 251)
    flags = FLAGS | (FUSE_AUTO_INVAL_DATA if checks else 0)
    one, other = OneFile(content, FOPEN_KEEP_CACHE, flags), OneFile(content, 0, flags)
    with one.open("a") as file, other.open("a") as model:
        known = kernel_file(file)
        for wanted, offset in reads:
            position = known.position
            data = known.read_known(one._caller, wanted, offset)
            if data is None:
                assert known.position == position
                data = file.read(wanted) if offset is None else file.pread(wanted, offset)
                one.clear()
                again = known.read_known(
                    one._caller, wanted, position if offset is None else offset
                )
                assert again == data
                assert one.sent == []
            assert data == (model.read(wanted) if offset is None else model.pread(wanted, offset))


def test_what_the_cache_may_not_be_used_for() -> None:
    for open_flags, flags in ((FOPEN_DIRECT_IO, 0), (0, os.O_DIRECT), (0, os.O_WRONLY)):
        mount = OneFile(b"content", open_flags)
        with mount.open("a") as file:
            assert file.read() == b"content"
        with mount.open("a", flags) as file:
            assert kernel_file(file).read_known(mount._caller, 4, 0) is None
    mount = OneFile(b"content")
    with mount.open("a") as file:
        assert file.read() == b"content"
        known = kernel_file(file)
        assert known.read_known(mount._caller, 4, 0) == b"cont"
        assert known.read_known(mount._caller, 9, 3) == b"tent"
        mount.now += 2 * S
        assert known.read_known(mount._caller, 4, 0) == b"cont"
        assert known.read_known(mount._caller, 9, 3) is None  # it may be longer now
        mount.notify(FUSE_NOTIFY_INVAL_INODE, fuse_notify_inval_inode_out(2, 0, 0))
        assert known.read_known(mount._caller, 4, 0) is None


def kernel_file(file: Any) -> ReadFile:
    """The kernel half's own."""
    found = file._file
    assert isinstance(found, ReadFile)
    return found


def test_who_else_is_at_the_position_comes_first() -> None:
    mount = OneFile(b"content")
    with mount.open("a") as file:
        file.pread(7, 0)
        known = kernel_file(file)
        assert known.read_known(mount._caller, 3, None) == b"con"
        assert known.placing.take_now()
        assert known.read_known(mount._caller, 3, None) is None
        assert known.read_known(mount._caller, 3, 0) == b"con"
        mount.superblock.give_back(known.placing)
        assert known.read_known(mount._caller, 9, None) == b"tent"
        assert known.position == 7
